//! Is this HTTP/1 request strictly well-formed (RFC 9112), and where does it end? A push parser over
//! raw bytes that stands before hyper and lets nothing ambiguous through. Never builds a request.
//!
//! The measure is not what could be understood, but what hyper and every origin understand in the same
//! way. A verdict does not depend on how the bytes were split when they arrived.

mod body;
mod target;
#[cfg(test)]
mod tests;

use std::ops::Range;

use http::{StatusCode, Version};
use memchr::memchr;

pub use body::Body;

/// What one request may have at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of the head with all its line ends; more is refused with 431.
    pub head_bytes: usize,
    /// Field lines of the head; more is refused with 431.
    pub headers: usize,
    /// Of the request target; more is refused with 414.
    pub target_bytes: usize,
    /// Of the body's content, without its chunks' framing; more is refused with 413.
    pub body_bytes: u64,
}

/// A complete and accepted head.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each may be said of a head, in any combination")]
pub struct Head {
    /// Bytes, the empty line included.
    pub len: usize,
    pub framing: Framing,
    /// 1.0 or 1.1.
    pub version: Version,
    /// What the client asks for by version and `Connection`.
    pub keep_alive: bool,
    /// Has an `Upgrade` field: what follows the message may not be HTTP.
    pub upgrade: bool,
    /// Has an `Expect` field: a copy of the head that is sent again must leave it out.
    pub expect: bool,
    /// Has an `X-Forwarded-For` field.
    pub forwarded_for: bool,
}

/// Where the body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    None,
    /// Bytes, may be 0.
    Length(u64),
    Chunked,
}

/// Why a request was refused: always the client's fault, and always the end of the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("the method is not a token")]
    Method,
    #[error("the request line is not METHOD TARGET VERSION")]
    RequestLine,
    #[error("the HTTP version is not 1.0 or 1.1")]
    Version,
    #[error("CONNECT is not served")]
    Connect,
    #[error("the request target is not valid")]
    Target,
    #[error("the request target is too long")]
    TargetTooLong,
    #[error("a line does not end with CRLF")]
    LineEnd,
    #[error("a header is folded")]
    Fold,
    #[error("the name of a header is not a token")]
    FieldName,
    #[error("the value of a header has a control character")]
    FieldValue,
    #[error("the head is too large")]
    HeadTooLarge,
    #[error("there are too many headers")]
    TooManyFields,
    #[error("Host is missing")]
    HostMissing,
    #[error("Host is given more than once")]
    HostRepeated,
    #[error("Host is not valid")]
    Host,
    #[error("Host differs from the request target")]
    HostDiffers,
    #[error("Content-Length is not a number")]
    ContentLength,
    #[error("Content-Length is given more than once")]
    ContentLengthRepeated,
    #[error("Transfer-Encoding is not exactly chunked")]
    TransferEncoding,
    #[error("both Content-Length and Transfer-Encoding are given")]
    TwoLengths,
    #[error("Connection is not a list of tokens")]
    Connection,
    #[error("the expectation is not 100-continue")]
    Expect,
    #[error("the body is too large")]
    BodyTooLarge,
    #[error("a chunk size is not valid")]
    ChunkSize,
    #[error("a chunk extension is not valid")]
    ChunkExtension,
    #[error("a chunk does not end with CRLF")]
    ChunkEnd,
    #[error("a trailer is not valid")]
    Trailer,
    #[error("chunk extensions and trailers are too large")]
    TrailersTooLarge,
}

impl Refusal {
    /// What the client is answered with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Connect => StatusCode::NOT_IMPLEMENTED,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailersTooLarge => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::Expect => StatusCode::EXPECTATION_FAILED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// True when the request is well-formed as far as was read, but over one of our limits.
    pub fn is_limit(self) -> bool {
        matches!(
            self,
            Self::TargetTooLong
                | Self::HeadTooLarge
                | Self::TooManyFields
                | Self::TrailersTooLarge
                | Self::BodyTooLarge
        )
    }
}

impl Head {
    /// Checks bytes that start where a head starts; `None` when they end before it does.
    pub fn check(bytes: &[u8], limits: &Limits) -> Result<Option<Self>, Refusal> {
        Parser::default().push(bytes, limits)
    }
}

/// Checks one head as it arrives, each byte once. Ranges are within the head.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each may be said of a head, in any combination")]
pub struct Parser {
    /// The lines before this are checked.
    line_start: usize,
    /// No LF is between `line_start` and this. Invariant: `line_start <= scanned`.
    scanned: usize,
    /// Set when the request line has been accepted.
    version: Option<Version>,
    /// The target's authority, in absolute-form.
    authority: Option<Range<usize>>,
    fields: usize,
    host: Option<Range<usize>>,
    length: Option<u64>,
    chunked: bool,
    connection: ConnectionOptions,
    upgrade: bool,
    expect: bool,
    forwarded_for: bool,
}

