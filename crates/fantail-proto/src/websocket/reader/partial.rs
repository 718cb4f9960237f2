//! What a [`Reader`](super::Reader) keeps while something is half-way: the bytes of a head, a frame
//! whose payload goes on, a message that lacks fragments. Knows the rules of one frame's head, not those
//! between frames.

use bytes::Bytes;

use super::{Event, Limits, Role, Violation};
use crate::websocket::{
    deflate::Inflater,
    frame::{CONTROL_MAX, FIN, LEN_16, LEN_64, MASKED, OPCODE_BITS, Opcode, RSV1, mask},
};

/// Invariant: `head_bytes` is empty while `frame` is there.
#[derive(Debug, Default)]
pub(super) struct Partial {
    pub head_bytes: Vec<u8>,
    pub frame: Option<Head>,
    /// Payload of the control frame in `frame`.
    pub control: Vec<u8>,
    pub message: Option<Message>,
}

/// A frame's head, and how much of the frame is still to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub opcode: Opcode,
    pub fin: bool,
    pub deflated: bool,
    /// For the next byte of payload; zeros if there is no mask.
    key: [u8; 4],
    /// Bytes of payload that have not been seen.
    pub left: u64,
}

#[derive(Debug)]
pub(super) struct Message {
    opcode: Opcode,
    pub deflated: bool,
    /// Frames that have ended.
    pub fragments: u32,
    pub data: Vec<u8>,
    /// Bytes of `data` known to be UTF-8, if it is text as it stands.
    valid: usize,
    /// It has been passed on so far, but for `data`.
    parted: bool,
}

impl Partial {
    pub(super) fn is_empty(&self) -> bool {
        self.head_bytes.is_empty() && self.frame.is_none() && self.message.is_none()
    }
}

impl Head {
    /// Bytes of the longest head.
    pub(super) const MAX: usize = 14;

    /// The head at the front of `bytes`, and its length; `None` if it goes on. What is wrong with the
    /// first two bytes is found with the first two bytes.
    pub(super) fn parse(bytes: &[u8], role: Role, deflate: bool) -> Result<Option<(Self, usize)>, Violation> {
        let Some(([first, second], rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let opcode = Opcode::new(*first).ok_or(Violation::ReservedOpcode)?;
        let (fin, deflated, masked) = (first & FIN != 0, first & RSV1 != 0, second & MASKED != 0);
        let reserved = first & !(FIN | RSV1 | OPCODE_BITS) != 0;
        if reserved || deflated && (!deflate || opcode.is_control()) {
            return Err(Violation::ReservedBit);
        }
        match role {
            Role::Server if !masked => return Err(Violation::Unmasked),
            Role::Client if masked => return Err(Violation::Masked),
            _ => {}
        }
        let short = second & !MASKED;
        if opcode.is_control() && !fin {
            return Err(Violation::ControlFragmented);
        }
        if opcode.is_control() && usize::from(short) > CONTROL_MAX {
            return Err(Violation::ControlTooLong);
        }
        let Some((left, rest)) = length(short, rest)? else { return Ok(None) };
        let (key, rest) = match rest.split_first_chunk() {
            Some((key, rest)) if masked => (*key, rest),
            None if masked => return Ok(None),
            _ => ([0; 4], rest),
        };
        Ok(Some((Self { opcode, fin, deflated, key, left }, bytes.len() - rest.len())))
    }

    /// Takes the next bytes of the payload, at most `left`, and unmasks them.
    pub(super) fn unmask(&mut self, payload: &mut [u8]) {
        if self.key != [0; 4] {
            mask(self.key, payload);
            self.key.rotate_left(payload.len() % 4);
        }
        self.left -= payload.len() as u64;
    }
}

impl Message {
    /// One that begins with this frame.
    pub(super) fn new(head: &Head) -> Self {
        Self {
            opcode: head.opcode,
            deflated: head.deflated,
            fragments: 0,
            data: Vec::new(),
            valid: 0,
            parted: false,
        }
    }

    /// Fails as soon as a text cannot become valid, wherever it was cut.
    pub(super) fn push(&mut self, payload: &[u8]) -> Result<(), Violation> {
        self.data.extend_from_slice(payload);
        if self.opcode != Opcode::Text || self.deflated {
            return Ok(());
        }
        match simdutf8::compat::from_utf8(&self.data[self.valid..]) {
            Ok(_) => self.valid = self.data.len(),
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(Violation::Utf8),
        }
        Ok(())
    }

    pub(super) fn is_parted(&self) -> bool {
        self.parted
    }

    /// Whether it need not be had whole.
    pub(super) fn may_part(&self, relays: bool) -> bool {
        self.parted || relays && !self.deflated
    }

    /// What has come, but for a character that goes on; nothing is a part only if it is the last.
    pub(super) fn part(&mut self, last: bool) -> Result<Option<Event>, Violation> {
        let end = if self.opcode == Opcode::Text { self.valid } else { self.data.len() };
        if last && end < self.data.len() {
            return Err(Violation::Utf8);
        }
        if end == 0 && !last {
            return Ok(None);
        }
        let rest = self.data.split_off(end);
        let payload = std::mem::replace(&mut self.data, rest).into();
        (self.valid, self.fragments) = (0, 0);
        let opcode = if self.parted { Opcode::Continuation } else { self.opcode };
        self.parted = true;
        Ok(Some(Event::Part { opcode, payload, last }))
    }

    pub(super) fn finish(self, limits: &Limits, inflater: &mut Inflater) -> Result<Event, Violation> {
        let fragmented = self.fragments > 1;
        if self.deflated {
            return Event::inflated(self.opcode, &self.data, fragmented, limits, inflater);
        }
        if self.opcode == Opcode::Text && self.valid < self.data.len() {
            return Err(Violation::Utf8);
        }
        Ok(Event::message(self.opcode, self.data.into(), fragmented))
    }
}

impl Event {
    /// Of a message whose payload is not compressed and, if it is text, known to be UTF-8.
    pub(super) fn message(opcode: Opcode, payload: Bytes, fragmented: bool) -> Self {
        match opcode {
            Opcode::Text => Self::Text { payload, fragmented },
            _ => Self::Binary(payload),
        }
    }

    pub(super) fn inflated(
        opcode: Opcode,
        payload: &[u8],
        fragmented: bool,
        limits: &Limits,
        inflater: &mut Inflater,
    ) -> Result<Self, Violation> {
        let payload = inflater.inflate(payload, limits.message)?;
        if opcode == Opcode::Text {
            check_utf8(&payload)?;
        }
        Ok(Self::message(opcode, payload, fragmented))
    }
}

pub(super) fn check_utf8(text: &[u8]) -> Result<(), Violation> {
    simdutf8::basic::from_utf8(text).map(|_| ()).map_err(|_| Violation::Utf8)
}

/// The length that the short one stands for, and what follows it (RFC 6455 section 5.2).
fn length(short: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, Violation> {
    let (length, least, rest) = match short {
        LEN_16 => {
            let Some((bytes, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*bytes)), u64::from(LEN_16), rest)
        }
        LEN_64 => {
            let Some((bytes, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*bytes), 1 << 16, rest)
        }
        _ => (u64::from(short), 0, rest),
    };
    if length < least || length > i64::MAX as u64 {
        return Err(Violation::Length);
    }
    Ok(Some((length, rest)))
}
