//! The hub: accepts items, drops repeated ids, renders each item once and hands it to every shard that
//! has a subscriber. It knows no socket, no HTTP and no bus.

use std::sync::Arc;

use fantail_proto::item::Item;

/// A realm's number, stable for the life of the process.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, PartialOrd, Ord)]
pub struct RealmId(pub u32);

/// What became of one published item, summed over all shards.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Receipt {
    /// The id was seen within `hub.id_ttl`; nothing else happened.
    pub duplicate: bool,
    /// Written whole to the socket (or answered, for a long-poll).
    pub delivered: u64,
    /// Waits, whole or in part, in the connection's queue.
    pub queued: u64,
    pub filtered: u64,
    /// The client left before the item was written.
    pub dropped_gone: u64,
    /// The queue was over its limit; the connection was closed.
    pub dropped_overflow: u64,
}

/// Nothing of the request was accepted: a shard's mailbox is full.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a mailbox is full")]
pub struct Full;

/// Receipts of one publish, in the order of its items; ready when every shard has delivered.
#[derive(Debug)]
pub struct Receipts(tokio::sync::oneshot::Receiver<Vec<Receipt>>);

impl Receipts {
    /// `None` when a shard stopped before it could say.
    pub async fn wait(self) -> Option<Vec<Receipt>> {
        self.0.await.ok()
    }
}

/// Shared by all threads.
#[derive(Debug)]
pub struct Hub {}

impl Hub {
    /// Accepts all items or, when a mailbox is full, none. With `receipts`, the answer can be waited for.
    /// Items are accepted when this returns, in their order.
    pub fn publish(
        &self,
        realm: RealmId,
        items: Vec<Item>,
        receipts: bool,
    ) -> Result<Option<Receipts>, Full> {
        let _ = (realm, items, receipts);
        Err(Full)
    }
    /// Resolves when a mailbox that was full has room again.
    pub async fn room(&self) {
        std::future::pending::<()>().await;
    }
    /// Replays every held long-poll to its origin, a few at a time (spec 5.2, `/recover`).
    pub fn recover(&self) {}
    pub fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }
}
