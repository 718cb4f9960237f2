//! Who is subscribed to what, in memory, by channel. What is on disk is a copy of it, by address. Knows no stanza and
//! no presence.

use std::{collections::BTreeMap, ops::Bound};

use fantail_proto::xmpp::{jid, pubsub::Shows};
use hashbrown::{HashMap, hash_map::Entry};
use redb::{ReadableTable as _, TableDefinition};

use crate::{
    hub::{ChannelKey, RealmId},
    store::{self, Store, StoreError, Work},
};

/// What a subscriber gets, and when: one for an address and a channel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Terms {
    /// `xmpp-stanza` items, as they are.
    pub stanza: bool,
    /// Items of the channel as a node.
    pub node: bool,
    pub shows: Shows,
}

impl Terms {
    pub(super) fn is_empty(self) -> bool {
        !self.stanza && !self.node
    }

    /// Stanzas, too, or for what has changed.
    pub(super) fn with_stanzas(self, shows: Shows) -> Self {
        Self { stanza: true, shows: if self.node { self.shows.or(shows) } else { shows }, ..self }
    }

    pub(super) fn with_node(self, shows: Shows) -> Self {
        Self { node: true, shows: if self.stanza { self.shows.or(shows) } else { shows }, ..self }
    }

    /// Whether presence decides.
    pub(super) fn is_watched(self) -> bool {
        !self.is_empty() && !self.shows.is_always()
    }

    fn bits(self) -> u8 {
        self.shows.bits() | u8::from(self.stanza) << 5 | u8::from(self.node) << 6
    }

    fn from_bits(bits: u8) -> Self {
        Self { stanza: bits & 1 << 5 != 0, node: bits & 1 << 6 != 0, shows: Shows::from_bits(bits) }
    }
}

/// A channel as it is named on disk, where the numbers of realms mean nothing.
#[derive(Clone, Debug)]
pub struct Place {
    pub realm: RealmId,
    pub realm_name: String,
    pub channel: String,
}

#[derive(Debug, Default)]
pub(super) struct Subscribers {
    channels: HashMap<ChannelKey, Channel>,
    /// By the channel's number and address: one map, because most channels may have few subscribers.
    terms: BTreeMap<(u64, Box<str>), u8>,
    realms: HashMap<RealmId, Realm>,
    /// Whose presence decides, without their resources, and about how many subscriptions.
    watched: HashMap<Box<str>, u32>,
    next: u64,
}

#[derive(Debug)]
struct Realm {
    name: String,
    subscriptions: usize,
}

#[derive(Debug, Default)]
struct Channel {
    number: u64,
    stanzas: u32,
    nodes: u32,
    /// Those who are among both.
    both: u32,
}

/// What a change means for the hub.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Interest {
    Begins,
    Ends,
    Stays,
}

impl Subscribers {
    pub(super) fn len(&self) -> usize {
        self.terms.len()
    }

    pub(super) fn get(&self, realm: RealmId, channel: &str, jid: &str) -> Option<Terms> {
        let channel = self.channels.get(&(realm, channel))?;
        self.terms.get(&(channel.number, jid.into())).map(|bits| Terms::from_bits(*bits))
    }

    /// Whether anybody wants the channel's stanzas, and its items as of a node.
    pub(super) fn wanted(&self, realm: RealmId, channel: &str) -> (u32, u32) {
        self.channels.get(&(realm, channel)).map_or((0, 0), |channel| (channel.stanzas, channel.nodes))
    }

    /// How many get something of an item that is for its stanzas' subscribers, its node's, or both.
    pub(super) fn receivers(&self, realm: RealmId, channel: &str, (stanza, node): (bool, bool)) -> u32 {
        let Some(channel) = self.channels.get(&(realm, channel)) else { return 0 };
        match (stanza, node) {
            (true, true) => channel.stanzas + channel.nodes - channel.both,
            (true, false) => channel.stanzas,
            (false, true) => channel.nodes,
            (false, false) => 0,
        }
    }

    pub(super) fn realm_name(&self, realm: RealmId) -> &str {
        self.realms.get(&realm).map_or("", |realm| &realm.name)
    }

