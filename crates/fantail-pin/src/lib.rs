//! A shard's table of held sockets.
//!
//! A *pin* is a connection that waits for data: its socket, a small record, and no task, buffer or waker.
//! [`Pins`] owns them for one thread: it writes shared bytes to many of them at once, keeps what a socket
//! will not take, notices departures, sends keep-alives and reports what its owner must act on.
//! It reads only where its owner asks it to, and knows no HTTP, WebSocket, GRIP, configuration or clock: bytes and
//! times are given to it. Where a pin has TLS, its records are the table's business, too.

mod fan_out;
mod pins;
mod queue;
mod reading;
mod record;
mod ring;
mod tls;
mod uring;
mod writing;

use std::io;
use std::os::fd::OwnedFd;

use bytes::Bytes;

pub use pins::Pins;
pub use tls::{Tls, TlsError, Wire};
pub use uring::io_uring_available;

/// Names one pin of one [`Pins`]. A stale id (its pin was removed) is harmless: it finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinId {
    index: u32,
    generation: u32,
}

/// Which of a payload's two forms a pin takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it is: a body that ends with the connection or has a stated length, an uncompressed WebSocket frame.
    Plain,
    /// As the connection agreed to: HTTP/1.1 chunks (RFC 9112, 7.1), or a deflated frame (RFC 7692).
    Coded,
}

/// The same content in both forms. A form that no pin takes may be left empty; empty writes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    pub plain: Bytes,
    pub coded: Bytes,
}

impl Payload {
    /// What a pin of that form takes.
    #[must_use]
    pub const fn in_form(&self, form: Form) -> &Bytes {
        match form {
            Form::Plain => &self.plain,
            Form::Coded => &self.coded,
        }
    }
}

/// What one pin may cost while its client does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes that may wait for one socket. A waiting item counts its length and [`ITEM_COST`], so that
    /// many tiny items are bounded too. What is left of an item that found an empty queue is always taken, and
    /// so is the tail of [`Pins::finish`].
    pub queue_bytes: usize,
    /// A pin whose queue has not moved for so long, in milliseconds, is ended as stalled.
    pub send_timeout_ms: u32,
    /// A pin whose queue moves, but by less than this, is ended as stalled too.
    pub pace: Option<Pace>,
}

/// The least progress of a queue: while something waits, each `bytes` go out within `within_ms` milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub bytes: usize,
    pub within_ms: u32,
}

/// What a waiting item costs beside its bytes, which are shared: its entry in the queue.
pub const ITEM_COST: usize = size_of::<Bytes>();

/// What is done with a broadcast for a pin for which something waits already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Brim {
    /// It waits, too; over [`Limits::queue_bytes`] the pin is ended.
    #[default]
    End,
    /// It waits, too; over that the owner is asked.
    Ask,
    /// The owner is asked.
    AskAtOnce,
}

/// How a broadcast reaches the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FanOut {
    /// One `send` for each socket.
    Send,
    /// Batches through io_uring, which saves the system calls; the kernel or a container may forbid it.
    IoUring,
}

/// What became of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel has it all.
    Sent,
    /// The pin's queue has what the socket did not take; order is kept.
    Queued,
    /// The queue is full: this was not written and the pin is ended.
    Overflow,
    /// There is no such pin, it was ended or finished before, or its socket failed.
    Gone,
}

/// Outcomes of a broadcast, a count for each. They add up to the number of targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub sent: u64,
    pub queued: u64,
    pub overflow: u64,
    pub gone: u64,
    /// Bytes of the writes that were sent or queued.
    pub bytes: u64,
}

impl Tally {
    const fn count(&mut self, outcome: Outcome, len: usize) {
        match outcome {
            Outcome::Sent => self.sent += 1,
            Outcome::Queued => self.queued += 1,
            Outcome::Overflow => self.overflow += 1,
            Outcome::Gone => self.gone += 1,
        }
        if matches!(outcome, Outcome::Sent | Outcome::Queued) {
            self.bytes += len as u64;
        }
    }
}

/// What the owner of the pins must act on. After a departure, an overflow, a stall or a finish the pin takes no
/// more writes and only waits to be removed; each of these is reported once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client has closed its side, or its socket failed.
    Departed(PinId),
    /// The queue passed [`Limits::queue_bytes`]. A pin that is read takes [`Pins::set_farewell`] as its tail, and
    /// another event follows when that is written, or will not be.
    Overflow(PinId),
    /// Nothing of the queue went out for [`Limits::send_timeout_ms`], or less than [`Limits::pace`].
    Stalled(PinId),
    /// The time of [`Pins::set_deadline`] has come; the pin stays writable.
    Due(PinId),
    /// Everything up to the tail of [`Pins::finish`] has been taken by the kernel.
    Finished(PinId),
    /// There is something to [`Pins::read`]. Reported in each turn while there is.
    Readable(PinId),
    /// The queue of a pin that is read, or that pauses, has become empty.
    Drained(PinId),
    /// Something waits for a pin that is read and has no socket, for the first time since its queue was empty:
    /// [`Pins::take_queued`] has it.
    Waiting(PinId),
}

/// What [`Pins::read`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes; fewer than there was room for if that was all for now.
    Bytes(usize),
    /// Nothing now, or never again: then an event says so.
    Nothing,
}

/// When a keep-alive is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAliveMode {
    /// When nothing else has gone out for the period.
    Idle,
    /// On a fixed cadence, whatever else goes out.
    Interval,
}

/// A keep-alive: shared by all pins that were asked to have the same.
#[derive(Clone, Debug)]
pub struct KeepAlive {
    pub payload: Payload,
    /// The period in milliseconds, rounded up to the 100 ms of the ring; each is up to 900 ms shorter.
    pub every_ms: u32,
    pub mode: KeepAliveMode,
}

/// A socket that could not be watched, given back with the reason.
#[derive(Debug)]
pub struct Rejected<T> {
    pub error: io::Error,
    pub socket: OwnedFd,
    pub value: T,
}

/// What a pin leaves when it is removed.
#[derive(Debug)]
pub struct Unpinned<T> {
    /// `None` if the pin was reserved and got none. Its TLS may have been read ahead.
    pub wire: Option<Wire>,
    pub value: T,
    /// Bytes that were queued and that the socket never took.
    pub unsent: usize,
}
