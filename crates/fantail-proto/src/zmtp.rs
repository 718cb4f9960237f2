//! ZeroMQ's wire protocol, ZMTP 3.0 (RFC 23/ZMTP) with the NULL mechanism: the greeting, the READY command, and
//! messages of frames. Only what a server needs that binds its sockets. Never keeps more than one message, which
//! has a limit; which message goes to which peer is decided elsewhere.

use bytes::{Buf, Bytes, BytesMut};

/// What a socket is for; a peer's must fit (RFC 23/ZMTP, "The Socket-Type property").
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Socket {
    Push,
    Pull,
    Router,
    Pub,
    Sub,
    Dealer,
}

/// What the peer says of itself in its READY.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ready {
    /// Empty if it has none.
    pub identity: Bytes,
}

/// What arrives behind the greeting.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// Its frames, at least one.
    Message(Vec<Bytes>),
    /// The payload of a command.
    Command(Bytes),
}

/// Why a peer is not spoken to any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    #[error("it does not greet as ZMTP 3 does")]
    Greeting,
    #[error("it wants another security mechanism than NULL")]
    Mechanism,
    #[error("its READY is malformed")]
    Ready,
    #[error("its socket is of a type that does not fit")]
    Type,
    #[error("a frame has reserved flags")]
    Flags,
    #[error("a message is too long")]
    TooLong,
    #[error("a message has too many frames")]
    TooManyFrames,
}

impl Socket {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Push => b"PUSH",
            Self::Pull => b"PULL",
            Self::Pub => b"PUB",
            Self::Router => b"ROUTER",
            Self::Sub => b"SUB",
            Self::Dealer => b"DEALER",
        }
    }

    fn fits(self, peer: &[u8]) -> bool {
        match self {
            Self::Push => peer == b"PULL",
            Self::Pull => peer == b"PUSH",
            Self::Pub => [&b"SUB"[..], b"XSUB"].contains(&peer),
            Self::Router => [&b"REQ"[..], b"DEALER", b"ROUTER"].contains(&peer),
            Self::Sub => [&b"PUB"[..], b"XPUB"].contains(&peer),
            Self::Dealer => [&b"REP"[..], b"DEALER", b"ROUTER"].contains(&peer),
        }
    }

    /// The READY command of this socket, framed.
    pub fn ready(self) -> Vec<u8> {
        let mut payload = b"\x05READY".to_vec();
        for (name, value) in [(&b"Socket-Type"[..], self.name()), (b"Identity", b"")] {
            payload.push(name.len() as u8);
            payload.extend_from_slice(name);
            payload.extend_from_slice(&(value.len() as u32).to_be_bytes());
            payload.extend_from_slice(value);
        }
        let mut frame = Vec::new();
        append(COMMAND, &payload, &mut frame);
        frame
    }

    /// Reads the peer's READY, the payload of its first command.
    ///
    /// # Errors
    /// It is malformed, or the peer's socket does not fit.
    pub fn accept(self, command: &Bytes) -> Result<Ready, Violation> {
        let mut rest = command.strip_prefix(b"\x05READY").ok_or(Violation::Ready)?;
        let (mut fits, mut identity) = (false, Bytes::new());
        while !rest.is_empty() {
            let (name, value) = property(&mut rest).ok_or(Violation::Ready)?;
            if name.eq_ignore_ascii_case(b"Socket-Type") {
                fits = self.fits(value);
            } else if name.eq_ignore_ascii_case(b"Identity") {
                if value.len() > IDENTITY_MAX {
                    return Err(Violation::Ready);
                }
                identity = Bytes::copy_from_slice(value);
            }
        }
        if fits { Ok(Ready { identity }) } else { Err(Violation::Type) }
    }
}

/// What both sides send first.
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Whether a peer's greeting is one that can be talked to: of version 3 or later, which then speaks 3.0, too.
///
/// # Errors
/// It is not ZMTP 3, or it wants security.
pub fn check_greeting(greeting: &[u8; GREETING_BYTES]) -> Result<(), Violation> {
    if greeting[0] != 0xff || greeting[9] & 1 == 0 || greeting[10] < 3 {
        return Err(Violation::Greeting);
    }
    let mut null = [0; 20];
    null[..4].copy_from_slice(b"NULL");
    if greeting[12..32] == null { Ok(()) } else { Err(Violation::Mechanism) }
}

