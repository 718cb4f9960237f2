//! An item's bytes, once per transport, shared by all subscribers.

use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue};

use crate::{
    item::{
        HttpRequest, HttpResponse, HttpStream, Item, Response, ResponseBody, WrittenFor, WsKind, WsMessage,
    },
    patch, sockjs,
    websocket::{
        close::{self, Code},
        deflate::Deflater,
        frame::{CONTROL_MAX, Frame, Opcode},
    },
    xmpp::stanza::Stanza,
};

/// What the shards need of an item. Actions that mean nothing to a transport leave no part.
#[derive(Clone, Debug)]
pub struct Rendered {
    pub stream: Option<StreamPart>,
    pub response: Option<HttpResponse>,
    pub message: Option<MessagePart>,
    pub request: Option<HttpRequest>,
    pub stanza: Option<Box<Stanza>>,
    pub object: Option<Bytes>,
    pub written_for: WrittenFor,
    pub id: Option<String>,
    pub prev_id: Option<String>,
    pub meta: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
pub enum StreamPart {
    /// One HTTP/1.1 chunk (size line, content, CRLF) in one allocation; empty for empty content,
    /// because a chunk of size 0 would end the body.
    Send(Chunk),
    Hint,
    Close,
}

/// What a WebSocket gets.
#[derive(Clone, Debug)]
pub enum MessagePart {
    Send(Message),
    /// A close frame; what comes behind it is not delivered.
    Close(Bytes),
    /// Nothing for the client: its origin is to be asked (spec 5.6).
    Refresh,
}

/// One message as one frame. It is compressed when the first subscriber needs that, for all of them.
#[derive(Clone, Debug)]
pub struct Message {
    frame: Bytes,
    /// Where the frame's payload begins.
    head: usize,
    opcode: Opcode,
    deflated: OnceLock<Bytes>,
    sockjs: OnceLock<Bytes>,
}

impl Message {
    pub fn new(kind: WsKind, content: &[u8]) -> Self {
        let opcode = Opcode::from(kind);
        let frame = Frame::new(opcode, content).to_bytes();
        // A control frame's content may have been cut.
        let head =
            frame.len() - content.len().min(if opcode.is_control() { CONTROL_MAX } else { usize::MAX });
        Self { frame, head, opcode, deflated: OnceLock::new(), sockjs: OnceLock::new() }
    }

    /// The same kind of message with other content, if that can be one.
    pub fn with_content(&self, content: &[u8]) -> Option<Self> {
        let kind = self.kind();
        (kind != WsKind::Text || std::str::from_utf8(content).is_ok()).then(|| Self::new(kind, content))
    }

    pub fn kind(&self) -> WsKind {
        match self.opcode {
            Opcode::Text => WsKind::Text,
            Opcode::Ping => WsKind::Ping,
            Opcode::Pong => WsKind::Pong,
            _ => WsKind::Binary,
        }
    }

    pub fn content(&self) -> &[u8] {
        &self.frame[self.head..]
    }

    /// The frame as it is.
    pub fn plain(&self) -> &Bytes {
        &self.frame
    }

    /// The frame for those who speak SockJS. What is no message is a heartbeat there.
    pub fn sockjs(&self) -> &Bytes {
        self.sockjs.get_or_init(|| {
            let frame = match self.opcode {
                Opcode::Text | Opcode::Binary => sockjs::message(self.content()),
                _ => sockjs::HEARTBEAT.to_owned(),
            };
            Frame::new(Opcode::Text, frame.as_bytes()).to_bytes()
        })
    }

    /// The frame for those who agreed to permessage-deflate: compressed from `least` bytes of content, and
    /// where that makes it shorter.
    pub fn deflated(&self, deflater: &mut Deflater, least: usize) -> &Bytes {
        let content = self.content();
        if self.opcode.is_control() || content.len() < least {
            return &self.frame;
        }
        self.deflated.get_or_init(|| {
            let deflated = deflater.deflate(content);
            deflated.map_or_else(
                || self.frame.clone(),
                |content| Frame::deflated(self.opcode, content).to_bytes(),
            )
        })
    }
}

/// A chunk (RFC 9112 7.1) and, inside the same allocation, its content for connections that are not
/// chunked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Empty, or size line of `head` bytes, content, CRLF.
    framed: Bytes,
    head: usize,
}

impl Chunk {
    pub fn new(content: &[u8]) -> Self {
        Self::of_parts(content.len(), [content].into_iter())
    }

    /// One chunk with the content of all: fewer bytes on the wire than the chunks one after another.
    /// A single chunk with content is shared, not copied.
    pub fn concat(chunks: &[&Self]) -> Self {
        let mut filled = chunks.iter().filter(|chunk| !chunk.is_empty());
        match (filled.next(), filled.next()) {
            (Some(only), None) => (*only).clone(),
            _ => {
                let length = chunks.iter().map(|chunk| chunk.content_slice().len()).sum();
                Self::of_parts(length, chunks.iter().map(|chunk| chunk.content_slice()))
            }
        }
    }

