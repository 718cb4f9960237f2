//! Ids that logs have from before the process began: which of them still count, and since when. Whether those who keep items
//! have these too is not known here, so they are asked when one is repeated.

use std::cmp::Reverse;

use fantail_proto::duplicate::Seen;
use hashbrown::HashSet;

use crate::{channel::RealmId, log::Log};

/// Of items that only their logs are known to have.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    ids: HashSet<u128>,
    /// By the hub's clock, which starts at the length of the window: then all of them are too old.
    until_ms: u64,
}

impl Inherited {
    /// Notes the ids that are no older than the window, as many of the newest as are remembered.
    pub(super) fn note(
        log: &Log,
        seen: &mut Seen,
        (window_ms, most): (u64, usize),
        digest: impl Fn(RealmId, &str, &str) -> u128,
    ) -> Self {
        let mut found: Vec<(u64, u128)> = Vec::new();
        let shorten = |found: &mut Vec<(u64, u128)>| {
            // Stable: those of one second stay in the order of their channel.
            found.sort_by_key(|(age_ms, _)| Reverse(*age_ms));
            found.drain(..found.len().saturating_sub(most));
        };
        log.ids(|realm, channel, id, age_ms| {
            // No id is forgotten before its time.
            let age_ms = age_ms.saturating_sub(INEXACT_MS / 2);
            if age_ms < window_ms {
                found.push((age_ms, digest(realm, channel, id)));
            }
            if found.len() > most.saturating_mul(2).saturating_add(SLACK) {
                shorten(&mut found);
            }
        });
        shorten(&mut found);
        found.iter().for_each(|(age_ms, digest)| seen.note(*digest, window_ms - age_ms));
        let ids = found.into_iter().map(|(_, digest)| digest).collect();
        Self { ids, until_ms: window_ms.saturating_mul(2) }
    }

    /// Whether this is the first repeat of such an id.
    pub(super) fn take(&mut self, id: u128) -> bool {
        self.ids.remove(&id)
    }

    /// Memory is given back when none of them counts any more.
    pub(super) fn expire(&mut self, now_ms: u64) {
        if !self.ids.is_empty() && now_ms >= self.until_ms {
            self.ids = HashSet::new();
        }
    }
}

/// Logs know to a second, more or less, when an item was published: so an id of theirs may be known for so much longer than
/// others.
pub const INEXACT_MS: u64 = 2000;
/// So many more are not worth a sort.
const SLACK: usize = 1024;
