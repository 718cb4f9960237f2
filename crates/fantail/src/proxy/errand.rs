//! Requests of Fantail's own to the origin of a hold: where its links and its filters lead. They take the way of the
//! request that was held, and say nothing of its client's.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use fantail_proto::{
    forward::Forward,
    link::Place,
    route::{Address, Target},
    test_origin,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, response, uri::PathAndQuery};
use http_body_util::BodyExt;

use super::{Exchange, ask::destination, sign, unix_time};
use crate::{
    config,
    hold::Trail,
    route::Route,
    shard::Shard,
    snapshot::Snapshot,
    upstream::{Destination, Download, DownloadError, Failure, Peer, Tls, Unanswered, Upload},
};

/// Where the links and the filters of a request lead from; `None` if its `Host` makes no URI.
pub(super) fn trail(
    exchange: &Exchange,
    route: &Arc<Route>,
    target: usize,
    (host, path_and_query): (&HeaderValue, &PathAndQuery),
) -> Option<Trail> {
    let host = route.rule.as_host.as_deref().or_else(|| host.to_str().ok()).unwrap_or_default();
    let home = Place::new(exchange.tls, host, path_and_query.as_str())?;
    Some(Trail { route: Arc::clone(route), target, home, debug: exchange.debug })
}

/// What is asked for.
pub(super) struct Errand<'e> {
    pub(super) trail: &'e Trail,
    pub(super) place: &'e Place,
    pub(super) method: Method,
    /// For `Grip-Last`.
    pub(super) last_ids: &'e [(String, String)],
    /// Headers of its own.
    pub(super) fields: &'e [(HeaderName, HeaderValue)],
    pub(super) body: Bytes,
}

impl<'e> Errand<'e> {
    pub(super) const fn new(trail: &'e Trail, place: &'e Place, method: Method) -> Self {
        Self { trail, place, method, last_ids: &[], fields: &[], body: Bytes::new() }
    }
}

/// Asks where a link leads: the targets of its route if that is beside the request that it came from, or else its host.
pub(super) async fn ask(shard: &Rc<Shard>, snapshot: &Snapshot, errand: Errand<'_>) -> Result<Answer, Lost> {
    let Errand { trail, place, .. } = errand;
    let rule = &trail.route.rule;
    let config = &snapshot.config.origin;
    if !place.is_beside(&trail.home) {
        let is_own = |target: &Target| match &target.address {
            Address::Tcp(host, port) => {
                !target.untrusted && host.eq_ignore_ascii_case(place.host()) && *port == place.port()
            }
            Address::Test | Address::Workers(_) => false,
        };
        let own = rule.targets.iter().any(is_own);
        let listed = |known: &String| {
            // As `HOST:PORT`, in lower case.
            known.rsplit_once(':').is_some_and(|(host, port)| {
                place.host().eq_ignore_ascii_case(host.trim_matches(['[', ']']))
                    && port.parse() == Ok(place.port())
            })
        };
        let to = Peer::Server(Destination {
            host: place.host().to_owned(),
            addresses: Vec::new(),
            port: place.port(),
            untrusted: !own && !snapshot.config.grip.link_hosts.iter().any(listed),
            tls: place.tls().then(|| Tls { name: place.host().to_owned(), insecure: false, identity: None }),
        });
        let signature = if own { sign(shard, &trail.route, unix_time()) } else { None };
        let request = request(snapshot, &errand, place.path_and_query(), place.authority(), signature);
        return send(shard, &to, request, config)
            .await
            .map_err(|unanswered| Lost::Upstream(unanswered.failure));
    }
    for (index, target) in rule.targets.iter().enumerate() {
        let outgoing = rule.outgoing(target, place.path_and_query(), place.authority());
        let rewritten = place.path().starts_with(rule.path_beg.as_str());
        let path_and_query = if rewritten { &outgoing.path_and_query } else { place.path_and_query() };
        let signature = sign(shard, &trail.route, unix_time());
        let request = request(snapshot, &errand, path_and_query, outgoing.host, signature);
        let Some(to) = destination(&trail.route, index, outgoing.host) else {
            let (head, ready) =
                test_origin::answer(request.uri().path(), request.uri().query(), 0).into_parts();
            return Ok(Answer { head, ready, download: None });
        };
        match send(shard, &to, request, config).await {
            Ok(answer) => return Ok(answer),
            Err(Unanswered { failure, .. }) if failure.is_unreached() => {}
            Err(Unanswered { failure, .. }) => return Err(Lost::Upstream(failure)),
        }
    }
    Err(Lost::Unreached)
}

async fn send(
    shard: &Rc<Shard>,
    to: &Peer,
    request: Box<Request<Upload>>,
    config: &config::Origin,
) -> Result<Answer, Unanswered> {
    let (head, download) = shard.upstream.ask(to, request, config).await?.into_parts();
    Ok(Answer { head, ready: Bytes::new(), download: Some(download) })
}

/// Nothing of the client's is said. `signature`: ours, for who is the route's own.
fn request(
    snapshot: &Snapshot,
    errand: &Errand<'_>,
    path_and_query: &str,
    host: &str,
    signature: Option<HeaderValue>,
) -> Box<Request<Upload>> {
    let Errand { trail, place, method, last_ids, fields, body } = errand;
    let upload = if body.is_empty() { Upload::Empty } else { Upload::Whole(body.clone()) };
    let mut request = Box::new(Request::new(upload));
    *request.method_mut() = method.clone();
    // A place has a path that can be asked for, and so has a route.
    *request.uri_mut() = Uri::builder().path_and_query(path_and_query).build().unwrap_or_default();
    let forward = Forward {
        trusted: false,
        tls: place.tls(),
        websocket: false,
        peer: None,
        signature,
        last_ids,
        route: &trail.route.rule,
        rules: &snapshot.config.proxy.forward,
    };
    // There is nothing of a loop in no headers.
    let mut headers = HeaderMap::new();
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
    _ = forward.apply(&mut headers);
    headers.extend(fields.iter().cloned());
    if *method == Method::POST && body.is_empty() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    *request.headers_mut() = headers;
    request
}

/// Why a link led to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("no target can be reached")]
    Unreached,
    #[error("{0}")]
    Upstream(Failure),
    #[error("the answer's status is {0}")]
    Status(u16),
    #[error("the answer breaks off: {0}")]
    Cut(#[from] DownloadError),
    #[error("the answer has a body")]
    Body,
}

/// What a link was answered with.
pub(super) struct Answer {
    pub(super) head: response::Parts,
    ready: Bytes,
    download: Option<Download>,
}

impl Answer {
    /// The body, or its beginning if it is longer than `limit`, and what is left.
    pub(super) async fn collect(self, limit: usize) -> Result<(Vec<u8>, Option<Download>), DownloadError> {
        let mut body = self.ready.to_vec();
        let Some(mut download) = self.download else { return Ok((body, None)) };
        while let Some(frame) = download.frame().await {
            if let Ok(data) = frame?.into_data() {
                body.extend_from_slice(&data);
                if body.len() > limit {
                    return Ok((body, Some(download)));
                }
            }
        }
        Ok((body, None))
    }
}
