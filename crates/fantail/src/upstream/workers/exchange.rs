//! One HTTP request to a worker, one answer. A task lives from the request to the end of the answer: it grants
//! credits as the answer is read, keeps the session alive, and says when the client has left (spec appendix A).

use std::{collections::VecDeque, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use fantail_proto::{
    route::Protocol,
    zhttp::{Broken, Content, Envelope, Flags, Head, MAX_WHOLE_BYTES, Said},
};
use http::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, header, request, response, uri::PathAndQuery,
};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::ext::ReasonPhrase;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    super::{Failure, Unanswered, Upload, is_safe, malformed},
    Answer, Backend, Crew,
    answer::UploadNews,
    crew::{Heard, MAX_WAITING_BYTES},
    talk::Talk,
};

/// Asks a worker. `patience`: how long to wait for one to be connected.
pub(in crate::upstream) async fn send(
    crew: &Arc<Crew>,
    to: &Backend,
    request: Box<Request<Upload>>,
    patience: Duration,
) -> Result<Response<Answer>, Unanswered> {
    let (head, body) = request.into_parts();
    let body = match gather(body, crew.address().protocol).await {
        Ok(body) => body,
        Err(failure) => return Err(Unanswered { failure, request: None }),
    };
    let uri = uri(&head.uri, &head.headers, if to.tls { "https" } else { "http" });
    let mut asked = Asked { uri, head, body, flags: to.flags };
    match crew.address().protocol {
        Protocol::Whole => whole(crew, &asked, patience).await.map_err(|failure| asked.unanswered(failure)),
        Protocol::Streaming => match Talk::begin(crew, patience, |envelope| asked.packet(envelope)).await {
            Ok(talk) => stream(talk, asked).await,
            Err(failure) => Err(asked.unanswered(failure)),
        },
    }
}

/// A request, kept until it is answered: the next target may have it.
struct Asked {
    head: request::Parts,
    body: Upload,
    uri: String,
    flags: Flags,
}

impl Asked {
    fn unanswered(&mut self, failure: Failure) -> Unanswered {
        let mut request = Box::new(Request::new(std::mem::take(&mut self.body)));
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.headers_mut() = std::mem::take(&mut self.head.headers);
        Unanswered { failure, request: Some(request) }
    }

    /// Asked twice it does no more than asked once.
    fn is_repeatable(&self) -> bool {
        is_safe(&self.head.method) && matches!(self.body, Upload::Empty)
    }

    fn packet(&self, envelope: Envelope<'_>) -> Vec<u8> {
        let mut headers = self.head.headers.clone();
        headers.remove(header::TRANSFER_ENCODING);
        let body = match &self.body {
            Upload::Whole(body) => &body[..],
            Upload::Empty | Upload::Pieces { .. } | Upload::Stream { .. } => &[],
        };
        Said::Request {
            method: self.head.method.as_str(),
            uri: &self.uri,
            headers: &headers,
            body,
            more: matches!(self.body, Upload::Stream { .. }),
            streams: envelope.seq.is_some(),
            flags: self.flags,
        }
        .encode(envelope)
    }
}

/// The URI as workers are told it, with the host that the target is asked for.
pub(super) fn uri(uri: &Uri, headers: &HeaderMap, scheme: &str) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    format!("{scheme}://{host}{path}")
}

/// Waits for bodies that are to be in the first packet: all for `zhttpreq`, else short ones, so that a worker
/// who hears nothing but first packets gets them.
async fn gather(body: Upload, protocol: Protocol) -> Result<Upload, Failure> {
    let body = match body {
        // They go in one packet.
        Upload::Pieces { left, taken } => {
            taken.set(true);
            Upload::Whole(left)
        }
        body => body,
    };
    let size = body.size_hint().exact();
    let limit = match protocol {
        Protocol::Whole => MAX_WHOLE_BYTES,
        Protocol::Streaming if size.is_some_and(|size| size <= FIRST_BYTES) => FIRST_BYTES as usize,
        Protocol::Streaming => return Ok(body),
    };
    let mut body = match body {
        Upload::Empty => return Ok(Upload::Empty),
        Upload::Whole(bytes) if bytes.len() <= limit => return Ok(Upload::Whole(bytes)),
        body => body,
    };
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        all.extend_from_slice(&frame.map_err(|_| Failure::Upload)?.into_data().unwrap_or_default());
        if all.len() > limit {
            return Err(Failure::TooLarge(limit));
        }
    }
    Ok(if all.is_empty() { Upload::Empty } else { Upload::Whole(all.into()) })
}

