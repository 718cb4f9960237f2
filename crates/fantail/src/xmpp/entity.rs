//! The component as an entity itself: what it answers without an origin, and what those may do who administer it.
//! Subscriptions to nodes are made here, those of stanzas by keys and origins.

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

use super::{Component, Place, TARGET, Terms, condition, inbox::Received, subscribers};
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
        Request::Items { node } => {
            let at = Some(component.config.domain.as_str()).filter(|_| admin);
            Ok(Some(request::items(node.as_deref(), at)))
        }
        Request::Subscribe { node, jid, shows } => {
            subscribe(component, from, &node, &jid, shows).await.map(Some)
        }
        Request::Unsubscribe { node, jid } => unsubscribe(component, from, &node, &jid).await.map(|()| None),
        Request::Subscriptions { node } => subscriptions(component, from, node.as_deref()).map(Some),
        Request::Retrieve { node, most, ids } => retrieve(component, &node, most, &ids).map(Some),
        Request::Unsupported { feature } => Err(Wrong::Unsupported(feature)),
        Request::Command { node, step, session } => {
            command(component, from, &node, step, session).await.map(Some)
        }
        Request::Malformed | Request::Unknown => Err(Wrong::of(Condition::BadRequest, "")),
    };
    match outcome {
        Ok(payload) => {
            let result = answer::result(stanza);
            component.send(&match payload {
                Some(payload) => result.containing(payload),
                None => result,
            });
        }
        Err(Wrong::Said(condition, text)) => component.refuse(stanza, condition, &text),
        Err(Wrong::Detailed(condition, name)) => {
            let detail = Element::new(ERRORS, name);
            let error = answer::detailed(stanza, condition, "", Some(detail));
            error.iter().for_each(|error| component.send(error));
        }
        Err(Wrong::Unsupported(feature)) => {
            let detail = Element::new(ERRORS, "unsupported").with("feature", &feature);
            let error = answer::detailed(stanza, Condition::FeatureNotImplemented, "", Some(detail));
            error.iter().for_each(|error| component.send(error));
        }
    }
}