impl Parser {
    /// `bytes` are all of the head that has arrived, those of earlier calls included; what follows the
    /// head is not looked at. After an answer other than `Ok(None)` the parser is used up.
    pub fn push(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<Head>, Refusal> {
        let window = &bytes[..bytes.len().min(limits.head_bytes)];
        while let Some(found) = window.get(self.scanned..).and_then(|rest| memchr(b'\n', rest)) {
            let end = self.scanned + found;
            let line = self.line_start..end;
            self.line_start = end + 1;
            self.scanned = end + 1;
            if let Some(head) = self.line(window, line, limits)? {
                return Ok(Some(head));
            }
        }
        self.scanned = window.len();
        if self.version.is_none() {
            target::start(&window[self.line_start..], limits)?;
        }
        if bytes.len() > limits.head_bytes { Err(Refusal::HeadTooLarge) } else { Ok(None) }
    }

    fn line(&mut self, head: &[u8], line: Range<usize>, limits: &Limits) -> Result<Option<Head>, Refusal> {
        let start = line.start;
        let raw = &head[line];
        let Some(version) = self.version else {
            // RFC 9112 section 2.2: one empty line before the request line is forgiven.
            if !(start == 0 && raw == b"\r") {
                let line = target::request_line(raw, limits)?;
                self.authority = line.authority.map(|a| start + a.start..start + a.end);
                self.version = Some(line.version);
            }
            return Ok(None);
        };
        match raw.strip_suffix(b"\r") {
            None => Err(Refusal::LineEnd),
            Some([]) => self.finish(head, version, limits).map(Some),
            Some(field) => {
                self.fields += 1;
                if self.fields > limits.headers {
                    return Err(Refusal::TooManyFields);
                }
                self.field(field, start, version, limits).map(|()| None)
            }
        }
    }

    fn field(&mut self, line: &[u8], start: usize, version: Version, limits: &Limits) -> Result<(), Refusal> {
        let (name, value) = split_field(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if !target::is_authority(value) {
                    return Err(Refusal::Host);
                }
                let from = start + name.len() + 1 + leading_space(&line[name.len() + 1..]);
                if self.host.replace(from..from + value.len()).is_some() {
                    return Err(Refusal::HostRepeated);
                }
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                self.expect = true;
                // RFC 9110 section 10.1.1: an expectation of HTTP/1.0 is ignored.
                if version == Version::HTTP_11 && !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::Expect);
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection.add(value)?,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = content_length(value)?;
                if self.length.replace(length).is_some() {
                    return Err(Refusal::ContentLengthRepeated);
                }
                if length > limits.body_bytes {
                    return Err(Refusal::BodyTooLarge);
                }
            }
            15 if name.eq_ignore_ascii_case(b"x-forwarded-for") => self.forwarded_for = true,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let alone = !std::mem::replace(&mut self.chunked, true);
                if !(alone && version == Version::HTTP_11 && value.eq_ignore_ascii_case(b"chunked")) {
                    return Err(Refusal::TransferEncoding);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&self, head: &[u8], version: Version, limits: &Limits) -> Result<Head, Refusal> {
        debug_assert!(self.line_start <= limits.head_bytes);
        let host = self.host.as_ref().map(|range| &head[range.clone()]);
        let authority = self.authority.as_ref().map(|range| &head[range.clone()]);
        match (host, authority) {
            (None, _) if version == Version::HTTP_11 => return Err(Refusal::HostMissing),
            (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => {
                return Err(Refusal::HostDiffers);
            }
            _ => {}
        }
        let framing = match (self.length, self.chunked) {
            (Some(_), true) => return Err(Refusal::TwoLengths),
            (Some(length), false) => Framing::Length(length),
            (None, true) => Framing::Chunked,
            (None, false) => Framing::None,
        };
        Ok(Head {
            len: self.line_start,
            framing,
            version,
            keep_alive: match version {
                Version::HTTP_11 => !self.connection.close,
                _ => self.connection.keep_alive && !self.connection.close,
            },
            upgrade: self.upgrade,
            expect: self.expect,
            forwarded_for: self.forwarded_for,
        })
    }
}

/// Those options of all `Connection` fields that matter here.
#[derive(Clone, Copy, Debug, Default)]
struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
}

impl ConnectionOptions {
    /// RFC 9110 sections 5.6.1 and 7.6.1: tokens, empty elements are skipped.
    fn add(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for option in value.split(|byte| *byte == b',').map(trim) {
            if !option.iter().all(|byte| is_token(*byte)) {
                return Err(Refusal::Connection);
            }
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
        Ok(())
    }
}

/// A field line without its CRLF: name and trimmed value (RFC 9112 section 5).
fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let name_len = line.iter().position(|byte| !is_token(*byte)).ok_or(Refusal::FieldName)?;
    let (name, rest) = line.split_at(name_len);
    match rest {
        [b':', value @ ..] if !name.is_empty() => {
            if !is_field_text(value) {
                return Err(Refusal::FieldValue);
            }
            Ok((name, trim(value)))
        }
        [b' ' | b'\t', ..] if name.is_empty() => Err(Refusal::Fold),
        _ => Err(Refusal::FieldName),
    }
}

/// RFC 9110 section 8.6: digits and nothing else, one number and no list.
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    // u64::MAX has 20 digits, and hyper keeps its two highest values for itself.
    const DIGITS: usize = 19;
    if value.is_empty() || value.len() > DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::ContentLength);
    }
    Ok(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// RFC 9110 section 5.5: visible characters, SP, HTAB and obs-text.
fn is_field_text(value: &[u8]) -> bool {
    // No early end, so that the loop is vectorised.
    !value.iter().fold(false, |bad, byte| bad | !is_text(*byte))
}

fn is_text(byte: u8) -> bool {
    (byte >= b' ' && byte != 0x7f) || byte == b'\t'
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

fn trim(value: &[u8]) -> &[u8] {
    let value = &value[leading_space(value)..];
    let end = value.iter().rposition(|byte| !is_space(*byte)).map_or(0, |last| last + 1);
    &value[..end]
}

fn leading_space(value: &[u8]) -> usize {
    value.iter().position(|byte| !is_space(*byte)).unwrap_or(value.len())
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// A set of bytes, as a table: the given ones, letters and digits.
const fn with_alphanumerics(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut other = 0;
    while other < others.len() {
        table[others[other] as usize] = true;
        other += 1;
    }
    table
}

static TOKEN: [bool; 256] = with_alphanumerics(b"!#$%&'*+-.^_`|~");
