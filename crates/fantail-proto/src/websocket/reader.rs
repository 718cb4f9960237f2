//! Received bytes become messages and control frames (RFC 6455 sections 5 and 8.1, RFC 7692 section 6.2).
//! A frame or message that has not arrived whole is kept on the heap until it has; between messages a
//! reader is a few bytes and owns nothing. Never keeps more than a small multiple of what arrived,
//! whatever was announced, and never keeps the caller's buffer.

mod partial;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, mem};

use bytes::Bytes;

use self::partial::{Head, Message, Partial, check_utf8};
use super::{
    close::{Close, Code},
    deflate::{self, Inflater},
    frame::Opcode,
};

/// Reads what one peer sends, in order.
#[derive(Debug)]
pub struct Reader {
    role: Role,
    deflate: bool,
    ended: bool,
    relays: bool,
    /// Something is half-way.
    partial: Option<Box<Partial>>,
}

/// Which end of the connection we are: a server's peer must mask, a client's must not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    Server,
    Client,
}

/// What one message may have at most; more ends the connection with [`Code::TOO_BIG`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes, after inflation.
    pub message: usize,
    /// Frames, the empty ones included.
    pub fragments: u32,
}

/// A complete message or control frame. Payloads are unmasked and inflated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// `payload` is valid UTF-8. `fragmented`: it came in more than one frame, which a GRIP control
    /// message must not.
    Text {
        payload: Bytes,
        fragmented: bool,
    },
    Binary(Bytes),
    Ping(Bytes),
    Pong(Bytes),
    /// The last event. `None`: without a code.
    Close(Option<Close>),
    /// Of a message that is passed on before its end, see [`Reader::relay`]: the parts of a text are UTF-8 together.
    Part {
        /// Of the first text or binary, of the others continuation.
        opcode: Opcode,
        payload: Bytes,
        last: bool,
    },
}

/// What the peer did wrong: always the end of the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    #[error("a client's frame is not masked")]
    Unmasked,
    #[error("a server's frame is masked")]
    Masked,
    #[error("a reserved bit is set")]
    ReservedBit,
    #[error("the opcode is reserved")]
    ReservedOpcode,
    #[error("a length is not in its shortest form or over 63 bits")]
    Length,
    #[error("a control frame is fragmented")]
    ControlFragmented,
    #[error("a control frame is too long")]
    ControlTooLong,
    #[error("a continuation without a message")]
    NothingToContinue,
    #[error("a message inside of another")]
    Interleaved,
    #[error("a close frame of one byte")]
    CloseLength,
    #[error("the close code is reserved")]
    CloseCode,
    #[error("the close reason is not UTF-8")]
    CloseReason,
    #[error("a text message is not UTF-8")]
    Utf8,
    #[error("a message does not inflate")]
    Deflate,
    #[error("a message is too long")]
    TooLong,
    #[error("a message has too many fragments")]
    TooManyFragments,
}

impl Reader {
    /// `deflate`: permessage-deflate was agreed on.
    pub fn new(role: Role, deflate: bool) -> Self {
        Self { role, deflate, ended: false, relays: false, partial: None }
    }

    /// From now on, what a message has over the limits is no violation: it comes in [`Event::Part`]s, as it arrives. One
    /// that is compressed must be had whole all the same.
    pub fn relay(&mut self, relays: bool) {
        self.relays = relays;
    }

    /// Whether there is a message half-way that may come in parts.
    pub fn may_part(&self) -> bool {
        let message = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        message.is_some_and(|message| message.may_part(self.relays))
    }

    /// What has arrived of such a message.
    pub fn take_part(&mut self) -> Option<Event> {
        let relays = self.relays;
        let message = self.partial.as_mut()?.message.as_mut().filter(|message| message.may_part(relays))?;
        message.part(false).ok().flatten()
    }

    /// The next event; what was used is taken from the front of `input` (and unmasked where it lies).
    /// `None` when `input` is used up. After a close or a violation everything is swallowed.
    pub fn read(
        &mut self,
        input: &mut &mut [u8],
        limits: &Limits,
        inflater: &mut Inflater,
    ) -> Result<Option<Event>, Violation> {
        if self.ended {
            *input = &mut [];
            return Ok(None);
        }
        let read = self.advance(input, limits, inflater);
        self.partial.take_if(|partial| partial.is_empty());
        if matches!(read, Err(_) | Ok(Some(Event::Close(_)))) {
            self.ended = true;
            self.partial = None;
            *input = &mut [];
        }
        read
    }

    /// Whether a frame or message is half-way: a peer that goes away now cuts it off.
    pub fn is_partial(&self) -> bool {
        self.partial.is_some()
    }

