//! WebSockets whose origins are asked by POSTs of events (spec 7.2). What is to be said, and what an answer means,
//! is the session's; this sends it. A task exists only while there is something to send.

use std::{cell::Cell, num::NonZeroU32, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use fantail_proto::{
    forward::{self, FEATURES, GRIP_FEATURE},
    websocket::{
        handshake,
        over_http::{self, Action, Cause, MAX_ANSWER_BYTES, Session},
    },
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header, response,
    uri::PathAndQuery,
};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{sync::oneshot, time::Instant};

use super::{
    Exchange,
    ask::{Ask, destination},
    sign, unix_time,
    upgrade::{Opening, Tried},
    watch::{request_head, response_head},
};
use crate::{
    error::Fault,
    hold::{Asking, Call, Far, Next, OverHttp},
    shard::Shard,
    snapshot::Snapshot,
    upstream::{Download, DownloadError, Failure, Peer, Unanswered, Upload},
};

/// Starts the task that asks until the session has nothing more to say.
pub fn ask(shard: &Rc<Shard>, asking: Asking) {
    let shard = Rc::clone(shard);
    tokio::task::spawn_local(async move {
        let Asking { far, mut next } = asking;
        let asks = async {
            loop {
                next = match next {
                    Next::Ask(body) => post_events(&shard, &far, body).await,
                    Next::Wait(ms) => {
                        tokio::time::sleep(Duration::from_millis(ms)).await;
                        shard.holds(|holds| holds.go_on_asking(&far))
                    }
                    Next::Done => return,
                };
            }
        };
        tokio::select! {
            () = asks => {}
            () = far.given_up() => {}
        }
    });
}

/// Asks the origin for the first time. That goes on when the client leaves meanwhile, within a limit: an origin that
/// takes it in is to hear that it has gone.
pub(super) async fn open(exchange: &Exchange, ask: &Ask, target: usize, to: &Peer) -> Result<Tried, Fault> {
    let config = &exchange.snapshot.config.websocket;
    let session = Session::new(config.buffer_bytes, ask.route().rule.targets[target].one_event);
    let far = OverHttp::new(call(ask, target, exchange.tls), session);
    let (tell, answer) = oneshot::channel();
    let first = First {
        shard: Rc::clone(exchange.shard()),
        snapshot: Arc::clone(&exchange.snapshot),
        to: to.clone(),
        far,
        begun: Instant::now(),
        client: Waiting { shard: Rc::clone(exchange.shard()), tell, lone: None },
    };
    tokio::task::spawn_local(first.ask());
    match answer.await {
        Ok(Ok(Heard::Accepted { head, accepted, actions })) => {
            Ok(Tried::Open(opening(ask, &head, accepted.claim(), actions)))
        }
        Ok(Ok(Heard::Refused { head, download })) => {
            Ok(Tried::Refused { head, ready: Bytes::new(), download: Some(download) })
        }
        Ok(Ok(Heard::Unreached(failure))) => Ok(Tried::Unreached(failure)),
        Ok(Err(fault)) => Err(fault),
        // Its task was stopped.
        Err(_) => {
            let target = ask.route().rule.targets[target].address.to_string();
            Err(Fault::NotOpened { target, why: "no answer".into() })
        }
    }
}

/// What an origin has said to OPEN.
enum Heard {
    Accepted { head: response::Parts, accepted: Accepted, actions: Vec<Action> },
    Refused { head: response::Parts, download: Download },
    Unreached(Failure),
}

/// A session that the origin takes for open. If no hold claims it, its client has left.
struct Accepted {
    shard: Rc<Shard>,
    far: Option<Rc<OverHttp>>,
}

impl Accepted {
    fn claim(mut self) -> Rc<OverHttp> {
        self.far.take().expect("taken here only, and self ends here")
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        if let Some(far) = self.far.take() {
            self.shard.holds(|holds| holds.part_unheld(far));
        }
    }
}

/// The asking of a session's first request, and again while the origin has not made up its mind.
struct First {
    shard: Rc<Shard>,
    snapshot: Arc<Snapshot>,
    to: Peer,
    far: Rc<OverHttp>,
    begun: Instant,
    client: Waiting,
}

/// The client that waits for the origin's first answer, until it leaves.
struct Waiting {
    shard: Rc<Shard>,
    tell: oneshot::Sender<Result<Heard, Fault>>,
    /// It has left.
    lone: Option<Lone>,
}

impl Waiting {
    /// Goes on with something when the client leaves meanwhile, if so few have left that there is a place for that.
    async fn without_it<T>(&mut self, most: usize, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        if self.lone.is_none() {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = self.tell.closed() => {}
            }
            self.lone = Some(Lone::new(&self.shard, most)?);
        }
        Some(work.await)
    }
}

