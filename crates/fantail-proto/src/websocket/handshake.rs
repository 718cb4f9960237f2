//! The opening handshake (RFC 6455 section 4): is a client's upgrade request in order, and is the answer
//! of an origin to ours? Which of its extensions are agreed on; never who may connect.

use base64::{
    Engine, alphabet,
    engine::general_purpose::{GeneralPurpose, PAD},
    prelude::BASE64_STANDARD,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
    },
};
use sha1_smol::Sha1;

use super::deflate;
use crate::{
    params::{self, Element},
    reply,
};

/// Why an upgrade request is answered with 400 (and, since it may be the reason, with
/// `Sec-WebSocket-Version: 13`).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("the method is not GET")]
    Method,
    #[error("the HTTP version is not 1.1")]
    HttpVersion,
    #[error("the request has a body")]
    Body,
    #[error("Connection does not say upgrade")]
    Connection,
    #[error("Sec-WebSocket-Version is not 13")]
    Version,
    #[error("Sec-WebSocket-Key is not one key of 16 bytes")]
    Key,
}

/// Why an origin's 101 does not open a WebSocket.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Mismatch {
    #[error("the status is not 101")]
    Status,
    #[error("the upgrade is not to websocket")]
    Upgrade,
    #[error("Sec-WebSocket-Accept does not match the key")]
    Accept,
    #[error("an extension was not offered or is not acceptable")]
    Extension,
}

/// Extensions that a request to an origin offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offered {
    pub grip: bool,
    /// permessage-deflate, as [`deflate::offer`] has it.
    pub deflate: bool,
}

/// What an origin's 101 agreed to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Extensions {
    /// permessage-deflate, as [`deflate::offer`] has it.
    pub deflate: bool,
    pub grip: Option<Grip>,
}

/// The origin speaks GRIP on this WebSocket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grip {
    /// Begins each message that is for the client; may be empty.
    pub message_prefix: Bytes,
}

/// Whether a request asks for a WebSocket: `Upgrade` is `websocket` and nothing else. One that does and
/// fails [`accept_request`] must not be taken for an ordinary request.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    only(headers, &UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Checks a request for which [`is_upgrade`] holds (RFC 6455 section 4.2.1). Gives what
/// `Sec-WebSocket-Accept` of the 101 must be.
pub fn accept_request(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Result<HeaderValue, Refusal> {
    let length_is_zero = only(headers, &CONTENT_LENGTH).is_some_and(|length| length == "0");
    if method != Method::GET {
        return Err(Refusal::Method);
    }
    if version != Version::HTTP_11 {
        return Err(Refusal::HttpVersion);
    }
    if headers.contains_key(TRANSFER_ENCODING) || headers.contains_key(CONTENT_LENGTH) && !length_is_zero {
        return Err(Refusal::Body);
    }
    if !says_upgrade(headers) {
        return Err(Refusal::Connection);
    }
    if only(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::Version);
    }
    only(headers, &SEC_WEBSOCKET_KEY)
        .filter(|key| is_key(key.as_bytes()))
        .map(accept_value)
        .ok_or(Refusal::Key)
}

