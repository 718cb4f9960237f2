//! The component as an entity itself: what it answers without an origin, and what those may do who administer it.
//! Subscriptions to nodes are made here, those of stanzas by keys and origins.

use std::sync::Arc;

use fantail_proto::{
    item::Item,
    log::Start,
    render::Rendered,
    xmpp::{
        CLIENT,
        answer::{self, Condition},
        jid::Jid,
        pubsub::{self, ERRORS, PUBSUB, Shows},
        request::{self, COMMANDS, PUBLISH, Request, Step},
        xml::Element,
    },
};
use serde_json::json;

use super::{
    Component, Place, TARGET, Terms, condition,
    desk::LOOKED_AT,
    inbox::Received,
    subscribers::{self, Kept},
};
use crate::{
    config::DEFAULT_REALM,
    log::Span,
    publish::{Refusal, Wanted},
};

/// Answers an iq that asks something of the component.
pub(super) async fn answer(component: &Component, received: &Received, request: Request) {
    let Received { stanza, from, .. } = received;
    let admin = is_admin(component, from);
    let outcome = match request {
        Request::Ping => Ok(None),
        Request::Info { node } => info(component, node.as_deref(), admin).map(Some),
        Request::Items { node } => items_of(component, node.as_deref(), admin).map(Some),
        Request::Subscribe { node, jid, shows } => {
            subscribe(component, from, &node, &jid, shows).await.map(Some)
        }
        Request::Unsubscribe { node, jid } => unsubscribe(component, from, &node, &jid).await.map(|()| None),
        Request::Subscriptions { node } => subscriptions(component, from, node.as_deref()).map(Some),
        Request::Retrieve { node, most, ids } => retrieve(component, &node, most, &ids).map(Some),
        Request::Unsupported { feature } => Err(Wrong::unsupported(feature)),
        Request::Command { node, step, session } => {
            command(component, from, &node, step, session).await.map(Some)
        }
        Request::Malformed(what) => {
            let detail = what.map(|(ns, name)| Box::new(Element::new(ns, name)));
            Err(Wrong { detail, ..Wrong::of(Condition::BadRequest, "") })
        }
        Request::Unknown => Err(Wrong::of(Condition::BadRequest, "")),
    };
    let outcome = outcome.and_then(|payload| {
        let result = answer::result(stanza);
        let xml = match payload {
            Some(payload) => result.containing(payload),
            None => result,
        };
        let long = "the answer is too long for one stanza";
        let sent = component.send_xml(received.from.as_str(), xml.to_xml(CLIENT).into_bytes());
        if sent { Ok(()) } else { Err(Wrong::of(Condition::ResourceConstraint, long)) }
    });
    if let Err(Wrong { condition, text, detail }) = outcome {
        let error = answer::detailed(stanza, condition, &text, detail.map(|detail| *detail));
        error.iter().for_each(|error| component.send(error));
    }
}

/// Why a request is not granted.
struct Wrong {
    condition: Condition,
    text: String,
    /// What its extension calls it.
    detail: Option<Box<Element>>,
}

impl Wrong {
    fn of(condition: Condition, text: &str) -> Self {
        Self { condition, text: text.to_owned(), detail: None }
    }

    /// With a condition of XEP-0060.
    fn detailed(condition: Condition, name: &str) -> Self {
        Self { condition, text: String::new(), detail: Some(Box::new(Element::new(ERRORS, name))) }
    }

    fn unsupported(feature: &str) -> Self {
        let detail = Element::new(ERRORS, "unsupported").with("feature", feature);
        Self {
            condition: Condition::FeatureNotImplemented,
            text: String::new(),
            detail: Some(Box::new(detail)),
        }
    }
}

impl From<super::Refused> for Wrong {
    fn from(refused: super::Refused) -> Self {
        // How much there is, and what a disk says, is the operator's to read.
        tracing::debug!(target: TARGET, %refused, "what an entity asks for is refused");
        match refused {
            super::Refused::TooMany(_) => Self::detailed(condition(&refused), "too-many-subscriptions"),
            _ => Self::of(condition(&refused), ""),
        }
    }
}

fn info(component: &Component, node: Option<&str>, admin: bool) -> Result<Element, Wrong> {
    match node {
        None => Ok(request::info(admin, !component.snapshot.load().config.logs.is_empty())),
        Some(PUBLISH) if admin => Ok(request::command_info()),
        Some(COMMANDS) if admin => Ok(request::commands_info()),
        Some(node) => open_place(component, node).map(|_| request::node_info(node)),
    }
}

