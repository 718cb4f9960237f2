//! Which channels publishers on the SUB socket are told to send: those that the hub has interest in. Keeps the topics for peers that come later; writes to no socket.

use std::collections::HashSet;

use bytes::Bytes;
use fantail_proto::zmtp;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::hub::{Changes, Hub};

#[derive(Debug)]
pub(super) struct Interest {
    topics: Mutex<HashSet<Box<str>>>,
    /// Subscriptions as they are written; sent while `topics` is locked, so that who joins misses none.
    changes: broadcast::Sender<Bytes>,
}

/// What one peer is told: the topics of now, and then every change. A peer that is too far behind is to connect again.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) topics: Vec<Bytes>,
    pub(super) changes: broadcast::Receiver<Bytes>,
}

impl Interest {
    pub(super) fn new() -> Self {
        Self { topics: Mutex::default(), changes: broadcast::Sender::new(CHANGES) }
    }

    pub(super) fn join(&self) -> Feed {
        let topics = self.topics.lock();
        let all = topics.iter().map(|topic| zmtp::subscription(topic.as_bytes(), true));
        Feed { topics: all.collect(), changes: self.changes.subscribe() }
    }

    /// Follows the hub; never returns.
    pub(super) async fn keep(&self, hub: &Hub) {
        loop {
            self.apply(hub.changes().await);
        }
    }

    fn apply(&self, changes: Changes) {
        let mut topics = self.topics.lock();
        if changes.all {
            let there: HashSet<&str> = changes.channels.iter().map(|change| &*change.channel).collect();
            let gone: Vec<_> = topics.iter().filter(|topic| !there.contains(&***topic)).cloned().collect();
            gone.iter().for_each(|topic| self.withdraw(&mut topics, topic));
        }
        for change in changes.channels {
            let topic = change.channel;
            if !change.subscribed {
                self.withdraw(&mut topics, &topic);
            } else if topics.insert(topic.clone()) {
                self.tell(&topic, true);
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

/// Changes that one peer may be behind: three times the channels of a large site. Each is some dozens of bytes.
const CHANGES: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Change;

    fn changes(list: &[(&str, bool)]) -> Changes {
        let change = |&(channel, subscribed): &(&str, bool)| Change { channel: channel.into(), subscribed };
        Changes { channels: list.iter().map(change).collect(), all: false }
    }

    fn told(feed: &mut Feed) -> Vec<String> {
        let line = |frame: Bytes| {
            format!("{}{}", if frame[2] == 1 { '+' } else { '-' }, str::from_utf8(&frame[3..]).unwrap())
        };
        std::iter::from_fn(|| feed.changes.try_recv().ok()).map(line).collect()
    }

    #[test]
    fn topics_follow_the_hub() {
        let interest = Interest::new();
        let mut feed = interest.join();
        interest.apply(changes(&[("a", true), ("b", true)]));
        interest.apply(changes(&[("a", false), ("b", true), ("c", false)]));
        assert_eq!(told(&mut feed), ["+a", "+b", "-a"]);
        assert_eq!(interest.join().topics, [zmtp::subscription(b"b", true)]);
        interest.apply(Changes { channels: Vec::new(), all: true });
        assert_eq!(told(&mut feed), ["-b"]);
    }
}