/// The 101 for a client (RFC 6455 section 4.2.2), with headers of its origin's that have nothing to do with the
/// handshake itself.
pub fn switching(headers: &HeaderMap, accept: &HeaderValue, extensions: Option<&HeaderValue>) -> Bytes {
    let mut head = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    let mut line = |name: &HeaderName, value: &[u8]| {
        reply::write_name(&mut head, name);
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    for (name, value) in headers {
        line(name, value.as_bytes());
    }
    line(&UPGRADE, b"websocket");
    line(&CONNECTION, b"Upgrade");
    line(&SEC_WEBSOCKET_ACCEPT, accept.as_bytes());
    if let Some(extensions) = extensions {
        line(&SEC_WEBSOCKET_EXTENSIONS, extensions.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head.into()
}

/// `Sec-WebSocket-Key` of a request to an origin, of random bytes.
pub fn key(random: [u8; 16]) -> HeaderValue {
    ascii(BASE64_STANDARD.encode(random))
}

/// Checks an origin's answer to a request with `key` (RFC 6455 section 4.1).
pub fn check_answer(
    status: StatusCode,
    headers: &HeaderMap,
    key: &HeaderValue,
    offered: Offered,
) -> Result<Extensions, Mismatch> {
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Mismatch::Status);
    }
    if !is_upgrade(headers) || !says_upgrade(headers) {
        return Err(Mismatch::Upgrade);
    }
    if only(headers, &SEC_WEBSOCKET_ACCEPT) != Some(&accept_value(key)) {
        return Err(Mismatch::Accept);
    }
    let mut agreed = Extensions::default();
    for text in params::list(headers, &SEC_WEBSOCKET_EXTENSIONS) {
        if let Some(grip) = Grip::parse(text).filter(|_| offered.grip && agreed.grip.is_none()) {
            agreed.grip = Some(grip);
        } else if offered.deflate && !agreed.deflate && deflate::is_acceptable(text) {
            agreed.deflate = true;
        } else {
            return Err(Mismatch::Extension);
        }
    }
    Ok(agreed)
}

impl Grip {
    /// From the headers of an origin's answer, over HTTP or its own 101; other extensions are ignored.
    pub fn from_answer(headers: &HeaderMap) -> Option<Self> {
        params::list(headers, &SEC_WEBSOCKET_EXTENSIONS).find_map(Self::parse)
    }

    /// The prefix need not be a token, so this is not the grammar of RFC 6455.
    fn parse(text: &[u8]) -> Option<Self> {
        let element = Element::parse(text).filter(|element| element.first == b"grip")?;
        let message_prefix =
            element.get("message-prefix").map_or(Bytes::from_static(MESSAGE_PREFIX), Bytes::copy_from_slice);
        Some(Self { message_prefix })
    }
}

/// The value of a header that is there exactly once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).into_iter();
    values.next().filter(|_| values.next().is_none())
}