fn items_of(component: &Component, node: Option<&str>, admin: bool) -> Result<Element, Wrong> {
    match node {
        None | Some(COMMANDS) => {}
        Some(PUBLISH) if admin => {}
        Some(node) => drop(open_place(component, node)?),
    }
    Ok(request::items(node, Some(component.config.domain.as_str()).filter(|_| admin)))
}

/// The channel of a node to which anybody may subscribe.
fn open_place(component: &Component, node: &str) -> Result<Place, Wrong> {
    let none = || Wrong::of(Condition::ItemNotFound, "a node is named /REALM/CHANNEL");
    let (realm_name, channel) = pubsub::channel(node).ok_or_else(none)?;
    if !component.config.open_realms.iter().any(|open| open == realm_name) {
        // Whether there is such a realm is nobody's business.
        return Err(Wrong::detailed(Condition::NotAllowed, "closed-node"));
    }
    let realm = component.realm(realm_name).ok_or_else(none)?;
    if channel.len() > component.snapshot.load().config.grip.channel_bytes {
        return Err(Wrong::of(Condition::BadRequest, "the channel's name is too long"));
    }
    Ok(Place { realm, realm_name: realm_name.to_owned(), channel: channel.to_owned() })
}

/// An entity speaks for itself, with any of its resources, and for nobody else.
fn own(from: &Jid, jid: &str, others: impl FnOnce() -> Wrong) -> Result<Jid, Wrong> {
    match Jid::parse(jid) {
        Ok(jid) if jid.bare() == from.bare() => Ok(jid),
        Ok(_) => Err(others()),
        Err(_) => Err(Wrong::of(Condition::JidMalformed, "")),
    }
}

async fn subscribe(
    component: &Component,
    from: &Jid,
    node: &str,
    jid: &str,
    shows: Shows,
) -> Result<Element, Wrong> {
    let jid = own(from, jid, || Wrong::detailed(Condition::BadRequest, "invalid-jid"))?;
    let place = open_place(component, node)?;
    if component.subscribers.borrow().get(place.realm, &place.channel, jid.as_str()).is_none() {
        component.may_subscribe(&jid)?;
    }
    component.change(&place, &jid, |terms| terms.with_node(shows)).await?;
    Ok(Element::new(PUBSUB, "pubsub").containing(request::subscription(node, jid.as_str())))
}

/// Also from realms that are not open any more.
async fn unsubscribe(component: &Component, from: &Jid, node: &str, jid: &str) -> Result<(), Wrong> {
    let jid = own(from, jid, || Wrong::of(Condition::Forbidden, ""))?;
    let not_subscribed = || Wrong::detailed(Condition::UnexpectedRequest, "not-subscribed");
    let (realm_name, channel) = pubsub::channel(node).ok_or_else(not_subscribed)?;
    let realm = component.realm(realm_name).ok_or_else(not_subscribed)?;
    let place = Place { realm, realm_name: realm_name.to_owned(), channel: channel.to_owned() };
    let before = component.change(&place, &jid, |terms| Terms { node: false, ..terms }).await?;
    if before.node { Ok(()) } else { Err(not_subscribed()) }
}

fn subscriptions(component: &Component, from: &Jid, node: Option<&str>) -> Result<Element, Wrong> {
    let kept = subscribers::of(&component.store, from.bare(), LOOKED_AT).map_err(super::Refused::from)?;
    let mut list = Element::new(PUBSUB, "subscriptions");
    if let Some(node) = node {
        list.set("node", node);
    }
    let named = kept.iter().filter(|kept| kept.terms.node);
    let named = named.map(|kept| (pubsub::node(&kept.realm, &kept.channel), &kept.jid));
    for (name, jid) in named.filter(|(name, _)| node.is_none_or(|node| node == name)).take(SHOWN) {
        list = list.containing(request::subscription(&name, jid));
    }
    Ok(Element::new(PUBSUB, "pubsub").containing(list))
}

