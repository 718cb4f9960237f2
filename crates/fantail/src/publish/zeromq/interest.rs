//! Which channels publishers on the SUB socket are told to send: those that have subscribers, and for a while those
//! whose last long-poll was answered. Keeps the topics for peers that come later; writes to no socket.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use fantail_proto::zmtp;
use parking_lot::Mutex;
use tokio::{
    sync::broadcast,
    time::{Instant, sleep_until},
};

use crate::hub::{Changes, Hub};

#[derive(Debug)]
pub(super) struct Interest {
    topics: Mutex<HashSet<Box<str>>>,
    /// Subscriptions as they are written; sent while `topics` is locked, so that who joins misses none.
    changes: broadcast::Sender<Bytes>,
    linger: Duration,
}

/// What one peer is told: the topics of now, and then every change. A peer that is too far behind is to connect again.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) topics: Vec<Bytes>,
    pub(super) changes: broadcast::Receiver<Bytes>,
}

impl Interest {
    pub(super) fn new(linger: Duration) -> Self {
        Self { topics: Mutex::default(), changes: broadcast::Sender::new(CHANGES), linger }
    }

    pub(super) fn join(&self) -> Feed {
        let topics = self.topics.lock();
        let all = topics.iter().map(|topic| zmtp::subscription(topic.as_bytes(), true));
        Feed { topics: all.collect(), changes: self.changes.subscribe() }
    }

    /// Follows the hub; never returns.
    pub(super) async fn keep(&self, hub: &Hub) {
        let mut leaving = Leaving::default();
        loop {
            let due = leaving.next();
            let expired = async { sleep_until(due.unwrap_or_else(Instant::now)).await };
            tokio::select! {
                changes = hub.changes() => self.apply(changes, &mut leaving, Instant::now()),
                () = expired, if due.is_some() => {
                    let mut topics = self.topics.lock();
                    for topic in leaving.due(Instant::now()) {
                        self.withdraw(&mut topics, &topic);
                    }
                }
            }
        }
    }

    fn apply(&self, changes: Changes, leaving: &mut Leaving, now: Instant) {
        let mut topics = self.topics.lock();
        if changes.all {
            let there: HashSet<&str> = changes.channels.iter().map(|change| &*change.channel).collect();
            let gone: Vec<_> = topics.iter().filter(|topic| !there.contains(&***topic)).cloned().collect();
            gone.iter().for_each(|topic| self.withdraw(&mut topics, topic));
        }
        for change in changes.channels {
            let topic = change.channel;
            if change.subscribed {
                leaving.stay(&topic);
                if topics.insert(topic.clone()) {
                    self.tell(&topic, true);
                }
            } else if change.poll && topics.contains(&topic) && !self.linger.is_zero() {
                leaving.leave(topic, now + self.linger);
            } else {
                leaving.stay(&topic);
                self.withdraw(&mut topics, &topic);
            }
        }
    }

    fn withdraw(&self, topics: &mut HashSet<Box<str>>, topic: &str) {
        if topics.remove(topic) {
            self.tell(topic, false);
        }
    }

    fn tell(&self, topic: &str, wanted: bool) {
        // Without a peer there is nobody to tell.
        _ = self.changes.send(zmtp::subscription(topic.as_bytes(), wanted));
    }
}

/// Topics that are withdrawn when their time is up; all have the same time, so the oldest is the first.
#[derive(Debug, Default)]
struct Leaving {
    until: HashMap<Box<str>, Instant>,
    /// Entries that are no longer in `until`, or later there, are passed over.
    queue: VecDeque<(Instant, Box<str>)>,
}

impl Leaving {
    fn leave(&mut self, topic: Box<str>, until: Instant) {
        self.until.insert(topic.clone(), until);
        self.queue.push_back((until, topic));
    }

    fn stay(&mut self, topic: &str) {
        self.until.remove(topic);
    }

    fn next(&self) -> Option<Instant> {
        self.queue.front().map(|(until, _)| *until)
    }

    fn due(&mut self, now: Instant) -> Vec<Box<str>> {
        let mut due = Vec::new();
        while let Some((until, topic)) = self.queue.pop_front_if(|(until, _)| *until <= now) {
            if self.until.get(&topic) == Some(&until) {
                self.until.remove(&topic);
                due.push(topic);
            }
        }
        due
    }
}

/// Changes that one peer may be behind: three times the channels of a large site. Each is some dozens of bytes.
const CHANGES: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Change;

    fn changes(list: &[(&str, bool, bool)]) -> Changes {
        let change = |&(channel, subscribed, poll): &(&str, bool, bool)| Change {
            channel: channel.into(),
            subscribed,
            poll,
        };
        Changes { channels: list.iter().map(change).collect(), all: false }
    }

    fn told(feed: &mut Feed) -> Vec<String> {
        let line = |frame: Bytes| {
            format!("{}{}", if frame[2] == 1 { '+' } else { '-' }, str::from_utf8(&frame[3..]).unwrap())
        };
        std::iter::from_fn(|| feed.changes.try_recv().ok()).map(line).collect()
    }

    #[test]
    fn topics_follow_the_hub_and_linger_after_polls() {
        let interest = Interest::new(Duration::from_secs(60));
        let (mut leaving, now) = (Leaving::default(), Instant::now());
        let mut feed = interest.join();
        interest.apply(changes(&[("a", true, false), ("b", true, false)]), &mut leaving, now);
        interest.apply(
            changes(&[("a", false, false), ("b", false, true), ("c", false, true)]),
            &mut leaving,
            now,
        );
        assert_eq!(told(&mut feed), ["+a", "+b", "-a", "-c"][..3]);
        assert_eq!(interest.join().topics, [zmtp::subscription(b"b", true)]);
        let later = now + Duration::from_secs(30);
        interest.apply(changes(&[("b", true, false)]), &mut leaving, later);
        interest.apply(changes(&[("b", false, true)]), &mut leaving, later);
        assert!(leaving.due(now + Duration::from_secs(60)).is_empty(), "asked again in time");
        assert_eq!(leaving.due(now + Duration::from_secs(90)), ["b".into()]);
        assert!(told(&mut feed).is_empty());
        interest.apply(Changes { channels: Vec::new(), all: true }, &mut leaving, later);
        assert_eq!(told(&mut feed), ["-b"]);
    }
}
