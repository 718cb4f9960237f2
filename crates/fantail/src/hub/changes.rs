//! Which channels have got their first subscriber or lost their last since somebody asked: a name each, not an
//! event each, so that what waits is bounded by the number of channels. Never says who subscribes.

use super::{ChannelKey, RealmId, interest::Interest};
use crate::channel::{ByName, Names};

/// What is to be told about one realm.
#[derive(Debug)]
pub(super) struct Changed {
    realm: RealmId,
    names: Names<Box<str>>,
    /// There were more than are kept: all channels are told.
    all: bool,
}

/// What [`super::Hub::changes`] tells.
#[derive(Debug, Default)]
pub struct Changes {
    pub channels: Vec<Change>,
    /// `channels` are all that have a subscriber: every other has none.
    pub all: bool,
}

#[derive(Debug, Eq, PartialEq)]
pub struct Change {
    pub channel: Box<str>,
    pub subscribed: bool,
}

impl Changed {
    pub(super) fn new(realm: RealmId) -> Self {
        Self { realm, names: Names::default(), all: false }
    }

    /// True when nothing was waiting before.
    pub(super) fn note(&mut self, realm: RealmId, channel: &str) -> bool {
        if realm != self.realm || self.all {
            return false;
        }
        let first = self.names.is_empty();
        if self.names.len() >= MAX_NAMES {
            self.names = Names::default();
            self.all = true;
        } else {
            self.names.insert(channel.into());
        }
        first
    }

    pub(super) fn take(&mut self, interest: &ByName<ChannelKey, Interest>) -> Option<Changes> {
        let names = std::mem::take(&mut self.names);
        if std::mem::take(&mut self.all) {
            let heard = interest.iter().filter(|(key, known)| key.realm == self.realm && known.is_heard());
            let change = |(key, _): (&ChannelKey, _)| Change { channel: key.name.clone(), subscribed: true };
            return Some(Changes { channels: heard.map(change).collect(), all: true });
        }
        let change = |channel: Box<str>| {
            let subscribed = interest.get(&(self.realm, &*channel)).is_some_and(Interest::is_heard);
            Change { channel, subscribed }
        };
        (!names.is_empty()).then(|| Changes { channels: names.into_iter().map(change).collect(), all: false })
    }
}

/// Of a burst; whoever follows asks again within milliseconds.
const MAX_NAMES: usize = 200_000;

#[cfg(test)]
mod tests {
    use super::*;

    const R: RealmId = RealmId(0);

    fn interest(names: &[&str]) -> ByName<ChannelKey, Interest> {
        let one = |name: &&str| (ChannelKey { realm: R, name: (*name).into() }, Interest::new(1, 0));
        names.iter().map(one).collect()
    }

    #[test]
    fn the_last_state_is_told_once() {
        let mut changed = Changed::new(R);
        assert!(changed.note(R, "a"));
        assert!(!changed.note(R, "a") && !changed.note(R, "b"));
        assert!(!changed.note(RealmId(1), "c"), "another realm");
        let mut changes = changed.take(&interest(&["a"])).unwrap();
        changes.channels.sort_by(|a, b| a.channel.cmp(&b.channel));
        let change = |channel: &str, subscribed| Change { channel: channel.into(), subscribed };
        assert_eq!(changes.channels, [change("a", true), change("b", false)]);
        assert!(!changes.all && changed.take(&interest(&["a"])).is_none());
    }

    #[test]
    fn too_many_are_told_as_all() {
        let mut changed = Changed::new(R);
        for n in 0..=MAX_NAMES {
            changed.note(R, &n.to_string());
        }
        let changes = changed.take(&interest(&["x", "y"])).unwrap();
        assert!(changes.all && changes.channels.len() == 2);
    }
}
