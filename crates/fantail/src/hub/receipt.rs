//! What publishers are told of their items: one receipt an item, added up over the shards while they deliver.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What became of one published item, summed over all shards.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Receipt {
    /// The id was seen within `hub.id_ttl`; nothing else happened.
    pub duplicate: bool,
    pub order: Order,
    /// Written whole to the socket (or answered, for a long-poll).
    pub delivered: u64,
    /// Waits, whole or in part, in the connection's queue.
    pub queued: u64,
    pub filtered: u64,
    /// Not sent: the subscriber has it from its origin, or will, because it has missed another.
    pub recovered: u64,
    /// Not sent now: the log of the channel gives it to the subscriber, which is behind, in its turn.
    pub left_to_log: u64,
    /// Older items that slow subscribers never get, because they keep this one: it is newer.
    pub passed_over: u64,
    /// The client left before the item was written.
    pub dropped_gone: u64,
    /// The queue was over its limit; the connection was closed.
    pub dropped_overflow: u64,
    /// A filter of the subscriber's could not be applied, or the content was written for others.
    pub dropped_filter: u64,
}

impl Receipt {
    /// Subscribers that it was written, or queued, for.
    pub fn written(&self) -> u64 {
        self.delivered + self.queued
    }

    /// Subscribers that it was meant for.
    pub(super) fn receivers(&self) -> u64 {
        self.delivered
            + self.queued
            + self.filtered
            + self.recovered
            + self.left_to_log
            + self.dropped_gone
            + self.dropped_overflow
    }
}

/// How an item came in its channel's order.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Order {
    /// In its turn, or without an order.
    #[default]
    Kept,
    /// It was early, and waited for its predecessor.
    Held,
    /// It was early, and its predecessor did not come in time.
    Late,
    /// It was early, and there was no room for it to wait.
    Dropped,
}

/// Receipts of one publish, in the order of its items; ready when every shard has delivered.
#[derive(Debug)]
pub struct Receipts(pub(super) oneshot::Receiver<Vec<Receipt>>);

impl Receipts {
    /// `None` when the process stops first.
    pub async fn wait(self) -> Option<Vec<Receipt>> {
        self.0.await.ok()
    }
}

/// The receipts of one publish while shards deliver it; sent when the last delivery is dropped.
#[derive(Debug)]
pub(super) struct Ballot {
    receipts: Mutex<Vec<Receipt>>,
    /// Taken on drop.
    pub(super) answer: Option<oneshot::Sender<Vec<Receipt>>>,
}

impl Ballot {
    pub(super) fn new(items: usize, wanted: bool) -> (Arc<Self>, Option<oneshot::Receiver<Vec<Receipt>>>) {
        if !wanted {
            return (Arc::new(Self { receipts: Mutex::default(), answer: None }), None);
        }
        let (sender, receiver) = oneshot::channel();
        let receipts = Mutex::new(vec![Receipt::default(); items]);
        (Arc::new(Self { receipts, answer: Some(sender) }), Some(receiver))
    }

    pub(super) fn add(&self, slot: usize, part: Receipt) {
        if let Some(receipt) = self.receipts.lock().get_mut(slot) {
            receipt.duplicate |= part.duplicate;
            receipt.order = receipt.order.max(part.order);
            receipt.delivered += part.delivered;
            receipt.queued += part.queued;
            receipt.filtered += part.filtered;
            receipt.recovered += part.recovered;
            receipt.left_to_log += part.left_to_log;
            receipt.passed_over += part.passed_over;
            receipt.dropped_gone += part.dropped_gone;
            receipt.dropped_overflow += part.dropped_overflow;
            receipt.dropped_filter += part.dropped_filter;
        }
    }
}

impl Drop for Ballot {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            // The publisher may have gone: then nobody wants the receipts.
            drop(answer.send(std::mem::take(self.receipts.get_mut())));
        }
    }
}
