//! The request line: method, target and version (RFC 9112 section 3), and what may name a host. Says
//! nothing of which paths are equal: a route decides on the same bytes that the origin receives.

use std::{net::Ipv6Addr, ops::Range, str};

use http::Version;
use memchr::memchr;

use super::{Limits, Refusal, is_token, with_alphanumerics};

/// An accepted request line.
#[derive(Debug)]
pub(super) struct RequestLine {
    pub(super) version: Version,
    /// Within the line, when the target is in absolute-form.
    pub(super) authority: Option<Range<usize>>,
}

/// Refuses the first bytes of a request line that no later byte could mend: at once what is no HTTP
/// (a TLS handshake, say), and what is over a limit. A complete line is put to the same test first,
/// so that the verdict does not depend on where the bytes were split.
pub(super) fn start(line: &[u8], limits: &Limits) -> Result<(), Refusal> {
    let method = line.iter().position(|byte| !is_token(*byte)).unwrap_or(line.len());
    if method > METHOD_BYTES {
        return Err(Refusal::Method);
    }
    match line[method..] {
        [] => Ok(()),
        [b'\r'] if method == 0 => Ok(()),
        [b' ', ref rest @ ..] if method > 0 => {
            let target = memchr(b' ', rest).unwrap_or(rest.len());
            if target > limits.target_bytes { Err(Refusal::TargetTooLong) } else { Ok(()) }
        }
        _ => Err(Refusal::Method),
    }
}

/// A complete request line, without its LF.
pub(super) fn request_line(raw: &[u8], limits: &Limits) -> Result<RequestLine, Refusal> {
    start(raw, limits)?;
    let line = raw.strip_suffix(b"\r").ok_or(Refusal::LineEnd)?;
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(target), Some(version)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Refusal::RequestLine);
    };
    let version = match version {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        [b'H', b'T', b'T', b'P', b'/', major] if major.is_ascii_digit() => return Err(Refusal::Version),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(Refusal::Version);
        }
        _ => return Err(Refusal::RequestLine),
    };
    if method == b"CONNECT" {
        return Err(Refusal::Connect);
    }
    let authority = authority_of(method, target)?;
    let offset = method.len() + 1;
    Ok(RequestLine { version, authority: authority.map(|a| offset + a.start..offset + a.end) })
}

/// `host` or `host:port` as RFC 3986 has it, less what no client sends: user information,
/// sub-delimiters, percent-encoding, an empty host or port.
pub(super) fn is_authority(value: &[u8]) -> bool {
    if let Some(literal) = value.strip_prefix(b"[") {
        let Some(end) = memchr(b']', literal) else { return false };
        let address = str::from_utf8(&literal[..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
        return address.is_some()
            && match &literal[end + 1..] {
                [] => true,
                [b':', port @ ..] => is_port(port),
                _ => false,
            };
    }
    match memchr(b':', value) {
        Some(colon) => is_name(&value[..colon]) && is_port(&value[colon + 1..]),
        None => is_name(value),
    }
}

/// Where a valid target has its authority: only in absolute-form.
fn authority_of(method: &[u8], target: &[u8]) -> Result<Option<Range<usize>>, Refusal> {
    const SCHEME: &[u8] = b"http://";
    if target.first() == Some(&b'/') {
        return if is_path(target) { Ok(None) } else { Err(Refusal::Target) };
    }
    if target == b"*" && method == b"OPTIONS" {
        return Ok(None);
    }
    match target.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => {
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            if !is_authority(authority) || !is_path(path) {
                return Err(Refusal::Target);
            }
            Ok(Some(SCHEME.len()..SCHEME.len() + end))
        }
        _ => Err(Refusal::Target),
    }
}

/// Path and query: what RFC 3986 allows and, because browsers send them, `[ ] { } |`; each `%` has
/// two hex digits and none is `%00`.
fn is_path(path: &[u8]) -> bool {
    let mut rest = path;
    // No early end, so that the common path without a `%` is one plain loop.
    if !path.iter().fold(true, |good, byte| good & PATH[usize::from(*byte)]) {
        return false;
    }
    while let Some(percent) = memchr(b'%', rest) {
        match rest[percent + 1..] {
            [high, low, ref tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                if [high, low] == *b"00" {
                    return false;
                }
                rest = tail;
            }
            _ => return false,
        }
    }
    true
}

/// Labels of letters, digits, `-` and `_` between single dots; one dot may end the name.
fn is_name(name: &[u8]) -> bool {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let mut previous = b'.';
    for byte in name {
        let good = match byte {
            b'.' => previous != b'.',
            byte => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
        };
        if !good {
            return false;
        }
        previous = *byte;
    }
    previous != b'.'
}

fn is_port(port: &[u8]) -> bool {
    // Five digits fit u32, whatever they are.
    (1..=5).contains(&port.len())
        && port.iter().all(u8::is_ascii_digit)
        && port.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
}

/// The longest registered method, `UPDATEREDIRECTREF`, has 17.
const METHOD_BYTES: usize = 32;

static PATH: [bool; 256] = with_alphanumerics(b"-._~!$&'()*+,;=:@/?%[]{}|");