    /// Empty when the content is.
    pub fn framed(&self) -> &Bytes {
        &self.framed
    }

    pub fn content(&self) -> Bytes {
        self.framed.slice(self.head..self.content_end())
    }

    pub fn is_empty(&self) -> bool {
        self.framed.is_empty()
    }

    pub fn content_slice(&self) -> &[u8] {
        &self.framed[self.head..self.content_end()]
    }

    fn content_end(&self) -> usize {
        self.framed.len().saturating_sub(CRLF.len())
    }

    fn of_parts<'c>(length: usize, parts: impl Iterator<Item = &'c [u8]>) -> Self {
        if length == 0 {
            return Self { framed: Bytes::new(), head: 0 };
        }
        let digits = length.ilog2() as usize / 4 + 1;
        let head = digits + CRLF.len();
        let mut framed = BytesMut::with_capacity(head + length + CRLF.len());
        for place in (0..digits).rev() {
            framed.put_u8(b"0123456789abcdef"[length >> (4 * place) & 0xf]);
        }
        framed.put_slice(CRLF);
        parts.for_each(|part| framed.put_slice(part));
        framed.put_slice(CRLF);
        debug_assert_eq!(framed.len(), head + length + CRLF.len());
        Self { framed: framed.freeze(), head }
    }
}

impl Rendered {
    /// About how many bytes it holds, of every transport: what queues of items count.
    pub fn weight(&self) -> usize {
        // Every member is named, so that a new one is thought of.
        let Self { stream, response, message, request, stanza, object, written_for, id, prev_id, meta } =
            self;
        let stream = match stream {
            Some(StreamPart::Send(chunk)) => chunk.framed().len(),
            Some(StreamPart::Hint | StreamPart::Close) | None => 0,
        };
        let message = match message {
            Some(MessagePart::Send(message)) => message.plain().len(),
            Some(MessagePart::Close(frame)) => frame.len(),
            Some(MessagePart::Refresh) | None => 0,
        };
        let response = match response {
            Some(HttpResponse::Send(response)) => response.weight(),
            Some(HttpResponse::Hint | HttpResponse::Close | HttpResponse::Refresh) | None => 0,
        };
        let request =
            request.as_ref().map_or(0, |request| fields_weight(&request.headers) + request.body.len());
        let stanza = stanza.as_ref().map_or(0, |stanza| stanza.weight());
        let object = object.as_ref().map_or(0, Bytes::len);
        let WrittenFor { response: of_response, stream: of_stream, message: of_message, request: of_request } =
            written_for;
        let names = [of_response, of_stream, of_message, of_request].into_iter().flatten().flatten();
        let ids = [id, prev_id].into_iter().flatten().map(String::len).sum::<usize>();
        let meta = meta.iter().map(|(name, value)| name.len() + value.len() + 2 * TEXT).sum::<usize>();
        let names = names.map(|name| name.len() + TEXT).sum::<usize>();
        stream + message + response + request + stanza + object + ids + meta + names
    }
}

impl Response {
    fn weight(&self) -> usize {
        let Self { code: _, reason, headers, expose, body } = self;
        let body = match body {
            ResponseBody::Whole(body) => body.len(),
            ResponseBody::Patch(patch) => patch::weight(patch),
        };
        let exposed = expose.iter().flatten().map(|name| name.as_str().len() + FIELD).sum::<usize>();
        reason.len() + fields_weight(headers) + exposed + body
    }
}

fn fields_weight(fields: &[(HeaderName, HeaderValue)]) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum()
}

impl From<Item> for Rendered {
    fn from(item: Item) -> Self {
        let stream = match item.stream {
            Some(HttpStream::Send(content)) => Some(StreamPart::Send(Chunk::new(&content))),
            Some(HttpStream::Hint) => Some(StreamPart::Hint),
            Some(HttpStream::Close) => Some(StreamPart::Close),
            Some(HttpStream::Refresh) | None => None,
        };
        let response = item.response.filter(|response| !matches!(response, HttpResponse::Refresh));
        let message = item.message.and_then(|message| match message {
            WsMessage::Send { kind, content } => Some(MessagePart::Send(Message::new(kind, &content))),
            // Without a code the client sees 1000, and the reason all the same (spec appendix C, 28).
            WsMessage::Close { code, reason } => {
                let payload = close::payload(Code::sendable(code.unwrap_or(0)), &reason);
                Some(MessagePart::Close(Frame::new(Opcode::Close, &payload).to_bytes()))
            }
            WsMessage::Refresh => Some(MessagePart::Refresh),
            WsMessage::Hint => None,
        });
        let Item { request, stanza, object, written_for, id, prev_id, meta, .. } = item;
        Self { stream, response, message, request, stanza, object, written_for, id, prev_id, meta }
    }
}

