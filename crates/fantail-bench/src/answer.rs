//! One HTTP/1.1 response at the start of a buffer: its status and where it ends (RFC 9112, section 6).
//! Only what a keep-alive client needs; headers are not kept.

use memchr::memmem;

/// A complete response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Bytes, head and body, chunk lines included.
    pub(crate) length: usize,
    /// The server closes after it.
    pub(crate) close: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Parsed {
    Incomplete,
    Whole(Answer),
    /// Not HTTP/1.x, or a body whose end is only the connection's.
    Malformed,
}

enum Body {
    Length(usize),
    Chunked,
    UntilClose,
}

pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let Some(head) = memmem::find(bytes, b"\r\n\r\n") else { return Parsed::Incomplete };
    let Some((status, body, close)) = parse_head(&bytes[..head]) else { return Parsed::Malformed };
    let start = head + 4;
    let end = match body {
        Body::UntilClose => return Parsed::Malformed,
        Body::Length(length) => start.checked_add(length),
        Body::Chunked => match chunks_end(&bytes[start..]) {
            Chunks::Incomplete => return Parsed::Incomplete,
            Chunks::End(length) => Some(start + length),
            Chunks::Malformed => None,
        },
    };
    match end {
        Some(length) if length <= bytes.len() => Parsed::Whole(Answer { status, length, close }),
        Some(_) => Parsed::Incomplete,
        None => Parsed::Malformed,
    }
}

fn parse_head(head: &[u8]) -> Option<(u16, Body, bool)> {
    let mut lines = str::from_utf8(head).ok()?.split("\r\n");
    let start = lines.next()?;
    let status: u16 = start.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    let bodiless = matches!(status, 100..=199 | 204 | 304);
    let mut body = if bodiless { Body::Length(0) } else { Body::UntilClose };
    let mut close = start.starts_with("HTTP/1.0");
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") && !bodiless {
            body = Body::Length(value.parse().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && !bodiless {
            body = Body::Chunked;
        } else if name.eq_ignore_ascii_case("connection") {
            close = value.eq_ignore_ascii_case("close");
        }
    }
    Some((status, body, close))
}

enum Chunks {
    Incomplete,
    End(usize),
    Malformed,
}

/// The length of a chunked body; trailers are not expected.
fn chunks_end(bytes: &[u8]) -> Chunks {
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(line) = memmem::find(rest, b"\r\n") else { return Chunks::Incomplete };
        let size = str::from_utf8(&rest[..line]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let Some(end) = size.and_then(|size| at.checked_add(line + 4)?.checked_add(size)) else {
            return Chunks::Malformed;
        };
        if end > bytes.len() {
            return Chunks::Incomplete;
        }
        at = end;
        if size == Some(0) {
            return Chunks::End(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(status: u16, length: usize, close: bool) -> Parsed {
        Parsed::Whole(Answer { status, length, close })
    }

    #[test]
    fn responses_end_where_they_say() {
        let table = [
            ("HTTP/1.1 200 OK\r\ncontent-LENGTH: 3\r\n\r\nabcHTTP", whole(200, 41, false)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", Parsed::Incomplete),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r", Parsed::Incomplete),
            ("HTTP/1.1 204 No Content\r\n\r\n", whole(204, 27, false)),
            ("HTTP/1.1 503 No\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n", whole(503, 57, true)),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
                whole(200, 59, false),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n", Parsed::Incomplete),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Parsed::Malformed),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", Parsed::Malformed),
            ("HTTP/1.1 200 OK\r\n\r\n", Parsed::Malformed),
            ("SSH-2.0-x\r\n\r\n", Parsed::Malformed),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text.as_bytes()), expected, "{text:?}");
        }
    }
}
