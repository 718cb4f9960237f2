//! The table: a slab of records, the poller that watches them, the ring that times them.
//! Every call does a bounded amount of work and none of them waits. What must be told to the owner is remembered
//! until [`Pins::turn`], [`Pins::expire`] or [`Pins::drain_events`] hands it over.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::Bytes;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::fan_out::Batches;
use crate::queue::Flushed;
use crate::record::{self, Reading, Record, State, TICK_MS};
use crate::ring::{self, NEVER, Ring};
use crate::{Brim, Event, FanOut, Form, KeepAlive, Limits, PinId, Rejected, Tally, Unpinned, Wire};

/// The held sockets of one shard, each with a value of its owner's. It belongs to one thread.
///
/// Times are milliseconds of any one monotonic clock; the table knows only what it was last told.
pub struct Pins<T> {
    slots: Vec<Slot<T>>,
    vacant: Vec<u32>,
    epoll: OwnedFd,
    pub(crate) ring: Ring,
    draws: Draws,
    pub(crate) limits: Limits,
    started_ms: u64,
    now_ms: u64,
    pub(crate) pending: Vec<Event>,
    pub(crate) batches: Option<Batches>,
    pub(crate) farewell: Bytes,
    pub(crate) scratch: Scratch,
}

/// Bytes on their way through TLS, one pin after the other.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) sealed: Vec<u8>,
    pub(crate) received: Vec<u8>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    record: Option<Record<T>>,
}