/// A place among the sessions whose clients left before their origins had answered.
struct Lone(Rc<Shard>);

impl Lone {
    fn new(shard: &Rc<Shard>, most: usize) -> Option<Self> {
        let lone = shard.lone.get();
        (lone < most).then(|| {
            shard.lone.set(lone + 1);
            Self(Rc::clone(shard))
        })
    }
}

impl Drop for Lone {
    fn drop(&mut self) {
        self.0.lone.set(self.0.lone.get() - 1);
    }
}

impl First {
    async fn ask(mut self) {
        let mut reached = false;
        let heard = loop {
            let Some(body) = self.far.next(self.shard.now_ms()) else {
                match self.wait().await {
                    Some(heard) => break Err(heard),
                    None if self.client.tell.is_closed() => {
                        let Self { shard, far, .. } = self;
                        return drop(Accepted { shard, far: Some(far) });
                    }
                    None => continue,
                }
            };
            match self.post(body, reached).await {
                None => reached = true,
                Some(heard) => break heard,
            }
        };
        // What a client that has left does not claim, drops.
        drop(self.client.tell.send(heard));
    }

    /// Waits as long as the origin has asked for, or the client is there (spec 7.2.3), or has patience.
    async fn wait(&mut self) -> Option<Fault> {
        let Some(due_ms) = self.far.due_ms() else { return Some(self.not_opened("no answer".into())) };
        let patience = self.snapshot.config.websocket.handshake_timeout;
        let left = patience.saturating_sub(self.begun.elapsed());
        if left.is_zero() {
            self.shard.counters.handshakes_late.add(1);
            drop(Accepted { shard: Rc::clone(&self.shard), far: Some(Rc::clone(&self.far)) });
            return Some(Fault::Upstream { target: self.address(), failure: Failure::Silent(patience) });
        }
        let due = Duration::from_millis(due_ms.saturating_sub(self.shard.now_ms()).max(1));
        let wait = due.min(left);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.client.tell.closed() => {}
        }
        None
    }

    /// `None` when the origin wants to be asked again.
    async fn post(&mut self, body: Bytes, reached: bool) -> Option<Result<Heard, Fault>> {
        let Some(sent) = self.send(body).await else { return Some(Err(self.too_many())) };
        let (head, mut download) = match sent {
            Ok(response) => response.into_parts(),
            Err(Unanswered { failure, .. }) if failure.is_unreached() && !reached => {
                return Some(Ok(Heard::Unreached(failure)));
            }
            Err(Unanswered { failure, .. }) => {
                return Some(Err(Fault::Upstream { target: self.address(), failure }));
            }
        };
        if head.status != StatusCode::OK || !over_http::is_events(&head.headers) {
            return Some(Ok(Heard::Refused { head, download }));
        }
        let most = self.most_lone();
        let body = match self.client.without_it(most, collect(&mut download)).await {
            None => return Some(Err(self.too_many())),
            Some(Ok(body)) => body,
            Some(Err(error)) => {
                self.far.spoilt(error.cause());
                drop(Accepted { shard: Rc::clone(&self.shard), far: Some(Rc::clone(&self.far)) });
                return Some(Err(self.not_opened(error.to_string())));
            }
        };
        let Self { shard, far, .. } = self;
        let mut actions = far.answered(head.status, &head.headers, &body, shard.now_ms());
        match actions.first() {
            None => None,
            Some(Action::Drop(cause)) => Some(Err(self.not_opened(cause.to_string()))),
            Some(_) => {
                actions.remove(0);
                let accepted = Accepted { shard: Rc::clone(shard), far: Some(Rc::clone(far)) };
                Some(Ok(Heard::Accepted { head, accepted, actions }))
            }
        }
    }

    /// `None` when the client has left and its origin is not to hear of that.
    async fn send(&mut self, body: Bytes) -> Option<Result<Response<Download>, Unanswered>> {
        let most = self.most_lone();
        let Self { shard, snapshot, to, far, client, .. } = self;
        let body = Upload::pieces(body, &Rc::default());
        let request = request(shard, &far.call, body, |headers| far.write_headers(headers));
        client.without_it(most, shard.upstream.ask(to, request, &snapshot.config.origin)).await
    }

    /// Others have their origin's connections, too.
    fn most_lone(&self) -> usize {
        (self.snapshot.config.origin.connections / LONE_SHARE).max(1)
    }

    fn too_many(&self) -> Fault {
        self.not_opened("too many clients have left".into())
    }

    fn not_opened(&self, why: String) -> Fault {
        Fault::NotOpened { target: self.address(), why }
    }

    fn address(&self) -> String {
        let Call { route, target, .. } = &self.far.call;
        route.rule.targets[usize::from(*target)].address.to_string()
    }
}

