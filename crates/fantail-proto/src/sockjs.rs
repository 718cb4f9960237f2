//! SockJS: what its paths mean, its frames, and how each way of receiving wraps them. Sessions, their times and
//! limits are elsewhere. Whatever a client or an origin says is data: nothing of it can end a script or a frame.

use std::fmt::Write as _;

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

use crate::{
    query::Query,
    websocket::{close::Close, frame::Opcode},
};

/// What a path below the base asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Endpoint<'p> {
    Greeting,
    Info,
    /// The page that old browsers load into a frame.
    Iframe,
    /// A WebSocket without SockJS's frames.
    Raw,
    /// Something of a session, by its id.
    Session(&'p str, Transport),
}

/// How a session is opened, read or written to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    WebSocket,
    Xhr,
    XhrStreaming,
    EventSource,
    HtmlFile,
    JsonP,
    XhrSend,
    JsonPSend,
}

impl<'p> Endpoint<'p> {
    /// `path` is what is left behind the base.
    pub fn find(path: &'p str) -> Option<Self> {
        let is_part = |part: &str| !part.is_empty() && part.len() <= ID_BYTES && !part.contains('.');
        let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
        Some(match (parts.next()?, parts.next(), parts.next(), parts.next()) {
            ("", None, None, None) => Self::Greeting,
            ("info", None, None, None) => Self::Info,
            ("websocket", None, None, None) => Self::Raw,
            (page, None, None, None) if is_iframe(page) => Self::Iframe,
            (server, Some(session), Some(transport), None) if is_part(server) && is_part(session) => {
                Self::Session(session, Transport::find(transport)?)
            }
            _ => return None,
        })
    }
}

fn is_iframe(page: &str) -> bool {
    let middle = page.strip_prefix("iframe").and_then(|rest| rest.strip_suffix(".html"));
    middle.is_some_and(|middle| middle.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)))
}

impl Transport {
    fn find(name: &str) -> Option<Self> {
        Some(match name {
            "websocket" => Self::WebSocket,
            "xhr" => Self::Xhr,
            "xhr_streaming" => Self::XhrStreaming,
            "eventsource" => Self::EventSource,
            "htmlfile" => Self::HtmlFile,
            "jsonp" => Self::JsonP,
            "xhr_send" => Self::XhrSend,
            "jsonp_send" => Self::JsonPSend,
            _ => return None,
        })
    }

    /// What `Allow` says, besides OPTIONS.
    pub fn method(self) -> &'static str {
        match self {
            Self::Xhr | Self::XhrStreaming | Self::XhrSend | Self::JsonPSend => "POST",
            Self::WebSocket | Self::EventSource | Self::HtmlFile | Self::JsonP => "GET",
        }
    }
}

/// A way to get frames over HTTP.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Receiving {
    Xhr,
    XhrStreaming,
    EventSource,
    /// With the name of the page's function.
    HtmlFile(Box<str>),
    JsonP(Box<str>),
}

impl Receiving {
    /// Whether one response takes many frames.
    pub fn streams(&self) -> bool {
        matches!(self, Self::XhrStreaming | Self::EventSource | Self::HtmlFile(_))
    }

    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Xhr | Self::XhrStreaming | Self::JsonP(_) => "application/javascript; charset=UTF-8",
            Self::EventSource => "text/event-stream; charset=UTF-8",
            Self::HtmlFile(_) => "text/html; charset=UTF-8",
        }
    }

    /// What a response begins with: some browsers show a page nothing before so many bytes have come.
    pub fn prelude(&self) -> Vec<u8> {
        match self {
            Self::Xhr | Self::JsonP(_) => Vec::new(),
            Self::XhrStreaming => [&[b'h'; PRELUDE_BYTES][..], b"\n"].concat(),
            Self::EventSource => b"\r\n".to_vec(),
            Self::HtmlFile(callback) => {
                let mut page = HTML_FILE.replace("CALLBACK", callback);
                page.extend(std::iter::repeat_n(' ', PRELUDE_BYTES.saturating_sub(page.len())));
                page.push_str("\r\n\r\n");
                page.into()
            }
        }
    }

    /// Appends a frame as this way has it.
    pub fn wrap(&self, frame: &str, out: &mut Vec<u8>) {
        let mut text = String::with_capacity(frame.len() + 32);
        match self {
            Self::Xhr | Self::XhrStreaming => _ = writeln!(text, "{frame}"),
            // No frame has a line end: strings are escaped.
            Self::EventSource => _ = write!(text, "data: {frame}\r\n\r\n"),
            Self::HtmlFile(_) => {
                text.push_str("<script>\np(");
                quote(frame, &mut text);
                text.push_str(");\n</script>\r\n");
            }
            Self::JsonP(callback) => {
                _ = write!(text, "/**/{callback}(");
                quote(frame, &mut text);
                text.push_str(");\r\n");
            }
        }
        out.extend_from_slice(text.as_bytes());
    }
}

