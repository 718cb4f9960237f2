//! The head of a response that Fantail writes itself, past hyper: status line, headers, framing; and
//! which of the origin's and of an item's headers it has. Refuses nothing: what comes in is already
//! valid, and has no header of framing.

use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::item::Response;

/// A response's head, ready to be written.
#[derive(Clone, Copy, Debug)]
pub struct Head<'r> {
    pub version: Version,
    pub code: u16,
    /// Empty: the standard phrase, or none.
    pub reason: &'r str,
    pub headers: &'r HeaderMap,
    pub framing: Framing,
    /// Whether the client may send another request when this response has ended.
    pub keep_alive: bool,
    /// What `Date` says when `headers` has none (RFC 9110 5.6.7).
    pub date: &'r str,
}

/// The client's version; a response has the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    Http10,
    Http11,
}

/// How the client finds the end of the body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// Bytes. Said as `Content-Length` where the status allows a body.
    Length(u64),
    /// Only with [`Version::Http11`].
    Chunked,
    /// By the end of the connection; `keep_alive` must be false.
    Close,
}

impl Head<'_> {
    /// Appends the head, with its empty line, to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self.version {
            Version::Http10 => b"HTTP/1.0 ",
            Version::Http11 => b"HTTP/1.1 ",
        });
        write_number(out, u64::from(self.code));
        out.push(b' ');
        out.extend_from_slice(self.phrase().as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in self.headers {
            write_name(out, name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        if !self.headers.contains_key(header::DATE) {
            out.extend_from_slice(b"Date: ");
            out.extend_from_slice(self.date.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        self.write_framing(out);
        out.extend_from_slice(b"\r\n");
    }

    fn phrase(&self) -> &str {
        if !self.reason.is_empty() {
            return self.reason;
        }
        StatusCode::from_u16(self.code).ok().and_then(|code| code.canonical_reason()).unwrap_or_default()
    }

    fn write_framing(&self, out: &mut Vec<u8>) {
        debug_assert!(self.framing != Framing::Close || !self.keep_alive);
        debug_assert!(self.framing != Framing::Chunked || self.version == Version::Http11);
        match self.framing {
            Framing::Length(bytes) if allows_body(self.code) => {
                out.extend_from_slice(b"Content-Length: ");
                write_number(out, bytes);
                out.extend_from_slice(b"\r\n");
            }
            Framing::Chunked if allows_body(self.code) => {
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            }
            _ => {}
        }
        match (self.version, self.keep_alive) {
            (Version::Http11, false) => out.extend_from_slice(b"Connection: close\r\n"),
            (Version::Http10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
            _ => {}
        }
    }
}

/// False for a status whose response ends with its head (RFC 9112 6.3); its body must not be written.
pub fn allows_body(code: u16) -> bool {
    !matches!(code, 100..=199 | 204 | 304)
}

/// The headers of a long-poll's answer: the stored ones, with those replaced that the item has too
/// (spec 3.7), and without the stored `Content-Encoding`. The item's `Grip-Expose-Headers` keeps only the headers that it names.
pub fn merged(stored: &HeaderMap, item: &Response) -> HeaderMap {
    let mut headers = stored.clone();
    // What the stored body was encoded with says nothing of the item's.
    headers.remove(header::CONTENT_ENCODING);
    for (name, _) in &item.headers {
        headers.remove(name);
    }
    for (name, value) in &item.headers {
        headers.append(name, value.clone());
    }
    if let Some(expose) = &item.expose {
        let hidden: Vec<HeaderName> = headers.keys().filter(|name| !expose.contains(name)).cloned().collect();
        for name in hidden {
            headers.remove(name);
        }
    }
    headers
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    use std::io::Write;
    write!(out, "{number}").expect("a Vec takes every write");
}

/// `content-type` as `Content-Type`: hyper writes relayed names so, too.
pub(crate) fn write_name(out: &mut Vec<u8>, name: &HeaderName) {
    let start = out.len();
    out.extend_from_slice(name.as_str().as_bytes());
    let mut after_dash = true;
    for byte in &mut out[start..] {
        if after_dash {
            byte.make_ascii_uppercase();
        }
        after_dash = *byte == b'-';
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::item::ResponseBody;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        lines.iter().copied().map(pair).collect()
    }

    fn written(change: impl FnOnce(&mut Head<'_>)) -> String {
        let headers = headers(&[("content-type", "text/plain"), ("x-a-b", "1"), ("x-a-b", "2")]);
        let mut head = Head {
            version: Version::Http11,
            code: 200,
            reason: "",
            headers: &headers,
            framing: Framing::Length(5),
            keep_alive: true,
            date: "now",
        };
        change(&mut head);
        let mut out = Vec::new();
        head.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn heads() {
        const FIELDS: &str = "Content-Type: text/plain\r\nX-A-B: 1\r\nX-A-B: 2\r\nDate: now\r\n";
        type Change = fn(&mut Head<'_>);
        let table: [(Change, &str, &str); 9] = [
            (|_| {}, "HTTP/1.1 200 OK", "Content-Length: 5\r\n"),
            (|head| head.reason = "Fine", "HTTP/1.1 200 Fine", "Content-Length: 5\r\n"),
            (|head| head.code = 999, "HTTP/1.1 999 ", "Content-Length: 5\r\n"),
            (|head| head.code = 204, "HTTP/1.1 204 No Content", ""),
            (|head| head.code = 304, "HTTP/1.1 304 Not Modified", ""),
            (|head| head.keep_alive = false, "HTTP/1.1 200 OK", "Content-Length: 5\r\nConnection: close\r\n"),
            (|head| head.framing = Framing::Chunked, "HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\n"),
            (
                |head| head.version = Version::Http10,
                "HTTP/1.0 200 OK",
                "Content-Length: 5\r\nConnection: keep-alive\r\n",
            ),
            (
                |head| {
                    (head.version, head.framing, head.keep_alive) = (Version::Http10, Framing::Close, false);
                },
                "HTTP/1.0 200 OK",
                "",
            ),
        ];
        for (change, line, framing) in table {
            assert_eq!(written(change), format!("{line}\r\n{FIELDS}{framing}\r\n"));
        }
    }

    #[test]
    fn a_date_that_is_there_stays() {
        let headers = headers(&[("date", "then")]);
        let head = Head {
            version: Version::Http11,
            code: 200,
            reason: "",
            headers: &headers,
            framing: Framing::Length(0),
            keep_alive: true,
            date: "now",
        };
        let mut out = Vec::new();
        head.write(&mut out);
        assert_eq!(out, b"HTTP/1.1 200 OK\r\nDate: then\r\nContent-Length: 0\r\n\r\n");
    }

    #[test]
    fn an_item_replaces_and_hides_headers() {
        let stored = headers(&[("x-a", "1"), ("x-a", "2"), ("x-b", "3"), ("content-type", "text/plain")]);
        let pair = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut item = Response {
            code: 200,
            reason: String::new(),
            headers: vec![pair("x-a", "4"), pair("x-c", "5"), pair("x-a", "6")],
            expose: None,
            body: ResponseBody::Whole(bytes::Bytes::new()),
        };
        let all = [("x-a", "4"), ("x-a", "6"), ("x-b", "3"), ("x-c", "5"), ("content-type", "text/plain")];
        assert_eq!(merged(&stored, &item), headers(&all));
        item.expose = Some(vec![HeaderName::from_static("x-b"), HeaderName::from_static("x-c")]);
        assert_eq!(merged(&stored, &item), headers(&[("x-b", "3"), ("x-c", "5")]));
    }
}
