//! Pins whose clients speak while they are held: reading them, pausing, and parting when a queue is full.
//! It reads when its owner asks, and keeps nothing of what it read.

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::record::{Reading, State};
use crate::ring::NEVER;
use crate::{Event, PinId, Pins, Received};

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
        let Some(record) = self.record(id).filter(|record| record.is_served()) else {
            return Received::Nothing;
        };
        let Some(socket) = &record.socket else { return Received::Nothing };
        let hung_up = record.hung_up;
        match recv(socket, buffer, RecvFlags::DONTWAIT) {
            Ok((_, read @ 1..)) => {
                if hung_up {
                    self.pending.push(Event::Readable(id));
                }
                Received::Bytes(read)
            }
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Ok(_) | Err(_) => {
                self.end(id, Event::Departed(id));
                Received::Nothing
            }
        }
    }

    /// Ends a pin whose queue is full, with the farewell where there is one.
    pub(crate) fn overflow(&mut self, id: PinId) {
        let farewell = self.farewell.clone();
        let Some(record) = self.record_mut(id) else { return };
        let Some(queue) =
            record.queue.as_mut().filter(|_| record.reading != Reading::Never && !farewell.is_empty())
        else {
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
