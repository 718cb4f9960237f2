//! permessage-deflate (RFC 7692), always without context takeover: a compressed message depends on no
//! other, so one [`Deflater`] and one [`Inflater`] serve all connections of a thread, and what is
//! deflated once is sent to many. Keeps no state for a connection but the [`Window`] of its peer.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};

use super::{extension::Extension, reader::Violation};
use crate::params;

/// How far back a peer can look when it inflates what we send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    /// 8–15: the base-2 logarithm of its bytes.
    bits: u8,
}

/// The outcome of a client's offers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Agreed {
    pub window: Window,
    /// For `Sec-WebSocket-Extensions` of the 101.
    pub answer: HeaderValue,
}

/// Compresses messages one by one.
#[derive(Debug)]
pub struct Deflater {
    stream: Compress,
    /// The last message deflated: as large as the largest.
    out: Vec<u8>,
}

/// Decompresses messages one by one, up to a limit.
#[derive(Debug)]
pub struct Inflater {
    stream: Decompress,
    scratch: Box<[u8]>,
}

impl Window {
    /// 32 KiB, which every peer has that did not ask for less.
    pub const MAX: Self = Self { bits: 15 };

    /// Whether a peer can inflate what a [`Deflater`] made of a message of `len` bytes. It looks back
    /// 32 KiB, but never past the beginning of the message; so a short one fits a small window too.
    pub fn fits(self, len: usize) -> bool {
        self == Self::MAX || len <= 1 << self.bits
    }
}

impl Agreed {
    /// A server's choice: the first offer of a client that can be accepted (RFC 7692 sections 5 and 7.1).
    /// Offers that are malformed or have parameters that are unknown, repeated or not in range are
    /// declined.
    pub fn from_offers(request: &HeaderMap) -> Option<Self> {
        params::list(request, &SEC_WEBSOCKET_EXTENSIONS)
            .filter_map(Extension::parse)
            .filter(|extension| extension.name == NAME.as_bytes())
            .find_map(|offer| Params::parse(&offer))
            .map(|offered| Self::to(&offered))
    }

    /// `client_max_window_bits` only permits us to ask for less than the 32 KiB that an [`Inflater`] has
    /// for whoever needs it: it is never in the answer.
    fn to(offered: &Params) -> Self {
        let (window, answer) = match offered.server_window {
            Some(bits) => (Window { bits }, format!("{OFFER}; {SERVER_WINDOW}={bits}").try_into().ok()),
            None => (Window::MAX, None),
        };
        Self { window, answer: answer.unwrap_or(HeaderValue::from_static(OFFER)) }
    }
}

impl Deflater {
    pub fn new() -> Self {
        Self { stream: Compress::new(LEVEL, false), out: Vec::new() }
    }

    /// The payload of a compressed frame (RFC 7692 section 7.2.1). `None` if it would not be shorter than
    /// the message, which is then better sent as it is.
    pub fn deflate(&mut self, message: &[u8]) -> Option<&[u8]> {
        self.stream.reset();
        self.out.clear();
        self.out.reserve(message.len() + TAIL.len());
        self.stream.compress_vec(message, &mut self.out, FlushCompress::Sync).ok()?;
        // Without room left, the flush may not have been complete.
        if self.out.len() == self.out.capacity() {
            return None;
        }
        let payload = self.out.strip_suffix(&TAIL)?;
        (payload.len() < message.len()).then_some(payload)
    }
}

impl Default for Deflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Inflater {
    pub fn new() -> Self {
        Self { stream: Decompress::new(false), scratch: vec![0; SCRATCH].into() }
    }

    /// The message in the payload of its frames (RFC 7692 section 7.2.2). Stops when it is longer than
    /// `max` bytes or cannot be right.
    pub fn inflate(&mut self, payload: &[u8], max: usize) -> Result<Bytes, Violation> {
        // Some senders strip even the one byte of an empty message (section 7.2.3.6).
        if payload.is_empty() {
            return Ok(Bytes::new());
        }
        self.stream.reset(false);
        let mut message = Vec::new();
        if let Some(rest) = self.push(payload, max, &mut message)? {
            // The sender's own final block; a byte of padding may follow (section 7.2.3.4).
            return if matches!(rest, [] | [0]) { Ok(message.into()) } else { Err(Violation::Deflate) };
        }
        // A payload that was cut off inside of a block would swallow the final block of `END`. One that
        // ends with the first byte of a final block finds the rest of it in `TAIL`.
        match self.push(&TAIL, max, &mut message)? {
            Some([]) => Ok(message.into()),
            None if self.push(&END, max, &mut message)? == Some(&[]) => Ok(message.into()),
            _ => Err(Violation::Deflate),
        }
    }

