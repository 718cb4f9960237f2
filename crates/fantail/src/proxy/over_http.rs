//! WebSockets whose origins are asked by POSTs of events (spec 7.2). What is to be said, and what an answer means,
//! is the session's; this sends it. A task exists only while there is something to send.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use fantail_proto::{
    forward::{FEATURES, GRIP_FEATURE},
    websocket::{
        handshake,
        over_http::{self, Action, MAX_ANSWER_BYTES, Session},
    },
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header, response, uri::PathAndQuery,
};
use http_body_util::BodyExt;

use super::{
    Exchange,
    ask::{Ask, destination},
    sign, unix_time,
    upgrade::{Opening, Tried},
};
use crate::{
    error::Fault,
    hold::{Asking, Call, Far, Next, OverHttp},
    shard::Shard,
    upstream::{Destination, Download, DownloadError, Failure, Unanswered, Upload},
};

/// Starts the task that asks until the session has nothing more to say.
pub fn ask(shard: &Rc<Shard>, asking: Asking) {
    let shard = Rc::clone(shard);
    tokio::task::spawn_local(async move {
        let Asking { far, mut next } = asking;
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
    });
}

/// Asks the origin for the first time.
pub(super) async fn open(
    exchange: &Exchange,
    ask: &Ask,
    target: usize,
    to: &Destination,
) -> Result<Tried, Fault> {
    let shard = exchange.shard();
    let rule = &ask.route().rule;
    let config = &exchange.snapshot.config;
    let call = call(ask, target);
    let address = || rule.targets[target].address.to_string();
    let not_opened = |why: String| Fault::NotOpened { target: address(), why };
    let mut session = Session::new(config.websocket.buffer_bytes, rule.targets[target].one_event);
    let mut reached = false;
    loop {
        let Some(body) = session.next(shard.now_ms()) else {
            // It wants to be asked again later: the client waits meanwhile (spec 7.2.3).
            let Some(due_ms) = session.due_ms() else { return Err(not_opened("no answer".into())) };
            tokio::time::sleep(Duration::from_millis(due_ms.saturating_sub(shard.now_ms()).max(1))).await;
            continue;
        };
        let request = request(shard, &call, body, |headers| session.write_headers(headers));
        let (head, mut download) = match shard.upstream.send(to, request, &config.origin).await {
            Ok(response) => response.into_parts(),
            Err(Unanswered { failure, .. }) if failure.is_unreached() && !reached => {
                return Ok(Tried::Unreached(failure));
            }
            Err(Unanswered { failure, .. }) => return Err(Fault::Upstream { target: address(), failure }),
        };
        reached = true;
        if head.status != StatusCode::OK || !over_http::is_events(&head.headers) {
            return Ok(Tried::Refused { head, ready: Bytes::new(), download: Some(download) });
        }
        let body = collect(&mut download).await.map_err(|error| not_opened(error.to_string()))?;
        let mut actions = session.answered(head.status, &head.headers, &body, shard.now_ms());
        match actions.first() {
            None => {}
            Some(Action::Drop(cause)) => return Err(not_opened(cause.to_string())),
            Some(_) => {
                actions.remove(0);
                return Ok(Tried::Open(opening(ask, &head, OverHttp::new(call, session), actions)));
            }
        }
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
    }
}

async fn post_events(shard: &Rc<Shard>, far: &Rc<OverHttp>, body: Bytes) -> Next {
    let call = &far.call;
    let request = request(shard, call, body, |headers| far.write_headers(headers));
    let config = shard.snapshot.load_full();
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let Some(to) = destination(&call.route, call.target, host) else { return Next::Done };
    match shard.upstream.send(&to, request, &config.config.origin).await {
        Ok(response) => {
            let (head, mut download) = response.into_parts();
            match collect(&mut download).await {
                Ok(body) => {
                    drop(download);
                    shard.holds(|holds| holds.answered(far, head.status, &head.headers, &body))
                }
                Err(error) => {
                    tracing::info!(target: "fantail::websocket", %error, "an answer of events is lost");
                    shard.holds(|holds| holds.unanswered(far, over_http::Failure::Fatal))
                }
            }
        }
        Err(Unanswered { failure, request }) => {
            tracing::info!(target: "fantail::websocket", %failure, "an origin of a WebSocket does not answer");
            shard.holds(|holds| holds.unanswered(far, severity(&failure, request.is_some())))
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
fn call(ask: &Ask, target: usize) -> Call {
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
        let session = name.as_str().starts_with("meta-") || SESSION.contains(&name.as_str());
        if !(session || signs && name == GRIP_SIG || features && name == GRIP_FEATURE) {
            line(name, value.as_bytes());
        }
    }
    Call {
        route: ask.route().clone(),
        target,
        trusted: ask.is_trusted(),
        connection_id: random_uuid(),
        request: kept.into(),
    }
}

fn request(
    shard: &Shard,
    call: &Call,
    body: Bytes,
    session: impl FnOnce(&mut HeaderMap),
) -> Box<Request<Upload>> {
    let mut lines = call.request.split(|byte| *byte == b'\n');
    let path = lines.next().and_then(|path| PathAndQuery::try_from(path).ok());
    let mut parts = http::uri::Parts::default();
    // It was one when it was kept, and so were the headers.
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let is_empty = body.is_empty();
    let mut request = Box::new(Request::new(if is_empty { Upload::Empty } else { Upload::Whole(body) }));
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
        if !call.trusted {
            headers.insert(GRIP_FEATURE, FEATURES);
        }
    }
    if is_empty {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    if !call.trusted
        && let Some(signature) = sign(shard, &call.route, unix_time())
    {
        headers.insert(GRIP_SIG, signature);
    }
    request
}

/// RFC 9562 section 5.4.
fn random_uuid() -> [u8; 16] {
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
