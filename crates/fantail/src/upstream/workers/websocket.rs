//! One WebSocket to a worker (spec appendix A): its opening, and a task that makes packets of frames and frames of
//! packets while it lasts. To the rest it is a connection like one to a WebSocket server, through a pipe.

use std::{cell::RefCell, collections::VecDeque, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fantail_proto::{
    route::Protocol,
    websocket::{
        close::{self, Close, Code},
        deflate::Inflater,
        frame::{Frame, Opcode},
        handshake,
        reader::{Event, Limits, Reader, Role},
    },
    zhttp::{Broken, Content, Head, Said},
};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header, response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::{
    super::{Failure, Upload},
    Answer, Backend, Crew,
    crew::MAX_WAITING_BYTES,
    exchange,
    talk::Talk,
};

/// What a worker says to a request for a WebSocket.
pub(in crate::upstream) enum Opened {
    /// As if there had been a handshake, in answer to the request's key.
    Yes {
        head: response::Parts,
        wire: DuplexStream,
    },
    No(Response<Answer>),
}

/// Asks a worker for a WebSocket. `patience`: how long to wait for one to be connected.
pub(in crate::upstream) async fn open(
    crew: &Arc<Crew>,
    to: &Backend,
    request: &Request<Upload>,
    patience: Duration,
) -> Result<Opened, Failure> {
    if crew.address().protocol == Protocol::Whole {
        return Err(Failure::NoWebSockets);
    }
    let mut headers = request.headers().clone();
    for name in HANDSHAKE {
        headers.remove(name);
    }
    let uri = exchange::uri(request.uri(), request.headers(), if to.tls { "wss" } else { "ws" });
    let (method, flags) = (request.method(), to.flags);
    let first = |envelope: fantail_proto::zhttp::Envelope<'_>| {
        let headers = &headers;
        Said::Request {
            method: method.as_str(),
            uri: &uri,
            headers,
            body: b"",
            more: false,
            streams: true,
            flags,
        }
        .encode(envelope)
    };
    let mut talk = Talk::begin(crew, patience, first).await?;
    let (head, body) = loop {
        match talk.hear().await.map_err(Failure::Worker)? {
            Content::Credit => {}
            Content::Data { head: Some(head), body, more, .. } => {
                if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    let (ours, wire) = tokio::io::duplex(PIPE_BYTES);
                    tokio::task::spawn_local(Carrier::new(talk, ours).run());
                    return Ok(Opened::Yes { head: switching(*head, request), wire });
                }
                if more {
                    return Err(Failure::Worker(Broken::Answer("refuses a WebSocket at too great length")));
                }
                break (head, body);
            }
            Content::Rejected { head, body } => break (head, body),
            _ => return Err(Failure::Worker(Broken::Answer("has no code"))),
        }
    };
    talk.end();
    exchange::complete(*head, body, method).map(Opened::No)
}

/// The worker has seen nothing of the handshake: its answer is made here.
fn switching(head: Head, request: &Request<Upload>) -> response::Parts {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    let headers = response.headers_mut();
    for name in HANDSHAKE {
        headers.remove(name);
    }
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, handshake::accept_value(key));
    }
    response.into_parts().0
}

/// Carries messages between the pipe and the worker.
struct Carrier {
    talk: Talk,
    reading: ReadHalf<DuplexStream>,
    writing: WriteHalf<DuplexStream>,
    reader: Reader,
    /// What the client has said and the worker has no room for. While there is something, the pipe is not read.
    out: VecDeque<Event>,
    /// How much of the first of them the worker has.
    sent: usize,
    /// Frames for the client, and the bytes of body that they were.
    frames: BytesMut,
    unread: usize,
    /// A message of the worker of which more is to come.
    partial: Option<(Opcode, Vec<u8>)>,
    client_closed: bool,
    worker_closed: bool,
}

/// What happens next to a [`Carrier`].
enum Turn {
    Read(io::Result<usize>),
    Written(io::Result<usize>),
    /// The worker can have something again.
    Room,
    Heard(Result<Content, Broken>),
}

impl Carrier {
    fn new(talk: Talk, pipe: DuplexStream) -> Self {
        let (reading, writing) = tokio::io::split(pipe);
        Self {
            talk,
            reading,
            writing,
            reader: Reader::new(Role::Server, false),
            out: VecDeque::new(),
            sent: 0,
            frames: BytesMut::new(),
            unread: 0,
            partial: None,
            client_closed: false,
            worker_closed: false,
        }
    }

    async fn run(mut self) {
        let mut buffer = BytesMut::new();
        loop {
            self.speak();
            if self.client_closed && self.worker_closed && self.out.is_empty() && self.frames.is_empty() {
                return self.talk.end();
            }
            let broken = match self.turn(&mut buffer).await {
                // The client has gone without a word: dropped, the talk says so.
                Turn::Read(read) if !matches!(read, Ok(1..)) || !self.read(&mut buffer) => return,
                Turn::Written(Err(_)) => return,
                Turn::Read(_) | Turn::Written(Ok(_)) | Turn::Room => continue,
                Turn::Heard(content) => match content.and_then(|content| self.take(content)) {
                    Ok(()) => continue,
                    Err(broken) => broken,
                },
            };
            tracing::info!(target: "fantail::websocket", %broken, "a worker's WebSocket ends");
            if !broken.is_to_be_told() {
                self.talk.end();
            }
            // What it has said before is the client's; one who has left does not take it.
            return drop(self.writing.write_all(&self.frames).await);
        }
    }

