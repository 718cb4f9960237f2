//! Requests of SockJS's clients (spec 8.2): its pages, and its sessions over HTTP, which to their origins are
//! WebSockets. A session is kept by one shard, which its name decides; a connection that asks another for it moves
//! there, whole, before it is answered. What a session is sent and says is the hold's.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;
use fantail_proto::{
    query::Query,
    sockjs::{self, Endpoint, Receiving, Transport},
    websocket::handshake,
};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request, uri::PathAndQuery,
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{
    Exchange, Parked, Relay,
    ask::{Ask, Found},
    conversation::Reserved,
    upgrade,
    watch::request_head,
};
use crate::{
    error::Fault,
    hold::{self, Opened, Receiver, Said, Speech},
    logging::Outcome,
    shard::Shard,
};

/// A request below the path where its route speaks SockJS.
pub(super) struct Visit {
    found: Found,
    head: request::Parts,
    body: Incoming,
    page: Option<HeaderValue>,
}

impl Visit {
    pub(super) fn new(found: Found, request: Request<Incoming>) -> Box<Self> {
        let (head, body) = request.into_parts();
        let page = head.headers.get(header::ORIGIN).cloned();
        Box::new(Self { found, head, body, page })
    }
}

/// The route of a request, if it is one of these.
pub(super) fn find(exchange: &Exchange, request: &Request<Incoming>) -> Option<Found> {
    if !exchange.snapshot.routes.table().speaks_sockjs() {
        return None;
    }
    Found::of(exchange, request.uri(), request.headers()).ok().filter(|found| found.below().is_some())
}

impl Found {
    /// What of the path is behind the route's base.
    fn below(&self) -> Option<&str> {
        let base = self.route.rule.sockjs.as_deref()?;
        let below = self.path_and_query.path().strip_prefix(base)?;
        (below.is_empty() || below.starts_with('/')).then_some(below)
    }
}

/// Answers one.
pub(super) async fn answer(exchange: &mut Exchange, visit: Visit) -> Result<Response<Relay>, Fault> {
    exchange.found(&visit.found.route);
    let is_upgrade = handshake::is_upgrade(&visit.head.headers);
    let below = visit.found.below().unwrap_or_default().to_owned();
    let Some(endpoint) = Endpoint::find(&below) else {
        return Ok(text(exchange, &visit, StatusCode::NOT_FOUND, "Not Found\n"));
    };
    match endpoint {
        Endpoint::Raw if is_upgrade => open_websocket(exchange, visit, Speech::WebSocket).await,
        Endpoint::Session(_, Transport::WebSocket) if is_upgrade => {
            open_websocket(exchange, visit, Speech::SockJs).await
        }
        Endpoint::Raw | Endpoint::Session(_, Transport::WebSocket) if visit.head.method == Method::GET => {
            Ok(text(exchange, &visit, StatusCode::BAD_REQUEST, "Can \"Upgrade\" only to \"WebSocket\".\n"))
        }
        _ if visit.head.method == Method::OPTIONS => Ok(preflight(exchange, &visit, endpoint)),
        Endpoint::Session(id, transport) if visit.head.method.as_str() == transport.method() => {
            upgrade::may_connect(&exchange.snapshot.config.websocket.origins, &visit.head.headers)?;
            let host = visit.found.host.as_bytes().to_ascii_lowercase();
            let base = visit.found.route.rule.sockjs.as_deref().unwrap_or_default();
            let key = format!("{}{base}/{id}", String::from_utf8_lossy(&host));
            meet(exchange, visit, &key, transport).await
        }
        Endpoint::Greeting | Endpoint::Info | Endpoint::Iframe if visit.head.method == Method::GET => {
            Ok(page(exchange, &visit, endpoint))
        }
        _ => {
            let mut response = text(exchange, &visit, StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods(endpoint)));
            Ok(response)
        }
    }
}

async fn open_websocket(
    exchange: &mut Exchange,
    visit: Visit,
    speech: Speech,
) -> Result<Response<Relay>, Fault> {
    let Visit { mut found, head, body, .. } = visit;
    let tail = if matches!(speech, Speech::WebSocket) { "/websocket" } else { "" };
    found.retarget(tail);
    upgrade::answer(exchange, Request::from_parts(head, body), Some(found), speech).await
}

impl Found {
    /// Makes the path that of the origin's WebSocket. The query stays.
    fn retarget(&mut self, tail: &str) {
        let rule = &self.route.rule;
        let path = rule.sockjs_as_path.as_deref().or(rule.sockjs.as_deref()).unwrap_or_default();
        let query = self.path_and_query.query().map(|query| format!("?{query}")).unwrap_or_default();
        let whole = format!("{path}{tail}{query}");
        let rooted = if whole.starts_with('/') { whole } else { format!("/{whole}") };
        if let Ok(path_and_query) = PathAndQuery::try_from(rooted) {
            self.path_and_query = path_and_query;
        }
    }
}

