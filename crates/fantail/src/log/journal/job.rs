//! What the thread of the logs is given: an entry or a word about a log, which are written, or somebody who waits.

use std::sync::Arc;

use fantail_proto::{
    journal::{Entry, Record},
    log::{Durability, Place},
};

use crate::store::Done;

/// What an entry is kept as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::log) struct Promise {
    pub(in crate::log) kept: Durability,
    /// What it says of that on disk. It may be less, when its channel's rule has come to promise less.
    pub(in crate::log) said: Durability,
}

pub(super) enum Job {
    Entry {
        realm: Arc<str>,
        channel: Arc<str>,
        /// In the rings.
        slot: u32,
        at: Place,
        promise: Promise,
        at_ms: u64,
        record: Arc<[u8]>,
    },
    Forget {
        realm: Box<str>,
        channel: Box<str>,
        epoch: u64,
    },
    /// Somebody waits for all that came before.
    Wait(Durability, Done),
}

impl Job {
    /// Whether it must not be written when its publisher was told that it is not.
    pub(super) fn is_promised(&self) -> bool {
        matches!(self, Self::Entry { promise, .. } if promise.kept > Durability::Accepted)
    }

    /// Whether it is there as soon as it is written.
    pub(super) const fn to_write(&self) -> Option<(u32, Place)> {
        match self {
            Self::Entry { slot, at, promise: Promise { kept: Durability::Logged, .. }, .. } => {
                Some((*slot, *at))
            }
            _ => None,
        }
    }

    /// Where it is, if it is kept when an fsync has come back.
    pub(super) const fn to_sync(&self) -> Option<(u32, Place)> {
        match self {
            Self::Entry { slot, at, promise: Promise { kept: Durability::Synced, .. }, .. } => {
                Some((*slot, *at))
            }
            _ => None,
        }
    }

    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Entry { record, .. } => record.len() + ENTRY_COST,
            Self::Forget { realm, channel, .. } => realm.len() + channel.len() + ENTRY_COST,
            Self::Wait(..) => 0,
        }
    }

    pub(super) fn write(&self, salt: u64, out: &mut Vec<u8>) {
        match self {
            Self::Entry { realm, channel, at, promise, at_ms, record, .. } => {
                let (copied, promised, at_ms) = (false, promise.said, *at_ms);
                let Place { epoch, position } = *at;
                let entry = Entry { copied, promised, realm, channel, epoch, position, at_ms, record };
                Record::Entry(entry).append(salt, out);
            }
            Self::Forget { realm, channel, epoch } => {
                Record::Forget { realm, channel, epoch: *epoch }.append(salt, out);
            }
            Self::Wait(..) => {}
        }
    }
}

/// A waiting entry beside its record.
const ENTRY_COST: usize = 128;
