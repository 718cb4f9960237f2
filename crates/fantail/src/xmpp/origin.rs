//! A stanza as a request to an origin, and what the answer asks for: stanzas to send, channels to subscribe the sender
//! to. The route decides who is asked, as for every request.

use std::{cell::RefCell, sync::Arc};

use bytes::Bytes;
use fantail_proto::{
    forward::{FEATURES, GRIP_FEATURE, GRIP_SIG},
    grip::{self, Hold, Instruct, InstructError},
    item::WsKind,
    websocket::control::{Control, Message, Verdict},
    xmpp::{
        CLIENT,
        answer::Condition,
        jid::Jid,
        pubsub::Shows,
        stanza::{self, Kind, Stanza, StanzaError},
        xml::{Element, XmlError},
    },
};
use hashbrown::HashMap;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use super::{Component, Place, Refused, TARGET, Terms, condition, inbox::Received, unix_ms};
use crate::{
    config::DEFAULT_REALM,
    hub::RealmId,
    proxy::destination,
    route::Route,
    snapshot::stanza_path,
    upstream::{Failure, Unanswered, Upload},
};

/// Requests to origins at a time.
#[derive(Debug)]
pub(super) struct Permits {
    all: Semaphore,
    /// Of one realm, and of each that has asked.
    most: usize,
    realms: RefCell<HashMap<RealmId, Arc<Semaphore>>>,
}

impl Permits {
    pub(super) fn new(all: usize, most: usize) -> Self {
        Self { all: Semaphore::new(all), most, realms: RefCell::default() }
    }

    /// A realm whose origins hang keeps no other's waiting.
    async fn acquire(&self, realm: RealmId) -> (OwnedSemaphorePermit, SemaphorePermit<'_>) {
        let of_realm = Arc::clone(
            self.realms.borrow_mut().entry(realm).or_insert_with(|| Arc::new(Semaphore::new(self.most))),
        );
        let own = of_realm.acquire_owned().await.expect("the semaphore is never closed");
        (own, self.all.acquire().await.expect("the semaphore is never closed"))
    }
}

/// Gives a stanza to its origin and does what the answer says. Whoever waits for an answer gets one.
pub(super) async fn ask(component: &Component, received: &Received) {
    let answered = match post(component, received).await {
        Ok((route, reply)) => obey(component, received, &route, reply).await,
        Err(failed) => Err(failed),
    };
    let stanza = &received.stanza;
    match answered {
        Ok(answered) => {
            component.counts.xmpp_origin_answered.add(1);
            if received.kind == Kind::Iq && !answered {
                component.refuse(stanza, Condition::ServiceUnavailable, "");
            }
        }
        Err(failed) => {
            component.counts.xmpp_origin_failed.add(1);
            tracing::debug!(target: TARGET, to = %received.to, %failed, "a stanza was not answered");
            component.refuse(stanza, failed.condition(), "");
        }
    }
}