const CRLF: &[u8] = b"\r\n";
/// What a text and a field of a head take besides their bytes.
const TEXT: usize = size_of::<String>();
const FIELD: usize = size_of::<(HeaderName, HeaderValue)>();

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Reads chunks as a client would; `None` when there is anything else.
    fn read(mut wire: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut contents = Vec::new();
        while !wire.is_empty() {
            let line = wire.windows(2).position(|window| window == CRLF)?;
            let size = usize::from_str_radix(std::str::from_utf8(&wire[..line]).ok()?, 16).ok()?;
            let content = wire.get(line + 2..line + 2 + size)?;
            wire = wire[line + 2 + size..].strip_prefix(CRLF)?;
            contents.push(content.to_vec());
        }
        Some(contents)
    }

    #[test]
    fn size_lines() {
        for (length, line) in
            [(1, "1"), (15, "f"), (16, "10"), (255, "ff"), (256, "100"), (4096, "1000"), (65_535, "ffff")]
        {
            assert!(Chunk::new(&vec![b'x'; length]).framed().starts_with(format!("{line}\r\nx").as_bytes()));
        }
    }

    #[test]
    fn one_chunk_is_shared() {
        let (chunk, empty) = (Chunk::new(b"x"), Chunk::new(b""));
        assert_eq!(Chunk::concat(&[&empty, &chunk, &empty]).framed().as_ptr(), chunk.framed().as_ptr());
    }

    #[test]
    fn refresh_leaves_no_part() {
        let item = Item {
            stream: Some(HttpStream::Refresh),
            response: Some(HttpResponse::Refresh),
            ..Item::default()
        };
        let rendered = Rendered::from(item);
        assert!(rendered.stream.is_none() && rendered.response.is_none());
    }

    /// Whatever is large in an item makes it heavy.
    #[test]
    fn everything_weighs() {
        const MUCH: usize = 1000;
        let text = "x".repeat(MUCH);
        let zeros = vec!["0"; MUCH].join(",");
        for members in [
            format!(r#""http-stream":{{"content":"{text}"}}"#),
            format!(r#""ws-message":{{"content":"{text}"}}"#),
            format!(r#""http-response":{{"body":"{text}"}}"#),
            format!(r#""http-response":{{"body":"","reason":"{text}"}}"#),
            format!(r#""http-response":{{"body":"","headers":{{"a":"{text}"}}}}"#),
            format!(r#""http-response":{{"body-patch":[{{"op":"add","path":"/{text}","value":1}}]}}"#),
            format!(r#""http-response":{{"body-patch":[{{"op":"add","path":"/a","value":[{zeros}]}}]}}"#),
            format!(r#""http-request":{{"body":"{text}"}}"#),
            format!(r#""http-request":{{"headers":{{"a":"{text}"}}}}"#),
            format!(r#""xmpp-stanza":{{"content":"<message><a xmlns='b'>{text}</a></message>"}}"#),
            format!(r#""json-object":"{text}""#),
            format!(r#""http-stream":{{"content":"","content-filters":["{text}"]}}"#),
            format!(r#""json-object":1,"id":"{text}""#),
            format!(r#""json-object":1,"prev-id":"{text}""#),
            format!(r#""json-object":1,"meta":{{"a":"{text}"}}"#),
        ] {
            let body = format!(r#"{{"items":[{{"channel":"c",{members}}}]}}"#);
            let item = crate::item::decode(body.as_bytes(), None).unwrap().remove(0);
            let record = item.to_record().len();
            let weight = Rendered::from(item).weight();
            assert!(weight >= MUCH && weight + 32 >= record, "{weight}: {members}");
            assert!(
                !members.contains("patch\":[{\"op\":\"add\",\"path\":\"/a") || weight >= 20 * MUCH,
                "{weight}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_chunk_carries_its_content(content in vec(any::<u8>(), 0..600)) {
            let chunk = Chunk::new(&content);
            prop_assert_eq!(&chunk.content()[..], &content[..]);
            let expected = if content.is_empty() { vec![] } else { vec![content] };
            prop_assert_eq!(read(chunk.framed()), Some(expected));
        }

        #[test]
        fn many_become_one_chunk(contents in vec(vec(any::<u8>(), 0..40), 0..20)) {
            let chunks: Vec<Chunk> = contents.iter().map(|content| Chunk::new(content)).collect();
            let one = Chunk::concat(&chunks.iter().collect::<Vec<_>>());
            let whole = contents.concat();
            prop_assert_eq!(&one.content()[..], &whole[..]);
            let expected = if whole.is_empty() { vec![] } else { vec![whole] };
            prop_assert_eq!(read(one.framed()), Some(expected));
        }
    }
}
