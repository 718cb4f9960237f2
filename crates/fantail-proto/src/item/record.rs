//! An item as a log keeps it: everything that its subscribers may be given later, short and in one piece. The channel
//! is known from where the record is. Reads only what [`Item::to_record`] writes, and refuses everything else.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::{HttpResponse, HttpStream, Item, Response, ResponseBody, WrittenFor, WsKind, WsMessage};
use crate::xmpp::stanza::{Parts, Stanza};

impl Item {
    /// Of the formats, all but `http-request`: webhooks have a queue of their own.
    pub fn to_record(&self) -> Vec<u8> {
        // Every member is named, so that a new one is thought of.
        let Self {
            channel: _,
            id,
            prev_id,
            response,
            stream,
            message,
            request: _,
            stanza,
            object,
            written_for,
            meta,
            size,
            no_seq,
        } = self;
        let mut out = Writer(Vec::with_capacity(self.record_bytes()));
        out.maybe(id.as_deref(), Writer::text);
        out.maybe(prev_id.as_deref(), Writer::text);
        out.maybe(stream.as_ref(), |out, stream| match stream {
            HttpStream::Send(content) => out.tagged(0, content),
            HttpStream::Hint => out.byte(1),
            HttpStream::Close => out.byte(2),
            HttpStream::Refresh => out.byte(3),
        });
        out.maybe(message.as_ref(), Writer::message);
        out.maybe(response.as_ref(), |out, response| match response {
            HttpResponse::Send(response) => {
                out.byte(0);
                out.response(response);
            }
            HttpResponse::Hint => out.byte(1),
            HttpResponse::Close => out.byte(2),
            HttpResponse::Refresh => out.byte(3),
        });
        // Most items end here.
        let WrittenFor { response, stream, message, request: _ } = written_for;
        let rare = [response, stream, message].iter().any(|names| names.is_some());
        let chat = stanza.is_some() || object.is_some();
        if rare || chat || !meta.is_empty() || size.is_some() || *no_seq {
            for names in [response, stream, message] {
                out.maybe(names.as_deref(), |out, names| out.each(names, |out, name| out.text(name)));
            }
            out.each(meta, |out, (name, value)| {
                out.text(name);
                out.text(value);
            });
            out.maybe(*size, Writer::number);
            out.byte(u8::from(*no_seq));
        }
        if chat {
            out.maybe(stanza.as_deref(), Writer::stanza);
            out.maybe(object.as_deref(), Writer::bytes);
        }
        out.0
    }

    /// `None`: it is no record of an item.
    pub fn from_record(channel: &str, record: &[u8]) -> Option<Self> {
        let mut input = Reader(record);
        let mut item = Self { channel: channel.to_owned(), ..Self::default() };
        item.id = input.maybe(Reader::string)?;
        item.prev_id = input.maybe(Reader::string)?;
        item.stream = input.maybe(|input| {
            Some(match input.byte()? {
                0 => HttpStream::Send(input.content()?),
                1 => HttpStream::Hint,
                2 => HttpStream::Close,
                3 => HttpStream::Refresh,
                _ => return None,
            })
        })?;
        item.message = input.maybe(Reader::message)?;
        item.response = input.maybe(|input| {
            Some(match input.byte()? {
                0 => HttpResponse::Send(input.response()?),
                1 => HttpResponse::Hint,
                2 => HttpResponse::Close,
                3 => HttpResponse::Refresh,
                _ => return None,
            })
        })?;
        if input.0.is_empty() {
            return Some(item);
        }
        let mut names = || input.maybe(|input| input.each(Reader::string));
        item.written_for =
            WrittenFor { response: names()?, stream: names()?, message: names()?, ..WrittenFor::default() };
        item.meta = input.each(|input| Some((input.string()?, input.string()?)))?;
        item.size = input.maybe(Reader::number)?;
        item.no_seq = input.byte()? != 0;
        if input.0.is_empty() {
            return Some(item);
        }
        item.stanza = input.maybe(Reader::stanza)?.map(Box::new);
        item.object = input.maybe(Reader::content)?;
        input.0.is_empty().then_some(item)
    }

