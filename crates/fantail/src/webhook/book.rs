//! What is kept on disk: endpoints, the deliveries that wait, what they say, and dead letters. Owns the tables and
//! every transaction on them; it decides nothing.

mod dead;
mod health;
mod ids;

use std::ops::RangeInclusive;

use aws_lc_rs::rand;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::endpoint::{Disabled, Endpoint, Id};
use crate::store::{Store, StoreError};
pub(super) use dead::Keep;
pub(super) use health::LastFault;

/// A realm's number on disk, and how many endpoints it has.
const REALMS: TableDefinition<'_, &str, (u32, u64)> = TableDefinition::new("realms");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ENDPOINTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("endpoints");
/// By the number of the delivery: what is said.
const LETTERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("letters");
/// By endpoint and number: failed tries, and when the next is due, in Unix milliseconds.
const QUEUE: TableDefinition<'_, (u128, u64), (u32, u64)> = TableDefinition::new("queue");

/// What all of the file's ids are made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Salt(pub(super) u128);

/// What a webhook says, and its id, which stays the same for all tries.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) method: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) headers: Vec<(String, String)>,
    /// The item's, for filters that write it into content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) item: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) head: Head,
    pub(super) body: Bytes,
}

/// What a letter says, but for its body.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) head: Head,
    /// Of the body.
    pub(super) bytes: usize,
}

/// Why, when and after how many tries a delivery was given up.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Death {
    /// Unix milliseconds.
    pub(super) at: u64,
    pub(super) cause: String,
    pub(super) tries: u32,
}

/// One thing that changes on disk because of deliveries; the desk's changes, in order. To do it again, with all that
/// came before and after it, changes nothing.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A letter with the endpoints that it is for.
    Queue {
        seq: u64,
        letter: Bytes,
        to: Vec<Id>,
        due: u64,
    },
    /// `last`: nobody else waits for the letter.
    Done {
        id: Id,
        seq: u64,
        last: bool,
    },
    Again {
        id: Id,
        seq: u64,
        failed: u32,
        due: u64,
    },
    /// Out of the queue, if it is there; `letter` for one that never was.
    Dead {
        id: Id,
        seq: u64,
        letter: Option<Bytes>,
        death: Death,
        last: bool,
        keep: Keep,
    },
    Failing {
        id: Id,
        since: u64,
        failures: u32,
        last: LastFault,
    },
    Healthy {
        id: Id,
    },
    Disable {
        id: Id,
        disabled: Disabled,
    },
    /// A dead letter goes back into the queue under a new number.
    Replay {
        id: Id,
        dead: u64,
        seq: u64,
        due: u64,
    },
    /// Items with ids of these digests have their webhooks; `first`: rows before it do not count any more.
    Ids {
        number: u64,
        at: u64,
        digests: Vec<u128>,
        first: u64,
    },
    /// The next number that is free.
    Next(u64),
}

impl Change {
    /// The endpoint that this says is failing or disabled.
    pub(super) fn condemns(&self) -> Option<Id> {
        match self {
            Self::Failing { id, .. } | Self::Disable { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// Of what this has the last word: what came before it of the same need not be written any more.
    pub(super) fn subject(&self) -> Option<(Id, Option<u64>)> {
        match self {
            Self::Again { id, seq, .. } => Some((*id, Some(*seq))),
            Self::Failing { id, .. } | Self::Healthy { id } => Some((*id, None)),
            _ => None,
        }
    }

    /// What it writes, but for keys.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Queue { letter, to, .. } => letter.len() + size_of_val(&**to),
            Self::Dead { letter, .. } => letter.as_ref().map_or(0, Bytes::len),
            Self::Ids { digests, .. } => size_of_val(&**digests),
            Self::Done { .. }
            | Self::Again { .. }
            | Self::Failing { .. }
            | Self::Healthy { .. }
            | Self::Disable { .. }
            | Self::Replay { .. }
            | Self::Next(_) => 0,
        }
    }
}

/// Makes the tables, and the salt if there is none.
pub(super) async fn prepare(store: &Store) -> Result<Salt, StoreError> {
    store
        .write(Box::new(|tx| {
            tx.open_table(ENDPOINTS)?;
            tx.open_table(REALMS)?;
            tx.open_table(LETTERS)?;
            tx.open_table(QUEUE)?;
            dead::prepare(tx)?;
            health::prepare(tx)?;
            ids::prepare(tx)?;
            let mut meta = tx.open_table(META)?;
            for name in SALTS {
                if meta.get(name)?.is_none() {
                    let mut random = [0; 8];
                    rand::fill(&mut random)
                        .map_err(|_| redb::Error::Corrupted("no random numbers".into()))?;
                    meta.insert(name, u64::from_be_bytes(random))?;
                }
            }
            Ok(())
        }))
        .await?;
    let tx = store.read()?;
    let half =
        |name: &str| Ok::<_, redb::Error>(tx.open_table(META)?.get(name)?.map_or(0, |value| value.value()));
    Ok(Salt(u128::from(half(SALTS[0])?) << 64 | u128::from(half(SALTS[1])?)))
}

/// A view of the file as it was when it was made.
#[derive(Debug)]
pub(super) struct Page(ReadTransaction);

impl Page {
    pub(super) fn open(store: &Store) -> Result<Self, StoreError> {
        store.read().map(Self)
    }

