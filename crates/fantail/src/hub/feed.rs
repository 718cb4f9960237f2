//! The feed of a realm's subscriptions, for publishers that publish only what somebody hears: which channels have a
//! subscriber, as changes with numbers. Owns what is remembered of them: the last change of each channel, and the newest
//! changes one by one. Begins when somebody asks for it first. Never says who subscribes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::futures::Notified;

use super::{Hub, RealmId};
use crate::channel::ByName;

/// One realm's.
#[derive(Debug)]
pub(super) struct Feed {
    /// Another for each feed that is begun anew: numbers of two have nothing to do with each other.
    epoch: u64,
    /// Of the newest change; the first is 1.
    last: u64,
    by_channel: ByName<Arc<str>, u64>,
    by_number: BTreeMap<u64, (Arc<str>, bool)>,
    /// The last changes of channels without a subscriber, and of some that have one again.
    ended: VecDeque<u64>,
    /// Whoever knows no more than this may have missed that a channel has ended.
    floor: u64,
    recent: VecDeque<(Arc<str>, bool)>,
}

/// How far somebody has followed a feed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cursor {
    pub epoch: u64,
    pub number: u64,
}

/// A channel has got its first subscriber, or has lost its last.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Turn {
    pub number: u64,
    pub channel: Arc<str>,
    pub subscribed: bool,
}

impl Feed {
    fn new<'c>(epoch: u64, channels: impl Iterator<Item = &'c str>) -> Self {
        let mut feed = Self {
            epoch,
            last: 0,
            by_channel: ByName::default(),
            by_number: BTreeMap::new(),
            ended: VecDeque::new(),
            floor: 0,
            recent: VecDeque::new(),
        };
        channels.for_each(|channel| feed.note(channel, true));
        feed
    }

    pub(super) fn note(&mut self, channel: &str, subscribed: bool) {
        let before = self.by_channel.get_key_value(channel).map(|(name, number)| (Arc::clone(name), *number));
        let name = match before {
            Some((name, number)) => match self.by_number.remove(&number) {
                Some((_, was)) if was == subscribed => {
                    self.by_number.insert(number, (name, was));
                    return;
                }
                _ => name,
            },
            None if !subscribed => return,
            None => channel.into(),
        };
        self.last += 1;
        self.by_channel.insert(Arc::clone(&name), self.last);
        self.by_number.insert(self.last, (Arc::clone(&name), subscribed));
        self.recent.push_back((name, subscribed));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        if !subscribed {
            self.ended.push_back(self.last);
            if self.ended.len() > ENDED {
                self.forget_oldest();
            }
        }
    }

    fn forget_oldest(&mut self) {
        let Some(number) = self.ended.pop_front() else { return };
        // Of a channel that has a subscriber again, its last change is another.
        if let Some((name, false)) = self.by_number.get(&number) {
            self.by_channel.remove(&**name);
            self.by_number.remove(&number);
            self.floor = number;
        }
    }

    /// The last changes of channels behind a cursor, at most `most`, and how far they lead. `None`: too much is forgotten.
    fn behind(&self, cursor: Option<Cursor>, most: usize) -> Option<(Vec<Turn>, Cursor)> {
        let from = match cursor {
            None => 0,
            Some(Cursor { epoch, number }) => {
                let known = epoch == self.epoch && (self.floor..=self.last).contains(&number);
                known.then_some(number)?
            }
        };
        let turn = |(number, (channel, subscribed)): (&u64, &(Arc<str>, bool))| Turn {
            number: *number,
            channel: Arc::clone(channel),
            subscribed: *subscribed,
        };
        let turns: Vec<_> = self.by_number.range(from + 1..).take(most).map(turn).collect();
        let number = turns.last().filter(|_| turns.len() == most).map_or(self.last, |last| last.number);
        Some((turns, Cursor { epoch: self.epoch, number }))
    }

    /// Each change behind a number, at most `most`. `None`: they are not remembered one by one any more.
    fn each(&self, after: u64, most: usize) -> Option<Vec<Turn>> {
        let first = self.last - self.recent.len() as u64;
        let skip = usize::try_from(after.checked_sub(first)?).ok()?;
        let changes = self.recent.iter().skip(skip).take(most).zip(after + 1..);
        let turn = |((channel, subscribed), number): (&(Arc<str>, bool), u64)| Turn {
            number,
            channel: Arc::clone(channel),
            subscribed: *subscribed,
        };
        Some(changes.map(turn).collect())
    }
}

impl Hub {
    /// The last change of each channel of a realm behind a cursor, at most `most`, and the cursor behind them; without one,
    /// all. `None`: too much is forgotten, begin anew.
    pub fn subscriptions(
        &self,
        realm: RealmId,
        cursor: Option<Cursor>,
        most: usize,
    ) -> Option<(Vec<Turn>, Cursor)> {
        self.with_feed(realm, |feed| feed.behind(cursor, most))
    }