fn opening(ask: &Ask, head: &response::Parts, far: Rc<OverHttp>, actions: Vec<Action>) -> Opening {
    let speaks_grip = !ask.is_trusted() && !ask.route().rule.no_grip;
    let grip = if speaks_grip { handshake::Grip::from_answer(&head.headers) } else { None };
    let chained = head.headers.get(header::SEC_WEBSOCKET_EXTENSIONS).filter(|_| ask.is_trusted());
    Opening {
        far: Far::OverHttp(far),
        headers: over_http::opening_headers(&head.headers),
        grip,
        extensions: chained.cloned(),
        actions,
        link: None,
        channels: Vec::new(),
    }
}

async fn post_events(shard: &Rc<Shard>, far: &Rc<OverHttp>, body: Bytes) -> Next {
    let call = &far.call;
    let taken = Rc::new(Cell::new(false));
    let request = request(shard, call, Upload::pieces(body, &taken), |headers| {
        far.write_headers(headers);
        shard.holds(|holds| holds.write_gaps(far, headers));
    });
    let config = shard.snapshot.load_full();
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let Some(to) = destination(&call.route, call.target.into(), host) else { return Next::Done };
    let sent =
        shard.notes.as_ref().map_or(0, |_| request_head(request.method(), request.uri(), request.headers()));
    match shard.upstream.ask(&to, request, &config.config.origin).await {
        Ok(response) => {
            let (head, mut download) = response.into_parts();
            if shard.notes.is_some() {
                let received = response_head(head.status, &head.headers);
                shard.holds(|holds| holds.watch_asked(far, sent, received));
            }
            match collect(&mut download).await {
                Ok(body) => {
                    drop(download);
                    shard.holds(|holds| holds.answered(far, head.status, &head.headers, &body))
                }
                Err(error) => {
                    tracing::info!(target: "fantail::websocket", %error, "an answer of events is lost");
                    shard.holds(|holds| holds.spoilt(far, error.cause()))
                }
            }
        }
        Err(Unanswered { failure, request }) => {
            tracing::info!(target: "fantail::websocket", %failure, "an origin of a WebSocket does not answer");
            let answered = matches!(failure, Failure::Malformed(_));
            let is_unsent = request.is_some() || !answered && !taken.get();
            shard.holds(|holds| holds.unanswered(far, severity(&failure, is_unsent)))
        }
    }
}

fn severity(failure: &Failure, is_unsent: bool) -> over_http::Failure {
    match failure {
        failure if failure.is_unreached() => over_http::Failure::NotReached,
        _ if is_unsent => over_http::Failure::Unsent,
        _ => over_http::Failure::Fatal,
    }
}

/// An answer that ended before it could be read.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error(transparent)]
    Lost(#[from] DownloadError),
    #[error("the answer has more than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
}

