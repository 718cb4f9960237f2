//! Header fields that concern one connection or the framing of one message, and so never pass from one
//! side to the other (RFC 9110 7.6.1). Reads names and tokens only, never a body.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Removes `Connection`, what it names, and the fields that are hop-by-hop without being named. What
/// frames the message or says where it goes stays, named or not: a client that could take `Host` or
/// `Content-Length` away would make the origin read another request.
pub fn strip(headers: &mut HeaderMap) {
    strip_all(headers, &HOP_BY_HOP[..FRAMING]);
}

/// As [`strip`], of a message whose framing is made anew: `Transfer-Encoding` goes, too.
pub fn strip_answer(headers: &mut HeaderMap) {
    strip_all(headers, &HOP_BY_HOP);
}

fn strip_all(headers: &mut HeaderMap, fields: &[HeaderName]) {
    // One look at each name is cheaper than a lookup of what mostly is not there.
    let (mut there, mut names_some) = ([false; HOP_BY_HOP.len()], false);
    for (name, value) in headers.iter() {
        let place = match name.as_str() {
            "connection" => {
                names_some |= !is_usual(value.as_bytes());
                0
            }
            "keep-alive" => 1,
            "proxy-connection" => 2,
            "te" => 3,
            "trailer" => 4,
            "upgrade" => 5,
            "transfer-encoding" => FRAMING,
            _ => continue,
        };
        there[place] = true;
    }
    if names_some {
        for name in named(headers) {
            headers.remove(name);
        }
    }
    for (name, _) in fields.iter().zip(there).filter(|(_, there)| *there) {
        headers.remove(name);
    }
}

/// What `Connection` names and may take away.
pub(crate) fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).into_iter().map(HeaderValue::as_bytes);
    let tokens = values.filter(|value| !is_usual(value)).flat_map(|value| value.split(|byte| *byte == b','));
    tokens
        .map(<[u8]>::trim_ascii)
        .filter(|token| !is_usual(token))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| *name != header::HOST && !LENGTHS.contains(name))
        .collect()
}

/// One look at each name is cheaper than a lookup of what mostly is not there.
pub(crate) fn remove_where(headers: &mut HeaderMap, mut removed: impl FnMut(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| removed(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// True for hop-by-hop fields and those that say how long a message is.
pub(crate) fn is_framing(name: &HeaderName) -> bool {
    LENGTHS.contains(name) || HOP_BY_HOP.contains(name)
}

fn is_usual(token: &[u8]) -> bool {
    PERSISTENCE.iter().any(|usual| token.eq_ignore_ascii_case(usual))
}

static LENGTHS: [HeaderName; 2] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// What nearly every `Connection` says: `keep-alive` goes anyway, and `close` names no field.
static PERSISTENCE: [&[u8]; 2] = [b"keep-alive", b"close"];

/// In the order that [`strip_all`] knows. The last is no hop-by-hop field by itself: it frames the message.
static HOP_BY_HOP: [HeaderName; FRAMING + 1] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::TRANSFER_ENCODING,
];

const FRAMING: usize = 6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        strip_answer(&mut headers);
        assert_eq!(headers.len(), 3);
        assert!(!headers.contains_key("transfer-encoding"));
    }

    proptest! {
        /// As `Connection` is read in full, and each field looked up.
        #[test]
        fn nothing_is_stripped_but_what_is_named_or_hop_by_hop(
            fields in proptest::collection::vec((0..NAMES.len(), 0..VALUES.len()), 0..12)
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(NAMES[name], HeaderValue::from_static(VALUES[value]));
            }
            let tokens: Vec<String> = headers
                .get_all("connection")
                .iter()
                .flat_map(|value| value.to_str().unwrap_or_default().split(','))
                .map(|token| token.trim().to_ascii_lowercase())
                .collect();
            let stays = |name: &HeaderName| {
                let name = name.as_str();
                let kept = ["host", "content-length", "transfer-encoding"].contains(&name);
                let hop = HOP_BY_HOP[..FRAMING].iter().any(|hop| hop == name);
                kept || !hop && !tokens.iter().any(|token| token == name)
            };
            let expected: HeaderMap =
                headers.iter().filter(|(name, _)| stays(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
            strip(&mut headers);
            prop_assert_eq!(headers, expected);
        }
    }

    const NAMES: [&str; 10] = [
        "connection",
        "keep-alive",
        "te",
        "upgrade",
        "trailer",
        "proxy-connection",
        "host",
        "content-length",
        "x-one",
        "x-two",
    ];
    const VALUES: [&str; 9] = [
        "keep-alive",
        "Keep-Alive",
        "close",
        "x-one",
        "close, X-Two",
        "keep-alive,host",
        "x-one ,, content-length",
        "",
        "upgrade",
    ];
}