async fn whole(crew: &Arc<Crew>, asked: &Asked, patience: Duration) -> Result<Response<Answer>, Failure> {
    let heard = match ask(crew, asked, patience).await {
        // As with a server that closes its connection: what changes nothing is asked of another, if there is one.
        Err(Failure::Worker(Broken::Gone)) if asked.is_repeatable() => {
            match ask(crew, asked, Duration::ZERO).await {
                Err(Failure::NoWorker(_)) => return Err(Failure::Worker(Broken::Gone)),
                again => again?,
            }
        }
        heard => heard?,
    };
    match heard.content {
        Content::Data { more: true, .. } => Err(Failure::Worker(Broken::Answer("is not whole"))),
        Content::Data { body, .. } if body.len() > MAX_WHOLE_BYTES => {
            Err(Failure::Worker(Broken::Answer("is too long")))
        }
        Content::Data { head: Some(head), body, .. } => complete(*head, body, &asked.head.method),
        Content::Error(condition) => Err(Failure::Worker(Broken::Said(condition))),
        Content::Cancel => Err(Failure::Worker(Broken::Cancelled)),
        _ => Err(Failure::Worker(Broken::Answer("has no code"))),
    }
}

/// Asks one worker for a whole answer.
async fn ask(crew: &Arc<Crew>, asked: &Asked, patience: Duration) -> Result<Heard, Failure> {
    let mut ear = crew.listen();
    let id = ear.id();
    let packet = asked.packet(Envelope { from: crew.name(), id: &id, seq: None, credits: 0 });
    if !ear.ask(&packet, patience).await {
        return Err(Failure::NoWorker(patience));
    }
    let heard = timeout(LONGEST_SILENCE, ear.hear()).await.unwrap_or(Err(Broken::Expired));
    heard.map_err(Failure::Worker)
}

/// An answer that is all here.
pub(super) fn complete(head: Head, body: Bytes, method: &Method) -> Result<Response<Answer>, Failure> {
    let mut response = begin(head)?;
    if has_no_body(response.status, method) {
        return Ok(Response::from_parts(response, Answer::whole(Bytes::new())));
    }
    // What is here counts, whatever was announced.
    if response.headers.remove(header::CONTENT_LENGTH).is_some() {
        response.headers.insert(header::CONTENT_LENGTH, body.len().into());
    }
    Ok(Response::from_parts(response, Answer::whole(body)))
}

/// The head of an answer over HTTP.
fn begin(head: Head) -> Result<response::Parts, Failure> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    if let Ok(reason) = ReasonPhrase::try_from(head.reason.into_bytes())
        && !reason.as_bytes().is_empty()
    {
        response.extensions_mut().insert(reason);
    }
    match malformed(&response) {
        Some(what) => Err(Failure::Malformed(what)),
        None => Ok(response.into_parts().0),
    }
}

fn has_no_body(status: StatusCode, method: &Method) -> bool {
    method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

async fn stream(talk: Talk, asked: Asked) -> Result<Response<Answer>, Unanswered> {
    let (tell, told) = oneshot::channel();
    let (parts, receiver) = mpsc::channel(PARTS);
    let exchange = Exchange {
        talk,
        upload: Progress { read: !matches!(asked.body, Upload::Stream { .. }), ..Progress::default() },
        asked,
        tell: Some((tell, receiver)),
        parts,
        waiting: VecDeque::new(),
        ended: false,
        news: Rc::default(),
    };
    tokio::task::spawn_local(exchange.run());
    // Its task does not end without a word.
    told.await.unwrap_or(Err(Unanswered { failure: Failure::Worker(Broken::Gone), request: None }))
}

type Told = oneshot::Sender<Result<Response<Answer>, Unanswered>>;
type Part = Result<Bytes, Broken>;

struct Exchange {
    talk: Talk,
    asked: Asked,
    upload: Progress,
    /// Until there is an answer.
    tell: Option<(Told, mpsc::Receiver<Part>)>,
    parts: mpsc::Sender<Part>,
    /// Of the answer's body: what has not been read. Not more than was granted, or one packet.
    waiting: VecDeque<Bytes>,
    /// The worker has said all.
    ended: bool,
    news: Rc<UploadNews>,
}

/// How far the sending of a request's body is, when it is not in the first packet.
#[derive(Default)]
struct Progress {
    /// It was read to its end.
    read: bool,
    /// What the worker has no room for.
    pending: Bytes,
    /// Some of it is on its way: no other target can have it.
    begun: bool,
    /// The last of it is on its way.
    done: bool,
}

/// Why an exchange stops before its end.
enum Stop {
    Failed(Failure),
    /// The client is gone, or has got all it wants.
    Left,
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Failed(Failure::Worker(broken))
    }
}

impl Exchange {
    async fn run(mut self) {
        let stopped = loop {
            match self.turn().await {
                Ok(true) => {}
                Ok(false) => break None,
                Err(stop) => break Some(stop),
            }
        };
        let broken = match &stopped {
            Some(Stop::Failed(Failure::Worker(broken))) => Some(*broken),
            _ => None,
        };
        if stopped.is_none() || broken.is_some_and(|broken| !broken.is_to_be_told()) {
            self.talk.end();
        }
        let Self { talk, mut asked, upload, tell, parts, waiting, news, .. } = self;
        // The worker is told at once, however slow the client is.
        drop(talk);
        news.tell();
        let Some(Stop::Failed(failure)) = stopped else { return };
        if let Some((tell, _)) = tell {
            let mut unanswered = asked.unanswered(failure);
            if upload.begun || matches!(unanswered.failure, Failure::Upload) {
                unanswered.request = None;
            }
            // Who has left does not want it.
            return drop(tell.send(Err(unanswered)));
        }
        let kept = if broken == Some(Broken::Flood) { VecDeque::new() } else { waiting };
        for part in kept {
            if parts.send(Ok(part)).await.is_err() {
                return;
            }
        }
        drop(parts.send(Err(broken.unwrap_or(Broken::Cancelled))).await);
    }

