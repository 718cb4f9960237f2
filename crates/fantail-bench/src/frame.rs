//! WebSocket frames as a client writes and reads them (RFC 6455, section 5): its own are masked, a server's
//! are not. Messages in fragments are not expected of what is measured here.

use std::ops::Range;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Opcode {
    Text = 1,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// A frame at the start of a buffer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Parsed {
    Incomplete,
    /// The place of its payload, which ends the frame.
    Whole(Opcode, Range<usize>),
    /// A fragment, masked, compressed, or of a kind that nobody has asked for.
    Unexpected,
}

/// Appends a client's frame. All have the same mask: there is nobody on loopback whom it would protect.
pub(crate) fn append(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    let length = payload.len();
    out.push(FIN | opcode as u8);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.push(MASKED | short),
        (_, Ok(middle)) => {
            out.push(MASKED | LENGTH_16);
            out.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            out.push(MASKED | LENGTH_64);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let &[first, second, ref rest @ ..] = bytes else { return Parsed::Incomplete };
    let opcode = match first {
        0x81 => Opcode::Text,
        0x88 => Opcode::Close,
        0x89 => Opcode::Ping,
        0x8a => Opcode::Pong,
        _ => return Parsed::Unexpected,
    };
    let (start, length) = match second {
        LENGTH_16 => match rest.first_chunk() {
            Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
            None => return Parsed::Incomplete,
        },
        LENGTH_64 => match rest.first_chunk() {
            Some(length) => (10, u64::from_be_bytes(*length)),
            None => return Parsed::Incomplete,
        },
        MASKED.. => return Parsed::Unexpected,
        short => (2, u64::from(short)),
    };
    let Some(end) = usize::try_from(length).ok().and_then(|length| length.checked_add(start)) else {
        return Parsed::Unexpected;
    };
    if end > bytes.len() { Parsed::Incomplete } else { Parsed::Whole(opcode, start..end) }
}

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_masked_and_says_its_length() {
        let mut frame = Vec::new();
        append(Opcode::Text, b"Hello", &mut frame);
        // RFC 6455, section 5.7, has this very frame.
        assert_eq!(frame, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        for (length, head) in [
            (0, &b"\x81\x80"[..]),
            (125, b"\x81\xfd"),
            (126, b"\x81\xfe\x00\x7e"),
            (255, b"\x81\xfe\x00\xff"),
            (65_535, b"\x81\xfe\xff\xff"),
            (65_536, b"\x81\xff\0\0\0\0\0\x01\0\0"),
        ] {
            let mut frame = Vec::new();
            append(Opcode::Text, &vec![b'x'; length], &mut frame);
            assert!(frame.starts_with(head) && frame.len() == head.len() + 4 + length, "{length}");
        }
    }

    #[test]
    fn a_servers_frames_are_found() {
        let whole = |range| Parsed::Whole(Opcode::Text, range);
        let table: [(&[u8], Parsed); 8] = [
            (b"\x81\x02hi\x81", whole(2..4)),
            (b"\x81\x7e\x00\x02hi", whole(4..6)),
            (b"\x81\x7f\0\0\0\0\0\0\0\x02hi", whole(10..12)),
            (b"\x89\x00", Parsed::Whole(Opcode::Ping, 2..2)),
            (b"\x81\x7f\0\0\0", Parsed::Incomplete),
            (b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff", Parsed::Unexpected),
            (b"\x81\x82\0\0\0\0hi", Parsed::Unexpected),
            (b"\x01\x02hi", Parsed::Unexpected),
        ];
        for (bytes, expected) in table {
            assert_eq!(parse(bytes), expected, "{}", bytes.escape_ascii());
        }
    }
}
