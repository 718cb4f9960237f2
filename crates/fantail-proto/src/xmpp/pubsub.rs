//! Channels as nodes (XEP-0060): the node's name, what a subscriber gets of an item, and in which states of presence.

use bytes::Bytes;

use super::xml::{Element, escape, push_attribute};
use crate::{
    item::{HttpResponse, ResponseBody},
    render::{MessagePart, Rendered, StreamPart},
};

pub const PUBSUB: &str = "http://jabber.org/protocol/pubsub";
pub const EVENT: &str = "http://jabber.org/protocol/pubsub#event";
pub const OWNER: &str = "http://jabber.org/protocol/pubsub#owner";
pub const ERRORS: &str = "http://jabber.org/protocol/pubsub#errors";

/// The node of a channel: `/{realm}/{channel}`.
pub fn node(realm: &str, channel: &str) -> String {
    format!("/{realm}/{channel}")
}

/// Realm and channel of a node. Channels may hold any character, realms no slash.
pub fn channel(node: &str) -> Option<(&str, &str)> {
    let (realm, channel) = node.strip_prefix('/')?.split_once('/')?;
    (!realm.is_empty() && !channel.is_empty()).then_some((realm, channel))
}

/// In which states of presence a subscriber wants items (`pubsub#show-values`); none named: always.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Shows(u8);

impl Shows {
    const NAMES: [&str; 5] = ["away", "chat", "dnd", "online", "xa"];

    pub const ALWAYS: Self = Self(0);
    /// Whenever there is presence at all.
    pub const ANY: Self = Self(0b1_1111);

    /// `None` for a state that does not exist.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().position(|known| *known == name).map(|at| Self(1 << at))
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whenever one of both wants it.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self.is_always() || other.is_always() { Self::ALWAYS } else { self.and(other) }
    }

    pub fn is_always(self) -> bool {
        self.0 == 0
    }

    pub fn has(self, state: Self) -> bool {
        self.0 & state.0 != 0
    }

    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().enumerate().filter(move |(at, _)| self.0 >> at & 1 == 1).map(|(_, name)| name)
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    pub fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ANY.0)
    }
}

/// The payload of an item for a node's subscribers, in this order: of `xmpp-stanza` the extension that it carries,
/// `json-object`, or the content of another format as JSON, which is a string where it is none already.
pub fn payload(item: &Rendered) -> Option<String> {
    if let Some(stanza) = &item.stanza {
        return Some(stanza.payload().to_owned());
    }
    let content = match (&item.object, &item.message, &item.stream, &item.response) {
        (Some(object), ..) => object.clone(),
        (_, Some(MessagePart::Send(message)), ..) => Bytes::copy_from_slice(message.content()),
        (_, _, Some(StreamPart::Send(chunk)), _) if !chunk.is_empty() => chunk.content(),
        (.., Some(HttpResponse::Send(response))) => match &response.body {
            ResponseBody::Whole(body) => body.clone(),
            ResponseBody::Patch(_) => return None,
        },
        _ => return None,
    };
    let text = String::from_utf8(content.to_vec()).ok()?;
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
    let json = if is_json { text } else { serde_json::to_string(text.trim_end_matches('\n')).ok()? };
    let mut out = String::from("<json xmlns='urn:xmpp:json:0'>");
    // JSON may hold, raw, what XML cannot: as U+007F and beyond; below, a string has it escaped.
    escape(&json.replace(|c| !super::xml::is_char(c), "\u{fffd}"), &mut out);
    out.push_str("</json>");
    Some(out)
}

/// What is in the message to a subscriber.
pub fn event(node: &str, id: Option<&str>, payload: &str) -> String {
    let mut out = format!("<event xmlns='{EVENT}'><items");
    push_attribute("node", node, &mut out);
    out.push('>');
    item(id, payload, &mut out);
    out.push_str("</items></event>");
    out
}

/// One item of a list.
fn item(id: Option<&str>, payload: &str, out: &mut String) {
    out.push_str("<item");
    if let Some(id) = id {
        push_attribute("id", &shown(id), out);
    }
    out.push('>');
    out.push_str(payload);
    out.push_str("</item>");
}

/// The same, for who asks.
pub fn element(id: Option<&str>, payload: String) -> Element {
    let item = Element::new(PUBSUB, "item").holding(payload);
    match id {
        Some(id) => item.with("id", &shown(id)),
        None => item,
    }
}

/// An id may hold what XML cannot.
fn shown(id: &str) -> String {
    id.replace(|c| !super::xml::is_char(c), "\u{fffd}")
}