/// Whether a name may stand in a script as that of a function: letters, digits, `_`, `$`, `-` and dots.
pub fn is_callback(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"_$.-".contains(&b);
    (1..=CALLBACK_BYTES).contains(&name.len()) && name.bytes().all(good)
}

pub const OPEN: &str = "o";
pub const HEARTBEAT: &str = "h";

/// The frame of one message. What is not UTF-8 of a binary one is replaced.
pub fn message(content: &[u8]) -> String {
    let mut frame = String::with_capacity(content.len() + 4);
    frame.push_str("a[");
    quote(&String::from_utf8_lossy(content), &mut frame);
    frame.push(']');
    frame
}

/// The frame that ends a session.
pub fn close(code: u16, reason: &str) -> String {
    let mut frame = format!("c[{code},");
    quote(reason, &mut frame);
    frame.push(']');
    frame
}

/// The frame for a close frame of a WebSocket; without a code it is a normal one.
pub fn close_of(frame: &[u8]) -> String {
    match unframed(frame).next().map(|(_, payload)| Close::parse(payload)) {
        Some(Ok(Some(Close { code, reason }))) => close(code.get(), &reason),
        _ => close(1000, "Normal closure"),
    }
}

/// The frames of SockJS that wait for a client as frames of a WebSocket, made one: all messages, or else a heartbeat.
pub fn merged<'q>(waiting: impl Iterator<Item = &'q [u8]>) -> Option<String> {
    let mut merged: Option<String> = None;
    let mut beat = false;
    for (opcode, payload) in waiting.flat_map(unframed) {
        let Some(text) = str::from_utf8(payload).ok().filter(|_| opcode == Opcode::Text) else { continue };
        match (text.strip_prefix("a[").and_then(|rest| rest.strip_suffix(']')), &mut merged) {
            (Some(messages), Some(all)) => {
                all.push(',');
                all.push_str(messages);
            }
            (Some(messages), none) => *none = Some(format!("a[{messages}")),
            (None, _) => beat |= text == HEARTBEAT,
        }
    }
    if let Some(all) = &mut merged {
        all.push(']');
    }
    merged.or_else(|| beat.then(|| HEARTBEAT.to_owned()))
}

/// A server's frames of a WebSocket, one after another, without their heads. Ends at what is none.
fn unframed(mut bytes: &[u8]) -> impl Iterator<Item = (Opcode, &[u8])> {
    std::iter::from_fn(move || {
        let (&[first, short], rest) = bytes.split_first_chunk::<2>()?;
        let (len, rest) = match short {
            126 => {
                let (len, rest) = rest.split_first_chunk::<2>()?;
                (u64::from(u16::from_be_bytes(*len)), rest)
            }
            127 => {
                let (len, rest) = rest.split_first_chunk::<8>()?;
                (u64::from_be_bytes(*len), rest)
            }
            short => (u64::from(short), rest),
        };
        let (payload, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        bytes = rest;
        Some((Opcode::new(first)?, payload))
    })
}

/// Why what a client sends is no messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Malformed {
    #[error("Payload expected.")]
    Empty,
    #[error("Broken JSON encoding.")]
    Json,
}

/// The messages of a body, or of a text on a WebSocket: a list of strings, or one.
pub fn messages(payload: &[u8]) -> Result<Vec<String>, Malformed> {
    if payload.is_empty() {
        return Err(Malformed::Empty);
    }
    let Messages(messages) = serde_json::from_slice(payload).map_err(|_| Malformed::Json)?;
    Ok(messages)
}

/// The payload of a form, in its field `d`.
pub fn form(body: &[u8]) -> Result<Vec<u8>, Malformed> {
    let body = str::from_utf8(body).map_err(|_| Malformed::Json)?;
    let field = Query::new(body).value("d").ok_or(Malformed::Empty)?;
    field.map(String::into_bytes).ok_or(Malformed::Json)
}

