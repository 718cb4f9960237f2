//! The broadcast: the same bytes to many pins, by a send for each or in batches through io_uring.
//! It allocates nothing for a pin that takes its bytes at once; what a pin does not take goes to its own queue.

use std::io;
use std::os::fd::AsFd as _;

use crate::queue::offer;
use crate::record::State;
use crate::uring::{BATCH, Sent, Uring};
use crate::{Outcome, Payload, PinId, Pins, Tally};

/// The ring, and the pins of the batch that is being gathered for it; no pin is in it between broadcasts.
#[derive(Debug)]
pub(crate) struct Batches {
    uring: Box<Uring>,
    pins: Vec<PinId>,
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
        match self.batches.take() {
            None => self.fan_out_by_send(targets, payload, tally),
            Some(batches) => self.fan_out_in_batches(batches, targets, payload, tally),
        }
    }

    fn fan_out_by_send(&mut self, targets: &[PinId], payload: &Payload, tally: &mut Tally) {
        for &id in targets {
            let Some(record) = self.record(id).filter(|record| record.state == State::Open) else {
                tally.count(Outcome::Gone, 0);
                continue;
            };
            let bytes = payload.in_form(record.form);
            tally.count(self.deliver(id, bytes, self.limits.queue_bytes), bytes.len());
        }
    }

    /// Keeps the ring for the next broadcast unless it broke.
    fn fan_out_in_batches(
        &mut self,
        mut batches: Batches,
        targets: &[PinId],
        payload: &Payload,
        tally: &mut Tally,
    ) {
        let mut healthy = true;
        for (done, &id) in targets.iter().enumerate() {
            if batches.pins.len() == BATCH || self.record(id).is_some_and(|record| record.in_batch) {
                healthy = self.send_batch(&mut batches, payload, tally);
                if !healthy {
                    return self.fan_out_by_send(&targets[done..], payload, tally);
                }
            }
            let Some(record) = self.record_mut(id).filter(|record| record.state == State::Open) else {
                tally.count(Outcome::Gone, 0);
                continue;
            };
            let bytes = payload.in_form(record.form);
            if bytes.is_empty() || record.queue.is_some() || record.socket.is_none() {
                tally.count(self.deliver(id, bytes, self.limits.queue_bytes), bytes.len());
            } else {
                record.in_batch = true;
                batches.pins.push(id);
            }
        }
        if !batches.pins.is_empty() {
            healthy = self.send_batch(&mut batches, payload, tally);
        }
        self.batches = healthy.then_some(batches);
    }

    /// Sends to the pins of the batch, which are open and have no queue. False if the ring broke; the batch has
    /// then been finished without it.
    fn send_batch(&mut self, batches: &mut Batches, payload: &Payload, tally: &mut Tally) -> bool {
        let sends = batches.pins.iter().filter_map(|&id| self.record(id)).filter_map(|record| {
            Some((record.socket.as_ref()?.as_fd(), payload.in_form(record.form).as_ref()))
        });
        let results = batches.uring.send_all(sends);
        let mut healthy = true;
        for (id, &sent) in batches.pins.drain(..).zip(results) {
            let Some(record) = self.record_mut(id) else { continue };
            record.in_batch = false;
            let bytes = payload.in_form(record.form);
            let taken = match sent {
                Sent::Taken(taken) => Some(taken as usize),
                Sent::Failed => None,
                Sent::Untried => {
                    healthy = false;
                    record.socket.as_ref().and_then(|socket| offer(socket, bytes).ok())
                }
            };
            tally.count(self.settle(id, bytes, taken), bytes.len());
        }
        healthy
    }
}