    async fn turn(&mut self, buffer: &mut BytesMut) -> Turn {
        if self.frames.is_empty() {
            self.talk.read(std::mem::take(&mut self.unread));
        }
        let stuck = self.has_room() && self.talk.may_speak();
        let reads = self.out.is_empty() && !self.client_closed;
        let (crew, worker) = (Arc::clone(self.talk.crew()), self.talk.worker());
        buffer.reserve(READ_BYTES);
        tokio::select! {
            read = self.reading.read_buf(buffer), if reads => Turn::Read(read),
            written = self.writing.write_buf(&mut self.frames), if !self.frames.is_empty() => Turn::Written(written),
            () = crew.news(&worker), if stuck => Turn::Room,
            content = self.talk.hear(), if !self.worker_closed => Turn::Heard(content),
            () = std::future::pending(), if self.worker_closed => Turn::Room,
        }
    }

    /// Reads what the client's side has written; false if it is not to be understood.
    fn read(&mut self, buffer: &mut BytesMut) -> bool {
        let mut bytes = &mut buffer[..];
        // Frames for origins are whole and never compressed.
        let limits = Limits { message: usize::MAX >> 1, fragments: 1 };
        let read = INFLATER.with_borrow_mut(|inflater| {
            while let Some(event) = self.reader.read(&mut bytes, &limits, inflater)? {
                self.client_closed |= matches!(event, Event::Close(_));
                self.out.push_back(event);
            }
            Ok::<(), fantail_proto::websocket::reader::Violation>(())
        });
        buffer.clear();
        read.is_ok()
    }

    /// Whether the first of what waits may be sent, as far as credits go.
    fn has_room(&self) -> bool {
        match self.out.front() {
            None => false,
            Some(Event::Text { payload, .. } | Event::Binary(payload)) => {
                payload.is_empty() || self.talk.room() > 0
            }
            Some(Event::Ping(payload) | Event::Pong(payload)) => payload.len() <= self.talk.room(),
            Some(Event::Close(_) | Event::Part { .. }) => true,
        }
    }

    /// Sends what the worker has room for.
    fn speak(&mut self) {
        while self.has_room()
            && let Some(event) = self.out.front()
        {
            let said = match event {
                Event::Text { payload, .. } | Event::Binary(payload) => {
                    let left = &payload[self.sent..];
                    let size = left.len().min(self.talk.room()).min(PACKET_BYTES);
                    let binary = matches!(event, Event::Binary(_));
                    let more = size < left.len();
                    if !self.talk.say(Said::Data { body: &left[..size], more, binary }, size) {
                        return;
                    }
                    self.sent += size;
                    if more {
                        continue;
                    }
                    true
                }
                Event::Ping(payload) => self.talk.say(Said::Ping(payload), payload.len()),
                Event::Pong(payload) => self.talk.say(Said::Pong(payload), payload.len()),
                Event::Close(close) => self.talk.say(Said::Close(close.as_ref().map(parts)), 0),
                // It is not asked for.
                Event::Part { .. } => true,
            };
            if !said {
                return;
            }
            self.sent = 0;
            self.out.pop_front();
        }
    }

    fn take(&mut self, content: Content) -> Result<(), Broken> {
        self.unread += content.body_len();
        if self.unread > MAX_WAITING_BYTES {
            return Err(Broken::Flood);
        }
        match content {
            Content::Data { body, more, binary, .. } => {
                let first = if binary { Opcode::Binary } else { Opcode::Text };
                let (opcode, mut whole) = self.partial.take().unwrap_or((first, Vec::new()));
                if whole.len() + body.len() > MESSAGE_BYTES {
                    return Err(Broken::Flood);
                }
                if more {
                    whole.extend_from_slice(&body);
                    self.partial = Some((opcode, whole));
                    // The message is kept here; the worker may go on with it.
                    self.talk.read(std::mem::take(&mut self.unread));
                } else if whole.is_empty() {
                    self.frame(opcode, &body);
                } else {
                    whole.extend_from_slice(&body);
                    self.frame(opcode, &whole);
                }
            }
            Content::Ping(body) => self.frame(Opcode::Ping, &body),
            Content::Pong(body) => self.frame(Opcode::Pong, &body),
            Content::Close(close) => {
                self.worker_closed = true;
                let payload = close.map(|(code, reason)| close::payload(Code::sendable(code), &reason));
                self.frame(Opcode::Close, &payload.unwrap_or_default());
            }
            Content::Credit => {}
            _ => return Err(Broken::Answer("has a packet that no WebSocket has")),
        }
        Ok(())
    }

    fn frame(&mut self, opcode: Opcode, payload: &[u8]) {
        let frame: Bytes = Frame::new(opcode, payload).to_bytes();
        self.frames.extend_from_slice(&frame);
    }
}

fn parts(close: &Close) -> (u16, &str) {
    (close.code.get(), &close.reason)
}

thread_local! {
    /// What a reader wants to have, and does not use here.
    static INFLATER: RefCell<Inflater> = RefCell::new(Inflater::new());
}

/// Of the handshake, which is not the worker's.
const HANDSHAKE: [HeaderName; 6] = [
    header::UPGRADE,
    header::CONNECTION,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_ACCEPT,
    header::TRANSFER_ENCODING,
];
/// Between the two tasks, each way.
const PIPE_BYTES: usize = 8 << 10;
/// One read of the pipe.
const READ_BYTES: usize = 4 << 10;
/// Of a message in one packet.
const PACKET_BYTES: usize = 64 << 10;
/// Of a worker's message in several packets.
const MESSAGE_BYTES: usize = super::wire::MAX_MESSAGE_BYTES;
