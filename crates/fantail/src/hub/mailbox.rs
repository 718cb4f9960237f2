//! What waits for one shard or outpost, in the hub's order and within a limit.

use std::{collections::VecDeque, sync::Arc};

use fantail_proto::{
    item::{HttpResponse, ResponseBody},
    render::{MessagePart, Rendered, StreamPart},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Delivery;

/// What waits for one shard.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    pub(super) queue: Mutex<Queue>,
    pub(super) mail: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    deliveries: VecDeque<Arc<Delivery>>,
    bytes: usize,
    pub(super) recover: bool,
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

    pub(super) fn take(&self, batch: &mut Vec<Arc<Delivery>>) -> bool {
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

/// What an item holds of a mailbox's bytes.
pub(super) fn weight(item: &Rendered) -> usize {
    let stream = match &item.stream {
        Some(StreamPart::Send(chunk)) => chunk.framed().len(),
        _ => 0,
    };
    let response = match &item.response {
        Some(HttpResponse::Send(response)) => match &response.body {
            ResponseBody::Whole(body) => body.len(),
            ResponseBody::Patch(_) => 0,
        },
        _ => 0,
    };
    let message = match &item.message {
        Some(MessagePart::Send(message)) => message.plain().len(),
        _ => 0,
    };
    let stanza = item.stanza.as_ref().map_or(0, |stanza| stanza.weight());
    let object = item.object.as_ref().map_or(0, |object| object.len());
    stream.max(response).max(message).max(stanza).max(object)
}

/// What may wait for one shard besides the number of items: 64 of the largest publishes.
const MAILBOX_BYTES: usize = 64 << 20;
/// One batch, coalesced, is at most this and one item more: a quarter of the default `client.queue_bytes`.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_ITEMS: usize = 1024;
