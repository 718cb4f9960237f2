//! What each fuzz target does with its input, and what must then be true. The test `seeds` of
//! fantail-proto calls the same functions with the inputs that are checked in.

use bytes::Bytes;
use fantail_proto::{
    grip::{Hold, Instruct},
    item::{self, HttpResponse, HttpStream, ResponseBody},
    patch,
    render::{Chunk, Rendered, StreamPart},
    reply::{self, Framing, Head, Version},
    route::{Asked, Table},
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Lines of `Name: value`, as an origin would send them.
pub fn grip_headers(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(100) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    check(Instruct::parse(200, "OK", &headers, Bytes::from_static(b"body")).ok());
}

/// A body of type `application/grip-instruct`.
pub fn instruct(data: &[u8]) {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/grip-instruct"));
    check(Instruct::parse(200, "OK", &headers, Bytes::copy_from_slice(data)).ok());
}

/// The body of a publish request.
pub fn items(data: &[u8]) {
    for channel in [None, Some("c")] {
        let Ok(items) = item::decode(data, channel) else { continue };
        for item in items {
            if let Some(HttpResponse::Send(response)) = &item.response {
                let stored = HeaderMap::new();
                check_head(response.code, &response.reason, &reply::merged(&stored, response));
                if let ResponseBody::Patch(change) = &response.body {
                    let patched = patch::apply(change, br#"{"a":[1,{"b":"c"}],"d":{}}"#);
                    assert!(patched.is_none_or(|body| matches!(body.first(), Some(b'{' | b'['))));
                }
            }
            let sent = match &item.stream {
                Some(HttpStream::Send(content)) => Some(content.clone()),
                _ => None,
            };
            if let Some(StreamPart::Send(chunk)) = Rendered::from(item).stream {
                assert_eq!(Some(chunk.content()), sent);
                assert_eq!(chunk.framed().is_empty(), chunk.content().is_empty());
                assert_eq!(Chunk::concat(&[&chunk, &chunk]).content(), chunk.content().repeat(2));
            }
        }
    }
}

/// Any text is a table or a list of errors with lines; a table's routes make absolute paths.
pub fn routes(text: &str) {
    match Table::parse(text) {
        Ok(table) => {
            for route in table.routes() {
                let path =
                    format!("{}rest?query", if route.path_beg.is_empty() { "/" } else { &route.path_beg });
                table.find(Asked { host: "a", path: &path, tls: true, ws: false, id: Some(&route.id) });
                for target in &route.targets {
                    let outgoing = route.outgoing(target, &path, "a");
                    assert!(outgoing.path_and_query.starts_with('/'));
                    assert!(outgoing.path_and_query.ends_with("?query"));
                    assert!(outgoing.host.bytes().all(|b| b.is_ascii_graphic()));
                }
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            assert!(errors.iter().all(|error| (1..=text.lines().count()).contains(&error.line)));
            assert!(errors.iter().all(|error| !error.to_string().contains('\n')));
        }
    }
}

fn check(instruct: Option<Instruct>) {
    let Some(instruct) = instruct else { return };
    match &instruct.hold {
        Some(Hold::Response { timeout }) => assert!(timeout.as_secs() >= 5),
        Some(Hold::Stream { keep_alive: Some(keep_alive) }) => {
            assert!(keep_alive.timeout.as_secs() >= 1 && !keep_alive.content.is_empty());
        }
        _ => {}
    }
    assert!(instruct.channels.iter().all(|channel| channel.filters.len() <= 5));
    check_head(instruct.reply.code, &instruct.reply.reason, &instruct.reply.headers);
}

/// A head is a status line and one line a header, whatever was in them.
fn check_head(code: u16, reason: &str, headers: &HeaderMap) {
    assert!((200..=999).contains(&code));
    assert!(!headers.keys().any(|name| name.as_str().starts_with("grip-") || name == "content-length"));
    let mut head = Vec::new();
    let framing = Framing::Length(7);
    Head { version: Version::Http11, code, reason, headers, framing, keep_alive: true, date: "now" }
        .write(&mut head);
    let lines = head.iter().filter(|byte| **byte == b'\n').count();
    let added = usize::from(!headers.contains_key("date")) + usize::from(reply::allows_body(code));
    assert_eq!(lines, 1 + headers.len() + added + 1);
    assert!(head.ends_with(b"\r\n\r\n") && !head.contains(&0));
}
