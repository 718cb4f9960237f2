//! What one socket would not take: whole items and the rest of a split one, in order.
//! It knows its cost, and when it last moved and how fast; its owner judges and acts.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::OwnedFd;

use bytes::{Buf as _, Bytes};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};

use crate::record::ticks;
use crate::{ITEM_COST, Limits, Pace, Tls, TlsError};

/// Never raises SIGPIPE and never waits, whatever mode the socket is in.
pub(crate) const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// Bytes that wait for a socket; never empty between calls of its owner.
#[derive(Debug)]
pub(crate) struct OutQueue {
    items: VecDeque<Bytes>,
    bytes: usize,
    /// Of these, at most so many were taken whatever waited: they are no reason to end.
    patient: usize,
    /// The tick at which a byte last went out, or at which the queue began.
    moved: u32,
    /// The tick from which the pace is measured, and the bytes that went out since.
    paced: u32,
    out: usize,
}

/// How far one flush came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    Emptied,
    /// The socket took all that one call may offer: there is more, and it may take more.
    Eager,
    /// The socket is full. Carries whether any byte went out.
    Full {
        moved: bool,
    },
}

impl OutQueue {
    pub(crate) fn new(first: Bytes, tick: u32) -> Self {
        let bytes = first.len();
        Self { items: VecDeque::from([first]), bytes, patient: 0, moved: tick, paced: tick, out: 0 }
    }

    /// The client's patience starts anew.
    pub(crate) const fn restart(&mut self, tick: u32) {
        (self.moved, self.paced, self.out) = (tick, tick, 0);
    }

    /// Some bytes went out by `tick`.
    pub(crate) fn moved(&mut self, tick: u32, pace: Option<Pace>) {
        self.moved = tick;
        if pace.is_some_and(|pace| self.out >= pace.bytes) {
            (self.paced, self.out) = (tick, 0);
        }
    }

    /// When the queue counts as stalled: a tick more than its time, so as never to be early.
    pub(crate) fn stall_tick(&self, limits: &Limits) -> u32 {
        let silent = self.moved.saturating_add(ticks(limits.send_timeout_ms) + 1);
        limits.pace.map_or(silent, |pace| silent.min(self.paced.saturating_add(ticks(pace.within_ms) + 1)))
    }

    pub(crate) fn push(&mut self, item: Bytes) {
        self.bytes += item.len();
        self.items.push_back(item);
    }

    /// Encrypts all that waits.
    ///
    /// # Errors
    /// As [`Tls::encrypt`]; the queue is of no more use.
    pub(crate) fn seal(&mut self, tls: &mut Tls) -> Result<(), TlsError> {
        let plain = mem::take(&mut self.items);
        self.bytes = 0;
        for item in plain {
            let mut sealed = Vec::new();
            tls.encrypt(&item, &mut sealed)?;
            self.push(sealed.into());
        }
        Ok(())
    }

    pub(crate) fn into_items(self) -> VecDeque<Bytes> {
        self.items
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The last `len` bytes that were written do not count against the limit.
    pub(crate) fn tolerate(&mut self, len: usize) {
        self.patient = (self.patient + len).min(self.bytes);
    }

    /// What the queue would cost, as [`crate::Limits::queue_bytes`] counts, with `len` more bytes in it.
    pub(crate) fn cost_with(&self, len: usize) -> usize {
        (self.bytes - self.patient).saturating_add(len).saturating_add((self.items.len() + 1) * ITEM_COST)
    }

    /// Offers up to [`SLICES`] items to the socket in one call.
    ///
    /// # Errors
    /// The socket is of no more use.
    pub(crate) fn flush(&mut self, socket: &OwnedFd) -> io::Result<Flushed> {
        if self.items.len() == 1 {
            // A plain send is cheaper than one that gathers.
            let offered = self.bytes;
            let taken = offer(socket, &self.items[0])?;
            return Ok(self.took(taken, offered));
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut offered = 0;
        let count = self.items.len().min(SLICES);
        for (slice, item) in slices.iter_mut().zip(&self.items) {
            *slice = IoSlice::new(item);
            offered += item.len();
        }
        let taken =
            taken(sendmsg(socket, &slices[..count], &mut SendAncillaryBuffer::default(), SEND_FLAGS))?;
        Ok(self.took(taken, offered))
    }

    fn took(&mut self, taken: usize, offered: usize) -> Flushed {
        self.advance(taken);
        match taken {
            _ if self.items.is_empty() => Flushed::Emptied,
            _ if taken == offered => Flushed::Eager,
            _ => Flushed::Full { moved: taken > 0 },
        }
    }

    fn advance(&mut self, mut taken: usize) {
        self.bytes -= taken;
        self.patient = self.patient.min(self.bytes);
        self.out += taken;
        while let Some(first) = self.items.front_mut() {
            if taken < first.len() {
                first.advance(taken);
                return;
            }
            taken -= first.len();
            self.items.pop_front();
        }
    }
}

/// Writes what the socket will take of `bytes` and says how much that was.
///
/// # Errors
/// The socket is of no more use.
pub(crate) fn offer(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    taken(send(socket, bytes, SEND_FLAGS))
}

/// "Not at this moment" is a count of zero; the poller says when to go on.
fn taken(result: Result<usize, Errno>) -> io::Result<usize> {
    match result {
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        other => Ok(other?),
    }
}

/// Items in one `sendmsg`: the price of the call is well spread by then, and the array stays at 1 KiB of stack.
const SLICES: usize = 64;