/// Something is asked of a session.
async fn meet(
    exchange: &mut Exchange,
    visit: Visit,
    key: &str,
    transport: Transport,
) -> Result<Response<Relay>, Fault> {
    let Visit { found, head, body, page } = visit;
    // Read whole: nothing of it may be left in the socket of a hold.
    let body = collect(body, exchange.snapshot.config.grip.instruct_bytes).await?;
    let shard = Rc::clone(exchange.shard());
    let owner = shard.neighbours.owner(key);
    if owner != shard.index {
        let record = exchange.conversation.state().take_record().ok_or(Fault::RequestTooLarge)?;
        let place = shard.neighbours.place(owner).await.ok_or(Fault::Full)?;
        exchange.conversation.will_park(Parked::Moved { place, record });
        exchange.conversation.park();
        return std::future::pending().await;
    }
    if shard.notes.is_some() {
        let size = request_head(&head.method, &head.uri, &head.headers);
        exchange.conversation.arrive(&found.route.rule.id, size);
    }
    match transport {
        Transport::XhrSend => {
            return send(exchange, key, sockjs::messages(&body), page, Sent::NoContent).await;
        }
        Transport::JsonPSend => {
            return send(exchange, key, of_form(&head.headers, &body), page, Sent::Ok).await;
        }
        _ => {}
    }
    let Some(way) = receiving(transport, found.path_and_query.query().unwrap_or_default()) else {
        let text = "\"callback\" parameter required\n";
        return Ok(plain(exchange, StatusCode::BAD_REQUEST, text, page.as_ref()));
    };
    let shape = found.shape(exchange, &head);
    match shard.holds(|holds| holds.enter_session(key)) {
        hold::Found::Full => return Err(Fault::Full),
        hold::Found::There => {}
        hold::Found::New => {
            if let Some(refused) = open(exchange, &shard, key, found, head).await? {
                return Ok(*refused);
            }
        }
    }
    let presence = exchange.conversation.presence();
    let receiver = Receiver::new(way, shape.into(), page);
    let id = shard.holds(|holds| holds.reserve_receiver(key, receiver, presence));
    let id = id.ok_or(Fault::Full)?;
    if let Some(entry) = exchange.entry.take() {
        entry.write(&shard, Outcome::Accept);
    }
    let reserved = Reserved::new(Rc::clone(&shard), id);
    exchange.conversation.will_park(Parked::Receiver { reserved });
    exchange.conversation.park();
    std::future::pending().await
}

/// Messages that a form brings, or a body that is none.
fn of_form(headers: &HeaderMap, body: &[u8]) -> Result<Vec<String>, sockjs::Malformed> {
    let is_form = headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        kind.as_bytes().to_ascii_lowercase().starts_with(b"application/x-www-form-urlencoded")
    });
    if is_form { sockjs::messages(&sockjs::form(body)?) } else { sockjs::messages(body) }
}

/// How a request receives; `None` without a callback that it needs.
fn receiving(transport: Transport, query: &str) -> Option<Receiving> {
    let callback = || {
        let query = Query::new(query);
        let named = query.value("c").or_else(|| query.value("callback"))??;
        sockjs::is_callback(&named).then(|| named.into_boxed_str())
    };
    Some(match transport {
        Transport::Xhr => Receiving::Xhr,
        Transport::XhrStreaming => Receiving::XhrStreaming,
        Transport::EventSource => Receiving::EventSource,
        Transport::HtmlFile => Receiving::HtmlFile(callback()?),
        Transport::JsonP => Receiving::JsonP(callback()?),
        Transport::WebSocket | Transport::XhrSend | Transport::JsonPSend => return None,
    })
}

/// Asks the origin for a session's WebSocket. Gives its answer if it wants none.
async fn open(
    exchange: &mut Exchange,
    shard: &Rc<Shard>,
    key: &str,
    mut found: Found,
    mut head: request::Parts,
) -> Result<Option<Box<Response<Relay>>>, Fault> {
    let _entered = Entered { shard, key };
    found.retarget("");
    become_websocket(&mut head.headers)?;
    head.method = Method::GET;
    let mut ask = Ask::of(exchange, found, head, None, None)?;
    let (target, opening) = match upgrade::open(exchange, &mut ask).await? {
        upgrade::Came::Open(target, opening) => (target, opening),
        upgrade::Came::Refused(response) => return Ok(Some(response)),
    };
    let (asked, opened, link) = upgrade::hold_of(exchange, &ask, target, *opening);
    let opened = Opened { head: Bytes::new(), ..opened };
    shard.holds(|holds| holds.open_session(key, asked, opened)).ok_or(Fault::Full)?;
    if let Some(link) = link {
        link.start(shard, exchange.snapshot.config.websocket.close_timeout);
    }
    Ok(None)
}

