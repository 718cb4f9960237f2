//! Writing to pins: to the socket at once, or behind what waits; as it is, or as TLS records. Nothing here waits, and
//! what does not fit the limits of a queue ends its pin.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;

use crate::queue::{Flushed, OutQueue, offer};
use crate::record::{Reading, Record, State};
use crate::ring::NEVER;
use crate::{Event, Outcome, Payload, PinId, Pins, Tally};

/// What was offered to a socket, as it goes over the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Offered<'a> {
    /// Shared by many pins.
    Shared(&'a Bytes),
    /// Encrypted for this one.
    Sealed(&'a [u8]),
}

impl<'a> Offered<'a> {
    pub(crate) fn into_slice(self) -> &'a [u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Sealed(bytes) => bytes,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Shared(bytes) => bytes.len(),
            Self::Sealed(bytes) => bytes.len(),
        }
    }

    fn rest(self, taken: usize) -> Bytes {
        match self {
            Self::Shared(bytes) => bytes.slice(taken..),
            Self::Sealed(bytes) => Bytes::copy_from_slice(&bytes[taken..]),
        }
    }
}

impl<T> Pins<T> {
    /// Writes to one pin: to its socket, or behind what is queued already.
    pub fn write(&mut self, id: PinId, bytes: &Bytes) -> Outcome {
        if self.is_open(id) { self.deliver(id, bytes, self.limits.queue_bytes) } else { Outcome::Gone }
    }

    /// As [`Self::write`], but whatever waits already, and without a share in what counts against the limit: for an
    /// owner that itself waits while much does.
    pub fn write_patiently(&mut self, id: PinId, bytes: &Bytes) -> Outcome {
        if !self.is_open(id) {
            return Outcome::Gone;
        }
        let outcome = self.deliver(id, bytes, usize::MAX);
        let len = self.record(id).map_or(0, |record| record.sealed_len(bytes.len()));
        if let Some(queue) = self.record_mut(id).and_then(|record| record.queue.as_mut()) {
            queue.tolerate(len);
        }
        outcome
    }

    /// As [`Self::write_patiently`], in the pin's form, and adds to `tally`.
    pub fn write_slowly(&mut self, id: PinId, payload: &Payload, tally: &mut Tally) {
        let Some(form) = self.form(id) else { return tally.count(Outcome::Gone, 0) };
        let bytes = payload.in_form(form);
        let outcome = self.write_patiently(id, bytes);
        tally.count(outcome, bytes.len());
    }

    /// Reports [`Event::Drained`] once, when nothing waits for the pin's socket any more. False if nothing does.
    pub fn tell_when_drained(&mut self, id: PinId) -> bool {
        let Some(record) = self.record_mut(id) else { return false };
        record.tells = record.queue.is_some();
        record.tells
    }

    /// Writes what nothing but the tail of [`Self::finish`] may follow. Keep-alives end.
    pub fn seal(&mut self, id: PinId, bytes: &Bytes) -> Outcome {
        let outcome = self.write_patiently(id, bytes);
        if let Some(record) = self.record_mut(id).filter(|record| record.state == State::Open) {
            record.state = State::Sealed;
            record.keep_alive = None;
        }
        outcome
    }

    /// Writes the last bytes of this hold. [`Event::Finished`] comes when the kernel has them all; the pin takes
    /// no more writes, keep-alives or deadlines, and its client may close its sending side meanwhile.
    pub fn finish(&mut self, id: PinId, tail: &Bytes) -> Outcome {
        let Some(record) = self.record_mut(id).filter(|record| record.is_served()) else {
            return Outcome::Gone;
        };
        record.keep_alive = None;
        record.deadline = NEVER;
        let outcome = self.deliver(id, tail, usize::MAX);
        match outcome {
            Outcome::Sent => self.end(id, Event::Finished(id)),
            Outcome::Queued => {
                if let Some(record) = self.record_mut(id) {
                    record.state = State::Finishing;
                }
                self.watch(id);
            }
            Outcome::Overflow | Outcome::Gone => {}
        }
        outcome
    }

    /// Takes what waits for a pin that has no socket, for its owner to send otherwise.
    pub fn take_queued(&mut self, id: PinId) -> VecDeque<Bytes> {
        let record = self.record_mut(id).filter(|record| record.socket.is_none() && record.is_served());
        record.and_then(|record| record.queue.take()).map_or_else(VecDeque::new, |queue| queue.into_items())
    }

    /// Writes to a pin that is open.
    pub(crate) fn deliver(&mut self, id: PinId, bytes: &Bytes, queue_limit: usize) -> Outcome {
        let Some(record) = self.record(id) else { return Outcome::Gone };
        if bytes.is_empty() {
            return if record.queue.is_some() { Outcome::Queued } else { Outcome::Sent };
        }
        if record.queue.is_some() {
            return self.enqueue(id, bytes, queue_limit);
        }
        if record.tls.is_some() {
            return self.deliver_sealed(id, bytes);
        }
        // Without a socket yet, all of it waits.
        let taken = record.socket.as_ref().map_or(Some(0), |socket| offer(socket, bytes).ok());
        self.settle(id, Offered::Shared(bytes), taken)
    }

