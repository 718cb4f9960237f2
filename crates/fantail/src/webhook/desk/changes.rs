//! What has become of deliveries, on its way to the disk: written in batches, and again when the disk has failed. Keeps no
//! more of it than the last word on each delivery and endpoint.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use super::{Desk, Event};
use crate::{
    store::StoreError,
    webhook::{
        book::{self, Change},
        endpoint::Id,
    },
};

impl Desk {
    /// Writes what has become of deliveries, one batch at a time: more gathers meanwhile. A batch is not so long that publishers
    /// notice who share its commit.
    pub(super) fn flush(&mut self) {
        if self.flushing || self.changes.is_empty() || self.clock.now() < self.flush_at {
            return;
        }
        self.flushing = true;
        self.flush_at = self.clock.now() + FLUSH_EVERY_MS;
        let changes = Arc::new(next_batch(&mut self.changes));
        let written = Arc::clone(&changes);
        let events = self.events.clone();
        let done = move |outcome: Result<(), StoreError>| {
            if let Err(error) = &outcome {
                tracing::error!(%error, "what became of webhooks is not on disk yet");
            }
            // There is room, or the desk has stopped.
            _ = events.try_send(Event::Flushed { changes, good: outcome.is_ok() });
        };
        self.store.submit(Box::new(move |tx| book::apply_possible(tx, &written)), Box::new(done));
    }

    /// What is not on disk is written again, before what came later.
    pub(super) fn flushed(&mut self, changes: Arc<Vec<Change>>, good: bool) {
        self.flushing = false;
        let pardoned = std::mem::take(&mut self.pardoned);
        if good {
            return changes.iter().for_each(|change| self.settle(change));
        }
        self.flush_at = self.clock.now() + FLUSH_AGAIN_MS;
        let failed = Arc::try_unwrap(changes).unwrap_or_else(|changes| changes.as_ref().clone());
        let later = std::mem::take(&mut self.changes);
        let still = |change: &Change| !change.condemns().is_some_and(|id| pardoned.contains(&id));
        self.changes = last_words(failed.into_iter().filter(still).chain(later).collect());
    }

    /// The disk knows this now.
    fn settle(&mut self, change: &Change) {
        match change {
            Change::Again { id, seq, failed, .. } if self.tries.get(&(*id, *seq)) == Some(failed) => {
                self.tries.remove(&(*id, *seq));
            }
            Change::Disable { id, .. } => _ = self.dismissed.remove(id),
            _ => {}
        }
    }

    /// Somebody has enabled an endpoint, or removed it: it has no past that is still to be written down.
    pub(super) fn pardon(&mut self, id: Id) {
        self.changes.retain(|change| change.condemns() != Some(id));
        if self.flushing {
            self.pardoned.insert(id);
        }
        self.dismissed.remove(&id);
    }
}

/// What is written at once, the oldest first.
fn next_batch(changes: &mut VecDeque<Change>) -> Vec<Change> {
    changes.drain(..changes.len().min(WRITTEN_AT_ONCE)).collect()
}

/// Without those that later ones make superfluous: while a disk fails, only the queue and the endpoints limit what gathers.
fn last_words(changes: Vec<Change>) -> VecDeque<Change> {
    let mut said = HashSet::new();
    let mut kept = VecDeque::with_capacity(changes.len());
    for change in changes.into_iter().rev() {
        if change.subject().is_none_or(|subject| said.insert(subject)) {
            kept.push_front(change);
        }
    }
    kept
}

/// Between two commits of changes: the answers of a slice alone are not worth one.
const FLUSH_EVERY_MS: u64 = 10;
/// Of an endpoint with a long queue that is removed, say: some ten milliseconds of writing.
const WRITTEN_AT_ONCE: usize = 4096;
/// Before changes that are not on disk are written again.
const FLUSH_AGAIN_MS: u64 = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::book::LastFault;

    /// Hours without a disk are no more than its last minute.
    #[test]
    fn of_many_words_the_last_are_kept() {
        let (one, two) = (Id(1), Id(2));
        let again = |id, seq, failed| Change::Again { id, seq, failed, due: 0 };
        let last = || LastFault { at: 0, paused_until: 0, why: "status 500".into() };
        let failing = |id, failures| Change::Failing { id, since: 0, failures, last: last() };
        let mut changes = VecDeque::new();
        for n in 1..=1000 {
            let more =
                [failing(one, n), again(one, 1, n), failing(two, n), again(two, 1, n), again(two, 2, n)];
            changes = last_words(changes.into_iter().chain(more).collect());
        }
        changes.extend([Change::Done { id: one, seq: 1, last: true }, Change::Healthy { id: one }]);
        let kept = format!("{:?}", last_words(changes.into()));
        let wanted = [
            again(one, 1, 1000),
            failing(two, 1000),
            again(two, 1, 1000),
            again(two, 2, 1000),
            Change::Done { id: one, seq: 1, last: true },
            Change::Healthy { id: one },
        ];
        assert_eq!(kept, format!("{wanted:?}"));
    }

    /// All is written, in order, and never too much at once.
    #[test]
    fn a_batch_has_an_end() {
        let done = |seq| Change::Done { id: Id(1), seq, last: true };
        let mut changes: VecDeque<Change> = (0..2 * WRITTEN_AT_ONCE as u64 + 1).map(done).collect();
        let mut next = 0;
        for wanted in [WRITTEN_AT_ONCE, WRITTEN_AT_ONCE, 1, 0] {
            let batch = next_batch(&mut changes);
            assert_eq!(batch.len(), wanted);
            for change in batch {
                assert!(matches!(change, Change::Done { seq, .. } if seq == next), "{next}: {change:?}");
                next += 1;
            }
        }
    }
}
