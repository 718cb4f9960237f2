//! Items that were delivered and are still to be kept, or could not be, by id: what their next publisher is told, and
//! does, depends on it. Owns no item.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{
    Ledger,
    pledge::{Pledge, Promise},
};

#[derive(Debug, Default)]
pub(super) struct Unkept {
    by_id: HashMap<u128, Arc<Pledge>>,
    /// How many there were when those that are over were forgotten last.
    swept: usize,
}

impl Ledger {
    /// Forgets those that are over, when there are many.
    pub(super) fn sweep_unkept(&mut self, now_ms: u64) {
        let Self { unkept, seen, .. } = self;
        if unkept.by_id.len() >= 2 * unkept.swept.max(LEAST) {
            // A broken one is of use as long as its id is known.
            unkept.by_id.retain(|id, pledge| !pledge.is_kept() && seen.contains(*id, now_ms));
            unkept.swept = unkept.by_id.len();
        }
    }
}

impl Unkept {
    /// What is promised of an item of this id to its publisher: a promise of the item's own, which that one waits for.
    pub(super) fn note(&mut self, id: u128, promise: Promise) -> Promise {
        let (promise, pledge) = promise.of_item();
        self.by_id.insert(id, pledge);
        promise
    }

    /// What is pledged of an item, unless it has been kept.
    pub(super) fn get(&mut self, id: u128) -> Option<Arc<Pledge>> {
        let pledge = self.by_id.get(&id)?;
        if pledge.is_kept() {
            self.by_id.remove(&id);
            return None;
        }
        Some(Arc::clone(pledge))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}

/// So many are not worth a sweep.
const LEAST: usize = 1024;