    /// As [`Self::deliver`], to a pin with TLS and without a queue.
    fn deliver_sealed(&mut self, id: PinId, bytes: &[u8]) -> Outcome {
        let mut sealed = mem::take(&mut self.scratch.sealed);
        sealed.clear();
        let taken = self.record_mut(id).and_then(|record| {
            record.tls.as_mut()?.encrypt(bytes, &mut sealed).ok()?;
            offer(record.socket.as_ref()?, &sealed).ok()
        });
        let outcome = self.settle(id, Offered::Sealed(&sealed), taken);
        self.keep_scratch(sealed);
        outcome
    }

    /// Keeps a buffer for records, unless it has become too large to.
    pub(crate) fn keep_scratch(&mut self, sealed: Vec<u8>) {
        if sealed.capacity() <= SCRATCH_KEPT {
            self.scratch.sealed = sealed;
        }
    }

    /// Sends what TLS itself has to say, now or behind what waits.
    pub(crate) fn emit(&mut self, id: PinId) {
        let Some(Record { tls: Some(tls), queue, socket: Some(socket), .. }) = self.record_mut(id) else {
            return;
        };
        if tls.output().is_empty() {
            return;
        }
        let output = tls.take_output();
        if let Some(queue) = queue {
            return queue.push(output.into());
        }
        let taken = offer(socket, &output).ok();
        self.settle(id, Offered::Sealed(&output), taken);
    }

    /// Draws the consequence of a socket without a queue having taken some of what was offered, or having failed.
    pub(crate) fn settle(&mut self, id: PinId, offered: Offered<'_>, taken: Option<usize>) -> Outcome {
        let Some(taken) = taken else {
            self.end(id, Event::Departed(id));
            return Outcome::Gone;
        };
        let tick = self.tick();
        let limits = self.limits;
        let Some(record) = self.record_mut(id) else { return Outcome::Gone };
        if taken > 0 {
            record.touch(tick);
        }
        if taken == offered.len() {
            return Outcome::Sent;
        }
        // The queue is empty: what is left of one item is taken whatever its length.
        record.queue = Some(Box::new(OutQueue::new(offered.rest(taken), tick)));
        if record.socket.is_none() && record.reading != Reading::Never {
            self.pending.push(Event::Waiting(id));
            return Outcome::Queued;
        }
        let stall = record.stall_tick(&limits);
        if stall != NEVER {
            self.ring.arm(id.index, stall);
        }
        if self.watch(id) { Outcome::Queued } else { Outcome::Gone }
    }

    /// Puts what was not offered behind what waits.
    fn enqueue(&mut self, id: PinId, bytes: &Bytes, queue_limit: usize) -> Outcome {
        let Some(record) = self.record_mut(id) else { return Outcome::Gone };
        let cost = record.sealed_len(bytes.len());
        let Some(queue) = &mut record.queue else { return Outcome::Gone };
        if queue.cost_with(cost) > queue_limit {
            self.overflow(id);
            return Outcome::Overflow;
        }
        match record.sealed(bytes) {
            Ok(sealed) => {
                if let Some(queue) = &mut record.queue {
                    queue.push(sealed);
                }
                Outcome::Queued
            }
            Err(_) => {
                self.end(id, Event::Departed(id));
                Outcome::Gone
            }
        }
    }

    /// Offers the queue to the socket once; true if it took all that and there is more.
    pub(crate) fn flush(&mut self, id: PinId) -> bool {
        let (tick, pace) = (self.tick(), self.limits.pace);
        let Some(record) = self.record_mut(id) else { return false };
        let (Some(queue), Some(socket)) = (&mut record.queue, &record.socket) else { return false };
        let flushed = queue.flush(socket);
        match flushed {
            Err(_) => self.end(id, Event::Departed(id)),
            Ok(flushed) => {
                record.note(&flushed, tick, pace);
                match flushed {
                    Flushed::Emptied if record.state == State::Finishing || self.watch(id) => {
                        self.emptied(id);
                    }
                    Flushed::Eager => return true,
                    Flushed::Emptied | Flushed::Full { .. } => {}
                }
            }
        }
        false
    }

    /// Says what follows when nothing waits any more for a pin that has its socket.
    pub(crate) fn emptied(&mut self, id: PinId) {
        let Some(record) = self.record_mut(id) else { return };
        let tells = mem::take(&mut record.tells) || record.reading != Reading::Never;
        if record.state == State::Finishing {
            self.end(id, Event::Finished(id));
        } else if tells {
            self.pending.push(Event::Drained(id));
        }
    }
}

/// The records of a broadcast's batch; more comes of items so large that making room for them is the least of it.
const SCRATCH_KEPT: usize = 1 << 20;
