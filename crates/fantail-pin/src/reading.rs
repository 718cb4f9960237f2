//! Pins whose clients speak while they are held: reading them, pausing, and parting when a queue is full.
//! It reads when its owner asks, and keeps nothing of what it read.

use std::mem;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::record::{Reading, Record, State};
use crate::ring::NEVER;
use crate::{Event, PinId, Pins, Received, Tls};

impl<T> Pins<T> {
    /// What a pin that is read gets at the end of its queue when that is full. Without one it just ends.
    pub fn set_farewell(&mut self, farewell: Bytes) {
        self.farewell = farewell;
    }

    /// Whether [`Event::Readable`] is wanted; to be called first before or after the pin gets its socket. A pin that
    /// is read does not depart by its client's closing: that is read, too, behind what came before it.
    pub fn set_reading(&mut self, id: PinId, wanted: bool) {
        let reading = if wanted { Reading::Wanted } else { Reading::Paused };
        let Some(record) = self.record_mut(id).filter(|record| record.reading != reading) else { return };
        record.reading = reading;
        if record.is_served() {
            if record.has_news() {
                self.pending.push(Event::Readable(id));
            }
            self.watch(id);
        }
    }

    /// Whether the owner wants to read a pin; not of a stale id.
    #[must_use]
    pub fn is_reading(&self, id: PinId) -> bool {
        self.record(id).is_some_and(|record| record.reading == Reading::Wanted)
    }

    /// Reads what there is, up to the length of `buffer`. The end of the stream and a failure are an
    /// [`Event::Departed`], found by writing.
    pub fn read(&mut self, id: PinId, buffer: &mut [u8]) -> Received {
        let Some(record) = self.record_mut(id).filter(|record| record.is_served()) else {
            return Received::Nothing;
        };
        if record.tls.is_some() {
            return self.read_sealed(id, buffer);
        }
        let Some(socket) = &record.socket else { return Received::Nothing };
        match recv(socket, buffer, RecvFlags::DONTWAIT) {
            Ok((_, read @ 1..)) => Received::Bytes(read),
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Ok(_) | Err(_) => {
                self.end(id, Event::Departed(id));
                Received::Nothing
            }
        }
    }

    /// As [`Self::read`], of a pin with TLS. What is decrypted already comes first, and more than `buffer` takes is
    /// reported again.
    fn read_sealed(&mut self, id: PinId, buffer: &mut [u8]) -> Received {
        let left = |tls: &Tls| tls.plain_len() > 0;
        if !self.record(id).and_then(|record| record.tls.as_deref()).is_some_and(left) && !self.receive(id) {
            return Received::Nothing;
        }
        let Some(record) = self.record_mut(id) else { return Received::Nothing };
        let read = record.tls.as_mut().map_or(0, |tls| tls.read(buffer));
        if record.has_news() {
            self.pending.push(Event::Readable(id));
        }
        if read == 0 { Received::Nothing } else { Received::Bytes(read) }
    }

    /// Reads a pin with TLS whose owner does not: for what the protocol itself says, and a departure.
    pub(crate) fn hear(&mut self, id: PinId) {
        if !self.receive(id) {
            return;
        }
        let Some(record) = self.record(id) else { return };
        if record.tls.as_ref().is_some_and(|tls| tls.peer_has_closed()) {
            self.end(id, Event::Departed(id));
        } else if !record.hears() {
            self.watch(id);
        }
    }

    /// Decrypts what the socket has, once, and answers what TLS asks for; false if the pin has ended.
    fn receive(&mut self, id: PinId) -> bool {
        let mut received = mem::take(&mut self.scratch.received);
        received.resize(RECEIVE_BYTES, 0);
        let goes_on = self.receive_into(id, &mut received);
        self.scratch.received = received;
        self.emit(id);
        let served = self.record(id).is_some_and(Record::is_served);
        if !goes_on && served {
            self.end(id, Event::Departed(id));
        }
        goes_on && served
    }

    /// False if nothing more can come.
    fn receive_into(&mut self, id: PinId, buffer: &mut [u8]) -> bool {
        let Some(Record { tls: Some(tls), socket: Some(socket), .. }) = self.record_mut(id) else {
            return false;
        };
        if tls.peer_has_closed() {
            return false;
        }
        let read = match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, read @ 1..)) => read,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Ok(_) | Err(_) => return false,
        };
        let received = tls.receive(&mut buffer[..read]);
        if tls.peer_has_closed() {
            tls.close();
        }
        received.is_ok()
    }

    /// Ends a pin whose queue is full, with the farewell where there is one: [`Event::Overflow`].
    pub fn overflow(&mut self, id: PinId) {
        let farewell = self.farewell.clone();
        let Some(record) = self.record_mut(id).filter(|record| record.state == State::Open) else { return };
        let farewell = Some(farewell).filter(|bytes| record.reading != Reading::Never && !bytes.is_empty());
        let farewell = farewell.and_then(|farewell| record.sealed(&farewell).ok());
        let (Some(farewell), Some(queue)) = (farewell, &mut record.queue) else {
            return self.end(id, Event::Overflow(id));
        };
        queue.push(farewell);
        record.state = State::Finishing;
        record.keep_alive = None;
        record.deadline = NEVER;
        self.pending.push(Event::Overflow(id));
        self.watch(id);
    }
}

/// A record and what comes with it.
const RECEIVE_BYTES: usize = 18 << 10;