/// A session that is being opened: forgotten unless it was.
struct Entered<'s> {
    shard: &'s Rc<Shard>,
    key: &'s str,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.shard.holds(|holds| holds.forget_session(self.key));
    }
}

/// Makes the headers of an ordinary request those of a handshake.
fn become_websocket(headers: &mut HeaderMap) -> Result<(), Fault> {
    for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::TRANSFER_ENCODING, header::EXPECT] {
        headers.remove(name);
    }
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Fault::Full)?;
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_KEY, handshake::key(random));
    Ok(())
}

/// How a sender is told that its messages were taken.
enum Sent {
    NoContent,
    Ok,
}

async fn send(
    exchange: &mut Exchange,
    key: &str,
    messages: Result<Vec<String>, sockjs::Malformed>,
    page: Option<HeaderValue>,
    sent: Sent,
) -> Result<Response<Relay>, Fault> {
    let mut messages = match messages {
        Ok(messages) => messages.into_iter(),
        Err(malformed) => {
            return Ok(plain(exchange, StatusCode::BAD_REQUEST, &format!("{malformed}\n"), page.as_ref()));
        }
    };
    let shard = Rc::clone(exchange.shard());
    let patience = exchange.snapshot.config.client.send_timeout;
    loop {
        match shard.holds(|holds| holds.session_says(key, &mut messages)) {
            Said::All => break,
            Said::Gone => return Ok(plain(exchange, StatusCode::NOT_FOUND, "Not Found\n", page.as_ref())),
            Said::Full(room) => {
                if timeout(patience, room.notified()).await.is_err() {
                    return Err(Fault::Full);
                }
            }
        }
    }
    Ok(match sent {
        Sent::NoContent => plain(exchange, StatusCode::NO_CONTENT, "", page.as_ref()),
        Sent::Ok => plain(exchange, StatusCode::OK, "ok", page.as_ref()),
    })
}

async fn collect(mut body: Incoming, most: usize) -> Result<Bytes, Fault> {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Fault::BodyLost)?.into_data() else { continue };
        if all.len() + data.len() > most {
            return Err(Fault::RequestTooLarge);
        }
        all.extend_from_slice(&data);
    }
    Ok(all.into())
}

fn methods(endpoint: Endpoint<'_>) -> &'static str {
    match endpoint {
        Endpoint::Session(_, transport) if transport.method() == "POST" => "OPTIONS, POST",
        _ => "OPTIONS, GET",
    }
}

fn preflight(exchange: &mut Exchange, visit: &Visit, endpoint: Endpoint<'_>) -> Response<Relay> {
    let mut response = plain(exchange, StatusCode::NO_CONTENT, "", visit.page.as_ref());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, FOR_EVER);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods(endpoint)));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("31536000"));
    if let Some(asked) = visit.head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    response
}

fn page(exchange: &mut Exchange, visit: &Visit, endpoint: Endpoint<'_>) -> Response<Relay> {
    match endpoint {
        Endpoint::Info => {
            let mut random = [0; 4];
            // Pages only stir it into generators of their own.
            _ = aws_lc_rs::rand::fill(&mut random);
            let info = sockjs::info(u32::from_ne_bytes(random));
            let mut response = plain(exchange, StatusCode::OK, &info, visit.page.as_ref());
            let json = HeaderValue::from_static("application/json; charset=UTF-8");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Endpoint::Iframe => {
            let html = sockjs::iframe(&exchange.snapshot.config.sockjs.url);
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, html.as_bytes());
            let tag: String = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            let tag = format!("\"{tag}\"");
            let known = visit.head.headers.get(header::IF_NONE_MATCH);
            let mut response = match known.is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
                true => plain(exchange, StatusCode::NOT_MODIFIED, "", visit.page.as_ref()),
                false => plain(exchange, StatusCode::OK, &html, visit.page.as_ref()),
            };
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, FOR_EVER);
            if let Ok(tag) = HeaderValue::try_from(tag) {
                headers.insert(header::ETAG, tag);
            }
            if headers.contains_key(header::CONTENT_TYPE) {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=UTF-8"));
            }
            response
        }
        _ => plain(exchange, StatusCode::OK, "Welcome to SockJS!\n", visit.page.as_ref()),
    }
}

fn text(exchange: &mut Exchange, visit: &Visit, status: StatusCode, text: &str) -> Response<Relay> {
    plain(exchange, status, text, visit.page.as_ref())
}

fn plain(
    exchange: &mut Exchange,
    status: StatusCode,
    text: &str,
    page: Option<&HeaderValue>,
) -> Response<Relay> {
    let ready = VecDeque::from([Bytes::copy_from_slice(text.as_bytes())]);
    let body = Relay::new(Rc::clone(&exchange.conversation), ready, None, exchange.entry.take());
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if !text.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
    }
    headers.insert(header::CACHE_CONTROL, hold::NO_STORE);
    hold::admit(headers, page);
    exchange.seal(response)
}

const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000");
