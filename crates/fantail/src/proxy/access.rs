//! A request's access line, gathered while it is answered; only when the log wants it.

use std::{net::IpAddr, sync::Arc};

use fantail_proto::{route::Target, websocket::handshake};
use http::{Method, Request, Uri, header};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Conversation;
use crate::{
    config::DEFAULT_REALM,
    logging::{self, Access, Outcome},
    route::Route,
    shard::Shard,
};

#[derive(Debug)]
pub(super) struct Entry {
    started: Instant,
    method: Method,
    uri: Uri,
    host: Option<http::HeaderValue>,
    user_agent: Option<http::HeaderValue>,
    referer: Option<http::HeaderValue>,
    /// Of its URI.
    scheme: &'static str,
    from: Option<IpAddr>,
    replay: bool,
    target: String,
    over_http: bool,
    route: Option<Arc<Route>>,
}

impl Entry {
    /// `None` when the log says nothing of requests.
    pub(super) fn of(
        conversation: &Conversation,
        request: &Request<Incoming>,
        replay: bool,
    ) -> Option<Box<Self>> {
        let lines = conversation.shard().access.borrow().is_on();
        if !lines && !logging::says_channels() {
            return None;
        }
        let header = |name| request.headers().get(name).cloned();
        Some(Box::new(Self {
            started: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: header(header::HOST),
            user_agent: header(header::USER_AGENT),
            referer: header(header::REFERER),
            scheme: match (handshake::is_upgrade(request.headers()), conversation.is_tls()) {
                (true, true) => "wss",
                (true, false) => "ws",
                (false, true) => "https",
                (false, false) => "http",
            },
            from: conversation.client(),
            replay,
            target: String::new(),
            over_http: false,
            route: None,
        }))
    }

    pub(super) fn route(&mut self, route: &Arc<Route>) {
        self.route = Some(Arc::clone(route));
    }

    pub(super) fn from(&mut self, client: Option<IpAddr>) {
        self.from = client;
    }

    pub(super) fn target(&mut self, target: &Target) {
        self.target = target.address.to_string();
        self.over_http = target.over_http;
    }

    /// As its client knows it.
    pub(super) fn uri(&self) -> String {
        let host = self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
        let path = self.uri.path_and_query().map_or("", |path| path.as_str());
        format!("{}://{host}{path}", self.scheme)
    }

    pub(super) fn write(&self, shard: &Shard, outcome: Outcome) {
        let rule = self.route.as_ref().map(|route| &*route.rule);
        shard.access.borrow_mut().line(&Access {
            method: self.method.as_str(),
            uri: &self.uri(),
            target: &self.target,
            over_http: self.over_http && self.scheme.starts_with("ws"),
            outcome,
            took: self.started.elapsed(),
            realm: rule.map_or("", |rule| rule.realm.as_deref().unwrap_or(DEFAULT_REALM)),
            route: rule.map_or("", |rule| &rule.id),
            from: self.from,
            user_agent: self.user_agent.as_ref().map(http::HeaderValue::as_bytes),
            referer: self.referer.as_ref().map(http::HeaderValue::as_bytes),
            retry: self.replay,
        });
    }
}
