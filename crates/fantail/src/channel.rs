//! What names a channel: the realm's number and the channel's name; and tables by such names. Values only.

use std::hash::RandomState;

/// A table by what strangers choose. Its hasher has a key of its own (SipHash), so that nobody can find names that
/// fall together; hashbrown's does not promise that.
pub type ByName<K, V> = hashbrown::HashMap<K, V, RandomState>;

/// Such a set.
pub type Names<K> = hashbrown::HashSet<K, RandomState>;

/// A realm's number, stable for the life of the process.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, PartialOrd, Ord)]
pub struct RealmId(pub u32);

/// A channel's name in its realm.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ChannelKey {
    pub realm: RealmId,
    pub name: Box<str>,
}

impl hashbrown::Equivalent<ChannelKey> for (RealmId, &str) {
    fn equivalent(&self, key: &ChannelKey) -> bool {
        self.0 == key.realm && *self.1 == *key.name
    }
}