    /// Of one realm.
    pub(super) fn count(&self, realm: RealmId) -> usize {
        self.realms.get(&realm).map_or(0, |realm| realm.subscriptions)
    }

    /// Whose presence decides, without their resources.
    pub(super) fn watched(&self) -> impl Iterator<Item = &str> {
        self.watched.keys().map(|bare| &**bare)
    }

    /// Whether the presence of a bare address decides about any subscription.
    pub(super) fn watches(&self, bare: &str) -> bool {
        self.watched.contains_key(bare)
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = &ChannelKey> {
        self.channels.keys()
    }

    /// At most `most` subscribers of a channel, in the order of their addresses, behind `after`.
    pub(super) fn page(
        &self,
        realm: RealmId,
        channel: &str,
        after: Option<&str>,
        most: usize,
    ) -> impl Iterator<Item = (&str, Terms)> {
        let number = self.channels.get(&(realm, channel)).map(|channel| channel.number);
        let number = number.unwrap_or(u64::MAX);
        let from = match after {
            Some(jid) => Bound::Excluded((number, jid.into())),
            None => Bound::Included((number, "".into())),
        };
        let all = self.terms.range((from, Bound::Unbounded)).take_while(move |((of, _), _)| *of == number);
        all.take(most).map(|((_, jid), bits)| (&**jid, Terms::from_bits(*bits)))
    }

    /// Replaces an address's terms for a channel; empty ones end the subscription.
    pub(super) fn set(&mut self, place: &Place, jid: &str, terms: Terms) -> Interest {
        let Place { realm, realm_name, channel: name } = place;
        let key = &(*realm, name.as_str());
        if !self.channels.contains_key(key) {
            if terms.is_empty() {
                return Interest::Stays;
            }
            self.next += 1;
            let key = ChannelKey { realm: *realm, name: name.as_str().into() };
            self.channels.insert(key, Channel { number: self.next, ..Channel::default() });
            let new = || Realm { name: realm_name.clone(), subscriptions: 0 };
            self.realms.entry(*realm).or_insert_with(new);
        }
        let Some(channel) = self.channels.get_mut(key) else { return Interest::Stays };
        let before_all = channel.stanzas + channel.nodes;
        let entry = (channel.number, jid.into());
        let before =
            if terms.is_empty() { self.terms.remove(&entry) } else { self.terms.insert(entry, terms.bits()) };
        if let Some(realm) = self.realms.get_mut(realm) {
            let (now, then) = (usize::from(!terms.is_empty()), usize::from(before.is_some()));
            realm.subscriptions = realm.subscriptions + now - then;
        }
        let before = before.map(Terms::from_bits).unwrap_or_default();
        match (before.is_watched(), terms.is_watched()) {
            (false, true) => *self.watched.entry(jid::bare(jid).into()).or_default() += 1,
            (true, false) => {
                if let Entry::Occupied(mut count) = self.watched.entry(jid::bare(jid).into()) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
            }
            _ => {}
        }
        channel.stanzas = channel.stanzas + u32::from(terms.stanza) - u32::from(before.stanza);
        channel.nodes = channel.nodes + u32::from(terms.node) - u32::from(before.node);
        let both = |terms: Terms| u32::from(terms.stanza && terms.node);
        channel.both = channel.both + both(terms) - both(before);
        match (before_all, channel.stanzas + channel.nodes) {
            (0, _) => Interest::Begins,
            (_, 0) => {
                self.channels.remove(key);
                Interest::Ends
            }
            _ => Interest::Stays,
        }
    }
}

/// How it is kept: by address, realm and channel.
const TABLE: TableDefinition<'_, (&str, &str, &str), u8> = TableDefinition::new("subscriptions");

/// Calls `each` for all that is on disk. Blocks.
pub(super) fn load(store: &Store, mut each: impl FnMut(&str, &str, &str, Terms)) -> Result<(), StoreError> {
    let read = || -> Result<(), redb::Error> {
        let transaction = store.read().map_err(|error| redb::Error::Corrupted(error.to_string()))?;
        let Some(table) = store::made(transaction.open_table(TABLE))? else { return Ok(()) };
        for row in table.iter()? {
            let (key, bits) = row?;
            let (jid, realm, channel) = key.value();
            each(jid, realm, channel, Terms::from_bits(bits.value()));
        }
        Ok(())
    };
    let mut read = read;
    Ok(read()?)
}

/// The change on disk that belongs to [`Subscribers::set`].
pub(super) fn write(place: &Place, jid: &str, terms: Terms) -> Work {
    let (place, jid) = (place.clone(), jid.to_owned());
    Box::new(move |transaction| {
        let mut table = transaction.open_table(TABLE)?;
        let key = (jid.as_str(), place.realm_name.as_str(), place.channel.as_str());
        if terms.is_empty() {
            table.remove(key)?;
        } else {
            table.insert(key, terms.bits())?;
        }
        Ok(())
    })
}

/// What an address gets of a channel, as it is on disk, which this reads.
pub(super) fn kept(store: &Store, place: &Place, jid: &str) -> Result<Terms, StoreError> {
    let read = || -> Result<Terms, redb::Error> {
        let transaction = store.read().map_err(|error| redb::Error::Corrupted(error.to_string()))?;
        let Some(table) = store::made(transaction.open_table(TABLE))? else { return Ok(Terms::default()) };
        let row = table.get((jid, place.realm_name.as_str(), place.channel.as_str()))?;
        Ok(row.map(|bits| Terms::from_bits(bits.value())).unwrap_or_default())
    };
    Ok(read()?)
}

/// A subscription of an address: with which resource, to what.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub jid: String,
    pub realm: String,
    pub channel: String,
    pub terms: Terms,
}