    /// The number on disk of a realm that has, or had, an endpoint.
    pub(super) fn realm(&self, name: &str) -> Result<Option<u32>, redb::Error> {
        Ok(self.0.open_table(REALMS)?.get(name)?.map(|row| row.value().0))
    }

    pub(super) fn realms(&self) -> Result<Vec<(String, u32)>, redb::Error> {
        let table = self.0.open_table(REALMS)?;
        let rows =
            table.iter()?.map(|row| row.map(|(name, value)| (name.value().to_owned(), value.value().0)));
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(super) fn next(&self) -> Result<u64, redb::Error> {
        Ok(self.0.open_table(META)?.get(NEXT)?.map_or(1, |value| value.value()))
    }

    pub(super) fn endpoints(&self) -> Result<u64, redb::Error> {
        Ok(self.0.open_table(ENDPOINTS)?.len()?)
    }

    pub(super) fn endpoint(&self, id: Id) -> Result<Option<Endpoint>, redb::Error> {
        Ok(self.0.open_table(ENDPOINTS)?.get(id.0)?.and_then(|row| parse(row.value())))
    }

    /// Up to `most` endpoints of a range, with their channels compared if one is named.
    pub(super) fn some(
        &self,
        (first, last): (Id, Id),
        channel: Option<&str>,
        most: usize,
    ) -> Result<Vec<(Id, Endpoint)>, redb::Error> {
        let table = self.0.open_table(ENDPOINTS)?;
        let mut found = Vec::new();
        for row in table.range(first.0..=last.0)? {
            let (id, row) = row?;
            let Some(endpoint) = parse::<Endpoint>(row.value()) else { continue };
            if channel.is_none_or(|channel| endpoint.channel == channel) {
                found.push((Id(id.value()), endpoint));
                if found.len() == most {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The channels of a range, each at least once.
    pub(super) fn channels(
        &self,
        (first, last): (Id, Id),
        mut each: impl FnMut(&str),
    ) -> Result<(), redb::Error> {
        #[derive(Deserialize)]
        struct Channel<'a> {
            #[serde(borrow)]
            c: std::borrow::Cow<'a, str>,
        }
        let table = self.0.open_table(ENDPOINTS)?;
        let mut before = String::new();
        for row in table.range(first.0..=last.0)? {
            let (_, row) = row?;
            if let Ok(Channel { c }) = serde_json::from_slice(row.value())
                && c != before
            {
                each(&c);
                before = c.into_owned();
            }
        }
        Ok(())
    }

    /// All that waits, by endpoint and number.
    pub(super) fn queue(&self, mut each: impl FnMut(Id, u64, u32, u64)) -> Result<(), redb::Error> {
        for row in self.0.open_table(QUEUE)?.iter()? {
            let (key, value) = row?;
            let ((id, seq), (failed, due)) = (key.value(), value.value());
            each(Id(id), seq, failed, due);
        }
        Ok(())
    }

    pub(super) fn queued(&self, id: Id) -> Result<usize, redb::Error> {
        Ok(self.0.open_table(QUEUE)?.range(numbers(id))?.count())
    }

    /// Failed tries of one that waits.
    pub(super) fn failed(&self, id: Id, seq: u64) -> Result<Option<u32>, redb::Error> {
        Ok(self.0.open_table(QUEUE)?.get((id.0, seq))?.map(|row| row.value().0))
    }

    pub(super) fn letter(&self, seq: u64) -> Result<Option<Letter>, redb::Error> {
        Ok(self.0.open_table(LETTERS)?.get(seq)?.and_then(|row| Letter::decode(row.value())))
    }

    /// The numbers of letters that wait, and their bytes on disk.
    pub(super) fn letters(&self, mut each: impl FnMut(u64, usize)) -> Result<(), redb::Error> {
        for row in self.0.open_table(LETTERS)?.iter()? {
            let (seq, letter) = row?;
            each(seq.value(), letter.value().len());
        }
        Ok(())
    }
}

/// How a row of an endpoint came out of [`edit`].
#[derive(Debug)]
pub(super) enum Edit {
    Keep,
    Put(Box<Endpoint>),
    Remove,
}

/// The number of a realm, made if there is none, with the count of its endpoints.
pub(super) fn realm(tx: &WriteTransaction, name: &str) -> Result<(u32, u64), redb::Error> {
    let mut table = tx.open_table(REALMS)?;
    if let Some(row) = table.get(name)? {
        return Ok(row.value());
    }
    let number = u32::try_from(table.len()?).unwrap_or(u32::MAX);
    table.insert(name, (number, 0))?;
    Ok((number, 0))
}

/// Reads, changes and writes one endpoint, and counts it. `each` sees the row, the realm's endpoints and all, as if one
/// whose time is over were removed already.
pub(super) fn edit(
    tx: &WriteTransaction,
    realm_name: &str,
    id: Id,
    now: u64,
    each: impl FnOnce(Option<Endpoint>, u64, u64) -> Edit,
) -> Result<(), redb::Error> {
    let (number, count) = realm(tx, realm_name)?;
    let mut table = tx.open_table(ENDPOINTS)?;
    let all = table.len()?;
    let old = table.get(id.0)?.and_then(|row| parse::<Endpoint>(row.value()));
    let was = old.is_some();
    let over = old.as_ref().is_some_and(|old| old.has_expired(now));
    let gone = u64::from(over);
    let edit = each(old.filter(|_| !over), count.saturating_sub(gone), all.saturating_sub(gone));
    let (is, row) = match edit {
        Edit::Keep => return Ok(()),
        Edit::Put(endpoint) => (true, serde_json::to_vec(&endpoint).ok()),
        Edit::Remove => (false, None),
    };
    match row {
        Some(row) => drop(table.insert(id.0, &*row)?),
        None => drop(table.remove(id.0)?),
    }
    if !is || over {
        health::is_well(tx, id)?;
        dead::forget(tx, id)?;
        // What waits for it is nothing to who is subscribed in its place.
        tx.open_table(QUEUE)?.retain_in(numbers(id), |_, _| false)?;
    }
    let count = (count + u64::from(is)).saturating_sub(u64::from(was));
    tx.open_table(REALMS)?.insert(realm_name, (number, count))?;
    Ok(())
}

/// Whether a range has so many endpoints besides this one.
pub(super) fn has_many(
    tx: &WriteTransaction,
    (first, last): (Id, Id),
    own: Id,
    many: usize,
) -> Result<bool, redb::Error> {
    if many == usize::MAX {
        return Ok(false);
    }
    let table = tx.open_table(ENDPOINTS)?;
    let others = table.range(first.0..=last.0)?;
    let others = others.filter(|row| row.as_ref().map_or(true, |(id, _)| id.value() != own.0));
    Ok(others.take(many).count() >= many)
}

/// Does the changes, in order.
pub(super) fn apply(tx: &WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
    apply_each(tx, changes, Err)
}

/// As [`apply`], but leaves out what fails for another reason than the disk: it would fail again, and with it all that
/// shares its commit.
pub(super) fn apply_possible(tx: &WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
    let lasting = |error| match error {
        redb::Error::Io(_) | redb::Error::PreviousIo => Err(error),
        error => {
            tracing::error!(%error, "webhooks that were delivered will be delivered again");
            Ok(())
        }
    };
    apply_each(tx, changes, lasting).or_else(lasting)
}

fn apply_each(
    tx: &WriteTransaction,
    changes: &[Change],
    failed: impl Fn(redb::Error) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let mut queue = tx.open_table(QUEUE)?;
    let mut letters = tx.open_table(LETTERS)?;
    for change in changes {
        apply_one(tx, &mut queue, &mut letters, change).or_else(&failed)?;
    }
    Ok(())
}

fn apply_one(
    tx: &WriteTransaction,
    queue: &mut Table<'_, (u128, u64), (u32, u64)>,
    letters: &mut Table<'_, u64, &[u8]>,
    change: &Change,
) -> Result<(), redb::Error> {
    match change {
        Change::Queue { seq, letter, to, due } => {
            letters.insert(seq, &**letter)?;
            for id in to {
                queue.insert((id.0, *seq), (0, *due))?;
            }
        }
        Change::Done { id, seq, last } => {
            queue.remove((id.0, *seq))?;
            if *last {
                letters.remove(*seq)?;
            }
        }
        // What does not wait any more was its endpoint's, which is gone.
        Change::Again { id, seq, failed, due } => {
            if queue.get((id.0, *seq))?.is_some() {
                queue.insert((id.0, *seq), (*failed, *due))?;
            }
        }
        Change::Dead { id, seq, letter, death, last, keep } => {
            let failed = queue.remove((id.0, *seq))?.map(|row| row.value().0);
            let letter = match (letter, failed) {
                (Some(letter), _) => Some(letter.clone()),
                (None, Some(_)) => letters.get(*seq)?.map(|row| Bytes::copy_from_slice(row.value())),
                (None, None) => None,
            };
            let death = Death { tries: death.tries.max(failed.unwrap_or(0)), ..death.clone() };
            if *last {
                letters.remove(*seq)?;
            }
            // None for an endpoint that is gone.
            let known = tx.open_table(ENDPOINTS)?.get(id.0)?.is_some();
            if let Some(letter) = letter.filter(|_| known) {
                dead::bury(tx, *id, *seq, &letter, &death, *keep)?;
            }
        }
        Change::Failing { id, since, failures, last } => health::fails(tx, *id, (*since, *failures), last)?,
        Change::Healthy { id } => health::is_well(tx, *id)?,
        Change::Disable { id, disabled } => disable(tx, *id, disabled)?,
        Change::Replay { id, dead, seq, due } => {
            if let Some(letter) = dead::dig(tx, *id, *dead)? {
                letters.insert(*seq, &*letter)?;
                queue.insert((id.0, *seq), (0, *due))?;
            }
        }
        Change::Ids { number, at, digests, first } => ids::note(tx, *number, *at, digests, *first)?,
        Change::Next(next) => drop(tx.open_table(META)?.insert(NEXT, *next)?),
    }
    Ok(())
}

fn disable(tx: &WriteTransaction, id: Id, disabled: &Disabled) -> Result<(), redb::Error> {
    let mut table = tx.open_table(ENDPOINTS)?;
    let old = table.get(id.0)?.and_then(|row| parse::<Endpoint>(row.value()));
    if let Some(mut endpoint) = old {
        endpoint.disabled = Some(disabled.clone());
        if let Ok(row) = serde_json::to_vec(&endpoint) {
            table.insert(id.0, &*row)?;
        }
    }
    drop(table);
    health::rests(tx, id)
}

impl Letter {
    pub(super) fn encode(&self) -> Bytes {
        join(&serde_json::to_vec(&self.head).unwrap_or_default(), &self.body).into()
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let (head, body) = split(row)?;
        Some(Self { head: parse(head)?, body: Bytes::copy_from_slice(body) })
    }

    /// As they are sent; what cannot be is left out.
    pub(super) fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        header_pairs(&self.head.headers)
    }
}

impl Endpoint {
    /// What it wants to be said to it, and to nobody else.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, mut value) in header_pairs(&self.headers) {
            value.set_sensitive(true);
            headers.append(name, value);
        }
        headers
    }
}

fn header_pairs(pairs: &[(String, String)]) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    pairs.iter().filter_map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    })
}

fn parse<'r, T: Deserialize<'r>>(row: &'r [u8]) -> Option<T> {
    serde_json::from_slice(row).ok()
}

/// Two parts in one row; the first has its length in front.
fn join(head: &[u8], rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(head.len()).expect("a head is far shorter than 4 GB");
    [&length.to_le_bytes(), head, rest].concat()
}

fn split(row: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = row.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

fn numbers(id: Id) -> RangeInclusive<(u128, u64)> {
    (id.0, 0)..=(id.0, u64::MAX)
}

const SALTS: [&str; 2] = ["salt-high", "salt-low"];
const NEXT: &str = "next";

#[cfg(test)]
mod tests;