/// The newest items of a channel's log, the oldest of them first, or those that are named, each once.
fn retrieve(
    component: &Component,
    node: &str,
    most: Option<usize>,
    ids: &[String],
) -> Result<Element, Wrong> {
    let Place { realm, channel, .. } = open_place(component, node)?;
    let log = component.hub.log();
    if !log.keeps(realm, &channel) {
        return Err(Wrong::unsupported("persistent-items"));
    }
    let most = most.unwrap_or(RETRIEVED).min(RETRIEVED);
    let mut entries = Vec::new();
    if ids.is_empty() {
        let newest = Start::Last(u32::try_from(most).unwrap_or(u32::MAX));
        let stretch = log.stretch(realm, &channel, &newest, (most, usize::MAX));
        entries.extend(stretch.into_iter().flat_map(|(_, entries)| entries));
    } else {
        let mut places: Vec<_> = ids
            .iter()
            .take(RETRIEVED)
            .filter_map(|id| log.span(realm, &channel, &Start::Id(id.as_str().into()), 0, 0))
            .map(|span| Span { after: span.after - 1, ..span })
            .collect();
        places.sort_unstable_by_key(|span| span.after);
        places.dedup_by_key(|span| span.after);
        entries.extend(places.into_iter().flat_map(|span| log.entries(realm, &channel, span)));
    }
    let mut bytes = 0;
    let mut items = Vec::new();
    for entry in entries.iter().rev() {
        let Some(item) = Item::from_record(&channel, &entry.record).map(Rendered::from) else { continue };
        let Some(payload) = pubsub::payload(&item) else { continue };
        if payload.len() > component.config.stanza_bytes {
            continue;
        }
        bytes += payload.len();
        if bytes > RETRIEVED_BYTES && !items.is_empty() {
            break;
        }
        items.push(pubsub::element(item.id.as_deref(), payload));
    }
    let list = Element::new(PUBSUB, "items").with("node", node);
    let list = items.into_iter().rev().fold(list, Element::containing);
    Ok(Element::new(PUBSUB, "pubsub").containing(list))
}

/// There is nobody at this address: what it is subscribed to would be sent in vain for ever.
pub(super) async fn end_subscriptions(component: &Component, Received { from, .. }: &Received) {
    let kept = subscribers::of(&component.store, from.bare(), LOOKED_AT).unwrap_or_default();
    for Kept { jid, realm, channel, .. } in kept {
        let (Some(number), Ok(jid)) = (component.realm(&realm), Jid::parse(&jid)) else { continue };
        // Without its resource, an address is more than one client.
        if jid != *from {
            continue;
        }
        let place = Place { realm: number, realm_name: realm, channel };
        match component.change(&place, &jid, |_| Terms::default()).await {
            Ok(_) => {
                component.counts.xmpp_ended.add(1);
                tracing::info!(target: TARGET, %jid, channel = place.channel, "a subscription has ended: there is nobody");
            }
            Err(refused) => tracing::warn!(target: TARGET, %jid, %refused, "a subscription of nobody stays"),
        }
    }
}

/// Answers presence at the component itself: everybody may know that it is there.
pub(super) fn be_present(component: &Component, received: &Received) {
    let Received { stanza, from, to, .. } = received;
    let presence = || {
        let presence = Element::new(CLIENT, "presence");
        presence.with("from", to.as_str()).with("to", from.bare())
    };
    match stanza.attr("type") {
        Some("subscribe") => {
            component.send(&presence().with("type", "subscribed"));
            component.send(&presence());
        }
        Some("unsubscribe") => {
            component.send(&presence().with("type", "unsubscribed"));
            component.send(&presence().with("type", "unavailable"));
        }
        Some("probe") => component.send(&presence().with("to", from.as_str())),
        _ => {}
    }
}

fn is_admin(component: &Component, jid: &Jid) -> bool {
    component.config.admins.iter().any(|admin| admin.as_str() == jid.bare())
}

/// The realm that is administered by messages to this address: `admin`, or `admin-REALM`. None without admins.
pub(super) fn admin_realm(component: &Component, to: &Jid) -> Option<String> {
    if component.config.admins.is_empty() {
        return None;
    }
    let name = to.local()?.strip_prefix("admin")?;
    if name.is_empty() { Some(DEFAULT_REALM.to_owned()) } else { name.strip_prefix('-').map(str::to_owned) }
}