impl<T> Pins<T> {
    /// An empty table whose clock stands at `now_ms`.
    ///
    /// # Errors
    /// The poller cannot be made (out of descriptors), or io_uring was asked for and is not to be had.
    pub fn new(fan_out: FanOut, limits: Limits, now_ms: u64) -> io::Result<Self> {
        let batches = match fan_out {
            FanOut::Send => None,
            FanOut::IoUring => Some(Batches::new()?),
        };
        Ok(Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            ring: Ring::new(FIRST_TICK),
            draws: Draws(DRAWS_SEED),
            limits,
            started_ms: now_ms,
            now_ms,
            pending: Vec::new(),
            batches,
            farewell: Bytes::new(),
            scratch: Scratch::default(),
        })
    }

    /// Another descriptor of the poller, for the shard to wait on: when it is readable, call [`Self::turn`].
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn epoll(&self) -> io::Result<OwnedFd> {
        self.epoll.try_clone()
    }

    /// Takes a stream socket over. If its client has left already, that comes as [`Event::Departed`].
    ///
    /// # Errors
    /// The kernel will not watch the socket (out of memory or watches), or the table is full.
    pub fn insert(&mut self, socket: OwnedFd, form: Form, value: T) -> Result<PinId, Box<Rejected<T>>> {
        let id = self.next_id();
        let watched = if id.index < ring::MOST {
            epoll::add(&self.epoll, &socket, data(id), record::IDLE)
        } else {
            Err(Errno::NFILE)
        };
        if let Err(error) = watched {
            return Err(Box::new(Rejected { error: error.into(), socket, value }));
        }
        self.place(id, Record::new(Some(socket), form, value, self.tick()));
        Ok(id)
    }

    /// Makes a pin whose socket is still somebody else's to write to: what is written to it waits, within the
    /// limits of its queue, for [`Self::attach`]. `None` if the table is full.
    pub fn reserve(&mut self, form: Form, value: T) -> Option<PinId> {
        let id = self.next_id();
        if id.index >= ring::MOST {
            return None;
        }
        self.place(id, Record::new(None, form, value, self.tick()));
        Some(id)
    }

    /// Gives a reserved pin its socket and writes what has waited, encrypted where there is TLS. If the pin has ended
    /// meanwhile, or the socket cannot be watched, the event says so; a stale id closes the socket.
    pub fn attach(&mut self, id: PinId, wire: impl Into<Wire>) {
        let tick = self.tick();
        let limits = self.limits;
        let Wire { socket, tls } = wire.into();
        let Some(record) = self.record_mut(id) else { return };
        debug_assert!(record.socket.is_none(), "a pin has one socket for life");
        record.tls = tls;
        if record.state == State::Ended {
            record.socket = Some(socket);
            return;
        }
        // Before it is watched: what the socket takes at once need not be watched for.
        let flushed = record.start(&socket, tick, limits.pace);
        let flags = record.watch();
        if flushed.is_err() || epoll::add(&self.epoll, &socket, data(id), flags).is_err() {
            return self.end(id, Event::Departed(id));
        }
        let Some(record) = self.record_mut(id) else { return };
        record.socket = Some(socket);
        let stall = record.stall_tick(&limits);
        if record.has_news() {
            self.pending.push(Event::Readable(id));
        }
        match flushed {
            Ok(Some(Flushed::Emptied)) => self.emptied(id),
            // What is left the poller reports: a queued socket is watched by level.
            Ok(Some(_)) => self.ring.arm(id.index, stall),
            _ => {}
        }
    }

    /// Takes a pin out, whatever its state; what was queued is dropped.
    pub fn remove(&mut self, id: PinId) -> Option<Unpinned<T>> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        let record = slot.record.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.vacant.push(id.index);
        self.ring.disarm(id.index);
        if let Some(socket) = record.socket.as_ref().filter(|_| record.state != State::Ended) {
            unwatch(&self.epoll, socket);
        }
        let unsent = record.queue.map_or(0, |queue| queue.bytes());
        let wire = record.socket.map(|socket| Wire { socket, tls: record.tls });
        Some(Unpinned { wire, value: record.value, unsent })
    }

    /// Which form of a payload a pin takes.
    #[must_use]
    pub fn form(&self, id: PinId) -> Option<Form> {
        self.record(id).map(|record| record.form)
    }

    /// The owner's value of a pin.
    #[must_use]
    pub fn get(&self, id: PinId) -> Option<&T> {
        self.record(id).map(|record| &record.value)
    }

    /// The owner's value of a pin.
    pub fn get_mut(&mut self, id: PinId) -> Option<&mut T> {
        self.record_mut(id).map(|record| &mut record.value)
    }

    /// Pins in the table, ended ones included until they are removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    /// Whether the table has no pin.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All pins, in no particular order.
    pub fn ids(&self) -> impl Iterator<Item = PinId> + '_ {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.record.is_some()).map(|(index, slot)| {
            // The slab has fewer than `ring::MOST` slots, so an index fits.
            PinId { index: index as u32, generation: slot.generation }
        })
    }

    /// Bytes that wait for a pin's socket; 0 for a stale id.
    #[must_use]
    pub fn queue_len(&self, id: PinId) -> usize {
        self.record(id).and_then(|record| record.queue.as_ref()).map_or(0, |queue| queue.bytes())
    }

    /// Whether so many bytes may wait for a pin's socket, too, or nothing does.
    #[must_use]
    pub fn has_room(&self, id: PinId, len: usize) -> bool {
        self.record(id).is_some_and(|record| record.has_room(len, &self.limits))
    }

    /// What is done with broadcasts for a pin for which something waits.
    pub fn set_brim(&mut self, id: PinId, brim: Brim) {
        if let Some(record) = self.record_mut(id) {
            record.brim = brim;
        }
    }

    /// As [`Self::set_brim`] has set it.
    #[must_use]
    pub fn brim(&self, id: PinId) -> Brim {
        self.record(id).map_or(Brim::End, |record| record.brim)
    }

    /// Ends the keep-alives of a pin.
    pub fn clear_keep_alive(&mut self, id: PinId) {
        if let Some(record) = self.record_mut(id) {
            record.keep_alive = None;
        }
    }

    /// When a pin last took bytes, in milliseconds of its clock and to a tenth of a second; if it has a keep-alive
    /// on an interval, when that last was due.
    #[must_use]
    pub fn last_write_ms(&self, id: PinId) -> Option<u64> {
        let mark = self.record(id)?.mark.saturating_sub(FIRST_TICK);
        Some(self.started_ms + u64::from(mark) * u64::from(TICK_MS))
    }

    /// Sends `keep_alive` from now on, first after `first_after_ms` (which the caller spreads, so that pins made
    /// together do not beat together) and then at its period, each time up to 0.9 s earlier, so that pins written
    /// to together do not either. Replaces an earlier one.
    pub fn set_keep_alive(&mut self, id: PinId, keep_alive: Rc<KeepAlive>, first_after_ms: u32) {
        let first = self.tick_after(first_after_ms);
        let early = self.draws.next();
        if let Some(record) = self.record_mut(id).filter(|record| record.state == State::Open) {
            record.keep_alive(keep_alive, first, early);
            self.ring.arm(id.index, first);
        }
    }

    /// Reports [`Event::Due`] once, `after_ms` from now or up to 100 ms later. Replaces an earlier deadline.
    pub fn set_deadline(&mut self, id: PinId, after_ms: u32) {
        let tick = self.tick_after(after_ms);
        if let Some(record) = self.record_mut(id).filter(|record| record.is_served()) {
            record.deadline = tick;
            self.ring.arm(id.index, tick);
        }
    }

    /// Moves the clock on; a time before the last one is ignored. To be called on each wake-up before writing,
    /// since keep-alives and stalls count from writes.
    pub fn set_now(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// Asks the kernel what happened to the sockets, without waiting: flushes queues and notices departures, for
    /// at most [`TURN_BATCH`] of them. True unless there was nothing: call again, after other work.
    ///
    /// # Errors
    /// The poller itself failed, which a working kernel does not do.
    pub fn turn(&mut self, events: &mut Vec<Event>) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); TURN_BATCH];
        let ready = match epoll::wait(&self.epoll, &mut buffer, Some(&NO_WAIT)) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => &mut [],
            Err(error) => return Err(error.into()),
        };
        // What was told by level stays on the poller's list until an ask finds it gone, and while it is there the
        // poller wakes nobody for it: only an ask that finds nothing may be the last.
        let mut more = !ready.is_empty();
        for &mut epoll::Event { flags, data } in ready {
            more |= self.react(pin_id(data), flags);
        }
        events.append(&mut self.pending);
        Ok(more)
    }

    /// Does what is due at `now_ms`: keep-alives (counted in the tally), [`Event::Due`], [`Event::Stalled`], for
    /// at most [`EXPIRY_BATCH`] pins; [`Self::next_expiry_ms`] then is in the past.
    pub fn expire(&mut self, now_ms: u64, events: &mut Vec<Event>) -> Tally {
        self.set_now(now_ms);
        let mut tally = Tally::default();
        let mut budget = EXPIRY_BATCH;
        while let Some(index) = self.ring.pop(self.tick(), &mut budget) {
            self.expire_pin(index, &mut tally);
        }
        events.append(&mut self.pending);
        tally
    }

    /// When to call [`Self::expire`] next; none while no pin has a timer.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        let tick = self.ring.next()?;
        Some(self.started_ms + u64::from(tick - FIRST_TICK) * u64::from(TICK_MS))
    }

    /// Events found while writing that wait to be handed over. The poller is silent about them: ask after writing.
    #[must_use]
    pub const fn pending_events(&self) -> usize {
        self.pending.len()
    }

    /// Hands over the pending events without asking the kernel.
    pub fn drain_events(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.pending);
    }

    fn next_id(&self) -> PinId {
        let index = self.vacant.last().copied().unwrap_or(self.slots.len() as u32);
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.generation);
        PinId { index, generation }
    }

    /// Puts a record where [`Self::next_id`] said.
    fn place(&mut self, id: PinId, record: Record<T>) {
        match self.slots.get_mut(id.index as usize) {
            Some(slot) => {
                slot.record = Some(record);
                self.vacant.pop();
            }
            None => self.slots.push(Slot { generation: id.generation, record: Some(record) }),
        }
    }

    pub(crate) fn record(&self, id: PinId) -> Option<&Record<T>> {
        self.slots.get(id.index as usize).filter(|slot| slot.generation == id.generation)?.record.as_ref()
    }

    pub(crate) fn record_mut(&mut self, id: PinId) -> Option<&mut Record<T>> {
        self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?.record.as_mut()
    }

    /// Whether a pin takes broadcasts: it has not ended and is not about to.
    #[must_use]
    pub fn is_open(&self, id: PinId) -> bool {
        self.record(id).is_some_and(|record| record.state == State::Open)
    }

    /// Acts on what the poller said about a socket; true if it would take more at once.
    fn react(&mut self, id: PinId, flags: epoll::EventFlags) -> bool {
        let Some(record) = self.record(id) else { return false };
        let departed = match record.state {
            State::Open | State::Sealed if record.reading == Reading::Never => {
                epoll::EventFlags::HUP | epoll::EventFlags::ERR | epoll::EventFlags::RDHUP
            }
            // What a client sent before it closed is read first.
            State::Open | State::Sealed if flags.contains(epoll::EventFlags::IN) => {
                epoll::EventFlags::empty()
            }
            State::Open | State::Sealed | State::Finishing => epoll::EventFlags::HUP | epoll::EventFlags::ERR,
            State::Ended => return false,
        };
        if flags.intersects(departed) {
            self.end(id, Event::Departed(id));
            return false;
        }
        if flags.contains(epoll::EventFlags::IN) {
            if record.hears() {
                self.hear(id);
            } else {
                self.pending.push(Event::Readable(id));
            }
        }
        flags.contains(epoll::EventFlags::OUT) && self.flush(id)
    }

    fn expire_pin(&mut self, index: u32, tally: &mut Tally) {
        let now = self.tick();
        let limits = self.limits;
        let early = self.draws.next();
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        let Some(record) = slot.record.as_mut() else { return };
        let id = PinId { index, generation: slot.generation };
        if record.stall_tick(&limits) <= now {
            self.end(id, Event::Stalled(id));
            return;
        }
        if record.deadline <= now {
            record.deadline = NEVER;
            self.pending.push(Event::Due(id));
        }
        if let Some(keep_alive) = record.take_beat(now, early) {
            let bytes = keep_alive.payload.in_form(record.form);
            tally.count(self.deliver(id, bytes, limits.queue_bytes), bytes.len());
        }
        if let Some(record) = self.record(id).filter(|record| record.state != State::Ended) {
            let tick = record.next_look(&limits);
            if tick != NEVER {
                self.ring.arm(index, tick);
            }
        }
    }

    /// Ends a pin: no more writes, no more watching, and one last event.
    pub(crate) fn end(&mut self, id: PinId, event: Event) {
        let Some(slot) = self.slots.get_mut(id.index as usize) else { return };
        let Some(record) = slot.record.as_mut() else { return };
        debug_assert_ne!(record.state, State::Ended, "an end is reported once");
        record.state = State::Ended;
        record.keep_alive = None;
        if let Some(socket) = &record.socket {
            unwatch(&self.epoll, socket);
        }
        self.ring.disarm(id.index);
        self.pending.push(event);
    }

    /// Tells the poller what to watch for; a socket that it will not watch is as good as gone.
    pub(crate) fn watch(&mut self, id: PinId) -> bool {
        let Some(record) = self.record(id) else { return false };
        let Some(socket) = &record.socket else { return true };
        let watched = epoll::modify(&self.epoll, socket, data(id), record.watch()).is_ok();
        if !watched {
            self.end(id, Event::Departed(id));
        }
        watched
    }

    pub(crate) fn tick(&self) -> u32 {
        tick_at((self.now_ms - self.started_ms) / u64::from(TICK_MS))
    }

    /// The first tick that is not before `ms` from now.
    fn tick_after(&self, ms: u32) -> u32 {
        tick_at((self.now_ms - self.started_ms + u64::from(ms)).div_ceil(u64::from(TICK_MS)))
    }
}