/// A message of these frames, as bytes. There must be at least one frame.
pub fn message(frames: &[&[u8]]) -> Bytes {
    let mut out = Vec::with_capacity(frames.iter().map(|frame| frame.len() + 9).sum());
    for (n, frame) in frames.iter().enumerate() {
        append(if n + 1 < frames.len() { MORE } else { 0 }, frame, &mut out);
    }
    out.into()
}

/// What a subscriber tells a publisher: from now on it wants messages whose first frame begins with `topic`, or
/// does not want them any more.
pub fn subscription(topic: &[u8], wanted: bool) -> Bytes {
    message(&[&[&[u8::from(wanted)], topic].concat()])
}

/// The answer to a command, if it is one that asks for an answer: PING (RFC 37/ZMTP).
pub fn answer(command: &[u8]) -> Option<Bytes> {
    let echo = command.strip_prefix(b"\x04PING")?.get(2..)?;
    let mut frame = Vec::new();
    append(COMMAND, &[b"\x04PONG", &echo[..echo.len().min(PING_ECHO_MAX)]].concat(), &mut frame);
    Some(frame.into())
}

/// Reads what arrives behind the greeting.
#[derive(Debug)]
pub struct Decoder {
    /// Bytes of a message, all its frames together.
    limit: usize,
    frames: Vec<Bytes>,
    size: usize,
}

impl Decoder {
    /// `limit`: bytes that one message may have.
    pub fn new(limit: usize) -> Self {
        Self { limit, frames: Vec::new(), size: 0 }
    }

    /// The next event; what was used is taken from the front of `input`. `None` when more is needed.
    ///
    /// # Errors
    /// The peer breaks the protocol or a limit; it must be read no more.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        loop {
            let Some((flags, head, size)) = self.head(input)? else { return Ok(None) };
            if input.len() - head < size {
                input.reserve(head + size - input.len());
                return Ok(None);
            }
            input.advance(head);
            let payload = input.split_to(size).freeze();
            if flags & COMMAND != 0 {
                return Ok(Some(Event::Command(payload)));
            }
            if self.frames.len() == FRAMES_MAX {
                return Err(Violation::TooManyFrames);
            }
            self.size += size;
            self.frames.push(payload);
            if flags & MORE == 0 {
                self.size = 0;
                return Ok(Some(Event::Message(std::mem::take(&mut self.frames))));
            }
        }
    }

    /// Whether it has nothing of a message of which more frames are to come.
    pub fn is_between_messages(&self) -> bool {
        self.frames.is_empty()
    }

    /// The flags, the length of the frame's head and that of what follows it.
    fn head(&self, input: &[u8]) -> Result<Option<(u8, usize, usize)>, Violation> {
        let Some((&flags, rest)) = input.split_first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 || flags & COMMAND != 0 && flags & MORE != 0 {
            return Err(Violation::Flags);
        }
        let (head, size) = if flags & LONG == 0 {
            let Some(size) = rest.first() else { return Ok(None) };
            (2, u64::from(*size))
        } else {
            let Some(size) = rest.first_chunk() else { return Ok(None) };
            (9, u64::from_be_bytes(*size))
        };
        let size = usize::try_from(size).map_err(|_| Violation::TooLong)?;
        if size > self.limit.saturating_sub(self.size) {
            return Err(Violation::TooLong);
        }
        Ok(Some((flags, head, size)))
    }
}

fn property<'r>(rest: &mut &'r [u8]) -> Option<(&'r [u8], &'r [u8])> {
    let (len, behind) = rest.split_first()?;
    let (name, behind) = behind.split_at_checked(usize::from(*len))?;
    let (len, behind) = behind.split_first_chunk()?;
    let (value, behind) = behind.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    *rest = behind;
    Some((name, value))
}