    /// After a close or a violation nothing is read any more.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    fn advance(
        &mut self,
        input: &mut &mut [u8],
        limits: &Limits,
        inflater: &mut Inflater,
    ) -> Result<Option<Event>, Violation> {
        while let Some(mut head) = self.head(input, limits)? {
            let len = usize::try_from(head.left).map_or(input.len(), |left| left.min(input.len()));
            let payload;
            (payload, *input) = mem::take(input).split_at_mut(len);
            head.unmask(payload);
            let event = if head.opcode.is_control() {
                self.control(head, payload)?
            } else {
                self.data(head, payload, limits, inflater)?
            };
            if event.is_some() || head.left > 0 {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// The head of the frame at hand, less what has been used of its payload.
    fn head(&mut self, input: &mut &mut [u8], limits: &Limits) -> Result<Option<Head>, Violation> {
        let mut kept = 0;
        if let Some(partial) = &mut self.partial {
            if partial.frame.is_some() {
                return Ok(partial.frame.take());
            }
            kept = partial.head_bytes.len();
        }
        if input.is_empty() {
            return Ok(None);
        }
        let parsed = if kept == 0 {
            Head::parse(input, self.role, self.deflate)?
        } else {
            let bytes = &mut self.partial.get_or_insert_default().head_bytes;
            bytes.extend_from_slice(&input[..input.len().min(Head::MAX - kept)]);
            Head::parse(bytes, self.role, self.deflate)?
        };
        let Some((head, len)) = parsed else {
            let input = mem::take(input);
            if kept == 0 {
                self.partial.get_or_insert_default().head_bytes.extend_from_slice(input);
            }
            return Ok(None);
        };
        *input = &mut mem::take(input)[len - kept..];
        if let Some(partial) = &mut self.partial {
            partial.head_bytes.clear();
        }
        self.check(&head, limits)?;
        Ok(Some(head))
    }

    /// Whether the frame may follow what came before it, before any of its payload is looked at.
    fn check(&self, head: &Head, limits: &Limits) -> Result<(), Violation> {
        if head.opcode.is_control() {
            return Ok(());
        }
        let message = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        let (deflated, kept) = match (head.opcode, message) {
            (Opcode::Continuation, None) => return Err(Violation::NothingToContinue),
            (Opcode::Continuation, Some(_)) if head.deflated => return Err(Violation::ReservedBit),
            (Opcode::Continuation, Some(message)) if message.may_part(self.relays) => return Ok(()),
            (Opcode::Continuation, Some(message)) if message.fragments >= limits.fragments => {
                return Err(Violation::TooManyFragments);
            }
            (Opcode::Continuation, Some(message)) => (message.deflated, message.data.len()),
            (_, Some(_)) => return Err(Violation::Interleaved),
            (_, None) => (head.deflated, 0),
        };
        let max = if deflated { deflate::compressed_max(limits.message) } else { limits.message };
        if head.left > max.saturating_sub(kept) as u64 && (deflated || !self.relays) {
            return Err(Violation::TooLong);
        }
        Ok(())
    }

    fn control(&mut self, head: Head, payload: &[u8]) -> Result<Option<Event>, Violation> {
        let kept = self.partial.as_mut().map(|partial| mem::take(&mut partial.control)).unwrap_or_default();
        let payload = if kept.is_empty() { Cow::Borrowed(payload) } else { [&kept, payload].concat().into() };
        if head.left > 0 {
            let partial = self.partial.get_or_insert_default();
            partial.frame = Some(head);
            partial.control = payload.into_owned();
            return Ok(None);
        }
        Ok(Some(match head.opcode {
            Opcode::Close => Event::Close(Close::parse(&payload)?),
            Opcode::Ping => Event::Ping(payload.into_owned().into()),
            _ => Event::Pong(payload.into_owned().into()),
        }))
    }

    fn data(
        &mut self,
        head: Head,
        payload: &[u8],
        limits: &Limits,
        inflater: &mut Inflater,
    ) -> Result<Option<Event>, Violation> {
        let begun = self.partial.as_ref().is_some_and(|partial| partial.message.is_some());
        if !begun && head.fin && head.left == 0 {
            return whole(&head, payload, limits, inflater).map(Some);
        }
        let partial = self.partial.get_or_insert_default();
        let message = partial.message.get_or_insert_with(|| Message::new(&head));
        message.push(payload)?;
        let ended = head.left == 0;
        message.fragments += u32::from(ended);
        let last = ended && head.fin;
        let excess = message.data.len() > limits.message || !last && message.fragments >= limits.fragments;
        let part = if message.is_parted() || excess && message.may_part(self.relays) {
            Some(message.part(last)?)
        } else {
            None
        };
        if !ended {
            partial.frame = Some(head);
        } else if part.is_some() && last {
            partial.message = None;
        }
        if let Some(part) = part {
            return Ok(part);
        }
        if !last {
            return Ok(None);
        }
        partial.message.take().map(|message| message.finish(limits, inflater)).transpose()
    }
}

impl Violation {
    /// What the peer is told with the close.
    pub fn code(self) -> Code {
        match self {
            // An unreadable deflate stream is in a frame that is in order: the data are wrong, not the protocol.
            Self::Utf8 | Self::CloseReason | Self::Deflate => Code::INVALID_DATA,
            Self::TooLong | Self::TooManyFragments => Code::TOO_BIG,
            _ => Code::PROTOCOL_ERROR,
        }
    }
}

/// The event of a message whose only frame is at hand whole.
fn whole(head: &Head, payload: &[u8], limits: &Limits, inflater: &mut Inflater) -> Result<Event, Violation> {
    if head.deflated {
        return Event::inflated(head.opcode, payload, false, limits, inflater);
    }
    if head.opcode == Opcode::Text {
        check_utf8(payload)?;
    }
    Ok(Event::message(head.opcode, Bytes::copy_from_slice(payload), false))
}

/// Enough for the 4 MiB in frames of 64 bytes that the test suites send, and few enough that frames
/// without content keep a reader busy for some milliseconds only.
pub const FRAGMENTS_MAX: u32 = 65_536;

const _: () = assert!(size_of::<Reader>() <= 16, "one for each held WebSocket");
