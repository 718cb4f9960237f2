//! Bodies of `application/websocket-events` (spec 7.2.2): a WebSocket's messages as an HTTP origin reads
//! and writes them, one event after the other: `TYPE` or `TYPE SP HEXLEN`, CRLF, content, CRLF.
//! Knows the notation only: which event may come when is [`super::over_http`]'s.

use std::{iter, ops::Range};

use bytes::Bytes;
use memchr::memmem;

use crate::item::WsKind;

/// The media type of a body of events.
pub const MEDIA_TYPE: &str = "application/websocket-events";

/// Events that a body may hold. One decoded takes about 40 bytes, so the list stays below the size of the
/// largest answer (1 MB), and an origin that answers each message of a full request has room four times over.
pub const MAX_EVENTS: usize = 16_384;

/// Bytes in a ping or pong (RFC 6455 5.5).
pub const MAX_PING_BYTES: usize = 125;

/// One event. Contents decoded are slices of the body and keep it alive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    Open,
    /// The content of a text is not checked to be UTF-8.
    Message(WsKind, Bytes),
    /// Code and reason as they stand in the body: any code, 0 included, any bytes.
    Close(Option<(u16, Bytes)>),
    /// The other side is gone without a closing handshake.
    Disconnect,
}

/// Why a body is no list of events: the origin's fault. `at` is an offset into the body.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EventsError {
    #[error("the event at byte {at} has no end of line after its type")]
    Unended { at: usize },
    #[error("the event at byte {at} has no hexadecimal length")]
    Length { at: usize },
    #[error("the event at byte {at} has a content that goes on after its length")]
    Content { at: usize },
    #[error("the ping or pong at byte {at} has more than {MAX_PING_BYTES} bytes")]
    LongPing { at: usize },
    #[error("more than {MAX_EVENTS} events")]
    TooMany,
}

/// Decodes a whole body. Tolerated are a last content that is shorter than announced or has no CRLF behind
/// it, and types that are unknown: these are left out.
pub fn decode(body: &Bytes) -> Result<Vec<Event>, EventsError> {
    let mut events = Vec::new();
    for (count, span) in spans(body).enumerate() {
        if count == MAX_EVENTS {
            return Err(EventsError::TooMany);
        }
        let Span { at, kind, content, .. } = span?;
        let event = match kind {
            Kind::Open => Event::Open,
            Kind::Message(WsKind::Ping | WsKind::Pong) if content.len() > MAX_PING_BYTES => {
                return Err(EventsError::LongPing { at });
            }
            Kind::Message(kind) => Event::Message(kind, body.slice(content)),
            Kind::Close => Event::Close(close(body.slice(content))),
            Kind::Disconnect => Event::Disconnect,
            Kind::Unknown => continue,
        };
        events.push(event);
    }
    Ok(events)
}

/// Appends one event.
pub fn encode(event: &Event, body: &mut Vec<u8>) {
    match event {
        Event::Open => body.extend_from_slice(b"OPEN\r\n"),
        Event::Message(kind, content) => encode_message(*kind, content, body),
        Event::Close(close) => encode_close(close.as_ref().map(|(code, reason)| (*code, &**reason)), body),
        Event::Disconnect => body.extend_from_slice(b"DISCONNECT\r\n"),
    }
}

/// Appends a message whose content is only borrowed. An empty one has no length, as Pushpin writes it.
pub fn encode_message(kind: WsKind, content: &[u8], body: &mut Vec<u8>) {
    let name: &[u8] = match kind {
        WsKind::Text => b"TEXT",
        WsKind::Binary => b"BINARY",
        WsKind::Ping => b"PING",
        WsKind::Pong => b"PONG",
    };
    body.reserve(name.len() + content.len() + FRAMING);
    body.extend_from_slice(name);
    encode_content(&[content], body);
}

/// Appends a close.
pub fn encode_close(close: Option<(u16, &[u8])>, body: &mut Vec<u8>) {
    body.extend_from_slice(b"CLOSE");
    match close {
        Some((code, reason)) => encode_content(&[&code.to_be_bytes(), reason], body),
        None => encode_content(&[], body),
    }
}

/// One event as it stands in a body.
pub(super) struct Span {
    /// Where it begins.
    pub at: usize,
    pub kind: Kind,
    pub content: Range<usize>,
    /// Where the next one begins, or the end of the body.
    pub end: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Open,
    Message(WsKind),
    Close,
    Disconnect,
    Unknown,
}

/// The events of a body one by one; nothing follows an error.
pub(super) fn spans(body: &[u8]) -> impl Iterator<Item = Result<Span, EventsError>> {
    let mut at = 0;
    iter::from_fn(move || {
        let span = (at < body.len()).then(|| span(body, at))?;
        at = span.as_ref().map_or(body.len(), |span| span.end);
        Some(span)
    })
}

