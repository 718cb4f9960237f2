//! The broadcast: the same bytes to many pins, by a send for each or in batches through io_uring.
//! It allocates nothing for a pin that takes its bytes at once; what a pin does not take goes to its own queue.

use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::AsFd as _;

use bytes::Bytes;

use crate::queue::offer;
use crate::record::{Record, State};
use crate::uring::{BATCH, Sent, Uring};
use crate::writing::Offered;
use crate::{Brim, Event, Limits, Outcome, Payload, PinId, Pins, Tally};

/// The ring, and the pins of the batch that is being gathered for it; no pin is in it between broadcasts.
#[derive(Debug)]
pub(crate) struct Batches {
    uring: Box<Uring>,
    pins: Vec<Waiting>,
}

/// A write of the batch.
#[derive(Debug)]
struct Waiting {
    id: PinId,
    /// Of a pin with TLS: where its records are.
    sealed: Option<Range<usize>>,
}

/// What goes to many, and what is said of that.
struct Broadcast<'a> {
    payload: &'a Payload,
    brim: Option<Brim>,
    tally: &'a mut Tally,
    asked: &'a mut Vec<PinId>,
}

impl Broadcast<'_> {
    /// Whether the owner is asked about a pin for which something waits; notes it then.
    fn asks<T>(&mut self, id: PinId, record: &Record<T>, bytes: &Bytes, limits: &Limits) -> bool {
        let asks = match self.brim.unwrap_or(record.brim) {
            Brim::End => false,
            Brim::Ask => !record.has_room(bytes.len(), limits),
            Brim::AskAtOnce => true,
        };
        if asks {
            self.asked.push(id);
        }
        asks
    }
}

impl Waiting {
    fn offered<'a>(&self, shared: &'a Bytes, sealed: &'a [u8]) -> Offered<'a> {
        match &self.sealed {
            None => Offered::Shared(shared),
            Some(range) => Offered::Sealed(sealed.get(range.clone()).unwrap_or_default()),
        }
    }
}

impl Batches {
    /// # Errors
    /// As [`Uring::new`].
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { uring: Box::new(Uring::new()?), pins: Vec::with_capacity(BATCH) })
    }
}

impl<T> Pins<T> {
    /// Writes the same payload to many pins, each in its form, and adds to `tally`. The work is as long as
    /// `targets`: the caller cuts them into chunks.
    pub fn fan_out(&mut self, targets: &[PinId], payload: &Payload, tally: &mut Tally) {
        // Nobody asks.
        self.fan_out_or_ask(targets, payload, Some(Brim::End), tally, &mut Vec::new());
    }

    /// As [`Self::fan_out`], but what is done with a pin for which something waits is as `brim` says, or each pin's own.
    /// The pins whose owner is to be asked get nothing: they come to `asked`, in their order, and not into `tally`.
    pub fn fan_out_or_ask(
        &mut self,
        targets: &[PinId],
        payload: &Payload,
        brim: Option<Brim>,
        tally: &mut Tally,
        asked: &mut Vec<PinId>,
    ) {
        let mut broadcast = Broadcast { payload, brim, tally, asked };
        match self.batches.take() {
            None => self.fan_out_by_send(targets, &mut broadcast),
            Some(batches) => self.fan_out_in_batches(batches, targets, &mut broadcast),
        }
    }

    fn fan_out_by_send(&mut self, targets: &[PinId], broadcast: &mut Broadcast<'_>) {
        for &id in targets {
            let Some(record) = self.record(id).filter(|record| record.state == State::Open) else {
                broadcast.tally.count(Outcome::Gone, 0);
                continue;
            };
            let bytes = broadcast.payload.in_form(record.form);
            if record.queue.is_some() && broadcast.asks(id, record, bytes, &self.limits) {
                continue;
            }
            broadcast.tally.count(self.deliver(id, bytes, self.limits.queue_bytes), bytes.len());
        }
    }

