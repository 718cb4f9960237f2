//! Which channels publishers on the SUB socket are told to send: those that the hub has interest in. Keeps the topics for
//! peers that come later, and their turns at being told them; writes to no socket.

use std::collections::HashSet;

use bytes::Bytes;
use fantail_proto::zmtp;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit, broadcast};

use crate::hub::{Changes, Hub};

#[derive(Debug)]
pub(super) struct Interest {
    topics: Mutex<HashSet<Box<str>>>,
    /// Subscriptions as they are written; sent while `topics` is locked, so that who joins misses none.
    changes: broadcast::Sender<Bytes>,
    turns: Semaphore,
}

/// What one peer is told: the topics of now, and then every change. A peer that is too far behind is to connect again.
#[derive(Debug)]
pub(super) struct Feed<'i> {
    /// As they are written.
    pub(super) topics: Vec<u8>,
    pub(super) changes: broadcast::Receiver<Bytes>,
    /// To be kept until the topics are written: each peer has all of them in memory.
    pub(super) turn: SemaphorePermit<'i>,
}

impl Interest {
    pub(super) fn new() -> Self {
        let changes = broadcast::Sender::new(CHANGES);
        Self { topics: Mutex::default(), changes, turns: Semaphore::new(TOLD_AT_ONCE) }
    }

    /// In turn; `None` never comes, because nobody closes the turns.
    pub(super) async fn join(&self) -> Option<Feed<'_>> {
        let turn = self.turns.acquire().await.ok()?;
        let topics = self.topics.lock();
        let all = topics.iter().flat_map(|topic| zmtp::subscription(topic.as_bytes(), true));
        Some(Feed { topics: all.collect(), changes: self.changes.subscribe(), turn })
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
/// Peers that are told all topics at the same time.
const TOLD_AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Change;

    fn changes(list: &[(&str, bool)]) -> Changes {
        let change = |&(channel, subscribed): &(&str, bool)| Change { channel: channel.into(), subscribed };
        Changes { channels: list.iter().map(change).collect(), all: false }
    }

    fn told(feed: &mut Feed<'_>) -> Vec<String> {
        let line = |frame: Bytes| {
            format!("{}{}", if frame[2] == 1 { '+' } else { '-' }, str::from_utf8(&frame[3..]).unwrap())
        };
        std::iter::from_fn(|| feed.changes.try_recv().ok()).map(line).collect()
    }

    #[tokio::test]
    async fn topics_follow_the_hub() {
        let interest = Interest::new();
        let mut feed = interest.join().await.expect("a turn");
        interest.apply(changes(&[("a", true), ("b", true)]));
        interest.apply(changes(&[("a", false), ("b", true), ("c", false)]));
        assert_eq!(told(&mut feed), ["+a", "+b", "-a"]);
        assert_eq!(interest.join().await.expect("a turn").topics, zmtp::subscription(b"b", true));
        interest.apply(Changes { channels: Vec::new(), all: true });
        assert_eq!(told(&mut feed), ["-b"]);
    }

    #[tokio::test]
    async fn some_at_once_have_all_topics() {
        let interest = Interest::new();
        let mut feeds = Vec::new();
        for _ in 0..TOLD_AT_ONCE {
            feeds.push(interest.join().await.expect("a turn"));
        }
        let mut next = std::pin::pin!(interest.join());
        assert!(
            std::future::poll_fn(|context| std::task::Poll::Ready(next.as_mut().poll(context).is_pending()))
                .await
        );
        drop(feeds.pop());
        assert!(next.await.is_some());
    }
}
