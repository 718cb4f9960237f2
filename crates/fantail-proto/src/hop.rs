//! Header fields that concern one connection or the framing of one message, and so never pass from one
//! side to the other (RFC 9110 7.6.1). Reads names and tokens only, never a body.

use http::{HeaderMap, HeaderName, header};

/// Removes `Connection`, what it names, and the fields that are hop-by-hop without being named. What
/// frames the message or says where it goes stays, named or not: a client that could take `Host` or
/// `Content-Length` away would make the origin read another request.
pub fn strip(headers: &mut HeaderMap) {
    for name in named(headers) {
        headers.remove(name);
    }
    remove_where(headers, |name| HOP_BY_HOP.contains(name));
}

/// What `Connection` names and may take away.
pub(crate) fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).into_iter();
    let tokens = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tokens
        .map(<[u8]>::trim_ascii)
        .filter(|token| !PERSISTENCE.iter().any(|usual| token.eq_ignore_ascii_case(usual)))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| *name != header::HOST && !LENGTHS.contains(name))
        .collect()
}

/// One look at each name is cheaper than a lookup of what mostly is not there.
pub(crate) fn remove_where(headers: &mut HeaderMap, removed: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| removed(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// True for hop-by-hop fields and those that say how long a message is.
pub(crate) fn is_framing(name: &HeaderName) -> bool {
    LENGTHS.contains(name) || HOP_BY_HOP.contains(name)
}

static LENGTHS: [HeaderName; 2] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// What nearly every `Connection` says: `keep-alive` goes anyway, and `close` names no field.
static PERSISTENCE: [&[u8]; 2] = [b"keep-alive", b"close"];

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
