//! What a log has for one hold after the other: the same work as for a batch that was published, made once for all who
//! need the same, and written at each one's own pace.

use std::sync::Arc;

use fantail_pin::PinId;
use fantail_proto::item::WrittenFor;

use super::{Hold, Holds, List, Word, Work, Write};
use crate::hub::{Delivery, Receipt};

impl Holds {
    /// Whether there is something particular about a hold.
    pub(super) fn has_standing(&self, id: PinId) -> bool {
        self.pins.get(id).is_some_and(|hold| hold.standing.is_some())
    }

    /// Whether a published item is none for a hold, because its log has given that item or is going to.
    pub(super) fn is_left_to_log(&mut self, work: &mut Work, id: PinId, channel: u32, item: usize) -> bool {
        let particular = |hold: &&Hold| !work.from_log && hold.standing.is_some();
        let Some(hold) = self.pins.get(id).filter(particular) else { return false };
        if hold.has_from_log(channel, work.batch[item].place) {
            self.leave_to_log(&mut work.receipts[item]);
            return true;
        }
        self.caught_up(id, channel);
        false
    }

    /// Writes what a log has for a hold, or what its filters leave of it. Who is slow takes it at its own pace.
    pub(in crate::hold) fn write_alone(&mut self, work: &mut Work, list: List, id: PinId) {
        let mut items = Vec::new();
        (0..work.batch.len()).for_each(|item| work.add(list, &mut items, item));
        if items.is_empty() {
            return;
        }
        let plain = work.write_of(list, &items);
        self.sort(work, list, id, plain);
        self.write_sorted(work);
    }

    /// Gives some holds an item whose turn has come for them.
    pub(in crate::hold) fn write_turn(&mut self, work: &mut Work, list: List, pins: &[PinId]) {
        let plain = work.write_of(list, &[0]);
        pins.iter().for_each(|id| _ = self.sort(work, list, *id, plain));
        self.write_sorted(work);
    }

    fn write_sorted(&mut self, work: &mut Work) {
        for place in 0..work.writes.len() {
            while !work.writes[place].targets.is_empty() {
                let mut write = work.writes[place].take();
                self.write(work, &mut write, usize::MAX);
                work.writes[place] = write;
            }
        }
        self.tell_failures(work);
        if work.made > MADE_BYTES || work.writes.len() > KEPT_WRITES {
            work.forget_made();
            work.forget_writes();
        }
    }
}

impl Work {
    /// What a log has, instead of what was published.
    pub(in crate::hold) fn of_log(batch: Vec<Arc<Delivery>>) -> Self {
        Self { from_log: true, ..Self::of(batch) }
    }

    /// One item, whose turn has come.
    pub(in crate::hold) fn of_turn(item: Arc<Delivery>, from_log: bool) -> Self {
        Self { from_log, turn: Some(Vec::new()), ..Self::of(vec![item]) }
    }

    pub(in crate::hold) fn words(&self) -> &[Word] {
        self.turn.as_deref().unwrap_or_default()
    }

    fn of(batch: Vec<Arc<Delivery>>) -> Self {
        // Content that was written for certain filters is looked at.
        let picky = batch.iter().any(|delivery| {
            let WrittenFor { stream, message, .. } = &delivery.item.written_for;
            stream.is_some() || message.is_some()
        });
        let receipts = vec![Receipt::default(); batch.len()];
        Self { batch, receipts, picky, ..Self::default() }
    }

    /// The next hold's turn.
    pub(in crate::hold) fn begin_alone(&mut self, channel: u32, changes: u64) {
        self.channels.clear();
        self.channels.resize(self.batch.len(), Some(channel));
        self.changes = changes;
        self.met.clear();
    }

    /// Keeps but what is for those without filters.
    fn forget_writes(&mut self) {
        let items = self.batch.len();
        let all =
            |write: &Write| write.items.len() == items && write.items.iter().all(|place| *place < items);
        self.writes.retain(all);
        let keys = self.writes.iter().enumerate();
        self.by_items = keys.map(|(place, write)| ((write.list, write.items.clone()), place)).collect();
    }

    pub(in crate::hold) fn len(&self) -> usize {
        self.batch.len()
    }
}

/// What is kept of a stretch for holds that need the same of it: bytes that filters made, and ways to write it. Those
/// without filters need one for each transport.
const MADE_BYTES: usize = 256 << 10;
const KEPT_WRITES: usize = 8;