    /// About what a record takes, so that it is written into one allocation.
    fn record_bytes(&self) -> usize {
        let stream = match &self.stream {
            Some(HttpStream::Send(content)) => content.len(),
            _ => 0,
        };
        let message = match &self.message {
            Some(WsMessage::Send { content, .. }) => content.len(),
            _ => 0,
        };
        let response = match &self.response {
            Some(HttpResponse::Send(Response { body: ResponseBody::Whole(body), .. })) => body.len(),
            _ => 0,
        };
        let chat = self.stanza.as_ref().map_or(0, |stanza| stanza.weight() + stanza.payload().len())
            + self.object.as_ref().map_or(0, Bytes::len);
        let ids = [&self.id, &self.prev_id].into_iter().flatten().map(String::len).sum::<usize>();
        stream + message + response + chat + ids + FRAMING
    }
}

/// The id of the item in a record.
pub fn id(record: &[u8]) -> Option<&str> {
    Reader(record).maybe(Reader::text)?
}

struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    /// Seven bits a byte, the lowest first.
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte(number as u8 | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.byte(tag);
        self.bytes(bytes);
    }

    fn maybe<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.byte(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn each<T>(&mut self, values: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.number(values.len() as u64);
        values.iter().for_each(|value| write(self, value));
    }

    fn message(&mut self, message: &WsMessage) {
        match message {
            WsMessage::Send { kind, content } => {
                let tag = KINDS.iter().position(|known| known == kind).unwrap_or_default();
                self.tagged(tag as u8, content);
            }
            WsMessage::Hint => self.byte(4),
            WsMessage::Close { code, reason } => {
                self.byte(5);
                self.number(code.map_or(0, u64::from));
                self.text(reason);
            }
            WsMessage::Refresh => self.byte(6),
        }
    }

    fn stanza(&mut self, stanza: &Stanza) {
        let Parts { kind, from, to, attributes, content, payload } = stanza.parts();
        self.byte(kind);
        self.maybe(from, Self::text);
        self.maybe(to, Self::text);
        self.text(attributes);
        self.text(content);
        self.maybe(payload, Self::text);
    }

    fn response(&mut self, response: &Response) {
        let Response { code, reason, headers, expose, body } = response;
        self.number(u64::from(*code));
        self.text(reason);
        self.each(headers, |out, (name, value)| {
            out.text(name.as_str());
            out.bytes(value.as_bytes());
        });
        self.maybe(expose.as_deref(), |out, names| out.each(names, |out, name| out.text(name.as_str())));
        match body {
            ResponseBody::Whole(body) => self.tagged(0, body),
            ResponseBody::Patch(patch) => {
                self.tagged(1, &serde_json::to_vec(patch).expect("a patch came from JSON"));
            }
        }
    }
}

struct Reader<'r>(&'r [u8]);

impl<'r> Reader<'r> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'r [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn content(&mut self) -> Option<Bytes> {
        self.bytes().map(Bytes::copy_from_slice)
    }

    fn text(&mut self) -> Option<&'r str> {
        str::from_utf8(self.bytes()?).ok()
    }

    fn string(&mut self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    /// The outer `None`: this is no record.
    fn maybe<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.byte()? {
            0 => Some(None),
            1 => read(self).map(Some),
            _ => None,
        }
    }

    fn each<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.number()?;
        // Each takes a byte at least, so that the length of the record is a limit.
        if count > self.0.len() as u64 {
            return None;
        }
        (0..count).map(|_| read(self)).collect()
    }

    fn message(&mut self) -> Option<WsMessage> {
        let tag = self.byte()?;
        Some(match tag {
            4 => WsMessage::Hint,
            5 => {
                let code = u16::try_from(self.number()?).ok()?;
                WsMessage::Close { code: (code != 0).then_some(code), reason: self.string()? }
            }
            6 => WsMessage::Refresh,
            _ => {
                let kind = *KINDS.get(usize::from(tag))?;
                let content = self.content()?;
                if kind == WsKind::Text && str::from_utf8(&content).is_err() {
                    return None;
                }
                WsMessage::Send { kind, content }
            }
        })
    }

    fn stanza(&mut self) -> Option<Stanza> {
        Stanza::of_parts(&Parts {
            kind: self.byte()?,
            from: self.maybe(Reader::text)?,
            to: self.maybe(Reader::text)?,
            attributes: self.text()?,
            content: self.text()?,
            payload: self.maybe(Reader::text)?,
        })
    }

    fn response(&mut self) -> Option<Response> {
        Some(Response {
            code: u16::try_from(self.number()?).ok().filter(|code| (200..=999).contains(code))?,
            reason: self.string()?,
            headers: self.each(|input| {
                let name = HeaderName::from_bytes(input.bytes()?).ok()?;
                Some((name, HeaderValue::from_bytes(input.bytes()?).ok()?))
            })?,
            expose: self.maybe(|input| input.each(|input| HeaderName::from_bytes(input.bytes()?).ok()))?,
            body: match self.byte()? {
                0 => ResponseBody::Whole(self.content()?),
                1 => ResponseBody::Patch(serde_json::from_slice(self.bytes()?).ok()?),
                _ => return None,
            },
        })
    }
}

