//! Requests of sessions that an external server keeps (spec 10.1): which one a request is of, what its origin is told
//! of it, and what the origin's answer says. Only for routes with `session`, and only where there is such a server.

use std::{collections::VecDeque, sync::Arc};

use fantail_proto::{
    forward::{GRIP_FEATURE, GRIP_LAST, append_last_id},
    session::{GRIP_SESSION_ID, Said, detect},
};
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;

use super::{
    Exchange,
    ask::{Answer, Ask},
};
use crate::{error::Fault, session::Sessions, upstream::Upload};

/// The server to ask for requests of this route, if there is one.
pub(super) fn server(exchange: &Exchange, ask: &Ask) -> Option<Arc<Sessions>> {
    let sessions =
        exchange.shard().sessions.as_ref().filter(|_| ask.route().rule.session && !ask.is_trusted())?;
    Some(Arc::clone(sessions))
}

/// Finds the session that a request is of, and tells its origin.
pub(super) async fn find(sessions: &Sessions, ask: &mut Ask) -> Result<Option<String>, Fault> {
    ask.request_mut().headers_mut().append(GRIP_FEATURE, HeaderValue::from_static("session"));
    let rules = sessions.rules(&ask.domain(), ask.path_and_query().path()).await;
    if rules.is_empty() {
        return Ok(None);
    }
    let mut upload = std::mem::take(ask.request_mut().body_mut());
    let mut parts = VecDeque::new();
    let mut body = Vec::new();
    while body.len() < PREFETCH {
        let Some(frame) = upload.frame().await else { break };
        if let Ok(data) = frame.map_err(|_| Fault::BodyLost)?.into_data() {
            body.extend_from_slice(&data);
            parts.push_back(data);
        }
    }
    if !parts.is_empty() {
        upload = Upload::behind(parts, upload);
    }
    *ask.request_mut().body_mut() = upload;
    let Some(sid) = detect(&rules, &body) else { return Ok(None) };
    let last_ids = sessions.last_ids(&sid).await;
    let headers = ask.request_mut().headers_mut();
    if let Ok(value) = HeaderValue::from_str(&sid) {
        headers.insert(GRIP_SESSION_ID, value);
    }
    // What a hold that is asked again knows counts.
    let known = |headers: &HeaderMap, channel: &str| {
        let names = headers
            .get_all(GRIP_LAST)
            .iter()
            .filter_map(|value| value.as_bytes().split(|b| *b == b';').next());
        names.into_iter().any(|name| name == channel.as_bytes())
    };
    for (channel, id) in last_ids {
        if !known(headers, &channel) {
            append_last_id(headers, &channel, &id);
        }
    }
    Ok(Some(sid))
}

/// Keeps what an origin says of a session; the session of the request from now on.
pub(super) async fn keep(
    exchange: &mut Exchange,
    answer: &Answer,
    last_ids: &[(String, String)],
) -> Option<String> {
    let found = exchange.session.take()?;
    let said = Said::read(&answer.head.headers, &found.domain);
    found.sessions.store(&said, last_ids).await;
    said.sid.or(found.sid)
}

/// A request that was looked at.
pub(super) struct Found {
    pub(super) sessions: Arc<Sessions>,
    pub(super) domain: String,
    pub(super) sid: Option<String>,
}

/// Pushpin's (spec appendix B).
const PREFETCH: usize = 10_000;