    /// Keeps the ring for the next broadcast unless it broke.
    fn fan_out_in_batches(&mut self, mut batches: Batches, targets: &[PinId], broadcast: &mut Broadcast<'_>) {
        let payload = broadcast.payload;
        let mut healthy = true;
        for (done, &id) in targets.iter().enumerate() {
            let full = batches.pins.len() == BATCH || self.scratch.sealed.len() >= SEALED_BYTES;
            if full || self.record(id).is_some_and(|record| record.in_batch) {
                healthy = self.send_batch(&mut batches, payload, broadcast.tally);
                if !healthy {
                    return self.fan_out_by_send(&targets[done..], broadcast);
                }
            }
            let Some(record) = self.record(id).filter(|record| record.state == State::Open) else {
                broadcast.tally.count(Outcome::Gone, 0);
                continue;
            };
            let bytes = payload.in_form(record.form);
            if record.queue.is_some() && broadcast.asks(id, record, bytes, &self.limits) {
                continue;
            }
            if bytes.is_empty() || record.queue.is_some() || record.socket.is_none() {
                broadcast.tally.count(self.deliver(id, bytes, self.limits.queue_bytes), bytes.len());
            } else {
                match self.seal_for_batch(id, bytes) {
                    Ok(sealed) => batches.pins.push(Waiting { id, sealed }),
                    Err(outcome) => broadcast.tally.count(outcome, 0),
                }
            }
        }
        if !batches.pins.is_empty() {
            healthy = self.send_batch(&mut batches, payload, broadcast.tally);
        }
        self.batches = healthy.then_some(batches);
    }

    /// Notes that the batch has a write to a pin, and makes the records of one with TLS.
    fn seal_for_batch(&mut self, id: PinId, bytes: &[u8]) -> Result<Option<Range<usize>>, Outcome> {
        let mut sealed = mem::take(&mut self.scratch.sealed);
        let start = sealed.len();
        let made = self.record_mut(id).map(|record| {
            record.in_batch = true;
            record.tls.as_mut().map(|tls| tls.encrypt(bytes, &mut sealed))
        });
        let end = sealed.len();
        self.scratch.sealed = sealed;
        match made {
            Some(None) => Ok(None),
            Some(Some(Ok(()))) => Ok(Some(start..end)),
            Some(Some(Err(_))) => {
                self.end(id, Event::Departed(id));
                Err(Outcome::Gone)
            }
            None => Err(Outcome::Gone),
        }
    }

    /// Sends to the pins of the batch, which are open and have no queue. False if the ring broke; the batch has
    /// then been finished without it.
    fn send_batch(&mut self, batches: &mut Batches, payload: &Payload, tally: &mut Tally) -> bool {
        let mut sealed = mem::take(&mut self.scratch.sealed);
        let sends = batches.pins.iter().filter_map(|waiting| {
            let record = self.record(waiting.id)?;
            let bytes = waiting.offered(payload.in_form(record.form), &sealed).into_slice();
            Some((record.socket.as_ref()?.as_fd(), bytes))
        });
        let results = batches.uring.send_all(sends);
        let mut healthy = true;
        let tick = self.tick();
        for (waiting, &sent) in batches.pins.drain(..).zip(results) {
            let id = waiting.id;
            let Some(record) = self.record_mut(id) else { continue };
            record.in_batch = false;
            let bytes = payload.in_form(record.form);
            let offered = waiting.offered(bytes, &sealed);
            let taken = match sent {
                Sent::Taken(taken) => Some(taken as usize),
                Sent::Failed => None,
                Sent::Untried => {
                    healthy = false;
                    let slice = offered.into_slice();
                    record.socket.as_ref().and_then(|socket| offer(socket, slice).ok())
                }
            };
            if taken == Some(offered.len()) {
                // As `settle` has it, for nearly all.
                record.touch(tick);
                tally.count(Outcome::Sent, bytes.len());
            } else {
                tally.count(self.settle(id, offered, taken), bytes.len());
            }
        }
        sealed.clear();
        self.keep_scratch(sealed);
        healthy
    }
}

/// Records of one batch: so much and one more item's.
const SEALED_BYTES: usize = 256 << 10;
