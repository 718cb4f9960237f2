//! The built-in origin of the target `test` (spec 2.7): what it answers, as if it were a backend. It
//! holds nothing itself: like any origin it asks for holds with a grip-instruct body, in which a
//! channel may have any name without touching a header.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use serde_json::json;

/// A request with a longer body is refused, as a backend would that collects bodies.
pub const BODY_BYTES: u64 = 100_000;

/// Answers a request of any method. `path` is what is left behind the route's `path_beg`, `body` the
/// bytes of the request's body. Channels are the values of `channel=` in `query`, `test` without one.
pub fn answer(path: &str, query: Option<&str>, body: u64) -> Response<Bytes> {
    if body > BODY_BYTES {
        return text(StatusCode::BAD_REQUEST, "request too large\n");
    }
    let hold = match path.strip_suffix('/').unwrap_or(path) {
        "" => return text(StatusCode::OK, "Hello from the Fantail test origin!\n"),
        "/response" => ("response", "nothing for now\n"),
        "/stream" => ("stream", "[stream opened]\n"),
        _ => return text(StatusCode::NOT_FOUND, "no such test resource\n"),
    };
    match channels(query.unwrap_or_default()) {
        Some(names) => instruct(hold, &names),
        None => text(StatusCode::BAD_REQUEST, UNREADABLE),
    }
}

/// The channels of a WebSocket that is taken in, or the answer that it is not.
pub fn websocket(path: &str, query: Option<&str>) -> Result<Vec<String>, Box<Response<Bytes>>> {
    if path.strip_suffix('/').unwrap_or(path) != "/ws" {
        return Err(Box::new(text(StatusCode::NOT_FOUND, "no such test resource\n")));
    }
    channels(query.unwrap_or_default()).ok_or_else(|| Box::new(text(StatusCode::BAD_REQUEST, UNREADABLE)))
}

fn instruct((mode, body): (&str, &str), names: &[String]) -> Response<Bytes> {
    let channels: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
    let instruct = json!({
        "hold": { "mode": mode, "channels": channels },
        "response": { "headers": { "Content-Type": "text/plain" }, "body": body },
    });
    response(StatusCode::OK, "application/grip-instruct", instruct.to_string().into())
}

fn text(status: StatusCode, body: &'static str) -> Response<Bytes> {
    response(status, "text/plain", Bytes::from_static(body.as_bytes()))
}

fn response(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

const UNREADABLE: &str = "channel must be percent-encoded UTF-8 and not empty\n";

/// `None` if one name is empty or cannot be decoded.
fn channels(query: &str) -> Option<Vec<String>> {
    let names = query.split('&').filter_map(|pair| pair.strip_prefix("channel="));
    let names = names.map(|name| decode(name).filter(|name| !name.is_empty()));
    let names: Vec<String> = names.collect::<Option<_>>()?;
    Some(if names.is_empty() { vec!["test".to_owned()] } else { names })
}

/// Percent-decoding (RFC 3986 2.1). `+` stays as it is.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' { hex(rest.next()?)? << 4 | hex(rest.next()?)? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn names(answer: &Response<Bytes>) -> Vec<String> {
        let instruct: Value = serde_json::from_slice(answer.body()).expect("an instruct is JSON");
        let channels = instruct["hold"]["channels"].as_array().cloned().unwrap_or_default();
        channels.iter().map(|channel| channel["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn paths() {
        let table = [
            ("", 200, "Hello from the Fantail test origin!\n"),
            ("/", 200, "Hello from the Fantail test origin!\n"),
            ("/nope", 404, "no such test resource\n"),
            ("/stream//", 404, "no such test resource\n"),
            ("//", 404, "no such test resource\n"),
            ("/ws", 404, "no such test resource\n"),
        ];
        for (path, status, body) in table {
            let answer = answer(path, None, 0);
            assert_eq!((answer.status().as_u16(), &answer.body()[..]), (status, body.as_bytes()), "{path}");
            assert_eq!(answer.headers()[CONTENT_TYPE], "text/plain", "{path}");
        }
        assert_eq!(answer("/", None, BODY_BYTES).status(), 200);
        let large = answer("/", None, BODY_BYTES + 1);
        assert_eq!((large.status().as_u16(), &large.body()[..]), (400, &b"request too large\n"[..]));
    }

    #[test]
    fn holds() {
        for (path, mode, body) in [
            ("/stream", "stream", "[stream opened]\n"),
            ("/stream/", "stream", "[stream opened]\n"),
            ("/response", "response", "nothing for now\n"),
        ] {
            let answer = answer(path, None, 0);
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()[CONTENT_TYPE], "application/grip-instruct");
            let instruct: Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(instruct["hold"]["mode"], mode);
            assert_eq!(instruct["response"]["body"], body);
            assert_eq!(instruct["response"]["headers"]["Content-Type"], "text/plain");
        }
    }

    #[test]
    fn channels_of_the_query() {
        for (query, wanted) in [
            ("", &["test"][..]),
            ("x=1", &["test"]),
            ("channel=a&x=2&channel=b", &["a", "b"]),
            ("Channel=a", &["test"]),
            ("channel=a%20b+c", &["a b+c"]),
            ("channel=%0d%0aX-Bad:1%2C%3b%00", &["\r\nX-Bad:1,;\0"]),
            ("channel=%C3%A9", &["é"]),
        ] {
            assert_eq!(names(&answer("/stream", Some(query), 0)), wanted, "{query}");
        }
        for query in
            ["channel=", "channel=a&channel=", "channel=%", "channel=%4", "channel=%zz", "channel=%ff"]
        {
            assert_eq!(answer("/response", Some(query), 0).status(), 400, "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_name_arrives_whole(name in ".{1,40}") {
            let query: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(names(&answer("/stream", Some(&format!("channel={query}")), 0)), [name]);
        }

        #[test]
        fn never_panics(path in any::<String>(), query in any::<String>()) {
            answer(&path, Some(&query), 0);
        }
    }
}