    /// Each change of a realm's channels behind a cursor; `None` when it is too far behind.
    pub fn turns(&self, realm: RealmId, cursor: Cursor, most: usize) -> Option<Vec<Turn>> {
        self.with_feed(realm, |feed| {
            (feed.epoch == cursor.epoch).then(|| feed.each(cursor.number, most)).flatten()
        })
    }

    /// Where a realm's feed is now.
    pub fn feed_cursor(&self, realm: RealmId) -> Cursor {
        self.with_feed(realm, |feed| Cursor { epoch: feed.epoch, number: feed.last })
    }

    /// Resolves when the subscriptions of some realm have changed after this was called.
    pub fn turned(&self) -> Notified<'_> {
        self.turned.notified()
    }

    fn with_feed<T>(&self, realm: RealmId, read: impl FnOnce(&Feed) -> T) -> T {
        let mut ledger = self.outlet.ledger.lock();
        let super::Ledger { interest, feeds, .. } = &mut *ledger;
        let feed = feeds.entry(realm).or_insert_with(|| {
            let own = interest.iter().filter(|(key, known)| key.realm == realm && known.is_heard());
            Feed::new(self.epoch(), own.map(|(key, _)| &*key.name))
        });
        read(feed)
    }

    /// Grows from one process to the next.
    fn epoch(&self) -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_nanos()).unwrap_or(0)
    }
}

/// Channels whose end is remembered.
const ENDED: usize = 100_000;
/// Changes that are remembered one by one.
const RECENT: usize = 10_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(turns: &[Turn]) -> Vec<(u64, &str, bool)> {
        turns.iter().map(|turn| (turn.number, &*turn.channel, turn.subscribed)).collect()
    }

    #[test]
    fn the_last_change_of_a_channel_counts() {
        let mut feed = Feed::new(7, ["a", "b"].into_iter());
        let (turns, cursor) = feed.behind(None, 9).unwrap();
        assert_eq!(names(&turns), [(1, "a", true), (2, "b", true)]);
        feed.note("a", false);
        feed.note("c", true);
        feed.note("a", true);
        feed.note("a", true);
        feed.note("unknown", false);
        let (turns, next) = feed.behind(Some(cursor), 1).unwrap();
        assert_eq!((names(&turns), next.number), (vec![(4, "c", true)], 4));
        let (turns, next) = feed.behind(Some(next), 1).unwrap();
        assert_eq!((names(&turns), next.number), (vec![(5, "a", true)], 5));
        assert_eq!(feed.behind(Some(next), 1).unwrap(), (Vec::new(), next));
        assert_eq!(names(&feed.each(2, 2).unwrap()), [(3, "a", false), (4, "c", true)]);
        for strange in [Cursor { epoch: 8, ..next }, Cursor { number: 6, ..next }] {
            assert_eq!(feed.behind(Some(strange), 9), None);
        }
    }

    #[test]
    fn what_is_forgotten_is_not_passed_over() {
        let mut feed = Feed::new(7, ["kept"].into_iter());
        let early = Cursor { epoch: 7, number: 1 };
        for n in 0..=ENDED {
            feed.note(&n.to_string(), true);
            feed.note(&n.to_string(), false);
        }
        assert_eq!((feed.behind(Some(early), 9), feed.each(1, 9)), (None, None));
        let (turns, _) = feed.behind(None, 1).unwrap();
        assert_eq!(names(&turns), [(1, "kept", true)]);
        assert_eq!(feed.by_number.len(), ENDED + 1);
    }

    proptest! {
        /// Whoever pages from any cursor on knows in the end what is subscribed to.
        #[test]
        fn a_follower_is_right(
            changes in prop::collection::vec((0..6_u8, any::<bool>()), 0..60),
            more in prop::collection::vec((0..6_u8, any::<bool>()), 0..60),
            page in 1..5_usize,
        ) {
            let mut feed = Feed::new(1, std::iter::empty());
            let mut known = std::collections::BTreeSet::new();
            let mut cursor = None;
            for part in [&changes, &more] {
                part.iter().for_each(|(channel, on)| feed.note(&channel.to_string(), *on));
                loop {
                    let (turns, next) = feed.behind(cursor, page).expect("nothing is forgotten yet");
                    cursor = Some(next);
                    if turns.is_empty() {
                        break;
                    }
                    for turn in turns {
                        if turn.subscribed { known.insert(turn.channel); } else { known.remove(&turn.channel); }
                    }
                }
                let right = feed.by_number.values().filter(|(_, on)| *on).map(|(name, _)| Arc::clone(name));
                prop_assert_eq!(&known, &right.collect());
            }
        }
    }
}