/// Why a request is not granted.
enum Wrong {
    Said(Condition, String),
    /// With a condition of XEP-0060.
    Detailed(Condition, &'static str),
    Unsupported(String),
}

impl Wrong {
    fn of(condition: Condition, text: &str) -> Self {
        Self::Said(condition, text.to_owned())
    }
}

impl From<super::Refused> for Wrong {
    fn from(refused: super::Refused) -> Self {
        Self::Said(condition(&refused), refused.to_string())
    }
}

fn info(component: &Component, node: Option<&str>, admin: bool) -> Result<Element, Wrong> {
    match node {
        None => Ok(request::info(admin)),
        Some(PUBLISH) if admin => Ok(request::command_info()),
        Some(COMMANDS) if admin => Ok(request::info(true).with("node", COMMANDS)),
        Some(node) => open_place(component, node).map(|_| request::node_info(node)),
    }
}

/// The channel of a node to which anybody may subscribe.
fn open_place(component: &Component, node: &str) -> Result<Place, Wrong> {
    let none = || Wrong::of(Condition::ItemNotFound, "a node is named /REALM/CHANNEL");
    let (realm_name, channel) = pubsub::channel(node).ok_or_else(none)?;
    if !component.config.open_realms.iter().any(|open| open == realm_name) {
        // Whether there is such a realm is nobody's business.
        return Err(Wrong::of(Condition::Forbidden, "this realm's channels are not open to everybody"));
    }
    let realm = component.realm(realm_name).ok_or_else(none)?;
    if channel.len() > component.snapshot.load().config.grip.channel_bytes {
        return Err(Wrong::of(Condition::BadRequest, "the channel's name is too long"));
    }
    Ok(Place { realm, realm_name: realm_name.to_owned(), channel: channel.to_owned() })
}

/// An entity speaks for itself, with any of its resources, and for nobody else.
fn own(from: &Jid, jid: &str) -> Result<Jid, Wrong> {
    match Jid::parse(jid) {
        Ok(jid) if jid.bare() == from.bare() => Ok(jid),
        Ok(_) => Err(Wrong::Detailed(Condition::BadRequest, "invalid-jid")),
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
    let jid = own(from, jid)?;
    let place = open_place(component, node)?;
    if component.subscribers.borrow().get(place.realm, &place.channel, jid.as_str()).is_none() {
        component.may_subscribe(&jid)?;
    }
    component.change(&place, &jid, |terms| Terms { node: true, shows, ..terms }).await?;
    Ok(Element::new(PUBSUB, "pubsub").containing(request::subscription(node, jid.as_str())))
}

/// Also from realms that are not open any more.
async fn unsubscribe(component: &Component, from: &Jid, node: &str, jid: &str) -> Result<(), Wrong> {
    let jid = own(from, jid)?;
    let not_subscribed = || Wrong::Detailed(Condition::ItemNotFound, "not-subscribed");
    let (realm_name, channel) = pubsub::channel(node).ok_or_else(not_subscribed)?;
    let realm = component.realm(realm_name).ok_or_else(not_subscribed)?;
    let place = Place { realm, realm_name: realm_name.to_owned(), channel: channel.to_owned() };
    let before = component.change(&place, &jid, |terms| Terms { node: false, ..terms }).await?;
    if before.node { Ok(()) } else { Err(not_subscribed()) }
}

fn subscriptions(component: &Component, from: &Jid, node: Option<&str>) -> Result<Element, Wrong> {
    let kept = subscribers::of(&component.store, from.bare(), SHOWN).map_err(super::Refused::from)?;
    let mut list = Element::new(PUBSUB, "subscriptions");
    if let Some(node) = node {
        list.set("node", node);
    }
    for kept in kept.iter().filter(|kept| kept.terms.node) {
        let name = pubsub::node(&kept.realm, &kept.channel);
        if node.is_none_or(|node| node == name) {
            list = list.containing(request::subscription(&name, &kept.jid));
        }
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
        return Err(Wrong::Unsupported("persistent-items".into()));
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
        bytes += payload.len();
        if bytes > RETRIEVED_BYTES && !items.is_empty() {
            break;
        }
        items.extend(pubsub::element(item.id.as_deref(), &payload));
    }
    let list = Element::new(PUBSUB, "items").with("node", node);
    let list = items.into_iter().rev().fold(list, Element::containing);
    Ok(Element::new(PUBSUB, "pubsub").containing(list))
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

/// `publish CHANNEL TEXT`, or items as JSON; the answer is a message.
pub(super) async fn command_by_message(component: &Component, received: &Received, realm: &str) {
    let Received { stanza, from, to, .. } = received;
    let Some(text) = request::body(stanza).filter(|_| stanza.attr("type") != Some("groupchat")) else {
        return;
    };
    if !is_admin(component, from) {
        tracing::warn!(target: TARGET, %from, "who is no admin tried to publish");
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
    let said = said.map_or_else(|why| why.to_string(), |()| "Published".to_owned());
    let mut message = Element::new(CLIENT, "message").with("from", to.as_str()).with("to", from.as_str());
    message.set("type", stanza.attr("type").unwrap_or("chat"));
    if let Some(id) = stanza.attr("id") {
        message.set("id", id);
    }
    component.send(&message.containing(Element::new(CLIENT, "body").saying(&said)));
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
    let number = component.realm(realm).ok_or_else(|| Unpublished::Realm(realm.to_owned()))?;
    component.publisher.publish(number, body.as_bytes(), None, Wanted::default()).await?;
    tracing::info!(target: TARGET, %from, realm, "published over XMPP");
    Ok(())
}

/// Items in one answer, and their bytes: servers take no stanzas of more than some hundred kilobytes.
const RETRIEVED: usize = 100;
const RETRIEVED_BYTES: usize = 128 << 10;
/// Subscriptions in one answer.
const SHOWN: usize = 1000;
