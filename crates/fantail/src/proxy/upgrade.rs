//! A request for a WebSocket: is it in order, may the page connect, does the origin want it; then it is held.
//! How the origin is asked, by POSTs or by a handshake of its own, is [`super::over_http`]'s and [`super::native`]'s.

use std::rc::Rc;

use bytes::Bytes;
use fantail_proto::{
    test_origin,
    websocket::{
        deflate::{Agreed, Window},
        handshake,
        over_http::Action,
    },
};
use http::{HeaderMap, HeaderValue, Request, Response, header, response};
use hyper::body::Incoming;

use super::{
    Exchange, Parked, Relay,
    ask::{Ask, Found},
    conversation::Reserved,
    native, over_http,
    watch::request_head,
};
use crate::{
    error::Fault,
    hold::{Asked, Far, Opened, Speech, Subscription},
    logging::Outcome,
    stats::Presence,
    upstream::{Download, Failure},
};

/// What came of asking one target.
pub(super) enum Tried {
    Open(Opening),
    /// The client gets this answer instead.
    Refused {
        head: response::Parts,
        ready: Bytes,
        download: Option<Download>,
    },
    /// Nothing was sent: the next target may have it.
    Unreached(Failure),
}

/// An origin that wants the WebSocket.
pub(super) struct Opening {
    pub(super) far: Far,
    /// What of the origin's headers the client gets.
    pub(super) headers: HeaderMap,
    pub(super) grip: Option<handshake::Grip>,
    /// `Sec-WebSocket-Extensions` for a client that is another GRIP proxy.
    pub(super) extensions: Option<HeaderValue>,
    pub(super) actions: Vec<Action>,
    /// A connection to the origin, if there is one.
    pub(super) link: Option<native::Connected>,
    /// The built-in origin's: it says what to subscribe to without a word.
    pub(super) channels: Vec<String>,
}

/// Answers a request for a WebSocket. If it is held this never returns: the connection's driver takes the socket.
pub(super) async fn answer(
    exchange: &mut Exchange,
    request: Request<Incoming>,
    found: Option<Found>,
    speech: Speech,
) -> Result<Response<Relay>, Fault> {
    let headers = request.headers();
    let accept = handshake::accept_request(request.method(), request.version(), headers);
    let accept = accept.map_err(Fault::Handshake)?;
    let config = &exchange.snapshot.config.websocket;
    may_connect(&config.origins, headers)?;
    let deflates = config.deflate && matches!(speech, Speech::WebSocket);
    let agreed = if deflates { Agreed::from_offers(headers) } else { None };
    let mut ask = match found {
        None => Ask::new(exchange, request, None)?,
        Some(found) => {
            let (head, body) = request.into_parts();
            Ask::of(exchange, found, head, Some(body), None)?
        }
    };
    match open(exchange, &mut ask).await? {
        Came::Open(target, opening) => {
            park(exchange, &ask, target, *opening, Shaken { accept, agreed, speech }).await
        }
        Came::Refused(response) => Ok(*response),
    }
}

/// The client's side of a handshake that was in order.
struct Shaken {
    /// `Sec-WebSocket-Accept`.
    accept: HeaderValue,
    agreed: Option<Agreed>,
    speech: Speech,
}

/// What came of asking the targets.
pub(super) enum Came {
    /// The target, by its place, that wants the WebSocket.
    Open(usize, Box<Opening>),
    Refused(Box<Response<Relay>>),
}

/// Asks the route's targets in their order until one can be reached.
pub(super) async fn open(exchange: &mut Exchange, ask: &mut Ask) -> Result<Came, Fault> {
    let mut tried = Vec::new();
    for target in 0..ask.route().rule.targets.len() {
        let rule = &ask.route().rule;
        let (address, over_http) = (rule.targets[target].address.to_string(), rule.targets[target].over_http);
        exchange.tries(&rule.targets[target]);
        let Some(destination) = ask.prepare(target) else {
            return Ok(ask_ourselves(exchange, ask, target));
        };
        let asked = if over_http {
            over_http::open(exchange, ask, target, &destination).await?
        } else {
            native::open(exchange, ask, target, &destination).await?
        };
        match asked {
            Tried::Open(opening) => return Ok(Came::Open(target, Box::new(opening))),
            Tried::Refused { head, ready, download } => {
                let mut answer = ask.answer(target, head, ready, download);
                answer.strip_grip();
                return Ok(Came::Refused(Box::new(exchange.relay(answer))));
            }
            Tried::Unreached(failure) => {
                exchange.unreached(&address, &failure);
                tried.push(address);
            }
        }
    }
    Err(Fault::Unreached { tried })
}