const KINDS: [WsKind; 4] = [WsKind::Text, WsKind::Binary, WsKind::Ping, WsKind::Pong];

/// Tags and lengths of an item without headers and meta.
const FRAMING: usize = 24;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::item::decode;

    fn round(item: &Item) {
        let record = item.to_record();
        let read = Item::from_record(&item.channel, &record).expect("a record");
        assert_eq!(format!("{read:?}"), format!("{item:?}"));
        assert_eq!(id(&record), item.id.as_deref());
        for end in 0..record.len() {
            if let Some(part) = Item::from_record("c", &record[..end]) {
                assert!(part.meta.is_empty(), "only what is at the end may be missing");
            }
        }
    }

    #[test]
    fn every_member_comes_back() {
        let body = br#"{"items":[
            {"channel":"c","id":"a","prev-id":"","formats":{"http-stream":{"content":"x"}}},
            {"channel":"c","formats":{"http-stream":{"action":"hint"},"ws-message":{"action":"refresh"}}},
            {"channel":"c","formats":{"http-stream":{"action":"close"},"ws-message":{"action":"close","code":4000,"reason":"r"}}},
            {"channel":"c","formats":{"ws-message":{"content-bin":"/wA=","content-filters":["skip-self"]}}},
            {"channel":"c","formats":{"ws-message":{"type":"ping"}}},
            {"channel":"c","formats":{"http-response":{"action":"hint"}},"no-seq":true,"size":7},
            {"channel":"c","formats":{"http-response":{"body-patch":[{"op":"add","path":"/a","value":1}]}}},
            {"channel":"c","formats":{"http-response":{"code":201,"reason":"R","body":"b",
                "headers":[["X-A","1"],["Grip-Expose-Headers","X-A"]]}},"meta":{"k":"v","":""}},
            {"channel":"c","id":"x","formats":{"xmpp-stanza":{"content":"<message from='a@b/c' to='d@e' type='chat'><body>1 &lt; 2</body></message>"}}},
            {"channel":"c","formats":{"xmpp-stanza":{"content":"<message><e xmlns='urn:e' a='1'><f/></e><body/></message>"},"json-object":{"a":[1]}}},
            {"channel":"c","formats":{"xmpp-stanza":{"content":"<presence/>"},"ws-message":{"content":"x"}}},
            {"channel":"c","formats":{"json-object":"text"}}]}"#;
        let items = decode(body, None).expect("items");
        assert_eq!(items.len(), 12);
        // What a stanza without an extension gives to a node is kept once.
        let plain = items.get(8).and_then(|item| item.stanza.as_deref()).expect("a stanza");
        assert_eq!(plain.parts().payload, None);
        items.iter().for_each(round);
    }

    #[test]
    fn a_record_is_written_into_one_allocation() {
        let content = Bytes::from(vec![b'x'; 400]);
        let item =
            Item { id: Some("12345".into()), stream: Some(HttpStream::Send(content)), ..Item::default() };
        let record = item.to_record();
        assert!(record.len() <= item.record_bytes() && record.capacity() == item.record_bytes());
        assert!(record.len() <= 400 + 5 + 12);
    }

    proptest! {
        #[test]
        fn any_item_comes_back(
            id in proptest::option::of("\\PC{0,9}"),
            content in prop::collection::vec(any::<u8>(), 0..300),
            meta in prop::collection::vec(("\\PC{0,5}", "\\PC{0,5}"), 0..4),
            size in any::<Option<u64>>(),
        ) {
            let message = Some(WsMessage::Send { kind: WsKind::Binary, content: content.clone().into() });
            round(&Item { id, stream: Some(HttpStream::Send(content.into())), message, meta, size, ..Item::default() });
        }

        #[test]
        fn garbage_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(Item::from_record("c", &bytes));
            let _ = id(&bytes);
        }
    }
}
