//! What waits for one shard or outpost, in the hub's order and within a limit.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Delivery, RealmId};

/// What waits for one shard.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    queue: Mutex<Queue>,
    pub(super) mail: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    deliveries: VecDeque<Arc<Delivery>>,
    bytes: usize,
    /// Realms whose origins are to be asked again; each is named once.
    recover: Vec<RealmId>,
}

impl Mailbox {
    /// A request that is larger than a whole mailbox is taken when the mailbox is empty.
    pub(super) fn has_room(&self, items: usize, limit: usize) -> bool {
        let queue = self.queue.lock();
        queue.deliveries.is_empty()
            || (queue.deliveries.len() + items <= limit && queue.bytes < MAILBOX_BYTES)
    }

    pub(super) fn push(&self, delivery: Arc<Delivery>) {
        let mut queue = self.queue.lock();
        queue.bytes += delivery.bytes;
        queue.deliveries.push_back(delivery);
    }

    pub(super) fn recover(&self, realm: RealmId) {
        let mut queue = self.queue.lock();
        if !queue.recover.contains(&realm) {
            queue.recover.push(realm);
        }
        self.mail.notify_one();
    }

    pub(super) fn take(&self, batch: &mut Vec<Arc<Delivery>>) -> Vec<RealmId> {
        let mut queue = self.queue.lock();
        let mut bytes = 0;
        while batch.len() < BATCH_ITEMS && bytes < BATCH_BYTES {
            let Some(delivery) = queue.deliveries.pop_front() else { break };
            bytes += delivery.bytes;
            batch.push(delivery);
        }
        queue.bytes -= bytes;
        if !queue.deliveries.is_empty() {
            self.mail.notify_one();
        }
        std::mem::take(&mut queue.recover)
    }
}

/// What may wait for one shard besides the number of items: 64 of the largest publishes.
const MAILBOX_BYTES: usize = 64 << 20;
/// One batch, coalesced, is at most this and one item more: a quarter of the default `client.queue_bytes`.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_ITEMS: usize = 1024;
