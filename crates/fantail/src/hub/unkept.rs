//! Items that were delivered and are still to be kept, or could not be, by id: what their next publisher is told, and
//! does, depends on it. Owns no item.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{Kept, Ledger, pledge::Pledge};

#[derive(Debug, Default)]
pub(super) struct Unkept {
    by_id: HashMap<u128, Arc<Pledge>>,
    /// How many there were when those that are over were forgotten last.
    swept: usize,
}

impl Ledger {
    /// Items of these ids are kept when the pledge is.
    pub(super) fn note_unkept(&mut self, ids: &[u128], pledge: Option<&(Arc<Pledge>, Kept)>, now_ms: u64) {
        let (Self { unkept, seen, .. }, Some((pledge, _))) = (self, pledge) else { return };
        if unkept.by_id.len() >= 2 * unkept.swept.max(LEAST) {
            // A broken one is of use as long as its id is known.
            unkept.by_id.retain(|id, pledge| !pledge.is_kept() && seen.contains(*id, now_ms));
            unkept.swept = unkept.by_id.len();
        }
        unkept.by_id.extend(ids.iter().map(|id| (*id, Arc::clone(pledge))));
    }
}

impl Unkept {
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