    /// Waits for one thing and does it; false at the end.
    async fn turn(&mut self) -> Result<bool, Stop> {
        self.send_body();
        if self.ended && self.waiting.is_empty() {
            return Ok(false);
        }
        let Self { talk, asked, upload, tell, parts, waiting, ended, .. } = self;
        let sends =
            !*ended && !upload.done && matches!(asked.body, Upload::Stream { .. }) && talk.may_speak();
        let reads = sends && !upload.read && upload.pending.is_empty() && talk.room() > 0;
        let crowded = sends && !reads && (talk.room() > 0 || upload.pending.is_empty() && upload.read);
        let (crew, worker) = (Arc::clone(talk.crew()), talk.worker());
        let mut heard = None;
        tokio::select! {
            permit = parts.reserve(), if !waiting.is_empty() => {
                if let (Ok(permit), Some(part)) = (permit, waiting.pop_front()) {
                    let size = part.len();
                    permit.send(Ok(part));
                    talk.read(size);
                }
            }
            () = left(tell.as_mut(), parts) => return Err(Stop::Left),
            frame = asked.body.frame(), if reads => match frame {
                Some(Ok(frame)) => {
                    upload.pending = frame.into_data().unwrap_or_default();
                    upload.read = asked.body.is_end_stream();
                }
                Some(Err(_)) => return Err(Stop::Failed(Failure::Upload)),
                None => upload.read = true,
            },
            () = crew.news(&worker), if crowded => {}
            content = talk.hear(), if !*ended => heard = Some(content?),
        }
        if let Some(content) = heard {
            self.take(content)?;
        }
        Ok(true)
    }

    /// Sends of the request's body what the worker has room for.
    fn send_body(&mut self) {
        let Self { talk, asked, upload, news, .. } = self;
        if !matches!(asked.body, Upload::Stream { .. }) {
            return;
        }
        while !upload.done && (upload.read || !upload.pending.is_empty()) {
            let size = upload.pending.len().min(talk.room()).min(PACKET_BYTES);
            let more = !upload.read || size < upload.pending.len();
            if more && size == 0 {
                return;
            }
            let body = &upload.pending[..size];
            if !talk.say(Said::Data { body, more, binary: false }, size) {
                return;
            }
            upload.pending = upload.pending.slice(size..);
            upload.begun = true;
            upload.done = !more;
            news.tell();
        }
    }

    fn take(&mut self, content: Content) -> Result<(), Stop> {
        let Content::Data { head, body, more, .. } = content else {
            return match content {
                Content::Credit => Ok(()),
                _ => Err(Broken::Answer("has a packet that no HTTP has").into()),
            };
        };
        self.ended = !more;
        let waiting: usize = self.waiting.iter().map(Bytes::len).sum();
        if waiting + body.len() > MAX_WAITING_BYTES {
            return Err(Broken::Flood.into());
        }
        let Some((tell, parts)) = self.tell.take() else {
            self.waiting.extend(Some(body).filter(|body| !body.is_empty()));
            return Ok(());
        };
        let Some(head) = head else {
            self.tell = Some((tell, parts));
            return Err(Broken::Answer("has no code").into());
        };
        let method = &self.asked.head.method;
        if !more {
            let answer = complete(*head, body, method);
            drop(tell.send(answer.map_err(|failure| Unanswered { failure, request: None })));
            return Ok(());
        }
        let response = match begin(*head) {
            Ok(response) => response,
            Err(failure) => {
                self.tell = Some((tell, parts));
                return Err(Stop::Failed(failure));
            }
        };
        let answer = if has_no_body(response.status, method) {
            Answer::whole(Bytes::new())
        } else {
            self.waiting.extend(Some(body).filter(|body| !body.is_empty()));
            let length = response.headers.get(header::CONTENT_LENGTH);
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            Answer::streamed(parts, length, Rc::clone(&self.news))
        };
        drop(tell.send(Ok(Response::from_parts(response, answer))));
        Ok(())
    }
}

/// Resolves when nobody waits for the answer, or for more of it.
async fn left(tell: Option<&mut (Told, mpsc::Receiver<Part>)>, parts: &mpsc::Sender<Part>) {
    match tell {
        Some((tell, _)) => tell.closed().await,
        None => parts.closed().await,
    }
}

/// A body that goes with the first packet: as much as Pushpin reads before it asks (spec 1.6).
const FIRST_BYTES: u64 = 10_000;
/// Parts of an answer on their way to the client, beyond those that wait.
const PARTS: usize = 1;
/// Of a request's body in one packet.
const PACKET_BYTES: usize = 64 << 10;
/// A worker without a session to keep alive has as long as one with (spec appendix A).
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