fn says_upgrade(headers: &HeaderMap) -> bool {
    params::list(headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

fn is_key(key: &[u8]) -> bool {
    LENIENT.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// `Sec-WebSocket-Accept` for a request with `key` (RFC 6455 section 4.2.2).
pub fn accept_value(key: &HeaderValue) -> HeaderValue {
    let mut sha = Sha1::from(key.as_bytes());
    sha.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    ascii(BASE64_STANDARD.encode(sha.digest().bytes()))
}

fn ascii(base64: String) -> HeaderValue {
    HeaderValue::try_from(base64).expect("Base64 is visible ASCII")
}

/// The RFC's own example of a key has bits behind its last byte.
static LENIENT: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, PAD.with_decode_allow_trailing_bits(true));

/// Of messages for the client if the origin names none (spec 7.3).
const MESSAGE_PREFIX: &[u8] = b"m:";

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    /// Lines of `name: value`, replaced by those of `changes`; one without a value is removed.
    fn headers(lines: &[&'static str], changes: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let replaced = |name: &str| changes.iter().any(|change| change.starts_with(&format!("{name}:")));
        for line in lines.iter().filter(|line| !replaced(line.split(':').next().unwrap())).chain(changes) {
            let (name, value) = line.split_once(':').unwrap();
            if !value.is_empty() {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value.trim_start()));
            }
        }
        headers
    }

    fn request(changes: &[&'static str]) -> HeaderMap {
        let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
        headers(&["upgrade: websocket", "connection: Upgrade", "sec-websocket-version: 13", key], changes)
    }

    fn answer(changes: &[&'static str]) -> HeaderMap {
        let accept = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        headers(&["upgrade: websocket", "connection: Upgrade", accept], changes)
    }

    #[test]
    fn which_requests_are_upgrades() {
        for (line, expected) in [
            ("upgrade: websocket", true),
            ("upgrade: WebSocket", true),
            ("upgrade: h2c", false),
            ("upgrade: websocket, h2c", false),
            ("upgrade:", false),
        ] {
            assert_eq!(is_upgrade(&request(&[line])), expected, "{line}");
        }
        assert!(!is_upgrade(&request(&["upgrade: websocket", "upgrade: websocket"])));
    }

    #[test]
    fn which_upgrades_are_in_order() {
        let table: [(&[&str], Result<(), Refusal>); 16] = [
            (&[], Ok(())),
            (&["content-length: 0"], Ok(())),
            (&["connection: keep-alive, upgrade"], Ok(())),
            (&["content-length: 1"], Err(Refusal::Body)),
            (&["content-length: 0", "content-length: 0"], Err(Refusal::Body)),
            (&["transfer-encoding: chunked"], Err(Refusal::Body)),
            (&["connection: close"], Err(Refusal::Connection)),
            (&["connection:"], Err(Refusal::Connection)),
            (&["sec-websocket-version: 8"], Err(Refusal::Version)),
            (&["sec-websocket-version: 13", "sec-websocket-version: 13"], Err(Refusal::Version)),
            (&["sec-websocket-version:"], Err(Refusal::Version)),
            (&["sec-websocket-key:"], Err(Refusal::Key)),
            (&["sec-websocket-key: dGhlIHNhbXBsZSBub25j"], Err(Refusal::Key)),
            (&["sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ"], Err(Refusal::Key)),
            (&["sec-websocket-key: !GhlIHNhbXBsZSBub25jZQ=="], Err(Refusal::Key)),
            (
                &[
                    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
                    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
                ],
                Err(Refusal::Key),
            ),
        ];
        for (changes, expected) in table {
            let checked = accept_request(&Method::GET, Version::HTTP_11, &request(changes));
            assert_eq!(checked, expected.map(|()| HeaderValue::from_static(ACCEPT)), "{changes:?}");
        }
        let headers = request(&[]);
        assert_eq!(accept_request(&Method::POST, Version::HTTP_11, &headers), Err(Refusal::Method));
        assert_eq!(accept_request(&Method::GET, Version::HTTP_10, &headers), Err(Refusal::HttpVersion));
    }

    #[test]
    fn keys_are_of_16_bytes() {
        assert_eq!(key(*b"the sample nonce"), KEY);
        assert!(is_key(key([0xff; 16]).as_bytes()));
        assert!(is_key(b"AQIDBAUGBwgJCgsMDQ4PEC=="));
    }

    #[test]
    fn which_answers_open() {
        let grip =
            |prefix: &'static str| Some(Grip { message_prefix: Bytes::from_static(prefix.as_bytes()) });
        let open = |deflate, grip| Ok(Extensions { deflate, grip });
        let table: [(&[&str], Result<Extensions, Mismatch>); 16] = [
            (&[], open(false, None)),
            (&["sec-websocket-extensions: grip"], open(false, grip("m:"))),
            (&["sec-websocket-extensions: grip; message-prefix=\"\""], open(false, grip(""))),
            (&["sec-websocket-extensions: grip;message-prefix=x"], open(false, grip("x"))),
            (&["sec-websocket-extensions: grip ; message-prefix = \"y:,;\""], open(false, grip("y:,;"))),
            (
                &["sec-websocket-extensions: permessage-deflate; server_no_context_takeover, grip"],
                open(true, grip("m:")),
            ),
            (
                &[
                    "sec-websocket-extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=9",
                ],
                open(true, None),
            ),
            (&["sec-websocket-extensions: permessage-deflate"], Err(Mismatch::Extension)),
            (
                &[
                    "sec-websocket-extensions: permessage-deflate; server_no_context_takeover; client_max_window_bits=9",
                ],
                Err(Mismatch::Extension),
            ),
            (&["sec-websocket-extensions: other"], Err(Mismatch::Extension)),
            (&["sec-websocket-extensions: grip, grip"], Err(Mismatch::Extension)),
            (&["sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOO="], Err(Mismatch::Accept)),
            (&["sec-websocket-accept:"], Err(Mismatch::Accept)),
            (&["upgrade:"], Err(Mismatch::Upgrade)),
            (&["upgrade: h2c"], Err(Mismatch::Upgrade)),
            (&["connection:"], Err(Mismatch::Upgrade)),
        ];
        let key = HeaderValue::from_static(KEY);
        let all = Offered { grip: true, deflate: true };
        for (changes, expected) in table {
            let answer = answer(changes);
            assert_eq!(
                check_answer(StatusCode::SWITCHING_PROTOCOLS, &answer, &key, all),
                expected,
                "{changes:?}"
            );
            if let Ok(extensions) = expected {
                assert_eq!(Grip::from_answer(&answer), extensions.grip);
            }
        }
        assert_eq!(check_answer(StatusCode::OK, &answer(&[]), &key, all), Err(Mismatch::Status));
        let deflate = answer(&["sec-websocket-extensions: permessage-deflate; server_no_context_takeover"]);
        let grip = answer(&["sec-websocket-extensions: grip"]);
        for (answer, offered) in
            [(deflate, Offered { deflate: false, ..all }), (grip, Offered { grip: false, ..all })]
        {
            let checked = check_answer(StatusCode::SWITCHING_PROTOCOLS, &answer, &key, offered);
            assert_eq!(checked, Err(Mismatch::Extension));
        }
    }
}
