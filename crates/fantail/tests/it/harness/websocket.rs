//! WebSockets for tests: a client that reads strictly, and the two kinds of origin, each a script. What is
//! written here may be wrong on purpose; what is read must be right.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use fantail_proto::{
    item::WsKind,
    websocket::{
        close::Code,
        deflate::Inflater,
        events::{self, Event},
        frame::{Frame, Opcode},
        reader::{self, Limits, Reader, Role},
    },
};
use tokio::time::Instant;

use super::{
    Client, TestServer, Then,
    client::Response,
    origin::{Exchange, Origin, Request, answer},
    wire::{Head, ReadError, Wire},
};

/// What a peer said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Code and reason, if it gave any.
    Close(Option<(u16, String)>),
    /// The connection ended. Behind a close that is its end in order.
    Gone,
}

pub fn text(content: impl Into<String>) -> Said {
    Said::Text(content.into())
}

pub fn close(code: u16, reason: &str) -> Said {
    Said::Close(Some((code, reason.to_string())))
}

/// One end of a WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    pub wire: Wire,
    pub head: Head,
    reader: Reader,
    role: Role,
    said: std::collections::VecDeque<Said>,
    inflater: Inflater,
    /// Bytes of frames read.
    pub read_bytes: usize,
}

impl WebSocket {
    pub fn open(server: &TestServer, target: &str) -> Self {
        Self::open_with(server.client, target, &[])
    }

    /// Shakes hands, which must succeed.
    pub fn open_with(address: SocketAddr, target: &str, fields: &[(&str, &str)]) -> Self {
        Self::try_open(address, target, fields).unwrap_or_else(|response| panic!("no 101: {response:?}"))
    }

    /// Shakes hands; the answer when that is not 101.
    pub fn try_open(
        address: SocketAddr,
        target: &str,
        fields: &[(&str, &str)],
    ) -> Result<Self, Box<Response>> {
        let mut client = Client::connect(address);
        client.send(upgrade(target, fields));
        Self::begun(client)
    }

    /// Reads the answer to a handshake that was sent.
    pub fn begun(client: Client) -> Result<Self, Box<Response>> {
        let (head, wire) = client.switch().map_err(Box::new)?;
        assert_eq!(head.field("sec-websocket-accept"), Some(ACCEPT), "{head:?}");
        let deflate =
            head.field("sec-websocket-extensions").is_some_and(|e| e.contains("permessage-deflate"));
        Ok(Self::new(wire, head, Role::Client, deflate))
    }

    fn new(wire: Wire, head: Head, role: Role, deflate: bool) -> Self {
        let reader = Reader::new(role, deflate);
        let said = std::collections::VecDeque::new();
        Self { wire, head, reader, role, said, inflater: Inflater::new(), read_bytes: 0 }
    }

    pub fn send(&mut self, opcode: Opcode, payload: impl AsRef<[u8]>) -> &mut Self {
        let frame = self.frame(opcode, payload.as_ref());
        self.send_raw(&frame)
    }

    pub fn text(&mut self, content: &str) -> &mut Self {
        self.send(Opcode::Text, content)
    }

    pub fn close(&mut self, code: u16, reason: &str) -> &mut Self {
        let code = Code::new(code).expect("a code that may be sent");
        self.send(Opcode::Close, fantail_proto::websocket::close::payload(code, reason))
    }

    /// Bytes as they are. That the other side has gone is no failure: reading tells.
    pub fn send_raw(&mut self, bytes: &[u8]) -> &mut Self {
        drop(std::io::Write::write_all(&mut self.wire.socket, bytes));
        self
    }

    /// A frame as this side writes it.
    pub fn frame(&self, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.role {
            Role::Client => Frame::new(opcode, payload).append_masked([7, 1, 250, 3], &mut bytes),
            Role::Server => Frame::new(opcode, payload).append(&mut bytes),
        }
        bytes
    }

    /// What the other side says next.
    pub fn next(&mut self) -> Said {
        let until = Instant::now() + self.wire.patience;
        self.try_next(until).unwrap_or_else(|| panic!("nothing said within {:?}", self.wire.patience))
    }

    /// Fails unless the other side says this next.
    #[expect(clippy::needless_pass_by_value, reason = "a test names what it expects")]
    pub fn expect(&mut self, said: Said) -> &mut Self {
        assert_eq!(self.next(), said);
        self
    }

    pub fn expect_text(&mut self, content: &str) -> &mut Self {
        self.expect(text(content))
    }

    /// Fails if the other side says anything within `time`: for what must never come, and soon would.
    pub fn expect_silence(&mut self, time: Duration) {
        if let Some(said) = self.try_next(Instant::now() + time) {
            panic!("said {said:?}");
        }
    }

    /// `None` when nothing was said in time.
    fn try_next(&mut self, until: Instant) -> Option<Said> {
        loop {
            if let Some(said) = self.said.pop_front() {
                return Some(said);
            }
            if self.wire.ahead.is_empty() {
                match self.wire.fill(until) {
                    Ok(()) => {}
                    Err(ReadError::TimedOut { .. }) => return None,
                    Err(_) => return Some(Said::Gone),
                }
            }
            let mut bytes = std::mem::take(&mut self.wire.ahead);
            self.read_bytes += bytes.len();
            let mut input = &mut bytes[..];
            let limits = Limits { message: 64 << 20, fragments: u32::MAX };
            while !input.is_empty() {
                match self.reader.read(&mut input, &limits, &mut self.inflater) {
                    Ok(Some(event)) => self.said.push_back(said(event)),
                    Ok(None) => break,
                    Err(violation) => panic!("the other side broke the protocol: {violation}"),
                }
            }
        }
    }