fn span(body: &[u8], at: usize) -> Result<Span, EventsError> {
    let line_end = at + memmem::find(&body[at..], CRLF).ok_or(EventsError::Unended { at })?;
    let (line, start) = (&body[at..line_end], line_end + CRLF.len());
    let Some(space) = memchr::memchr(b' ', line) else {
        return Ok(Span { at, kind: Kind::named(line), content: start..start, end: start });
    };
    let announced = hex(&line[space + 1..]).ok_or(EventsError::Length { at })?;
    let content_end = start.saturating_add(announced).min(body.len());
    let rest = &body[content_end..];
    if !rest.starts_with(CRLF) && !CRLF.starts_with(rest) {
        return Err(EventsError::Content { at });
    }
    let end = content_end + rest.len().min(CRLF.len());
    Ok(Span { at, kind: Kind::named(&line[..space]), content: start..content_end, end })
}

impl Kind {
    fn named(name: &[u8]) -> Self {
        match name {
            b"OPEN" => Self::Open,
            b"TEXT" => Self::Message(WsKind::Text),
            b"BINARY" => Self::Message(WsKind::Binary),
            b"PING" => Self::Message(WsKind::Ping),
            b"PONG" => Self::Message(WsKind::Pong),
            b"CLOSE" => Self::Close,
            b"DISCONNECT" => Self::Disconnect,
            _ => Self::Unknown,
        }
    }
}

/// Hexadecimal digits and nothing else: no sign, no prefix, no white space.
fn hex(digits: &[u8]) -> Option<usize> {
    let value = |length: usize, digit: &u8| {
        let digit = char::from(*digit).to_digit(16)?;
        length.checked_mul(16)?.checked_add(usize::try_from(digit).ok()?)
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, value) }
}

/// One byte is half a code: an origin that writes it wants a close, and gets a normal one.
fn close(mut content: Bytes) -> Option<(u16, Bytes)> {
    match *content {
        [] => None,
        [_] => Some((NORMAL_CLOSURE, Bytes::new())),
        [high, low, ..] => Some((u16::from_be_bytes([high, low]), content.split_off(2))),
    }
}

fn encode_content(parts: &[&[u8]], body: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    if length > 0 {
        body.push(b' ');
        let significant = (usize::BITS - length.leading_zeros()).div_ceil(4);
        for place in (0..significant).rev() {
            body.push(b"0123456789abcdef"[length >> (4 * place) & 0xf]);
        }
        body.extend_from_slice(CRLF);
        parts.iter().for_each(|part| body.extend_from_slice(part));
    }
    body.extend_from_slice(CRLF);
}

const CRLF: &[u8] = b"\r\n";

/// A space, at most 16 digits and two ends of line.
const FRAMING: usize = 21;

