//! A request for a WebSocket: is it in order, may the page connect, does the origin want it; then it is held.
//! How the origin is asked, by POSTs or by a handshake of its own, is [`super::over_http`]'s and [`super::native`]'s.

use std::rc::Rc;

use bytes::Bytes;
use fantail_proto::websocket::{
    deflate::{Agreed, Window},
    handshake,
    over_http::Action,
};
use http::{HeaderMap, HeaderValue, Request, Response, header, response};
use hyper::body::Incoming;

use super::{
    Exchange, Parked, Relay, ask::Ask, conversation::Reserved, native, over_http, watch::request_head,
};
use crate::{
    error::Fault,
    hold::{Asked, Far, Opened, Subscription},
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
}

/// Answers a request for a WebSocket. If it is held this never returns: the connection's driver takes the socket.
pub(super) async fn answer(
    exchange: &mut Exchange,
    request: Request<Incoming>,
) -> Result<Response<Relay>, Fault> {
    let headers = request.headers();
    let accept = handshake::accept_request(request.method(), request.version(), headers);
    let accept = accept.map_err(Fault::Handshake)?;
    let config = &exchange.snapshot.config.websocket;
    may_connect(&config.origins, headers)?;
    let agreed = if config.deflate { Agreed::from_offers(headers) } else { None };
    let mut ask = Ask::new(exchange, request, None)?;
    let mut tried = Vec::new();
    for target in 0..ask.route().rule.targets.len() {
        let rule = &ask.route().rule;
        let (address, over_http) = (rule.targets[target].address.to_string(), rule.targets[target].over_http);
        exchange.tries(&rule.targets[target]);
        let Some(destination) = ask.prepare(target) else {
            let why = "the built-in origin has no WebSockets".into();
            return Err(Fault::NotOpened { target: address, why });
        };
        let asked = if over_http {
            over_http::open(exchange, &ask, target, &destination).await?
        } else {
            native::open(exchange, &ask, target, &destination).await?
        };
        match asked {
            Tried::Open(opening) => return park(exchange, &ask, target, opening, &accept, agreed).await,
            Tried::Refused { head, ready, download } => {
                let mut answer = ask.answer(target, head, ready, download);
                answer.strip_grip();
                return Ok(exchange.relay(answer));
            }
            Tried::Unreached(failure) => {
                exchange.unreached(&address, &failure);
                tried.push(address);
            }
        }
    }
    Err(Fault::Unreached { tried })
}

/// Makes the request a hold: subscribed, and its 101 queued, before the client can know.
async fn park(
    exchange: &mut Exchange,
    ask: &Ask,
    target: usize,
    opening: Opening,
    accept: &HeaderValue,
    agreed: Option<Agreed>,
) -> Result<Response<Relay>, Fault> {
    let Opening { far, headers, grip, extensions, actions, link } = opening;
    let agreed = agreed.filter(|_| extensions.is_none());
    let extensions = extensions.or_else(|| agreed.as_ref().map(|agreed| agreed.answer.clone()));
    let route = ask.route();
    let subscriptions = route.rule.targets[target].subs.iter();
    let asked = Asked {
        realm: route.realm,
        subscriptions: subscriptions.map(|name| Subscription::implicit(name)).collect(),
        meta: Vec::new(),
        prefix: route.rule.prefix.clone(),
        uri: exchange.said_uri(),
        debug: exchange.debug,
        presence: present(exchange, ask, &far),
    };
    let opened = Opened {
        far,
        grip: grip.map(|grip| grip.message_prefix),
        head: handshake::switching(&headers, accept, extensions.as_ref()),
        window: agreed.map(|agreed: Agreed| -> Window { agreed.window }),
        debug: exchange.debug,
        actions,
    };
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
        Far::Native(_) | Far::Detached => over_http::random_uuid(),
    };
    let client = (exchange.conversation.peer(), exchange.conversation.is_tls());
    let presence = notes.arrive(Some(u128::from_be_bytes(id)), client, &ask.route().rule.id);
    let request = ask.request();
    let size = request_head(request.method(), request.uri(), request.headers());
    presence.traffic().client.header_received.add(size);
    Some(presence)
}

/// Browsers say which page opens a WebSocket and send cookies all the same, so a page that is not known could
/// act for its visitor (RFC 6455 section 10.2). Who sends no `Origin` is no browser.
fn may_connect(allowed: &[String], headers: &HeaderMap) -> Result<(), Fault> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next().filter(|_| !allowed.is_empty()) else { return Ok(()) };
    let is_allowed = |allowed: &String| origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes());
    if origins.next().is_none() && allowed.iter().any(is_allowed) {
        return Ok(());
    }
    Err(Fault::Page(String::from_utf8_lossy(origin.as_bytes()).into_owned()))
}
