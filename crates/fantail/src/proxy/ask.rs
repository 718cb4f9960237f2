//! Asking the origin: which route, with which headers, at which of its targets.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use fantail_proto::{
    cors::Cors,
    forward::{self, Forward},
    grip, jsonp,
    route::{Address, Asked, Target},
    test_origin,
    websocket::{handshake, over_http::is_events},
    xmpp::stanza,
    zhttp::Flags,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header, request, response,
    uri::PathAndQuery,
};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{
    Exchange, unix_time,
    upload::upload,
    watch::{request_head, response_head},
};
use crate::{
    error::Fault,
    hold::{self, Replay},
    route::Route,
    snapshot::Snapshot,
    upstream::{Backend, Destination, Download, Key, Peer, Tls, Unanswered, Upload},
};

/// A request that is ready to be sent to the targets of its route.
pub(super) struct Ask {
    route: Arc<Route>,
    /// Its client is trusted, until then in Unix seconds.
    trusted_until: Option<u64>,
    /// As the client said it.
    host: HeaderValue,
    path_and_query: PathAndQuery,
    /// Without `Host` and URI, which are the target's.
    request: Box<Request<Upload>>,
    shape: Shape,
}

/// Which route a request takes.
pub(super) struct Found {
    pub(super) route: Arc<Route>,
    /// As the client said it.
    pub(super) host: HeaderValue,
    /// What its origin is asked for, but for what the route makes of it.
    pub(super) path_and_query: PathAndQuery,
    tls: bool,
}

impl Found {
    pub(super) fn of(exchange: &Exchange, uri: &Uri, headers: &HeaderMap) -> Result<Self, Fault> {
        let snapshot = &exchange.snapshot;
        let proxy = &snapshot.config.proxy;
        let host = host(uri, headers);
        let tls =
            exchange.conversation.is_tls() || (proxy.forward.accept_protocol && forward::claims_tls(headers));
        let route = {
            let name = name(&host);
            let accepts = proxy.forward.accept_pushpin_route;
            let id = accepts.then(|| headers.get(PUSHPIN_ROUTE)).flatten();
            let asked = Asked {
                host: &name,
                path: uri.path(),
                tls,
                ws: exchange.is_upgrade(headers),
                id: id.and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty()),
            };
            Arc::clone(snapshot.routes.find(asked).ok_or(Fault::NoRoute)?)
        };
        let path_and_query = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self { route, host, path_and_query, tls })
    }

    /// How a response to the request has to be.
    pub(super) fn shape(&self, exchange: &Exchange, head: &request::Parts) -> Shape {
        Shape {
            http11: head.version == Version::HTTP_11,
            head: head.method == Method::HEAD,
            keep_alive: exchange.conversation.state().keeps_alive() && !exchange.closes,
        }
    }
}

/// What of the request shapes its response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) http11: bool,
    pub(super) head: bool,
    pub(super) keep_alive: bool,
}

impl From<Shape> for hold::Shape {
    fn from(Shape { http11, head, keep_alive }: Shape) -> Self {
        Self { http11, head, keep_alive }
    }
}

/// The origin's answer.
pub(super) struct Answer {
    pub(super) head: response::Parts,
    /// The body, or its beginning.
    pub(super) ready: Bytes,
    pub(super) download: Option<Download>,
    pub(super) route: Arc<Route>,
    /// Which of the route's targets.
    pub(super) target: usize,
    pub(super) shape: Shape,
    /// As the client said them.
    pub(super) host: HeaderValue,
    pub(super) path_and_query: PathAndQuery,
    trusted: bool,
}

impl Answer {
    /// Whether the answer is for Fantail and not for the client alone (spec 1.8).
    pub(super) fn is_grip(&self) -> bool {
        self.speaks_grip() && grip::is_instruct(&self.head.headers)
    }

    /// Removes what the answer says to Fantail. What it says to a client that speaks GRIP itself stays.
    pub(super) fn strip_grip(&mut self) {
        if self.speaks_grip() {
            forward::hide_grip(&mut self.head.headers);
        }
    }

    fn speaks_grip(&self) -> bool {
        !self.trusted && !self.route.rule.no_grip
    }

    pub(super) fn target(&self) -> &Target {
        &self.route.rule.targets[self.target]
    }
}

