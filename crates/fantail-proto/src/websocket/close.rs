//! What a close frame says (RFC 6455 sections 5.5.1 and 7.4): a code and a reason. A [`Code`] exists only
//! if it may be on the wire.

use super::{frame::CONTROL_MAX, reader::Violation};

/// A code that a peer may send: 1000–1003, 1007–1014, 3000–4999.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Code(u16);

/// The content of a close frame that has one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Close {
    pub code: Code,
    /// At most [`REASON_MAX`] bytes when it was received or is sent.
    pub reason: String,
}

impl Code {
    pub const NORMAL: Self = Self(1000);
    pub const GOING_AWAY: Self = Self(1001);
    pub const PROTOCOL_ERROR: Self = Self(1002);
    pub const UNSUPPORTED_DATA: Self = Self(1003);
    pub const INVALID_DATA: Self = Self(1007);
    pub const POLICY: Self = Self(1008);
    pub const TOO_BIG: Self = Self(1009);
    pub const INTERNAL_ERROR: Self = Self(1011);
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// `None` if the code must not be sent (RFC 6455 section 7.4, and what IANA has registered since).
    pub fn new(code: u16) -> Option<Self> {
        matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999).then_some(Self(code))
    }

    /// The same code, or the one that a peer may be told instead. 0 is what GRIP libraries put for
    /// "no code", and 1005 means that: both are normal. Any other is a mistake on our side of the
    /// connection: [`Code::INTERNAL_ERROR`].
    pub fn sendable(code: u16) -> Self {
        match code {
            0 | 1005 => Self::NORMAL,
            _ => Self::new(code).unwrap_or(Self::INTERNAL_ERROR),
        }
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

impl Close {
    /// Of a payload that a peer sent; `None` if it is empty, which is allowed.
    pub fn parse(payload: &[u8]) -> Result<Option<Self>, Violation> {
        let Some((code, reason)) = payload.split_first_chunk() else {
            return if payload.is_empty() { Ok(None) } else { Err(Violation::CloseLength) };
        };
        let code = Code::new(u16::from_be_bytes(*code)).ok_or(Violation::CloseCode)?;
        let reason = str::from_utf8(reason).map_err(|_| Violation::CloseReason)?;
        Ok(Some(Self { code, reason: reason.to_owned() }))
    }

    /// The payload of a close frame.
    pub fn payload(&self) -> Vec<u8> {
        payload(self.code, &self.reason)
    }
}

/// The payload of a close frame; the reason is cut at [`REASON_MAX`] bytes or the character before.
pub fn payload(code: Code, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(REASON_MAX)];
    [&code.0.to_be_bytes(), reason.as_bytes()].concat()
}

/// Bytes of reason that fit behind the code.
pub const REASON_MAX: usize = CONTROL_MAX - 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received() {
        type Expected = Result<Option<(u16, &'static str)>, Violation>;
        let table: [(&[u8], Expected); 12] = [
            (b"", Ok(None)),
            (b"\x03", Err(Violation::CloseLength)),
            (b"\x03\xe8", Ok(Some((1000, "")))),
            (b"\x03\xe8bye \xe2\x82\xac", Ok(Some((1000, "bye €")))),
            (b"\x03\xe8\xe2\x82", Err(Violation::CloseReason)),
            (b"\x00\x00", Err(Violation::CloseCode)),
            (b"\x03\xe7", Err(Violation::CloseCode)),
            (b"\x03\xec", Err(Violation::CloseCode)),
            (b"\x03\xed", Err(Violation::CloseCode)),
            (b"\x0b\xb7", Err(Violation::CloseCode)),
            (b"\x0b\xb8", Ok(Some((3000, "")))),
            (b"\x13\x88", Err(Violation::CloseCode)),
        ];
        for (payload, expected) in table {
            let expected = expected.map(|close| {
                close.map(|(code, reason)| Close { code: Code(code), reason: reason.to_owned() })
            });
            assert_eq!(Close::parse(payload), expected, "{payload:?}");
        }
    }

    #[test]
    fn what_may_not_be_sent_is_replaced() {
        let table = [(0, 1000), (1005, 1000), (1006, 1011), (1015, 1011), (999, 1011), (5000, 1011)];
        for (given, sent) in table {
            assert_eq!(Code::sendable(given).get(), sent);
        }
        for code in [1000, 1001, 1003, 1007, 1014, 3000, 4999] {
            assert_eq!(Code::sendable(code).get(), code);
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(payload(Code::NORMAL, &"x".repeat(200)).len(), 125);
        let cut = payload(Code::NORMAL, &format!("x{}", "€".repeat(60)));
        assert_eq!(cut.len(), 2 + 1 + 40 * 3);
        assert!(Close::parse(&cut).is_ok());
    }
}