struct Messages(Vec<String>);

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Messages;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of strings, or a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Messages, E> {
                Ok(Messages(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Messages, A::Error> {
                let mut all = Vec::new();
                while let Some(Text(text)) = list.next_element()? {
                    all.push(text);
                }
                Ok(Messages(all))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A string, in which halves of surrogate pairs are replaced, as browsers do on WebSockets.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lossy;
        impl Visitor<'_> for Lossy {
            type Value = Text;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<Text, E> {
                let mut text = text.to_vec();
                let mut at = 0;
                while let Some(three) = text.get_mut(at..at + 3) {
                    // A half stands there as UTF-8 would have it, in as many bytes.
                    if three[0] == 0xed && three[1] >= 0xa0 {
                        three.copy_from_slice("\u{fffd}".as_bytes());
                    }
                    at += 1;
                }
                Ok(Text(String::from_utf8_lossy(&text).into_owned()))
            }
        }
        deserializer.deserialize_bytes(Lossy)
    }
}

/// Appends a string of JSON that is one in scripts and in pages, too. Characters that some browsers lose on the way are
/// escaped (the list is of SockJS's protocol).
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\u{1f}'
            | '<'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}'
            | '\u{600}'..='\u{604}'
            | '\u{70f}'
            | '\u{17b4}'
            | '\u{17b5}'
            | '\u{200c}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff0}'..='\u{ffff}' => _ = write!(out, "\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The page that loads the client's script into a frame.
pub fn iframe(script: &str) -> String {
    let mut url = String::with_capacity(script.len());
    for c in script.chars() {
        match c {
            '&' => url.push_str("&amp;"),
            '"' => url.push_str("&quot;"),
            '<' => url.push_str("&lt;"),
            '>' => url.push_str("&gt;"),
            c => url.push(c),
        }
    }
    IFRAME.replace("SCRIPT", &url)
}

/// What `/info` says; `entropy` is a number that a page seeds its own generator with.
pub fn info(entropy: u32) -> String {
    format!(r#"{{"websocket":true,"origins":["*:*"],"cookie_needed":false,"entropy":{entropy}}}"#)
}

const IFRAME: &str = r#"<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src="SCRIPT"></script>
  <script>
    document.domain = document.domain;
    SockJS.bootstrap_iframe();
  </script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>
</body>
</html>
"#;

const HTML_FILE: &str = r#"<!doctype html>
<html><head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body><h2>Don't panic!</h2>
  <script>
    document.domain = document.domain;
    var c = parent.CALLBACK;
    c.start();
    function p(d) {c.message(d);};
    window.onload = function() {c.stop();};
  </script>
"#;

/// Ids are eight characters in practice.
const ID_BYTES: usize = 128;
const CALLBACK_BYTES: usize = 128;
const PRELUDE_BYTES: usize = 2048;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::websocket::frame::Frame;

    #[test]
    fn paths() {
        use Endpoint::{Greeting, Iframe, Info, Raw, Session};
        let table = [
            ("", Some(Greeting)),
            ("/", Some(Greeting)),
            ("//", None),
            ("/info", Some(Info)),
            ("/info/", None),
            ("/iframe.html", Some(Iframe)),
            ("/iframe-0.1.2abc.html", Some(Iframe)),
            ("/iframe", None),
            ("/iframe<x>.html", None),
            ("/websocket", Some(Raw)),
            ("/000/abc/xhr", Some(Session("abc", Transport::Xhr))),
            ("/000/abc/websocket", Some(Session("abc", Transport::WebSocket))),
            ("/000/abc/jsonp_send", Some(Session("abc", Transport::JsonPSend))),
            ("/000/abc/other", None),
            ("/000/abc/xhr/", None),
            ("/0.0/abc/xhr", None),
            ("/000/a.c/xhr", None),
            ("//abc/xhr", None),
            ("/000//xhr", None),
        ];
        for (path, endpoint) in table {
            assert_eq!(Endpoint::find(path), endpoint, "{path}");
        }
    }

    #[test]
    fn envelopes() {
        let wrapped = |way: Receiving, frame: &str| {
            let mut out = Vec::new();
            way.wrap(frame, &mut out);
            String::from_utf8(out).unwrap()
        };
        let frame = message(b"</script>\xe2\x80\xa8\"");
        assert_eq!(frame, r#"a["\u003c/script>\u2028\""]"#);
        assert_eq!(wrapped(Receiving::Xhr, &frame), format!("{frame}\n"));
        assert_eq!(wrapped(Receiving::EventSource, &frame), format!("data: {frame}\r\n\r\n"));
        let quoted = r#""a[\"\\u003c/script>\\u2028\\\"\"]""#;
        assert_eq!(
            wrapped(Receiving::HtmlFile("c".into()), &frame),
            format!("<script>\np({quoted});\n</script>\r\n")
        );
        assert_eq!(wrapped(Receiving::JsonP("c".into()), &frame), format!("/**/c({quoted});\r\n"));
        assert!(Receiving::HtmlFile("parent.x".into()).prelude().len() > PRELUDE_BYTES);
    }

    #[test]
    fn callbacks() {
        for (name, good) in [("cb", true), ("a.b_c$1-", true), ("", false), ("a(", false), ("<", false)] {
            assert_eq!(is_callback(name), good, "{name}");
        }
        assert!(!is_callback(&"x".repeat(CALLBACK_BYTES + 1)));
    }

    #[test]
    fn what_clients_send() {
        type Expected = Result<Vec<String>, Malformed>;
        let table: [(&[u8], Expected); 8] = [
            (b"", Err(Malformed::Empty)),
            (b"[\"a\",\"b\"]", Ok(vec!["a".into(), "b".into()])),
            (b"\"a\"", Ok(vec!["a".into()])),
            (b"[]", Ok(vec![])),
            (b"[1]", Err(Malformed::Json)),
            (b"{}", Err(Malformed::Json)),
            (b"[\"a", Err(Malformed::Json)),
            (br#"["\ud800"]"#, Ok(vec!["\u{fffd}".into()])),
        ];
        for (payload, expected) in table {
            assert_eq!(messages(payload), expected, "{:?}", str::from_utf8(payload));
        }
        assert_eq!(form(b"d=%5B%22a%22%5D"), Ok(b"[\"a\"]".to_vec()));
        assert_eq!(form(b"x=1&d=%22a+b%22"), Ok(b"\"a b\"".to_vec()));
        assert_eq!(form(b"x=1"), Err(Malformed::Empty));
        assert_eq!(form(b"d=%z"), Err(Malformed::Json));
    }

    #[test]
    fn closes() {
        let frame = Frame::new(Opcode::Close, b"\x0f\xa0bye").to_bytes();
        assert_eq!(close_of(&frame), "c[4000,\"bye\"]");
        assert_eq!(close_of(b"\x88\x00"), "c[1000,\"Normal closure\"]");
    }

    #[test]
    fn a_heartbeat_counts_only_alone() {
        let framed = |text: &str| Frame::new(Opcode::Text, text.as_bytes()).to_bytes();
        let (beat, content) = (framed(HEARTBEAT), framed(&message(b"x")));
        assert_eq!(merged([&*beat].into_iter()).as_deref(), Some("h"));
        assert_eq!(merged([&*beat, &*content, &*beat].into_iter()).as_deref(), Some("a[\"x\"]"));
        assert_eq!(merged(std::iter::empty()), None);
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_again(text in any::<String>()) {
            let mut quoted = String::new();
            quote(&text, &mut quoted);
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
            let unsafe_there = quoted.contains(['<', '\n', '\r', '\u{2028}']);
            prop_assert!(!unsafe_there);
        }

        #[test]
        fn messages_are_merged_in_order(texts in vec(any::<String>(), 1..6), one in any::<bool>()) {
            let frames: Vec<_> = texts.iter()
                .map(|text| Frame::new(Opcode::Text, message(text.as_bytes()).as_bytes()).to_bytes())
                .collect();
            let joined = frames.concat();
            let merged = if one { merged([&joined[..]].into_iter()) } else { merged(frames.iter().map(|f| &**f)) };
            let merged = merged.unwrap();
            prop_assert_eq!(messages(&merged.as_bytes()[1..]).unwrap(), texts);
        }

        #[test]
        fn nothing_panics(bytes in vec(any::<u8>(), 0..200)) {
            _ = messages(&bytes);
            _ = form(&bytes);
            _ = merged([&bytes[..]].into_iter());
            _ = close_of(&bytes);
            _ = Endpoint::find(&String::from_utf8_lossy(&bytes));
        }
    }
}