impl Unreadable {
    fn cause(&self) -> Cause {
        match self {
            Self::Lost(_) => Cause::Cut,
            Self::TooLarge => Cause::TooLarge,
        }
    }
}

async fn collect(download: &mut Download) -> Result<Bytes, Unreadable> {
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while let Some(frame) = download.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&first);
        }
        if all.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(Unreadable::TooLarge);
        }
        all.extend_from_slice(&data);
    }
    if first.len() > MAX_ANSWER_BYTES {
        return Err(Unreadable::TooLarge);
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

/// What of the client's request is said to the origin each time.
fn call(ask: &Ask, target: usize, tls: bool) -> Call {
    let request = ask.request();
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let mut kept = path.as_bytes().to_vec();
    let mut line = |name: &HeaderName, value: &[u8]| {
        kept.push(b'\n');
        kept.extend_from_slice(name.as_str().as_bytes());
        kept.push(b':');
        kept.extend_from_slice(value);
    };
    let signs = !ask.is_trusted() && ask.route().signer.is_some();
    let features = !ask.is_trusted() && !ask.route().rule.no_grip;
    for (name, value) in request.headers() {
        // Frameworks that read `_` as `-` would take one for the other.
        let session = forward::begins_as(name.as_str(), "meta-")
            || SESSION.iter().any(|own| forward::reads_as(name.as_str(), own));
        if !(session || signs && name == GRIP_SIG || features && name == GRIP_FEATURE) {
            line(name, value.as_bytes());
        }
    }
    Call {
        route: ask.route().clone(),
        target: u16::try_from(target).expect("a line has fewer targets"),
        tls,
        trusted_until: ask
            .trusted_until()
            .and_then(|until| NonZeroU32::new(u32::try_from(until).unwrap_or(u32::MAX))),
        connection_id: random_uuid(),
        request: kept.into(),
    }
}

fn request(
    shard: &Shard,
    call: &Call,
    body: Upload,
    session: impl FnOnce(&mut HeaderMap),
) -> Box<Request<Upload>> {
    let mut lines = call.request.split(|byte| *byte == b'\n');
    let path = lines.next().and_then(|path| PathAndQuery::try_from(path).ok());
    let mut parts = http::uri::Parts::default();
    // It was one when it was kept, and so were the headers.
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let is_empty = body.is_end_stream();
    let mut request = Box::new(Request::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    let headers = request.headers_mut();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]))
        {
            headers.append(name, value);
        }
    }
    session(headers);
    headers.insert(CONNECTION_ID, hyphenated(call.connection_id));
    if !call.route.rule.no_grip {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static("grip"));
        if call.trusted_until.is_none() {
            headers.insert(GRIP_FEATURE, FEATURES);
        }
    }
    if is_empty {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    let now = unix_time();
    if call.trusted_until.is_none_or(|until| u64::from(until.get()) <= now) {
        match sign(shard, &call.route, now) {
            Some(signature) => headers.insert(GRIP_SIG, signature),
            None => headers.remove(GRIP_SIG),
        };
    }
    request
}

/// RFC 9562 section 5.4.
pub(super) fn random_uuid() -> [u8; 16] {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's generator works: TLS depends on it, too");
    let id = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    id.to_be_bytes()
}

/// A UUID as text (RFC 9562 section 4).
fn hyphenated(id: [u8; 16]) -> HeaderValue {
    let hex = format!("{:032x}", u128::from_be_bytes(id));
    let text = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    HeaderValue::try_from(text).expect("hexadecimal digits and hyphens are visible ASCII")
}

/// The part of `origin.connections` that may be in use, in all, for clients that have left before they were answered.
const LONE_SHARE: usize = 4;
const GRIP_SIG: HeaderName = HeaderName::from_static("grip-sig");
const CONNECTION_ID: HeaderName = HeaderName::from_static("connection-id");
/// Said anew in each request, by the session or by what frames it, or never.
const SESSION: [&str; 7] = [
    "accept",
    "connection-id",
    "content-bytes-replayed",
    "content-length",
    "content-type",
    "sec-websocket-extensions",
    "upgrade",
];
