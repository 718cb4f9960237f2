//! One HTTP/1.1 request at the start of a buffer, as a small server needs it: where its body lies and where
//! it ends. The head is not kept.

use std::ops::Range;

use memchr::memmem;

/// A request, head and body; more is malformed.
pub(crate) const MOST_BYTES: usize = 2 * 1024 * 1024;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Parsed {
    Incomplete,
    /// The place of its body, which ends the request; empty without a `Content-Length`.
    Whole(Range<usize>),
    Malformed,
}

pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let Some(head) = memmem::find(bytes, b"\r\n\r\n") else {
        return if bytes.len() > MOST_BYTES { Parsed::Malformed } else { Parsed::Incomplete };
    };
    let Some(length) = body_length(&bytes[..head]) else { return Parsed::Malformed };
    let start = head + 4;
    if start + length > bytes.len() { Parsed::Incomplete } else { Parsed::Whole(start..start + length) }
}

fn body_length(head: &[u8]) -> Option<usize> {
    let mut length = 0;
    for line in str::from_utf8(head).ok()?.split("\r\n").skip(1) {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok().filter(|length| *length <= MOST_BYTES)?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return None;
        }
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_end_where_they_say() {
        let table: [(&[u8], Parsed); 7] = [
            (b"POST / HTTP/1.1\r\ncontent-LENGTH: 3\r\n\r\nabcPOST", Parsed::Whole(38..41)),
            (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", Parsed::Whole(24..24)),
            (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", Parsed::Incomplete),
            (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r", Parsed::Incomplete),
            (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", Parsed::Malformed),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Parsed::Malformed),
            (b"POST / HTTP/1.1\r\nno colon\r\n\r\n", Parsed::Malformed),
        ];
        for (bytes, expected) in table {
            assert_eq!(parse(bytes), expected, "{}", bytes.escape_ascii());
        }
        assert_eq!(parse(&vec![b'x'; MOST_BYTES + 1]), Parsed::Malformed);
    }
}