/// The built-in origin takes WebSockets in where it has them (spec 2.7).
fn ask_ourselves(exchange: &mut Exchange, ask: &Ask, target: usize) -> Came {
    let uri = ask.request().uri();
    match test_origin::websocket(uri.path(), uri.query()) {
        Ok(channels) => Came::Open(
            target,
            Box::new(Opening {
                far: Far::Echo,
                headers: HeaderMap::new(),
                grip: None,
                extensions: None,
                actions: Vec::new(),
                link: None,
                channels,
            }),
        ),
        Err(response) => {
            let (head, ready) = response.into_parts();
            let answer = ask.answer(target, head, ready, None);
            Came::Refused(Box::new(exchange.relay(answer)))
        }
    }
}

/// Makes the request a hold: subscribed, and its 101 queued, before the client can know.
async fn park(
    exchange: &mut Exchange,
    ask: &Ask,
    target: usize,
    opening: Opening,
    Shaken { accept, agreed, speech }: Shaken,
) -> Result<Response<Relay>, Fault> {
    let agreed = agreed.filter(|_| opening.extensions.is_none());
    let answered = agreed.as_ref().map(|agreed| agreed.answer.clone());
    let extensions = opening.extensions.clone().or(answered);
    let head = handshake::switching(&opening.headers, &accept, extensions.as_ref());
    let (asked, opened, link) = hold_of(exchange, ask, target, opening);
    let window = agreed.map(|agreed: Agreed| -> Window { agreed.window });
    let opened = Opened { head, window, speech, ..opened };
    let id = exchange.shard().holds(|holds| holds.reserve_websocket(asked, opened)).ok_or(Fault::Full)?;
    if let Some(link) = link {
        link.start(exchange.shard(), exchange.snapshot.config.websocket.close_timeout);
    }
    if let Some(entry) = exchange.entry.take() {
        entry.write(exchange.shard(), Outcome::Code(101, 0));
    }
    let reserved = Reserved::new(Rc::clone(exchange.shard()), id);
    exchange.conversation.will_park(Parked::WebSocket { reserved });
    exchange.conversation.park();
    std::future::pending().await
}

/// What who watches knows it by: its `Connection-Id`, or one that its origin does not know.
fn present(exchange: &Exchange, ask: &Ask, far: &Far) -> Option<Rc<Presence>> {
    let notes = exchange.shard().notes.as_ref()?;
    let id = match far {
        Far::OverHttp(far) => far.call.connection_id,
        _ => over_http::random_uuid(),
    };
    let client = (exchange.conversation.client(), exchange.conversation.is_tls());
    let presence = notes.arrive(Some(u128::from_be_bytes(id)), client, &ask.route().rule.id);
    let request = ask.request();
    let size = request_head(request.method(), request.uri(), request.headers());
    presence.traffic().client.header_received.add(size);
    Some(presence)
}

/// What is to be held of an opening, but for what the client is told of it.
pub(super) fn hold_of(
    exchange: &Exchange,
    ask: &Ask,
    target: usize,
    opening: Opening,
) -> (Asked, Opened, Option<native::Connected>) {
    let presence = present(exchange, ask, &opening.far);
    let Opening { far, grip, actions, link, channels, .. } = opening;
    let route = ask.route();
    let mut subscriptions: Vec<Subscription> = Vec::new();
    // The route's are as many as it has (spec 2.4); those that a client may name are not.
    let most = exchange.snapshot.config.grip.subscriptions;
    let named = channels.iter().take(most).map(|name| format!("{}{name}", route.rule.prefix));
    for name in route.rule.targets[target].subs.iter().cloned().chain(named) {
        if subscriptions.iter().all(|subscription| subscription.channel != name) {
            subscriptions.push(Subscription::implicit(&name));
        }
    }
    let asked = Asked {
        begin: Bytes::new(),
        realm: route.realm,
        subscriptions,
        meta: Vec::new(),
        prefix: route.rule.prefix.clone(),
        uri: exchange.said_uri(),
        debug: exchange.debug,
        presence,
        next: None,
        continues: false,
        gone: None,
        trail: None,
        session: None,
        events: false,
        slow: route.rule.slow,
        again: None,
    };
    let opened = Opened {
        far,
        grip: grip.map(|grip| grip.message_prefix),
        head: Bytes::new(),
        window: None,
        debug: exchange.debug,
        actions,
        speech: Speech::WebSocket,
    };
    (asked, opened, link)
}

/// Browsers say which page opens a WebSocket and send cookies all the same, so a page that is not known could
/// act for its visitor (RFC 6455 section 10.2). Who sends no `Origin` is no browser.
pub(super) fn may_connect(allowed: &[String], headers: &HeaderMap) -> Result<(), Fault> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next().filter(|_| !allowed.is_empty()) else { return Ok(()) };
    let is_allowed = |allowed: &String| origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes());
    if origins.next().is_none() && allowed.iter().any(is_allowed) {
        return Ok(());
    }
    Err(Fault::Page(String::from_utf8_lossy(origin.as_bytes()).into_owned()))
}