    /// Leaves with RST.
    pub fn reset(self) {
        socket2::SockRef::from(&self.wire.socket).set_linger(Some(Duration::ZERO)).expect("a live socket");
    }

    /// A small receive buffer, so that a side that does not read is noticed soon.
    pub fn narrow(&mut self) -> &mut Self {
        socket2::SockRef::from(&self.wire.socket).set_recv_buffer_size(65_536).expect("a live socket");
        self
    }
}

fn said(event: reader::Event) -> Said {
    match event {
        reader::Event::Text { payload, .. } => Said::Text(String::from_utf8(payload.into()).expect("UTF-8")),
        reader::Event::Binary(payload) => Said::Binary(payload.into()),
        reader::Event::Ping(payload) => Said::Ping(payload.into()),
        reader::Event::Pong(payload) => Said::Pong(payload.into()),
        reader::Event::Close(close) => Said::Close(close.map(|close| (close.code.get(), close.reason))),
        reader::Event::Part { .. } => panic!("parts are not asked for"),
    }
}

/// A client's handshake.
pub fn upgrade(target: &str, fields: &[(&str, &str)]) -> String {
    let mut raw = format!(
        "GET {target} HTTP/1.1\r\nHost: fantail.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    );
    for (name, value) in fields {
        raw.push_str(&format!("{name}: {value}\r\n"));
    }
    raw + "\r\n"
}

/// Events as an over-HTTP origin writes them.
pub fn body(events: &[Event]) -> Vec<u8> {
    let mut body = Vec::new();
    events.iter().for_each(|event| events::encode(event, &mut body));
    body
}

pub fn message(content: &str) -> Event {
    Event::Message(WsKind::Text, Bytes::copy_from_slice(content.as_bytes()))
}

/// A control message (spec 7.4).
pub fn control(json: &str) -> Event {
    message(&format!("c:{json}"))
}

pub fn subscribe(channel: &str) -> Event {
    control(&format!(r#"{{"type":"subscribe","channel":"{channel}"}}"#))
}

/// An answer of events, with more headers.
pub fn events_with(fields: &[(&str, &str)], events: &[Event]) -> Vec<u8> {
    let mut all = vec![("Content-Type", events::MEDIA_TYPE)];
    all.extend_from_slice(fields);
    answer("200 OK", &all, body(events))
}

pub fn events(events: &[Event]) -> Vec<u8> {
    events_with(&[], events)
}

/// The answer to OPEN of an origin that speaks GRIP: accepted, and these events.
pub fn opened(events: &[Event]) -> Vec<u8> {
    let all: Vec<Event> = std::iter::once(Event::Open).chain(events.iter().cloned()).collect();
    events_with(&[("Sec-WebSocket-Extensions", "grip")], &all)
}

/// What a request to an over-HTTP origin says.
pub fn events_of(request: &Request) -> Vec<Event> {
    events::decode(&Bytes::copy_from_slice(&request.body)).expect("events")
}

/// An origin that accepts, answers what `reply` makes of each later request's events, and answers every close.
pub fn over_http(
    first: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
    reply: impl Fn(&Request, Vec<Event>) -> Vec<u8> + Send + Sync + 'static,
) -> Origin {
    Origin::answering(move |request| {
        let said = events_of(request);
        if said == [Event::Open] {
            return first(request);
        }
        let closes = said.iter().find(|event| matches!(event, Event::Close(_))).cloned();
        match closes {
            Some(close) if said.len() == 1 => events(&[close]),
            _ => reply(request, said),
        }
    })
}

/// What clients have said so far, but OPEN.
fn heard(origin: &Origin) -> Vec<Event> {
    let requests = origin.requests();
    let spoken = requests.iter().filter(|request| request.framing.is_some());
    spoken.flat_map(events_of).filter(|event| *event != Event::Open).collect()
}

/// Waits until the origin has heard these events, in this order and no others, since it accepted.
pub fn expect_heard(server: &TestServer, origin: &Origin, wanted: &[Event]) {
    server.wait_until(super::wire::DEADLINE, &format!("{wanted:?} and not {:?}", heard(origin)), || {
        heard(origin).len() >= wanted.len()
    });
    assert_eq!(heard(origin), wanted);
}

/// An origin with a WebSocket server of its own: `script` gets each connection.
pub fn native(extensions: &'static str, script: impl Fn(WebSocket) + Send + Sync + 'static) -> Origin {
    Origin::scripted(move |exchange| {
        script(accept(exchange, extensions));
        Then::Close
    })
}

/// Accepts the handshake of a request.
pub fn accept(exchange: &mut Exchange<'_>, extensions: &str) -> WebSocket {
    let head = exchange.request.head.clone();
    let key =
        head.field("sec-websocket-key").expect("a key").to_owned() + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
    let accept = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, digest);
    let mut raw = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Origin: native\r\n\
         Sec-WebSocket-Accept: {accept}\r\n"
    );
    if !extensions.is_empty() {
        raw.push_str(&format!("Sec-WebSocket-Extensions: {extensions}\r\n"));
    }
    exchange.send(raw + "\r\n");
    WebSocket::new(exchange.switch(), head, Role::Server, false)
}

/// RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