fn append(flags: u8, payload: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(payload.len()) {
        Ok(len) => out.extend_from_slice(&[flags, len]),
        Err(_) => {
            out.push(flags | LONG);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

pub const GREETING_BYTES: usize = 64;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
/// More than any message of this house has.
const FRAMES_MAX: usize = 16;
/// RFC 23/ZMTP, "The Identity property".
const IDENTITY_MAX: usize = 255;
/// RFC 37/ZMTP, "Connection Heartbeating".
const PING_ECHO_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(mut input: BytesMut, limit: usize) -> Result<Vec<Event>, Violation> {
        let mut decoder = Decoder::new(limit);
        let mut events = Vec::new();
        while let Some(event) = decoder.next(&mut input)? {
            events.push(event);
        }
        Ok(events)
    }

    #[test]
    fn greetings() {
        assert_eq!(check_greeting(&greeting()), Ok(()));
        let changed = |at: usize, to: u8| {
            let mut greeting = greeting();
            greeting[at] = to;
            check_greeting(&greeting)
        };
        assert_eq!(changed(11, 1), Ok(()), "3.1 speaks 3.0");
        assert_eq!(changed(10, 2), Err(Violation::Greeting));
        assert_eq!(changed(0, b'G'), Err(Violation::Greeting));
        assert_eq!(changed(12, b'P'), Err(Violation::Mechanism));
        assert_eq!(changed(16, b'P'), Err(Violation::Mechanism));
    }

    #[test]
    fn ready() {
        let Ok(Some(Event::Command(ready))) =
            Decoder::new(100).next(&mut BytesMut::from(&Socket::Dealer.ready()[..]))
        else {
            panic!("a command")
        };
        assert_eq!(Socket::Router.accept(&ready), Ok(Ready { identity: Bytes::new() }));
        assert_eq!(Socket::Push.accept(&ready), Err(Violation::Type));
        let named = Bytes::from_static(b"\x05READY\x0bSocket-Type\0\0\0\x04PULL\x08identity\0\0\0\x02ab");
        assert_eq!(Socket::Push.accept(&named).expect("fits").identity, "ab");
        for end in 1..named.len() {
            assert!(Socket::Push.accept(&named.slice(..end)).is_err() || end == 26, "{end}");
        }
    }

    #[test]
    fn pings_are_answered() {
        assert_eq!(answer(b"\x04PING\0\x0aab").expect("an answer")[..], b"\x04\x07\x04PONGab"[..]);
        assert_eq!(answer(b"\x04PING\0"), None);
        assert_eq!(answer(b"\x05READY"), None);
    }

    #[test]
    fn limits() {
        let long = message(&[&[b'x'; 60], &[b'y'; 60]]);
        assert_eq!(all(long[..].into(), 119), Err(Violation::TooLong));
        assert_eq!(all(long[..].into(), 120).expect("fits").len(), 1);
        assert_eq!(all(b"\x02\xff\xff\xff\xff\xff\xff\xff\xff"[..].into(), 1000), Err(Violation::TooLong));
        assert_eq!(all(b"\x08\0"[..].into(), 1000), Err(Violation::Flags));
        assert_eq!(all(message(&[&b""[..]; 17])[..].into(), 1000), Err(Violation::TooManyFrames));
    }

    proptest! {
        #[test]
        fn messages_survive(
            messages in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..5), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            for frames in &messages {
                bytes.extend_from_slice(&message(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>()));
            }
            let mut decoder = Decoder::new(10_000);
            let (mut input, mut read) = (BytesMut::new(), Vec::new());
            let cut = if bytes.is_empty() { 0 } else { cut.index(bytes.len()) };
            for part in [&bytes[..cut], &bytes[cut..]] {
                input.extend_from_slice(part);
                while let Some(event) = decoder.next(&mut input).expect("well-formed") {
                    let Event::Message(frames) = event else { panic!("a message") };
                    read.push(frames.iter().map(|frame| frame.to_vec()).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(read, messages);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn garbage_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(all(bytes[..].into(), 100));
            drop(Socket::Sub.accept(&bytes.into()));
        }
    }
}