/// Why an origin has not answered a stanza.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("no route for it")]
    NoRoute,
    #[error("{0}")]
    Upstream(Failure),
    #[error("no target could be reached")]
    Unreached,
    #[error("the origin answered {0}")]
    Status(StatusCode),
    #[error("the origin's answer broke off, or is too long")]
    Body,
    #[error("the origin's answer did not end in time")]
    Late,
    #[error("{0}")]
    Instruct(#[from] InstructError),
    #[error("{0}")]
    Refused(#[from] Refused),
}

impl Failed {
    fn condition(&self) -> Condition {
        match self {
            Self::NoRoute => Condition::ServiceUnavailable,
            Self::Upstream(Failure::Silent(_)) | Self::Late => Condition::RemoteServerTimeout,
            Self::Upstream(Failure::Busy(_)) => Condition::ResourceConstraint,
            Self::Status(StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => Condition::Forbidden,
            Self::Status(StatusCode::NOT_FOUND) => Condition::ItemNotFound,
            Self::Refused(refused) => condition(refused),
            Self::Status(_) | Self::Upstream(_) | Self::Unreached | Self::Body | Self::Instruct(_) => {
                Condition::InternalServerError
            }
        }
    }
}

/// What an origin has said.
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

async fn post(component: &Component, received: &Received) -> Result<(Arc<Route>, Reply), Failed> {
    let snapshot = component.snapshot.load_full();
    let domain = component.config.domain.as_str();
    let path = stanza_path(&received.to);
    let route = Arc::clone(snapshot.stanza_route(&received.to).ok_or(Failed::NoRoute)?);
    let _permits = component.permits.acquire(route.realm).await;
    let body = Bytes::from(received.stanza.to_xml(""));
    let origin = &snapshot.config.origin;
    for (index, target) in route.rule.targets.iter().enumerate() {
        let outgoing = route.rule.outgoing(target, &path, domain);
        let Some(to) = destination(&route, index, outgoing.host) else { return Err(Failed::Unreached) };
        let mut request = Request::new(Upload::Whole(body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = outgoing.path_and_query.parse().unwrap_or_else(|_| Uri::from_static("/"));
        *request.headers_mut() = headers(received, &route);
        if let Ok(host) = HeaderValue::from_str(outgoing.host) {
            request.headers_mut().insert(header::HOST, host);
        }
        let until = Instant::now() + origin.response_timeout;
        let asking = component.upstream.ask(&to, Box::new(request), origin);
        match asking.await {
            Ok(response) => {
                let (head, download) = response.into_parts();
                let limited = Limited::new(download, snapshot.config.grip.instruct_bytes);
                let body = timeout_at(until, limited.collect()).await.map_err(|_| Failed::Late)?;
                let body = body.map_err(|_| Failed::Body)?.to_bytes();
                return Ok((route, Reply { status: head.status, headers: head.headers, body }));
            }
            Err(Unanswered { failure, .. }) if failure.is_unreached() => {
                let address = target.address.to_string();
                tracing::info!(target: TARGET, address, %failure, "target not reached");
            }
            Err(Unanswered { failure, .. }) => return Err(Failed::Upstream(failure)),
        }
    }
    Err(Failed::Unreached)
}

fn headers(received: &Received, route: &Route) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, stanza::MEDIA_TYPE);
    let named = [
        (header::FROM, Some(received.from.as_str())),
        (HeaderName::from_static("to"), Some(received.to.as_str())),
        (HeaderName::from_static("type"), received.stanza.attr("type")),
    ];
    for (name, value) in named {
        // A type that cannot stand in a header is none.
        if let Some(Ok(value)) = value.map(|value| HeaderValue::from_bytes(value.as_bytes())) {
            headers.insert(name, value);
        }
    }
    for (name, value) in &route.rule.headers {
        if value.is_empty() {
            headers.remove(name);
        } else {
            headers.insert(name, value.clone());
        }
    }
    if !route.rule.no_grip {
        headers.insert(GRIP_FEATURE, FEATURES);
    }
    if let Some(signer) = &route.signer {
        match signer.stanza_token(unix_ms() / 1000, received.from.as_str(), received.to.as_str()) {
            Ok(token) => drop(headers.insert(GRIP_SIG, token)),
            Err(error) => tracing::error!(target: TARGET, %error, "requests cannot be signed"),
        }
    }
    headers
}

/// Whether the stanza, if it is an iq, was answered.
async fn obey(
    component: &Component,
    received: &Received,
    route: &Route,
    reply: Reply,
) -> Result<bool, Failed> {
    let Reply { status, headers, mut body } = reply;
    if !status.is_success() {
        return Err(Failed::Status(status));
    }
    let speaks_grip = !route.rule.no_grip;
    if speaks_grip && grip::is_instruct(&headers) {
        let instruct = Instruct::parse(status.as_u16(), "", &headers, body)?;
        if let Some(hold) = &instruct.hold {
            subscribe(component, received, route, &instruct, hold).await?;
        }
        body = instruct.reply.body;
    }
    let lines = || body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let is_control = |line: &&[u8]| speaks_grip && line.starts_with(b"c:");
    // Before anything is said: whoever waits is told of one outcome.
    for line in lines().filter(is_control) {
        control(component, received, route, line).await?;
    }
    let mut answered = false;
    let mut unsaid = 0;
    for line in lines().filter(|line| !is_control(line)) {
        if let Err(why) = say(component, received, route, line, &mut answered) {
            component.counts.xmpp_unsent_origin.add(1);
            unsaid += 1;
            if unsaid == 1 {
                tracing::warn!(target: TARGET, "a stanza of an origin is not sent: it {why}");
            }
        }
    }
    Ok(answered)
}

/// Why a line of an origin's answer is not sent.
#[derive(Debug, thiserror::Error)]
enum Unsaid {
    #[error("{0}")]
    Xml(#[from] XmlError),
    #[error("{0}")]
    Stanza(#[from] StanzaError),
    #[error("answers an iq again")]
    Again,
    #[error("has more than {0} bytes (xmpp.stanza_bytes)")]
    Long(usize),
}

/// Sends a stanza of the origin's: to the sender and from whom it wrote to, unless it says otherwise. An iq is answered
/// once, and by who was asked.
fn say(
    component: &Component,
    received: &Received,
    route: &Route,
    line: &[u8],
    answered: &mut bool,
) -> Result<(), Unsaid> {
    let element = Element::parse(line)?;
    let answers = received.kind == Kind::Iq
        && element.is(CLIENT, "iq")
        && matches!(element.attr("type"), Some("result" | "error"))
        && element.attr("id") == received.stanza.attr("id");
    let stanza = Stanza::of(element)?;
    let to = stanza.to.as_ref().unwrap_or(&received.from);
    let answers = answers && *to == received.from;
    if answers && *answered {
        return Err(Unsaid::Again);
    }
    let own = stanza.from.as_ref().filter(|from| !answers && may_speak(component, route, from));
    let mut wire = Vec::new();
    stanza.sealed(own.unwrap_or(&received.to).as_str(), "").write(to.as_str(), &mut wire);
    if !component.send_xml(to.as_str(), wire) {
        return Err(Unsaid::Long(component.config.stanza_bytes));
    }
    *answered |= answers;
    Ok(())
}

/// Whether an origin of this route may say something in the name of an address.
fn may_speak(component: &Component, route: &Route, from: &Jid) -> bool {
    from.domain() == component.config.domain.domain()
        && component.snapshot.load().may_speak(route.realm, from)
}

/// Subscribes the sender, with whatever resource, to the instruct's channels.
async fn subscribe(
    component: &Component,
    received: &Received,
    route: &Route,
    instruct: &Instruct,
    hold: &Hold,
) -> Result<(), Failed> {
    if !matches!(hold, Hold::Stream { .. }) {
        return Err(fault("a stanza cannot be held as a response: Grip-Hold must be 'stream'"));
    }
    let present = instruct.meta.iter().rev().find(|(name, _)| name == "presence");
    let shows = if present.is_some_and(|(_, value)| value == "true") { Shows::ANY } else { Shows::ALWAYS };
    let most = component.snapshot.load().config.grip.subscriptions;
    for channel in instruct.channels.iter().take(most) {
        if !channel.filters.is_empty() {
            return Err(fault("a subscription over XMPP has no filters"));
        }
        join(component, received, route, &channel.name, Some(shows)).await?;
    }
    Ok(())
}

/// An instruction as on a WebSocket: `c:` and JSON.
async fn control(
    component: &Component,
    received: &Received,
    route: &Route,
    line: &[u8],
) -> Result<(), Failed> {
    let content = Bytes::copy_from_slice(line);
    match (Message { kind: WsKind::Text, content, fragmented: false }).classify(Some(b"")) {
        Verdict::Control(Control::Subscribe { channel, filters, .. }) if filters.is_empty() => {
            join(component, received, route, &channel, None).await
        }
        Verdict::Control(Control::Unsubscribe { channel }) => {
            let (place, jid) = (place(route, &channel), received.from.to_bare());
            component.change(&place, &jid, |terms| Terms { stanza: false, ..terms }).await?;
            Ok(())
        }
        _ => Err(fault("a control message over XMPP is to subscribe, without filters, or to unsubscribe")),
    }
}

async fn join(
    component: &Component,
    received: &Received,
    route: &Route,
    channel: &str,
    shows: Option<Shows>,
) -> Result<(), Failed> {
    let place = place(route, channel);
    let limit = component.snapshot.load().config.grip.channel_bytes;
    if place.channel.len() > limit {
        return Err(fault(&format!("a channel's name has more than {limit} bytes")));
    }
    let jid = received.from.to_bare();
    if component.subscribers.borrow().get(place.realm, &place.channel, jid.as_str()).is_none() {
        component.may_subscribe(&jid)?;
    }
    // Where nothing is said of presence, what was said before stays.
    let change = |terms: Terms| match shows {
        None if terms.stanza => terms,
        shows => terms.with_stanzas(shows.unwrap_or(Shows::ALWAYS)),
    };
    component.change(&place, &jid, change).await?;
    Ok(())
}

fn place(route: &Route, channel: &str) -> Place {
    Place {
        realm: route.realm,
        realm_name: route.rule.realm.as_deref().unwrap_or(DEFAULT_REALM).to_owned(),
        channel: format!("{}{channel}", route.rule.prefix),
    }
}

fn fault(text: &str) -> Failed {
    Failed::Instruct(InstructError(text.to_owned()))
}
