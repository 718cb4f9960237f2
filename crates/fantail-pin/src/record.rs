//! One pin as the table keeps it: a socket, what waits for it, and when it next needs a look.
//! Ticks are the ring's, 100 ms each. A record decides from the ticks it is given and touches nothing but itself.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::event::epoll;

use crate::queue::OutQueue;
use crate::ring::NEVER;
use crate::{Form, KeepAlive, KeepAliveMode};

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
    /// The keep-alive's period counts from here: the last write if idle, the last beat if on an interval.
    pub(crate) mark: u32,
    pub(crate) deadline: u32,
    pub(crate) state: State,
    pub(crate) form: Form,
    pub(crate) reading: Reading,
    /// The client has closed its sending side: the end waits behind what is to be read, and no news will say so.
    pub(crate) hung_up: bool,
    /// The batch being gathered has a write to this socket; a second one must wait for its result.
    pub(crate) in_batch: bool,
}

impl<T> Record<T> {
    pub(crate) const fn new(socket: Option<OwnedFd>, form: Form, value: T, tick: u32) -> Self {
        Self {
            value,
            queue: None,
            keep_alive: None,
            socket,
            mark: tick,
            deadline: NEVER,
            state: State::Open,
            form,
            reading: Reading::Never,
            hung_up: false,
            in_batch: false,
        }
    }

    /// Neither over nor about to be.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.state, State::Open | State::Sealed)
    }

    /// What the poller is to watch for, besides errors and a connection that is closed both ways.
    pub(crate) const fn watch(&self) -> epoll::EventFlags {
        let queued = self.queue.is_some();
        match (self.state, self.reading) {
            // A client that has closed its sending side may still read its answer to the end.
            (State::Finishing, _) => epoll::EventFlags::OUT,
            (_, Reading::Never) if queued => QUEUED,
            (_, Reading::Never) => IDLE,
            (_, Reading::Paused) if queued => epoll::EventFlags::OUT,
            (_, Reading::Paused) => epoll::EventFlags::empty(),
            (_, Reading::Wanted) if queued => READ.union(epoll::EventFlags::OUT),
            (_, Reading::Wanted) => READ,
        }
    }

    /// Bytes went out at `tick`: an idle keep-alive starts anew.
    pub(crate) fn touch(&mut self, tick: u32) {
        if self.keep_alive.as_ref().is_none_or(|keep_alive| keep_alive.mode == KeepAliveMode::Idle) {
            self.mark = tick;
        }
    }

    /// The earliest tick at which this pin needs a look.
    pub(crate) fn next_look(&self, send_timeout_ms: u32) -> u32 {
        self.deadline.min(self.beat_tick()).min(self.stall_tick(send_timeout_ms))
    }

    /// When the queue counts as stalled: a tick more than the time-out, so as never to be early.
    pub(crate) fn stall_tick(&self, send_timeout_ms: u32) -> u32 {
        // Who has no socket yet does not keep its client waiting.
        let queue = self.queue.as_ref().filter(|_| self.socket.is_some());
        queue.map_or(NEVER, |queue| queue.moved.saturating_add(ticks(send_timeout_ms) + 1))
    }

    fn beat_tick(&self) -> u32 {
        self.keep_alive
            .as_ref()
            .map_or(NEVER, |keep_alive| self.mark.saturating_add(ticks(keep_alive.every_ms)))
    }

    /// If a keep-alive is due, starts its next period and returns it unless something is queued: then the
    /// client has bytes to come anyway.
    pub(crate) fn take_beat(&mut self, now: u32) -> Option<Rc<KeepAlive>> {
        let due = self.beat_tick();
        if due > now {
            return None;
        }
        let keep_alive = self.keep_alive.clone()?;
        self.mark = match keep_alive.mode {
            KeepAliveMode::Idle => now,
            KeepAliveMode::Interval => now - (now - due) % ticks(keep_alive.every_ms),
        };
        self.queue.is_none().then_some(keep_alive)
    }
}

/// With nothing queued only a departure matters, once.
pub(crate) const IDLE: epoll::EventFlags = epoll::EventFlags::RDHUP.union(epoll::EventFlags::ET);
/// A departure is something to read, too.
const READ: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP);
/// Level-triggered while something is queued: a flush is bounded, and what it leaves is reported again.
const QUEUED: epoll::EventFlags = epoll::EventFlags::RDHUP.union(epoll::EventFlags::OUT);

/// A duration in ticks, rounded up, at least one.
pub(crate) fn ticks(ms: u32) -> u32 {
    ms.div_ceil(TICK_MS).max(1)
}
