//! Header fields that concern one connection or the framing of one message, and so never pass from one
//! side to the other (RFC 9110 7.6.1). Reads names and tokens only, never a body.

use http::{HeaderMap, HeaderName, header};

/// Removes `Connection`, what it names, and the fields that are hop-by-hop without being named. What
/// frames the message or says where it goes stays, named or not: a client that could take `Host` or
/// `Content-Length` away would make the origin read another request.
pub fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let values = headers.get_all(header::CONNECTION).into_iter();
        let tokens = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let named: Vec<HeaderName> = tokens
            .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
            .filter(|name| *name != header::HOST && !LENGTHS.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// True for hop-by-hop fields and those that say how long a message is.
pub(crate) fn is_framing(name: &HeaderName) -> bool {
    LENGTHS.contains(name) || HOP_BY_HOP.contains(name)
}

static LENGTHS: [HeaderName; 2] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

static HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::UPGRADE,
];

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn named_fields_go_and_framing_stays() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "a"),
            ("content-length", "1"),
            ("transfer-encoding", "chunked"),
            ("connection", "X-One, content-length,Host"),
            ("connection", "x-two ,, transfer-encoding, b\"d"),
            ("x-one", "1"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("upgrade", "h2c"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "transfer-encoding", "x-three"]);
    }
}