/// `publish CHANNEL TEXT`, or items as JSON; the answer is a message, or an error.
pub(super) async fn command_by_message(component: &Component, received: &Received, realm: &str) {
    let Received { stanza, from, to, .. } = received;
    let Some(text) = request::body(stanza).filter(|_| stanza.attr("type") != Some("groupchat")) else {
        return;
    };
    if !is_admin(component, from) {
        component.counts.xmpp_forbidden.add(1);
        tracing::debug!(target: TARGET, %from, "who is no admin tried to publish");
        return component.refuse(stanza, Condition::Forbidden, "");
    }
    let text = text.trim();
    let said = if text.starts_with('{') {
        publish(component, from, realm, text).await
    } else if let Some((channel, content)) =
        text.strip_prefix("publish ").and_then(|rest| rest.trim_start().split_once(char::is_whitespace))
    {
        publish(component, from, realm, &items(channel, content)).await
    } else {
        Err(Unpublished::Words)
    };
    if let Err(why) = said {
        // Nobody answers an error: what answers everything by itself must not go on for ever.
        return component.refuse(stanza, Condition::BadRequest, &why.to_string());
    }
    let mut message = Element::new(CLIENT, "message").with("from", to.as_str()).with("to", from.as_str());
    message.set("type", stanza.attr("type").unwrap_or("chat"));
    if let Some(id) = stanza.attr("id") {
        message.set("id", id);
    }
    component.send(&message.containing(Element::new(CLIENT, "body").saying("Published")));
}

async fn command(
    component: &Component,
    from: &Jid,
    node: &str,
    step: Step,
    session: Option<String>,
) -> Result<Element, Wrong> {
    if !is_admin(component, from) {
        return Err(Wrong::of(Condition::Forbidden, ""));
    }
    if node != PUBLISH {
        return Err(Wrong::of(Condition::ItemNotFound, "there is no such command"));
    }
    // No state is kept between the steps: the session is only repeated.
    let session = session.unwrap_or_else(|| super::unix_ms().to_string());
    let values = match step {
        Step::Execute => return Ok(request::publish_form(&session)),
        Step::Cancel => return Ok(request::commanded(node, &session, "canceled")),
        Step::Submit(values) => values,
    };
    let value = |name: &str| {
        let value = values.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.trim().is_empty())
    };
    let realm = value("realm").unwrap_or(DEFAULT_REALM);
    let outcome = match (value("items"), value("channel"), value("content")) {
        (Some(items), ..) => publish(component, from, realm, items).await,
        (None, Some(channel), Some(content)) => {
            publish(component, from, realm, &items(channel, content)).await
        }
        _ => Err(Unpublished::Fields),
    };
    match outcome {
        Ok(()) => Ok(request::note(request::commanded(node, &session, "completed"), "info", "Published")),
        Err(why) => Err(Wrong::of(Condition::BadRequest, &why.to_string())),
    }
}

/// What `fantail publish` makes of a text, and a message.
fn items(channel: &str, content: &str) -> String {
    let line = format!("{content}\n");
    let message = Element::new(CLIENT, "message").containing(Element::new(CLIENT, "body").saying(content));
    let formats = json!({
        "http-stream": { "content": line },
        "http-response": { "body": line },
        "ws-message": { "content": content },
        "xmpp-stanza": { "content": message.to_xml("") },
    });
    json!({ "items": [{ "channel": channel, "formats": formats }] }).to_string()
}

/// Why nothing was published: what the admin reads.
#[derive(Debug, thiserror::Error)]
enum Unpublished {
    #[error("Write: publish CHANNEL TEXT; or items as JSON, as POST /publish/ takes them.")]
    Words,
    #[error("A channel and a text are needed, or items.")]
    Fields,
    #[error("There is no realm {0}.")]
    Realm(String),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

async fn publish(component: &Component, from: &Jid, realm: &str, body: &str) -> Result<(), Unpublished> {
    let realms = Arc::clone(&component.snapshot.load().realms);
    let (realm, number) = realms.find(realm).ok_or_else(|| Unpublished::Realm(realm.to_owned()))?;
    component.publisher.publish(number, body.as_bytes(), None, Wanted::default()).await?;
    tracing::info!(target: TARGET, %from, realm, "published over XMPP");
    Ok(())
}

/// Items in one answer, and their bytes: servers take no stanzas of more than some hundred kilobytes.
const RETRIEVED: usize = 100;
const RETRIEVED_BYTES: usize = 128 << 10;
/// Subscriptions in one answer.
const SHOWN: usize = 1000;
