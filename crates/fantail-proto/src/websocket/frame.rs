//! One frame to send (RFC 6455 section 5): always whole, never a fragment. A server's frame has no mask,
//! so its bytes are the same for every client that it is sent to; a client's has one.

use bytes::Bytes;

use crate::item::WsKind;

/// What a frame carries (RFC 6455 section 11.8).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl From<WsKind> for Opcode {
    fn from(kind: WsKind) -> Self {
        match kind {
            WsKind::Text => Self::Text,
            WsKind::Binary => Self::Binary,
            WsKind::Ping => Self::Ping,
            WsKind::Pong => Self::Pong,
        }
    }
}

/// A frame with its last-fragment bit set.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'p> {
    opcode: Opcode,
    deflated: bool,
    fin: bool,
    payload: &'p [u8],
}

impl Opcode {
    /// `None` for the reserved ones. Only the low four bits count.
    pub fn new(byte: u8) -> Option<Self> {
        Some(match byte & OPCODE_BITS {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    /// Close, ping and pong: short, never in fragments, allowed between the fragments of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

impl<'p> Frame<'p> {
    /// A control frame's payload is cut at [`CONTROL_MAX`] bytes.
    pub fn new(opcode: Opcode, payload: &'p [u8]) -> Self {
        let cut = if opcode.is_control() { payload.len().min(CONTROL_MAX) } else { payload.len() };
        Self { opcode, deflated: false, fin: true, payload: &payload[..cut] }
    }

    /// A text or binary message whose payload is compressed already (RFC 7692 section 6): only for peers
    /// that agreed to permessage-deflate.
    pub fn deflated(opcode: Opcode, payload: &'p [u8]) -> Self {
        Self { deflated: true, ..Self::new(opcode, payload) }
    }

    /// A part of a message that goes on unless it is the last (RFC 6455 section 5.4).
    pub fn part(opcode: Opcode, payload: &'p [u8], last: bool) -> Self {
        Self { fin: last, ..Self::new(opcode, payload) }
    }

    /// A server's frame, in one piece of memory that all receivers share.
    pub fn to_bytes(self) -> Bytes {
        let (head, len) = self.head(false);
        let mut bytes = Vec::with_capacity(len + self.payload.len());
        bytes.extend_from_slice(&head[..len]);
        bytes.extend_from_slice(self.payload);
        bytes.into()
    }

    /// A server's frame behind what is in `out`.
    pub fn append(self, out: &mut Vec<u8>) {
        let (head, len) = self.head(false);
        out.reserve(len + self.payload.len());
        out.extend_from_slice(&head[..len]);
        out.extend_from_slice(self.payload);
    }

    /// A client's frame behind what is in `out`. The key must be random and of this frame alone
    /// (RFC 6455 section 10.3).
    pub fn append_masked(self, key: [u8; 4], out: &mut Vec<u8>) {
        let (head, len) = self.head(true);
        out.reserve(len + key.len() + self.payload.len());
        out.extend_from_slice(&head[..len]);
        out.extend_from_slice(&key);
        let start = out.len();
        out.extend_from_slice(self.payload);
        mask(key, &mut out[start..]);
    }

    /// The head up to the masking key, and its length in bytes.
    fn head(self, masked: bool) -> ([u8; HEAD_MAX], usize) {
        let mut head = [0; HEAD_MAX];
        head[0] = if self.fin { FIN } else { 0 } | if self.deflated { RSV1 } else { 0 } | self.opcode as u8;
        let size = self.payload.len();
        let (short, len) = match size {
            ..126 => (size as u8, 2),
            126..=0xffff => {
                head[2..4].copy_from_slice(&(size as u16).to_be_bytes());
                (LEN_16, 4)
            }
            _ => {
                head[2..10].copy_from_slice(&(size as u64).to_be_bytes());
                (LEN_64, 10)
            }
        };
        head[1] = short | if masked { MASKED } else { 0 };
        (head, len)
    }
}

/// Masks or unmasks in place (RFC 6455 section 5.3); `key` is for the first byte of `bytes`.
pub fn mask(key: [u8; 4], bytes: &mut [u8]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (blocks, rest) = bytes.as_chunks_mut::<8>();
    for block in blocks {
        *block = (u64::from_ne_bytes(*block) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Bytes of payload that a control frame may have (RFC 6455 section 5.5).
pub const CONTROL_MAX: usize = 125;

pub(super) const FIN: u8 = 0x80;
pub(super) const RSV1: u8 = 0x40;
pub(super) const OPCODE_BITS: u8 = 0x0f;
pub(super) const MASKED: u8 = 0x80;
/// Values of the short length that announce a longer one.
pub(super) const LEN_16: u8 = 126;
pub(super) const LEN_64: u8 = 127;
/// Two bytes and a length of eight; the masking key is counted apart.
const HEAD_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The examples of RFC 6455 section 5.7 and RFC 7692 section 7.2.3.1.
    #[test]
    fn examples() {
        let hello = b"Hello";
        assert_eq!(Frame::new(Opcode::Text, hello).to_bytes(), &b"\x81\x05Hello"[..]);
        assert_eq!(Frame::new(Opcode::Ping, hello).to_bytes(), &b"\x89\x05Hello"[..]);
        let mut masked = Vec::new();
        Frame::new(Opcode::Text, hello).append_masked([0x37, 0xfa, 0x21, 0x3d], &mut masked);
        assert_eq!(masked, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        let deflated = Frame::deflated(Opcode::Text, b"\xf2\x48\xcd\xc9\xc9\x07\x00");
        assert_eq!(deflated.to_bytes(), &b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"[..]);
    }

    #[test]
    fn parts() {
        assert_eq!(Frame::part(Opcode::Text, b"Hel", false).to_bytes(), &b"\x01\x03Hel"[..]);
        assert_eq!(Frame::part(Opcode::Continuation, b"lo", true).to_bytes(), &b"\x80\x02lo"[..]);
    }

    #[test]
    fn lengths() {
        let head = |len: usize| {
            let bytes = Frame::new(Opcode::Binary, &vec![0; len]).to_bytes();
            bytes[..bytes.len() - len].to_vec()
        };
        assert_eq!(head(0), b"\x82\x00");
        assert_eq!(head(125), b"\x82\x7d");
        assert_eq!(head(126), b"\x82\x7e\x00\x7e");
        assert_eq!(head(256), b"\x82\x7e\x01\x00");
        assert_eq!(head(0xffff), b"\x82\x7e\xff\xff");
        assert_eq!(head(0x1_0000), b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00");
    }

    #[test]
    fn a_control_frame_is_cut() {
        let bytes = Frame::new(Opcode::Pong, &[b'x'; 200]).to_bytes();
        assert_eq!((bytes.len(), bytes[1]), (127, 125));
    }

    proptest! {
        #[test]
        fn masking_is_by_byte(key: [u8; 4], mut payload in vec(any::<u8>(), 0..100)) {
            let expected: Vec<u8> = payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]).collect();
            mask(key, &mut payload);
            prop_assert_eq!(&payload, &expected);
        }
    }
}
