//! One pin as the table keeps it: a socket, what waits for it, and when it next needs a look.
//! Ticks are the ring's, 100 ms each. A record decides from the ticks it is given and touches nothing but itself.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::Bytes;
use rustix::event::epoll;

use crate::queue::{Flushed, OutQueue};
use crate::ring::NEVER;
use crate::tls::{self, Tls, TlsError};
use crate::{Brim, Form, KeepAlive, KeepAliveMode, Limits, Pace};

/// Milliseconds in a tick: keep-alives and time-outs are seconds, so a tenth is fine enough.
pub(crate) const TICK_MS: u32 = 100;

/// `Open` (→ `Sealed`) → `Finishing` (a tail is queued) → `Ended`, or straight to `Ended` by departure, overflow, stall or a
/// tail that was taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    /// Takes nothing more but the tail; is read and timed as before.
    Sealed,
    Finishing,
    /// Reported to the owner, no longer watched, waiting to be removed.
    Ended,
}

/// Whether the owner reads from a pin's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Never: only a departure matters.
    Never,
    Paused,
    Wanted,
}

#[derive(Debug)]
pub(crate) struct Record<T> {
    pub(crate) value: T,
    /// Some only while something waits: an ordinary pin has no queue.
    pub(crate) queue: Option<Box<OutQueue>>,
    pub(crate) keep_alive: Option<Rc<KeepAlive>>,
    /// `None` until a reserved pin is given it. Watched from then until the pin ends.
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) tls: Option<Box<Tls>>,
    /// The keep-alive's period counts from here: the last write if idle, the last beat if on an interval.
    pub(crate) mark: u32,
    pub(crate) deadline: u32,
    pub(crate) state: State,
    pub(crate) form: Form,
    pub(crate) reading: Reading,
    /// By so many ticks the keep-alive's current period is shorter.
    early: u8,
    /// The batch being gathered has a write to this socket; a second one must wait for its result.
    pub(crate) in_batch: bool,
    /// The owner wants to hear when the queue is empty.
    pub(crate) tells: bool,
    pub(crate) brim: Brim,
}

impl<T> Record<T> {
    pub(crate) const fn new(socket: Option<OwnedFd>, form: Form, value: T, tick: u32) -> Self {
        Self {
            value,
            queue: None,
            keep_alive: None,
            socket,
            tls: None,
            mark: tick,
            deadline: NEVER,
            state: State::Open,
            form,
            reading: Reading::Never,
            early: 0,
            in_batch: false,
            tells: false,
            brim: Brim::End,
        }
    }