impl<T> fmt::Debug for Pins<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pins")
            .field("len", &self.len())
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

/// The clock stops after thirteen years of uptime rather than overflow.
fn tick_at(ticks_since_start: u64) -> u32 {
    u32::try_from(ticks_since_start).unwrap_or(u32::MAX).saturating_add(FIRST_TICK).min(NEVER - 1)
}

const fn data(id: PinId) -> epoll::EventData {
    epoll::EventData::new_u64((id.generation as u64) << 32 | id.index as u64)
}

fn pin_id(data: epoll::EventData) -> PinId {
    let data = data.u64();
    PinId { index: data as u32, generation: (data >> 32) as u32 }
}

/// The socket may have been the last of a watch that the kernel dropped by itself: nothing is lost then.
fn unwatch(epoll: &OwnedFd, socket: &OwnedFd) {
    let unwatched = epoll::delete(epoll, socket);
    debug_assert!(unwatched.is_ok(), "a pin is watched until it ends: {unwatched:?}");
}

/// How much earlier the next keep-alive of a pin comes, in ticks, evenly drawn (xorshift: G. Marsaglia, 2003). It
/// spreads load and hides nothing, so every table may draw the same.
struct Draws(u32);

impl Draws {
    fn next(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        // Below EARLY_TICKS, which fits.
        ((u64::from(self.0) * u64::from(EARLY_TICKS)) >> 32) as u8
    }
}

/// The price of a pin beside its value and the kernel's part.
const _: () = assert!(size_of::<Slot<u64>>() - size_of::<u64>() + ring::LINK_SIZE <= 72);

/// Sockets looked at in one turn: about a millisecond of flushing.
const TURN_BATCH: usize = 256;
/// Timers looked at in one call: some milliseconds if each of them sends a keep-alive.
const EXPIRY_BATCH: usize = 1024;
/// Far enough from zero that any period can be subtracted (a period is at most 2^32 ms, 2^25.4 ticks).
const FIRST_TICK: u32 = 1 << 26;
/// A keep-alive is early by less than a second (spec 3.8).
const EARLY_TICKS: u8 = 10;
const DRAWS_SEED: u32 = 0x9E37_79B9;
const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
