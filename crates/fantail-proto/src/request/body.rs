//! A request's body, byte by byte: where it ends, and whether its chunks are strictly formed
//! (RFC 9112 section 7.1). Content is counted, never kept.

use super::{Framing, Limits, Refusal, is_text, is_token};

/// A body that is being received.
#[derive(Clone, Debug)]
pub struct Body {
    at: At,
    /// Content bytes that are due, of the body or of the chunk.
    due: u64,
    /// Content bytes that further chunks may still bring.
    room: u64,
    /// Bytes of extensions and trailers so far.
    extra: usize,
    trailers: usize,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum At {
    /// All that is due, then the end.
    Length,
    /// `digits` have been seen.
    Size {
        digits: u8,
    },
    ExtensionName {
        empty: bool,
    },
    ExtensionValue {
        empty: bool,
    },
    Quoted,
    QuotedPair,
    QuotedEnd,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    End,
}

impl Body {
    /// `None` when the message ends with its head.
    pub fn new(framing: Framing, limits: &Limits) -> Option<Self> {
        let (at, due) = match framing {
            Framing::None | Framing::Length(0) => return None,
            Framing::Length(length) => (At::Length, length),
            Framing::Chunked => (At::Size { digits: 0 }, 0),
        };
        Some(Self { at, due, room: limits.body_bytes, extra: 0, trailers: 0 })
    }

    /// Takes what of `bytes` is good and belongs to the body: how many, and whether the body ended
    /// with them. Refuses only at the first byte, so that all good ones are taken before.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, bool), Refusal> {
        let mut used = 0;
        while self.at != At::End
            && let Some(rest @ [byte, ..]) = bytes.get(used..)
        {
            if matches!(self.at, At::Length | At::Data) {
                used += self.content(rest.len());
                continue;
            }
            match self.step(*byte) {
                Ok(next) => self.at = next,
                Err(refusal) if used == 0 => return Err(refusal),
                Err(_) => return Ok((used, false)),
            }
            used += 1;
        }
        Ok((used, self.at == At::End))
    }

    /// Counts content; `available` is not 0, and neither is `due` where content is due.
    fn content(&mut self, available: usize) -> usize {
        let taken = usize::try_from(self.due).map_or(available, |due| due.min(available));
        self.due -= taken as u64;
        if self.due == 0 {
            self.at = if self.at == At::Length { At::End } else { At::DataCr };
        }
        taken
    }

    /// A refused byte changes nothing.
    fn step(&mut self, byte: u8) -> Result<At, Refusal> {
        match self.at {
            At::Size { digits } => self.size(byte, digits),
            At::SizeLf => self.size_end(byte),
            At::DataCr if byte == b'\r' => Ok(At::DataLf),
            At::DataLf if byte == b'\n' => Ok(At::Size { digits: 0 }),
            At::DataCr | At::DataLf => Err(Refusal::ChunkEnd),
            At::ExtensionName { .. }
            | At::ExtensionValue { .. }
            | At::Quoted
            | At::QuotedPair
            | At::QuotedEnd => {
                let next = extension(self.at, byte).ok_or(Refusal::ChunkExtension)?;
                self.spend().map(|()| next)
            }
            At::TrailerStart if byte != b'\r' => {
                if !is_token(byte) {
                    return Err(Refusal::Trailer);
                }
                if self.trailers == TRAILERS {
                    return Err(Refusal::TrailersTooLarge);
                }
                self.spend()?;
                self.trailers += 1;
                Ok(At::TrailerName)
            }
            At::TrailerStart
            | At::TrailerName
            | At::TrailerValue
            | At::TrailerLf
            | At::EndLf
            | At::Length
            | At::Data
            | At::End => {
                let next = trailer(self.at, byte).ok_or(Refusal::Trailer)?;
                self.spend().map(|()| next)
            }
        }
    }

    fn size(&mut self, byte: u8, digits: u8) -> Result<At, Refusal> {
        match byte {
            b';' if digits > 0 => Ok(At::ExtensionName { empty: true }),
            b'\r' if digits > 0 => Ok(At::SizeLf),
            _ => {
                let digit = char::from(byte).to_digit(16).ok_or(Refusal::ChunkSize)?;
                if digits == SIZE_DIGITS {
                    return Err(Refusal::ChunkSize);
                }
                self.due = self.due * 16 + u64::from(digit);
                Ok(At::Size { digits: digits + 1 })
            }
        }
    }

    fn size_end(&mut self, byte: u8) -> Result<At, Refusal> {
        if byte != b'\n' {
            return Err(Refusal::ChunkSize);
        }
        if self.due == 0 {
            return Ok(At::TrailerStart);
        }
        self.room = self.room.checked_sub(self.due).ok_or(Refusal::BodyTooLarge)?;
        Ok(At::Data)
    }

    fn spend(&mut self) -> Result<(), Refusal> {
        if self.extra == EXTRA_BYTES {
            return Err(Refusal::TrailersTooLarge);
        }
        self.extra += 1;
        Ok(())
    }
}

/// RFC 9112 section 7.1.1, less the white space that senders must not send.
fn extension(at: At, byte: u8) -> Option<At> {
    match (at, byte) {
        (At::ExtensionName { .. }, _) if is_token(byte) => Some(At::ExtensionName { empty: false }),
        (At::ExtensionName { empty: false }, b'=') => Some(At::ExtensionValue { empty: true }),
        (At::ExtensionValue { .. }, _) if is_token(byte) => Some(At::ExtensionValue { empty: false }),
        (At::ExtensionValue { empty: true }, b'"') => Some(At::Quoted),
        (At::Quoted, b'"') => Some(At::QuotedEnd),
        (At::Quoted, b'\\') => Some(At::QuotedPair),
        (At::Quoted | At::QuotedPair, _) if is_text(byte) => Some(At::Quoted),
        (
            At::ExtensionName { empty: false } | At::ExtensionValue { empty: false } | At::QuotedEnd,
            b';' | b'\r',
        ) => Some(if byte == b';' { At::ExtensionName { empty: true } } else { At::SizeLf }),
        _ => None,
    }
}

fn trailer(at: At, byte: u8) -> Option<At> {
    match (at, byte) {
        (At::TrailerStart, b'\r') => Some(At::EndLf),
        (At::TrailerName, b':') => Some(At::TrailerValue),
        (At::TrailerName, _) if is_token(byte) => Some(At::TrailerName),
        (At::TrailerValue, b'\r') => Some(At::TrailerLf),
        (At::TrailerValue, _) if is_text(byte) => Some(At::TrailerValue),
        (At::TrailerLf, b'\n') => Some(At::TrailerStart),
        (At::EndLf, b'\n') => Some(At::End),
        _ => None,
    }
}

/// 15 hex digits are below 2^60: far above any limit of a body, and no sum with them overflows.
const SIZE_DIGITS: u8 = 15;

/// Extensions and trailers of one body are read only to be dropped; hyper refuses 16 KiB of either.
const EXTRA_BYTES: usize = 8 * 1024;

/// As many as Pushpin allows in a head; hyper refuses more than 100.
const TRAILERS: usize = 64;