    /// Neither over nor about to be.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.state, State::Open | State::Sealed)
    }

    /// Whether the table reads the socket for itself: TLS speaks even where its owner does not listen. What a client
    /// sends ahead is kept, up to a limit.
    pub(crate) fn hears(&self) -> bool {
        self.reading == Reading::Never
            && self.tls.as_ref().is_some_and(|tls| tls.plain_len() < READ_AHEAD_BYTES)
    }

    /// Whether there is something to read that the poller does not know of.
    pub(crate) fn has_news(&self) -> bool {
        self.reading == Reading::Wanted
            && self.tls.as_ref().is_some_and(|tls| tls.plain_len() > 0 || tls.peer_has_closed())
    }

    /// What becomes of `len` bytes on the wire, at most.
    pub(crate) const fn sealed_len(&self, len: usize) -> usize {
        if self.tls.is_some() { tls::sealed_len(len) } else { len }
    }

    /// Whether so many bytes may wait, or nothing does.
    pub(crate) fn has_room(&self, len: usize, limits: &Limits) -> bool {
        let cost = self.sealed_len(len);
        self.queue.as_ref().is_none_or(|queue| queue.cost_with(cost) <= limits.queue_bytes)
    }

    /// Bytes as they go over the wire.
    ///
    /// # Errors
    /// As [`Tls::encrypt`].
    pub(crate) fn sealed(&mut self, bytes: &Bytes) -> Result<Bytes, TlsError> {
        let Some(tls) = &mut self.tls else { return Ok(bytes.clone()) };
        let mut sealed = Vec::new();
        tls.encrypt(bytes, &mut sealed)?;
        Ok(sealed.into())
    }

    /// Encrypts what has waited for the socket, behind what TLS itself has still to send.
    ///
    /// # Errors
    /// As [`Tls::encrypt`].
    pub(crate) fn seal_queue(&mut self, tick: u32) -> Result<(), TlsError> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        if let Some(queue) = &mut self.queue {
            return queue.seal(tls);
        }
        if !tls.output().is_empty() {
            self.queue = Some(Box::new(OutQueue::new(tls.take_output().into(), tick)));
        }
        Ok(())
    }

    /// Offers a socket that is new what has waited for it, as it goes over the wire; none if nothing has.
    ///
    /// # Errors
    /// The socket is of no more use, or as [`Tls::encrypt`].
    pub(crate) fn start(
        &mut self,
        socket: &OwnedFd,
        tick: u32,
        pace: Option<Pace>,
    ) -> io::Result<Option<Flushed>> {
        self.seal_queue(tick).map_err(io::Error::other)?;
        let Some(queue) = &mut self.queue else { return Ok(None) };
        queue.restart(tick);
        let flushed = queue.flush(socket)?;
        self.note(&flushed, tick, pace);
        Ok(Some(flushed))
    }

    /// Notes how far a flush of the queue came.
    pub(crate) fn note(&mut self, flushed: &Flushed, tick: u32, pace: Option<Pace>) {
        match flushed {
            Flushed::Emptied => self.queue = None,
            Flushed::Full { moved: false } => return,
            Flushed::Eager | Flushed::Full { moved: true } => {
                if let Some(queue) = &mut self.queue {
                    queue.moved(tick, pace);
                }
            }
        }
        self.touch(tick);
    }

    /// What the poller is to watch for, besides errors and a connection that is closed both ways.
    pub(crate) fn watch(&self) -> epoll::EventFlags {
        let queued = self.queue.is_some();
        match (self.state, self.reading) {
            // A client that has closed its sending side may still read its answer to the end.
            (State::Finishing, _) => epoll::EventFlags::OUT,
            (_, Reading::Never) if self.hears() && queued => HEARING.union(epoll::EventFlags::OUT),
            (_, Reading::Never) if self.hears() => HEARING,
            (_, Reading::Never) if queued => QUEUED,
            (_, Reading::Never) => IDLE,
            (_, Reading::Paused) if queued => epoll::EventFlags::OUT,
            (_, Reading::Paused) => epoll::EventFlags::empty(),
            (_, Reading::Wanted) if queued => epoll::EventFlags::IN.union(epoll::EventFlags::OUT),
            // A departure is something to read, too.
            (_, Reading::Wanted) => epoll::EventFlags::IN,
        }
    }

    /// Bytes went out at `tick`: an idle keep-alive starts anew.
    pub(crate) fn touch(&mut self, tick: u32) {
        if self.keep_alive.as_ref().is_none_or(|keep_alive| keep_alive.mode == KeepAliveMode::Idle) {
            self.mark = tick;
        }
    }

    /// The earliest tick at which this pin needs a look.
    pub(crate) fn next_look(&self, limits: &Limits) -> u32 {
        self.deadline.min(self.beat_tick()).min(self.stall_tick(limits))
    }

    /// When the queue counts as stalled.
    pub(crate) fn stall_tick(&self, limits: &Limits) -> u32 {
        // Who has no socket yet does not keep its client waiting.
        let queue = self.queue.as_ref().filter(|_| self.socket.is_some());
        queue.map_or(NEVER, |queue| queue.stall_tick(limits))
    }

    /// Beats from `first` on; the period after it is `early` ticks shorter.
    pub(crate) fn keep_alive(&mut self, keep_alive: Rc<KeepAlive>, first: u32, early: u8) {
        self.early = early;
        self.mark = first.saturating_sub(self.period(&keep_alive));
        self.keep_alive = Some(keep_alive);
    }

    fn beat_tick(&self) -> u32 {
        let keep_alive = self.keep_alive.as_deref();
        keep_alive.map_or(NEVER, |keep_alive| self.mark.saturating_add(self.period(keep_alive)))
    }

    fn period(&self, keep_alive: &KeepAlive) -> u32 {
        ticks(keep_alive.every_ms).saturating_sub(self.early.into()).max(1)
    }

    /// If a keep-alive is due, starts its next period, `early` ticks shorter, and returns it unless something
    /// is queued: then the client has bytes to come anyway.
    pub(crate) fn take_beat(&mut self, now: u32, early: u8) -> Option<Rc<KeepAlive>> {
        let due = self.beat_tick();
        if due > now {
            return None;
        }
        let keep_alive = self.keep_alive.clone()?;
        self.mark = match keep_alive.mode {
            KeepAliveMode::Idle => now,
            KeepAliveMode::Interval => now - (now - due) % self.period(&keep_alive),
        };
        self.early = early;
        self.queue.is_none().then_some(keep_alive)
    }
}

/// With nothing queued only a departure matters, once.
pub(crate) const IDLE: epoll::EventFlags = epoll::EventFlags::RDHUP.union(epoll::EventFlags::ET);
/// Level-triggered while something is queued: a flush is bounded, and what it leaves is reported again.
const QUEUED: epoll::EventFlags = epoll::EventFlags::RDHUP.union(epoll::EventFlags::OUT);

/// A departure is something to read, too.
const HEARING: epoll::EventFlags = epoll::EventFlags::IN;
/// What is kept of a client's next requests while a hold lasts that has TLS. Without TLS they stay in the kernel.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// A duration in ticks, rounded up, at least one.
pub(crate) fn ticks(ms: u32) -> u32 {
    ms.div_ceil(TICK_MS).max(1)
}