impl Ask {
    /// Finds the route and makes the origin's headers of the client's.
    pub(super) fn new(
        exchange: &mut Exchange,
        request: Request<Incoming>,
        replay: Option<&Replay>,
    ) -> Result<Self, Fault> {
        let (head, body) = request.into_parts();
        let found = Found::of(exchange, &head.uri, &head.headers)?;
        exchange.found(&found.route);
        Self::of(exchange, found, head, Some(body), replay)
    }

    /// As [`Self::new`], of a request whose route was found and noted; without a body if that is of no use.
    pub(super) fn of(
        exchange: &mut Exchange,
        found: Found,
        head: request::Parts,
        body: Option<Incoming>,
        replay: Option<&Replay>,
    ) -> Result<Self, Fault> {
        let snapshot = Arc::clone(&exchange.snapshot);
        let proxy = &snapshot.config.proxy;
        // Of what is asked, which for a session of SockJS is not what came.
        let websocket = handshake::is_upgrade(&head.headers);
        let shape = found.shape(exchange, &head);
        let Found { route, host, path_and_query, tls } = found;
        let now = unix_time();
        let trusted_until = exchange.trusts(&head.headers, now);
        let trusted = trusted_until.is_some();
        if !websocket && exchange.shard().notes.is_some() {
            let size = request_head(&head.method, &head.uri, &head.headers);
            exchange.conversation.arrive(&route.rule.id, size);
        }
        exchange.tls = tls;
        if !websocket && (route.rule.aco || proxy.auto_cross_origin) {
            exchange.cors = Some(Box::new(Cors::of(&head.headers)));
        }
        let (mut head, mut path_and_query, mut script_body) = (head, path_and_query, None);
        if exchange.cors.is_some()
            && head.method == Method::GET
            && let Some(asked) =
                jsonp::read(&route.rule.jsonp, path_and_query.as_str()).map_err(Fault::JsonP)?
        {
            exchange.cors = None;
            path_and_query = asked.path_and_query.parse().unwrap_or(path_and_query);
            head.method = asked.method;
            head.headers.remove(header::ACCEPT_ENCODING);
            head.headers.extend(asked.headers);
            script_body = asked.body;
            exchange.jsonp = Some(Box::new(asked.call));
        }
        let signature = if trusted { None } else { exchange.sign(&route, now) };
        let request::Parts { method, mut headers, .. } = head;
        let loops = Forward {
            trusted,
            tls,
            websocket,
            peer: exchange.conversation.peer(),
            signature,
            last_ids: replay.map_or(&[][..], |replay| &replay.last_ids),
            route: &route.rule,
            rules: &proxy.forward,
        }
        .apply(&mut headers);
        if loops {
            return Err(Fault::Loop);
        }
        if !trusted {
            refuse_forged(&snapshot, &route, &headers)?;
        }
        if body.as_ref().is_some_and(|body| body.size_hint().exact().is_none()) {
            // Said explicitly: for a GET the client side would assume that there is no body.
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        // Whose length was said: with an empty body the client side would leave it out.
        if !matches!(method, Method::GET | Method::HEAD | Method::OPTIONS)
            && body.as_ref().is_none_or(Incoming::is_end_stream)
            && headers.contains_key(header::CONTENT_LENGTH)
        {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let body = match script_body {
            Some(body) => {
                headers.remove(header::CONTENT_LENGTH);
                headers.remove(header::TRANSFER_ENCODING);
                Upload::Whole(body)
            }
            None => body.map_or(Upload::Empty, |body| upload(&exchange.conversation, body)),
        };
        let mut request = Box::new(Request::new(body));
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        Ok(Self { route, trusted_until, host, path_and_query, request, shape })
    }

    /// Whether the answer may be others', too: nothing in the request says who asks or for what part.
    pub(super) fn is_shareable(&self) -> bool {
        let safe = matches!(*self.request.method(), Method::GET | Method::HEAD);
        let personal = |name: &HeaderName| PERSONAL.contains(name) || name.as_str().starts_with("if-");
        safe && !self.is_trusted()
            && matches!(self.request.body(), Upload::Empty)
            && !self.request.headers().keys().any(personal)
    }

    /// What another request must be like to be the same.
    pub(super) fn key(&self) -> Key {
        let headers = self.request.headers().iter().filter(|(name, _)| !says_who(name.as_str()));
        let mut headers: Vec<_> = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
        // Several of one name keep their order.
        headers.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        Key {
            headers,
            route: Arc::as_ptr(&self.route).addr(),
            method: self.request.method().clone(),
            host: Bytes::copy_from_slice(self.host.as_bytes()),
            path_and_query: self.path_and_query.to_string(),
        }
    }

    /// Asks the route's targets in their order until one can be reached (spec 1.6).
    pub(super) async fn send(&mut self, exchange: &mut Exchange) -> Result<Answer, Fault> {
        let mut tried = Vec::new();
        for target in 0..self.route.rule.targets.len() {
            let Some(destination) = self.prepare(target) else {
                return Box::pin(self.ask_ourselves(exchange, target)).await;
            };
            exchange.tries(&self.route.rule.targets[target]);
            exchange.conversation.tally(|traffic| {
                let request = &self.request;
                let size = request_head(request.method(), request.uri(), request.headers());
                traffic.server.header_sent.add(size);
            });
            let upstream = &exchange.conversation.shard().upstream;
            let config = &exchange.snapshot.config.origin;
            match upstream.ask(&destination, std::mem::take(&mut self.request), config).await {
                Ok(response) => {
                    let (head, download) = response.into_parts();
                    exchange.conversation.tally(|traffic| {
                        traffic.server.header_received.add(response_head(head.status, &head.headers));
                    });
                    return Ok(self.answer(target, head, Bytes::new(), Some(download)));
                }
                Err(Unanswered { failure, request: Some(request) }) if failure.is_unreached() => {
                    let address = self.route.rule.targets[target].address.to_string();
                    exchange.unreached(&address, &failure);
                    tried.push(address);
                    self.request = request;
                }
                Err(Unanswered { failure, .. }) => {
                    return Err(exchange.unanswered(&self.route.rule.targets[target], failure));
                }
            }
        }
        Err(Fault::Unreached { tried })
    }

    pub(super) fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// The host that routes are found by.
    pub(super) fn domain(&self) -> String {
        name(&self.host).into_owned()
    }

    pub(super) fn request_mut(&mut self) -> &mut Request<Upload> {
        &mut self.request
    }

    /// As the client said it.
    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// What its origin is asked for, but for what the route makes of it.
    pub(super) fn path_and_query(&self) -> &PathAndQuery {
        &self.path_and_query
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.trusted_until.is_some()
    }

    /// Until when the client's own signature is good, in Unix seconds, if it is.
    pub(super) fn trusted_until(&self) -> Option<u64> {
        self.trusted_until
    }

    /// The request, made that of a target by [`Self::prepare`].
    pub(super) fn request(&self) -> &Request<Upload> {
        &self.request
    }

    /// Makes the request that of one target; `None` for the built-in origin.
    pub(super) fn prepare(&mut self, target: usize) -> Option<Peer> {
        let host = self.host.to_str().unwrap_or(LOCALHOST);
        let rule = &self.route.rule;
        let outgoing = rule.outgoing(&rule.targets[target], self.path_and_query.as_str(), host);
        *self.request.uri_mut() = uri(&outgoing.path_and_query, &self.path_and_query);
        let value = if outgoing.host == host { self.host.clone() } else { value(outgoing.host) };
        let destination = destination(&self.route, target, outgoing.host);
        self.request.headers_mut().insert(header::HOST, value);
        destination
    }

    /// The built-in origin's answer.
    async fn ask_ourselves(&mut self, exchange: &mut Exchange, target: usize) -> Result<Answer, Fault> {
        exchange.tries(&self.route.rule.targets[target]);
        while let Some(frame) = self.request.body_mut().frame().await {
            frame.map_err(|_| Fault::BodyLost)?;
        }
        let uri = self.request.uri();
        let (head, ready) =
            test_origin::answer(uri.path(), uri.query(), exchange.conversation.uploaded()).into_parts();
        Ok(self.answer(target, head, ready, None))
    }

    pub(super) fn answer(
        &self,
        target: usize,
        head: response::Parts,
        ready: Bytes,
        download: Option<Download>,
    ) -> Answer {
        Answer {
            head,
            ready,
            download,
            route: Arc::clone(&self.route),
            target,
            shape: self.shape,
            host: self.host.clone(),
            path_and_query: self.path_and_query.clone(),
            trusted: self.is_trusted(),
        }
    }
}

/// Who answers for a target; `None` for the built-in origin.
pub fn destination(route: &Route, index: usize, host: &str) -> Option<Peer> {
    let target = &route.rule.targets[index];
    let (address, port) = match &target.address {
        Address::Test => return None,
        Address::Tcp(address, port) => (address, *port),
        Address::Workers(address) => {
            let flags = Flags {
                ignore_policies: !target.untrusted,
                trust_connect_host: target.trust_connect_host,
                ignore_tls_errors: target.insecure,
            };
            return Some(Peer::Workers(Backend { address: address.clone(), tls: target.tls, flags }));
        }
    };
    let tls = target.tls.then(|| Tls {
        name: if target.trust_connect_host { address.clone() } else { name_of(host).to_owned() },
        insecure: target.insecure,
        identity: route.identities[index].clone(),
    });
    Some(Peer::Server(Destination {
        host: address.clone(),
        port,
        addresses: Vec::new(),
        untrusted: target.untrusted,
        tls,
    }))
}

/// What an origin would take for Fantail's own, because it is signed: events of a WebSocket (spec 2.6), and a stanza, of
/// whoever is said to have sent it.
fn refuse_forged(snapshot: &Snapshot, route: &Route, headers: &HeaderMap) -> Result<(), Fault> {
    if route.rule.targets.iter().any(|target| target.over_http) && is_events(headers) {
        return Err(Fault::Events);
    }
    if snapshot.config.xmpp.is_some() && stanza::is_media(headers) {
        return Err(Fault::Stanza);
    }
    Ok(())
}

/// The outgoing target; the incoming one where it is the same.
fn uri(outgoing: &str, incoming: &PathAndQuery) -> Uri {
    let path_and_query = if outgoing == incoming.as_str() { Ok(incoming.clone()) } else { outgoing.parse() };
    let mut parts = http::uri::Parts::default();
    // What a route puts in front is checked when it is read, the rest came as a valid one.
    parts.path_and_query = Some(path_and_query.unwrap_or_else(|_| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).unwrap_or_default()
}

/// The client's `Host`; it is optional in HTTP/1.0 alone (spec 1.1, 1).
fn host(uri: &Uri, headers: &HeaderMap) -> HeaderValue {
    let host = headers.get(header::HOST).filter(|host| host.to_str().is_ok() && !host.is_empty());
    let absolute = || HeaderValue::from_str(uri.authority()?.as_str()).ok();
    host.cloned().or_else(absolute).unwrap_or_else(|| HeaderValue::from_static(LOCALHOST))
}

fn value(host: &str) -> HeaderValue {
    HeaderValue::from_str(host).unwrap_or_else(|_| HeaderValue::from_static(LOCALHOST))
}

/// The name that routes are found by: lower-case, without port.
fn name(host: &HeaderValue) -> Cow<'_, str> {
    let name = name_of(host.to_str().unwrap_or(LOCALHOST));
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// A host without its port, and an IPv6 address without its brackets.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        // A few bytes: not worth a search.
        None => host.bytes().position(|byte| byte == b':').map_or(host, |colon| &host[..colon]),
    }
}

/// Of headers in lower case that say who asks and by which way, not for what: requests that differ only in them are the
/// same, unless an answer names one of them in `Vary`.
pub(super) fn says_who(name: &str) -> bool {
    WHO.contains(&name) || name.starts_with("sec-ch-")
}

const WHO: [&str; 12] = [
    "dnt",
    "forwarded",
    "grip-sig",
    "priority",
    "referer",
    "traceparent",
    "tracestate",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-real-ip",
    "x-request-id",
];

/// Headers that make an answer one client's own.
const PERSONAL: [HeaderName; 4] = [header::AUTHORIZATION, header::COOKIE, header::RANGE, forward::GRIP_LAST];
const LOCALHOST: &str = "localhost";
const PUSHPIN_ROUTE: HeaderName = HeaderName::from_static("pushpin-route");