/// RFC 6455 7.4.1.
const NORMAL_CLOSURE: u16 = 1000;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn text(content: &'static str) -> Event {
        Event::Message(WsKind::Text, Bytes::from_static(content.as_bytes()))
    }

    fn message(kind: WsKind, content: &'static [u8]) -> Event {
        Event::Message(kind, Bytes::from_static(content))
    }

    fn close(code: u16, reason: &'static [u8]) -> Event {
        Event::Close(Some((code, Bytes::from_static(reason))))
    }

    #[test]
    fn bodies_and_their_events() {
        let table: [(&'static [u8], Vec<Event>); 19] = [
            (b"", vec![]),
            (b"OPEN\r\n", vec![Event::Open]),
            (b"OPEN 2\r\nxx\r\nTEXT 1\r\na\r\n", vec![Event::Open, text("a")]),
            (b"TEXT\r\nBINARY\r\n", vec![text(""), message(WsKind::Binary, b"")]),
            (b"TEXT 0\r\n\r\nPING\r\n", vec![text(""), message(WsKind::Ping, b"")]),
            (b"TEXT 5\r\nhello\r\n", vec![text("hello")]),
            (b"TEXT 5\r\na\r\nb!\r\nPONG 1\r\n!\r\n", vec![text("a\r\nb!"), message(WsKind::Pong, b"!")]),
            (b"BINARY 0000A\r\n0123456789\r\n", vec![message(WsKind::Binary, b"0123456789")]),
            (b"TEXT 5\r\nhello", vec![text("hello")]),
            (b"TEXT 5\r\nhello\r", vec![text("hello")]),
            (b"TEXT 6\r\nhello", vec![text("hello")]),
            (b"TEXT ffffffffffffffff\r\nhello", vec![text("hello")]),
            (b"CLOSE\r\n", vec![Event::Close(None)]),
            (b"CLOSE 0\r\n\r\n", vec![Event::Close(None)]),
            (b"CLOSE 1\r\nx\r\n", vec![close(1000, b"")]),
            (b"CLOSE 2\r\n\0\0\r\n", vec![close(0, b"")]),
            (b"CLOSE 5\r\n\x03\xe8bye\r\nTEXT\r\n", vec![close(1000, b"bye"), text("")]),
            (b"open\r\nNEW 3\r\nabc\r\n\r\nDISCONNECT\r\n", vec![Event::Disconnect]),
            (b"TEXT 1\r\na\r\nOPEN\r\nOPEN\r\n", vec![text("a"), Event::Open, Event::Open]),
        ];
        for (body, events) in table {
            assert_eq!(decode(&Bytes::from_static(body)), Ok(events), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn bodies_that_are_none() {
        use EventsError::*;
        let table: [(&'static [u8], EventsError); 12] = [
            (b"OPEN", Unended { at: 0 }),
            (b"OPEN\n", Unended { at: 0 }),
            (b"OPEN\r\nTEXT 5", Unended { at: 6 }),
            (b"TEXT \r\n", Length { at: 0 }),
            (b"TEXT x\r\n", Length { at: 0 }),
            (b"TEXT +1\r\na\r\n", Length { at: 0 }),
            (b"TEXT 0x1\r\na\r\n", Length { at: 0 }),
            (b"TEXT  1\r\na\r\n", Length { at: 0 }),
            (b"TEXT 10000000000000000\r\na\r\n", Length { at: 0 }),
            (b"TEXT 1\r\nab\r\n", Content { at: 0 }),
            (b"TEXT 3\r\nhello", Content { at: 0 }),
            (b"OPEN\r\nTEXT 1\r\na\nTEXT 1\r\nb", Content { at: 6 }),
        ];
        for (body, error) in table {
            assert_eq!(decode(&Bytes::from_static(body)), Err(error), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn events_and_pings_are_limited() {
        let body = |count: usize| Bytes::from(b"TEXT\r\n".repeat(count));
        assert_eq!(decode(&body(MAX_EVENTS)).map(|events| events.len()), Ok(MAX_EVENTS));
        assert_eq!(decode(&body(MAX_EVENTS + 1)), Err(EventsError::TooMany));
        let ping =
            |length: usize| Bytes::from(format!("OPEN\r\nPING {length:x}\r\n{}\r\n", "x".repeat(length)));
        assert!(decode(&ping(125)).is_ok());
        assert_eq!(decode(&ping(126)), Err(EventsError::LongPing { at: 6 }));
    }

    #[test]
    fn events_as_they_are_written() {
        let table: [(Event, &[u8]); 8] = [
            (Event::Open, b"OPEN\r\n"),
            (text(""), b"TEXT\r\n"),
            (text("hi"), b"TEXT 2\r\nhi\r\n"),
            (
                message(WsKind::Binary, &[0; 0x1a]),
                b"BINARY 1a\r\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\r\n",
            ),
            (message(WsKind::Ping, b""), b"PING\r\n"),
            (Event::Close(None), b"CLOSE\r\n"),
            (close(1000, b"bye"), b"CLOSE 5\r\n\x03\xe8bye\r\n"),
            (Event::Disconnect, b"DISCONNECT\r\n"),
        ];
        for (event, expected) in table {
            let mut body = Vec::new();
            encode(&event, &mut body);
            assert_eq!(body.escape_ascii().to_string(), expected.escape_ascii().to_string());
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let content = |most| vec(any::<u8>(), 0..most).prop_map(Bytes::from);
        let kind = prop_oneof![Just(WsKind::Text), Just(WsKind::Binary)];
        let ping = prop_oneof![Just(WsKind::Ping), Just(WsKind::Pong)];
        prop_oneof![
            Just(Event::Open),
            (kind, content(600)).prop_map(|(kind, content)| Event::Message(kind, content)),
            (ping, content(126)).prop_map(|(kind, content)| Event::Message(kind, content)),
            Just(Event::Close(None)),
            (any::<u16>(), content(200)).prop_map(Some).prop_map(Event::Close),
            Just(Event::Disconnect),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(events in vec(any_event(), 0..20)) {
            let mut body = Vec::new();
            events.iter().for_each(|event| encode(event, &mut body));
            prop_assert_eq!(decode(&body.into()), Ok(events));
        }

        #[test]
        fn any_body_is_read_or_refused(body in "(TEXT|PING|CLOSE|X|\r\n|\r| |[0-9a-f]|.){0,40}") {
            let body = Bytes::from(body);
            if let Ok(events) = decode(&body) {
                let mut again = Vec::new();
                events.iter().for_each(|event| encode(event, &mut again));
                prop_assert_eq!(decode(&again.into()), Ok(events));
            }
        }
    }
}