/// What an address is subscribed to with any of its resources, at most `most`. Reads the disk.
pub(super) fn of(store: &Store, bare: &str, most: usize) -> Result<Vec<Kept>, StoreError> {
    let read = || -> Result<Vec<Kept>, redb::Error> {
        let transaction = store.read().map_err(|error| redb::Error::Corrupted(error.to_string()))?;
        let Some(table) = store::made(transaction.open_table(TABLE))? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        // "/" comes before everything else that a longer address could go on with but "-" and ".".
        let (whole, slash) = (bare.to_owned(), format!("{bare}/"));
        for start in [&whole, &slash] {
            for row in table.range((start.as_str(), "", "")..)? {
                let (key, bits) = row?;
                let (jid, realm, channel) = key.value();
                let belongs = if start == &whole { jid == bare } else { jid.starts_with(&slash) };
                if !belongs || found.len() == most {
                    break;
                }
                debug_assert_eq!(jid::bare(jid), bare);
                let terms = Terms::from_bits(bits.value());
                found.push(Kept { jid: jid.into(), realm: realm.into(), channel: channel.into(), terms });
            }
        }
        Ok(found)
    };
    Ok(read()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(realm: u32, channel: &str) -> Place {
        Place { realm: RealmId(realm), realm_name: format!("r{realm}"), channel: channel.into() }
    }

    const RAW: Terms = Terms { stanza: true, node: false, shows: Shows::ALWAYS };
    const NODE: Terms = Terms { stanza: false, node: true, shows: Shows::ANY };

    #[test]
    fn channels_begin_and_end_with_their_subscribers() {
        let mut all = Subscribers::default();
        assert_eq!(all.set(&place(0, "c"), "a@b", RAW), Interest::Begins);
        assert_eq!(all.set(&place(0, "c"), "a@b", NODE), Interest::Stays);
        assert_eq!(all.set(&place(1, "c"), "a@b", RAW), Interest::Begins);
        assert_eq!(all.set(&place(0, "c"), "b@b", RAW), Interest::Stays);
        assert_eq!(all.wanted(RealmId(0), "c"), (1, 1));
        assert_eq!(all.get(RealmId(0), "c", "a@b"), Some(NODE));
        let page = |after| all.page(RealmId(0), "c", after, 5).map(|(jid, _)| jid).collect::<Vec<_>>();
        assert_eq!(
            (page(None), page(Some("a@b")), page(Some("z"))),
            (vec!["a@b", "b@b"], vec!["b@b"], vec![])
        );
        assert_eq!(all.set(&place(0, "c"), "a@b", Terms::default()), Interest::Stays);
        assert_eq!(all.set(&place(0, "c"), "a@b", Terms::default()), Interest::Stays);
        assert_eq!(all.set(&place(0, "c"), "b@b", Terms::default()), Interest::Ends);
        assert_eq!((all.len(), all.wanted(RealmId(0), "c")), (1, (0, 0)));
        assert_eq!((all.count(RealmId(0)), all.count(RealmId(1)), all.count(RealmId(2))), (0, 1, 0));
    }

    /// An address is watched as long as its presence decides about anything, with any resource and of any channel.
    #[test]
    fn presence_is_watched_while_it_decides() {
        let mut all = Subscribers::default();
        for (channel, jid, terms, watched) in [
            ("c", "a@b", RAW, false),
            ("c", "a@b", NODE, true),
            ("c", "a@b", NODE, true),
            ("d", "a@b/1", NODE, true),
            ("c", "a@b", RAW, true),
            ("d", "a@b/1", Terms { node: false, ..NODE }, false),
            ("d", "a@b/1", Terms::default(), false),
        ] {
            all.set(&place(0, channel), jid, terms);
            assert_eq!(all.watches("a@b"), watched, "{channel} {jid} {terms:?}");
            assert_eq!(all.watched().count(), usize::from(watched));
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_found_by_address() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("x.redb"), 1 << 20).unwrap();
        assert!(of(&store, "a@b", 10).unwrap().is_empty());
        for (jid, terms) in [("a@b", RAW), ("a@b/r", NODE), ("a@b.c", RAW), ("a@b-c/r", RAW), ("a@b/s", RAW)]
        {
            store.write(write(&place(1, "c"), jid, terms)).await.unwrap();
        }
        store.write(write(&place(1, "c"), "a@b/s", Terms::default())).await.unwrap();
        let found: Vec<_> =
            of(&store, "a@b", 10).unwrap().into_iter().map(|kept| (kept.jid, kept.terms)).collect();
        assert_eq!(found, [("a@b".to_owned(), RAW), ("a@b/r".to_owned(), NODE)]);
        assert_eq!(of(&store, "a@b", 1).unwrap().len(), 1);
        let mut all = 0;
        load(&store, |_, realm, channel, _| all += usize::from((realm, channel) == ("r1", "c"))).unwrap();
        assert_eq!(all, 4);
    }

    /// `cargo test --release -p fantail a_million_addresses -- --ignored --nocapture`
    #[test]
    #[ignore = "takes a minute; a figure for docs/performance.md"]
    fn a_million_addresses_fit() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
        };
        for channels in [1000, 1_000_000] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.redb");
            let store = Store::open(&path, super::super::CACHE_BYTES).unwrap();
            let (said, done) = std::sync::mpsc::channel();
            for n in 0..1_000_000_u32 {
                let place = place(0, &format!("channel-{}", n % channels));
                let said = said.clone();
                let work = write(&place, &format!("somebody-{n}@chat.example.com"), RAW);
                store.submit(work, Box::new(move |outcome| said.send(outcome.is_ok()).unwrap()));
                if n % 4096 == 4095 {
                    assert!((0..4096).all(|_| done.recv().unwrap()));
                }
            }
            drop(store);
            let store = loop {
                match Store::open(&path, super::super::CACHE_BYTES) {
                    Err(store::OpenError::InUse(_)) => std::thread::yield_now(),
                    opened => break opened.unwrap(),
                }
            };
            let before = resident();
            let hub = crate::hub::Hub::new(1, &crate::config::Config::default().hub);
            let mut all = Subscribers::default();
            let begun = tokio::time::Instant::now();
            load(&store, |jid, _, channel, terms| {
                let place = place(0, channel);
                if all.set(&place, jid, terms) == Interest::Begins {
                    hub.join(hub.place(crate::hub::Outpost::Xmpp), place.realm, &place.channel);
                }
            })
            .unwrap();
            let (memory, disk) = (resident() - before, std::fs::metadata(&path).unwrap().len() >> 20);
            println!(
                "{} in {channels} channels: {memory} MB of memory, {disk} MB on disk, read in {:?}",
                all.len(),
                begun.elapsed()
            );
            assert_eq!(all.len(), 1_000_000);
            assert!(memory <= 300 && disk <= 1024);
        }
    }
}
