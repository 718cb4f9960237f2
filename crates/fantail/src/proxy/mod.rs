//! A request's way to its origin and the answer's way back: relayed as it comes, rewritten, or held. It
//! owns nothing beyond one request; connections are *listen*'s, holds are *hold*'s.

mod access;
mod ask;
mod conversation;
mod errand;
mod holding;
mod inquiry;
mod link;
mod native;
mod over_http;
mod relay;
mod session;
mod share;
mod sockjs;
mod upgrade;
mod upload;
mod watch;

use std::{collections::VecDeque, convert::Infallible, rc::Rc, sync::Arc, time::SystemTime};

use bytes::Bytes;
use fantail_proto::{
    cors::Cors,
    grip::Reply,
    hop,
    jsonp::{Call, UNSPEAKABLE},
    route::Target,
    websocket::handshake,
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body;
use hyper::{body::Incoming, ext::ReasonPhrase};

pub use ask::destination;
pub use conversation::{Conversation, Parked};
pub use inquiry::inquire;
pub use link::{fetch, say_gone};
pub use over_http::ask;
pub use relay::Relay;

use crate::{
    error::{self, Fault},
    hold::{Replay, Speech},
    logging,
    metrics::Counters,
    route::Route,
    shard::Shard,
    snapshot::Snapshot,
    upstream::Failure,
};
use access::Entry;
use ask::{Answer, Ask};
use session::Found;

/// Answers one request. For one that is held as a long-poll this never returns: the connection's driver
/// takes the socket.
///
/// This future is made for every request, and its size is moved: what is rare on the way is boxed, and what can be
/// done at once is done before there is a future.
pub fn answer(
    conversation: Rc<Conversation>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Relay>, Infallible>> {
    let snapshot = conversation.shard().snapshot.load_full();
    let replay = conversation.begin();
    conversation.shard().counters.requests.add(1);
    if let Some(notes) = &conversation.shard().notes {
        notes.request();
    }
    let peer = conversation.peer();
    let client = if conversation.state().is_forwarded_for() {
        snapshot.config.proxy.forward.client(false, request.headers(), peer)
    } else {
        peer
    };
    conversation.set_client(client);
    let mut exchange = Exchange {
        entry: Entry::of(&conversation, &request, replay.is_some()),
        closes: conversation.state().upgrade(),
        http11: request.version() == Version::HTTP_11,
        debug: snapshot.config.proxy.debug,
        quiet: false,
        tls: false,
        cors: None,
        jsonp: None,
        session: None,
        farewell: conversation.take_farewell(),
        replay: None,
        conversation,
        snapshot,
    };
    let way = if let Some(found) = sockjs::find(&exchange, &request) {
        Ok(Way::SockJs(sockjs::Visit::new(found, request)))
    } else if exchange.is_upgrade(request.headers()) {
        Ok(Way::Open(Box::new(request)))
    } else {
        Ask::new(&mut exchange, request, replay.as_ref()).map(Way::Ask)
    };
    exchange.replay = replay.map(Box::new);
    async move {
        let response = match way {
            Ok(way) => way.take(&mut exchange).await,
            Err(fault) => Err(fault),
        };
        Ok(response.unwrap_or_else(|fault| exchange.fail(&fault)))
    }
}

/// What becomes of a request.
enum Way {
    /// It wants to be a WebSocket.
    Open(Box<Request<Incoming>>),
    /// It is below a path of SockJS's.
    SockJs(Box<sockjs::Visit>),
    Ask(Ask),
}

impl Way {
    async fn take(self, exchange: &mut Exchange) -> Result<Response<Relay>, Fault> {
        let answer = match self {
            Self::Open(request) => {
                return Box::pin(upgrade::answer(exchange, *request, None, Speech::WebSocket)).await;
            }
            Self::SockJs(visit) => return Box::pin(sockjs::answer(exchange, *visit)).await,
            Self::Ask(mut ask) if let Some(sessions) = session::server(exchange, &ask) => {
                let sid = Box::pin(session::find(&sessions, &mut ask)).await?;
                exchange.session = Some(Box::new(Found { sessions, domain: ask.domain(), sid }));
                ask.send(exchange).await?
            }
            Self::Ask(ask) if exchange.snapshot.config.proxy.share_requests && ask.is_shareable() => {
                Box::pin(share::send(ask, exchange)).await?
            }
            Self::Ask(mut ask) => ask.send(exchange).await?,
        };
        if answer.is_grip() {
            Box::pin(holding::take(exchange, answer)).await
        } else if exchange.jsonp.is_some() {
            Box::pin(holding::call(exchange, answer)).await
        } else {
            Ok(exchange.relay(answer))
        }
    }
}

/// One request while it is answered.
#[expect(clippy::struct_excessive_bools, reason = "each is true of a request, in any combination")]
struct Exchange {
    conversation: Rc<Conversation>,
    snapshot: Arc<Snapshot>,
    debug: bool,
    /// Nothing may follow this request on its connection.
    closes: bool,
    http11: bool,
    /// For the access log.
    entry: Option<Box<Entry>>,
    /// The route wants nothing said at level info.
    quiet: bool,
    /// Its client came by TLS.
    tls: bool,
    /// What its response says to pages of other origins.
    cors: Option<Box<Cors>>,
    /// Its response is a call of the page's function.
    jsonp: Option<Box<Call>>,
    /// Only of a route with `session`.
    session: Option<Box<Found>>,
    /// It was held before, and its origin is told this.
    replay: Option<Box<Replay>>,
    /// Of a long-poll that was held before: who is to hear when it is not held again.
    farewell: Option<Box<link::Farewell>>,
}

impl Exchange {
    fn relay(&mut self, answer: Answer) -> Response<Relay> {
        let Answer { mut head, ready, download, .. } = answer;
        hop::strip_answer(&mut head.headers);
        let ready = if ready.is_empty() { VecDeque::new() } else { VecDeque::from([ready]) };
        let body = Relay::new(Rc::clone(&self.conversation), ready, download, self.entry.take());
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        if let Some(reason) = head.extensions.remove::<ReasonPhrase>() {
            response.extensions_mut().insert(reason);
        }
        self.seal(response)
    }

    /// A response that GRIP has rewritten and that is not held.
    fn reply(&mut self, mut reply: Reply) -> Response<Relay> {
        if let Some(call) = self.jsonp.take() {
            let called = call.answer(reply.code, &reply.reason, &reply.headers, &reply.body);
            let (code, headers, body) = called.map_or_else(
                || (500, HeaderMap::new(), Bytes::from_static(UNSPEAKABLE.as_bytes())),
                |(headers, body)| (200, headers, body),
            );
            reply = Reply { code, reason: String::new(), headers, body };
        }
        let ready = std::mem::take(&mut reply.body);
        let ready = if ready.is_empty() { VecDeque::new() } else { VecDeque::from([ready]) };
        let body = Relay::new(Rc::clone(&self.conversation), ready, None, self.entry.take());
        self.with_head(reply, body)
    }

    fn with_head(&mut self, reply: Reply, body: Relay) -> Response<Relay> {
        let mut response = Response::new(body);
        // `Reply` has only codes that can be sent.
        *response.status_mut() = StatusCode::from_u16(reply.code).unwrap_or(StatusCode::BAD_GATEWAY);
        *response.headers_mut() = reply.headers;
        if let Ok(reason) = ReasonPhrase::try_from(reply.reason.into_bytes())
            && !reason.as_bytes().is_empty()
        {
            response.extensions_mut().insert(reason);
        }
        self.seal(response)
    }

    fn fail(&mut self, fault: &Fault) -> Response<Relay> {
        // What the guard found is the cause of whatever came of it.
        let refused = self.conversation.state().refused().map(Fault::Body);
        let fault = match &refused {
            Some(refused) if matches!(fault, Fault::BodyLost) => refused,
            _ => fault,
        };
        match fault {
            Fault::Handshake(_) => self.counters().handshakes_invalid.add(1),
            Fault::Page(_) => self.counters().handshakes_origin.add(1),
            Fault::Body(refusal) if refusal.is_limit() => self.counters().refused_limit.add(1),
            Fault::Body(_) => self.counters().refused_malformed.add(1),
            Fault::Instruct { .. } | Fault::AnswerTooLarge { .. } => self.counters().instruct_errors.add(1),
            _ => {}
        }
        if !self.quiet {
            tracing::info!(target: "fantail::proxy", %fault, "request failed");
        }
        let (status, text) = error::answer(fault, self.debug);
        let plain = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
        // A function that gets the body alone has nothing for this.
        let called = self.jsonp.take();
        let called = called.and_then(|call| call.answer(status.as_u16(), "", &plain, text.as_bytes()));
        let (status, headers, text) = called
            .map_or_else(|| (status, plain, text.into()), |(headers, body)| (StatusCode::OK, headers, body));
        let ready = VecDeque::from([text]);
        let body = Relay::new(Rc::clone(&self.conversation), ready, None, self.entry.take());
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        if matches!(fault, Fault::Handshake(_)) {
            response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        self.closes |= matches!(fault, Fault::Body(_) | Fault::BodyLost);
        self.seal(response)
    }

    fn seal(&mut self, mut response: Response<Relay>) -> Response<Relay> {
        if let Some(cors) = &self.cors {
            cors.apply(response.headers_mut());
        }
        // A client that is answered before its body has arrived cannot be listened to any more, and one
        // of HTTP/1.0 sees the end of a body without length by that of the connection.
        let unread = !self.conversation.state().is_complete();
        let endless = !self.http11 && response.body().size_hint().exact().is_none();
        if self.closes || unread || endless {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let status = response.status();
        self.conversation.tally(|traffic| traffic.client.header_sent.add(watch::answer_head(&response)));
        response.body_mut().note(status);
        response
    }

    /// Whether these, of the request itself, ask for a WebSocket. Most do not even name an upgrade, which the guard saw.
    fn is_upgrade(&self, headers: &HeaderMap) -> bool {
        self.conversation.state().upgrade() && handshake::is_upgrade(headers)
    }

    /// `Grip-Sig` for the origin, if the route's requests are signed.
    fn sign(&self, route: &Route, now: u64) -> Option<HeaderValue> {
        sign(self.shard(), route, now)
    }

    fn found(&mut self, route: &Arc<Route>) {
        self.debug |= route.rule.debug;
        if route.rule.log_level.is_some_and(|level| level < LEVEL_INFO) {
            self.quiet = true;
            self.entry = None;
        }
        if let Some(entry) = &mut self.entry {
            entry.route(route);
        }
    }

    /// Until when its client is trusted, in Unix seconds; then also to say whom the request is from.
    fn trusts(&mut self, headers: &HeaderMap, now: u64) -> Option<u64> {
        let until = self.snapshot.trusts(headers, now)?;
        let client = self.snapshot.config.proxy.forward.client(true, headers, self.conversation.peer());
        self.conversation.set_client(client);
        if let Some(entry) = &mut self.entry {
            entry.from(client);
        }
        Some(until)
    }

    /// When the log is to say who subscribes to what.
    fn said_uri(&self) -> Option<Box<str>> {
        let entry = self.entry.as_ref().filter(|_| logging::says_channels())?;
        Some(entry.uri().into())
    }

    fn tries(&mut self, target: &Target) {
        if let Some(entry) = &mut self.entry {
            entry.target(target);
        }
    }

    fn unreached(&self, address: &str, failure: &Failure) {
        if !self.quiet {
            tracing::info!(target: "fantail::proxy", address, %failure, "target not reached");
        }
    }

    fn unanswered(&self, target: &Target, failure: Failure) -> Fault {
        match failure {
            Failure::Upload => Fault::BodyLost,
            failure => Fault::Upstream { target: target.address.to_string(), failure },
        }
    }

    fn shard(&self) -> &Rc<Shard> {
        self.conversation.shard()
    }

    fn counters(&self) -> &Counters {
        &self.shard().counters
    }
}

/// `Grip-Sig` for the origin, if the route's requests are signed.
fn sign(shard: &Shard, route: &Route, now: u64) -> Option<HeaderValue> {
    let signer = route.signer.as_ref()?;
    let signed = shard.tokens.borrow_mut().get(signer, now);
    signed.inspect_err(|error| tracing::error!(%error, "requests cannot be signed")).ok()
}

/// In Pushpin's numbers (spec 2.3).
const LEVEL_INFO: u8 = 2;

/// Seconds since 1970.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