    /// Inflates `input` behind `message`. `Some` is what follows the final block, `None`: it goes on.
    fn push<'i>(
        &mut self,
        mut input: &'i [u8],
        max: usize,
        message: &mut Vec<u8>,
    ) -> Result<Option<&'i [u8]>, Violation> {
        loop {
            let (read, written) = (self.stream.total_in(), self.stream.total_out());
            let status = self
                .stream
                .decompress(input, &mut self.scratch, FlushDecompress::None)
                .map_err(|_| Violation::Deflate)?;
            input = &input[(self.stream.total_in() - read) as usize..];
            let inflated = &self.scratch[..(self.stream.total_out() - written) as usize];
            if inflated.len() > max - message.len() {
                return Err(Violation::TooLong);
            }
            message.extend_from_slice(inflated);
            match status {
                Status::StreamEnd => return Ok(Some(input)),
                _ if inflated.len() == self.scratch.len() => {}
                _ if input.is_empty() => return Ok(None),
                _ if inflated.is_empty() => return Err(Violation::Deflate),
                _ => {}
            }
        }
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

/// What a client of an origin offers. The origin may not keep a window over messages, and nor do we.
pub fn offer() -> HeaderValue {
    HeaderValue::from_static(OFFER)
}

/// Whether an origin's answer to [`offer`], one element of its list, is one that we can live with.
pub(super) fn is_acceptable(answer: &[u8]) -> bool {
    let params = Extension::parse(answer).filter(|extension| extension.name == NAME.as_bytes());
    params
        .and_then(|extension| Params::parse(&extension))
        .is_some_and(|params| params.server_forgets && !params.client_window)
}

/// Bytes of payload that a message of `max` bytes may have at most. A sender that uses fixed codes makes
/// it up to an eighth longer; one that flushes on the way adds some bytes each time.
pub(super) fn compressed_max(max: usize) -> usize {
    max.saturating_add(max / 8).saturating_add(64)
}

/// The parameters of an offer or answer (RFC 7692 section 7.1).
#[derive(Default)]
struct Params {
    server_forgets: bool,
    client_forgets: bool,
    server_window: Option<u8>,
    client_window: bool,
}

impl Params {
    fn parse(extension: &Extension<'_>) -> Option<Self> {
        let mut params = Self::default();
        for (name, value) in &extension.params {
            let bits = value.map(window_bits);
            let repeated = match (*name, bits) {
                (b"server_no_context_takeover", None) => replace(&mut params.server_forgets),
                (b"client_no_context_takeover", None) => replace(&mut params.client_forgets),
                (b"server_max_window_bits", Some(Some(bits))) => params.server_window.replace(bits).is_some(),
                (b"client_max_window_bits", None | Some(Some(_))) => replace(&mut params.client_window),
                _ => return None,
            };
            if repeated {
                return None;
            }
        }
        Some(params)
    }
}

fn replace(flag: &mut bool) -> bool {
    std::mem::replace(flag, true)
}

/// 8–15 without leading zeros.
fn window_bits(value: &[u8]) -> Option<u8> {
    (8..=15).find(|bits| bits.to_string().as_bytes() == value)
}

const NAME: &str = "permessage-deflate";
const OFFER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
const SERVER_WINDOW: &str = "server_max_window_bits";

/// What a sender removes from the end of a message (section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// An empty block marked as the final one.
const END: [u8; 5] = [1, 0, 0, 0xff, 0xff];

/// Most messages inflate in one go; also what a bomb costs beyond the limit.
const SCRATCH: usize = 16 << 10;

/// Of 2,000 bytes of JSON, level 1 makes 824 in 6 µs, 4 makes 624 in 20, 6 makes 615 in 28; of 200 they make
/// 168, 147 and 147. What is deflated once goes to many, so bytes count, but not the last ones.
const LEVEL: Compression = Compression::new(4);
