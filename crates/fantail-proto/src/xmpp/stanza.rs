//! Stanzas that are sent: what a publisher or an origin wrote, checked, and written once with a place for each
//! address. Who may be named as a sender is the caller's to say.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

use super::{
    CLIENT,
    jid::{Jid, JidError},
    xml::{Element, XmlError, escape_value, push_attribute},
};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Message,
    Presence,
    Iq,
}

/// A stanza without its addresses.
#[derive(Clone, Debug)]
pub struct Stanza {
    kind: Kind,
    /// What it names itself, to be checked before it is used.
    pub from: Option<Jid>,
    pub to: Option<Jid>,
    /// All other attributes, each with a space in front.
    attributes: String,
    /// What is in it, as XML.
    content: String,
    /// What of it is an item's payload (XEP-0060 7.1): the extension that it carries, or all of it.
    payload: String,
}

/// Why something is not to be sent.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum StanzaError {
    #[error("{0}")]
    Xml(#[from] XmlError),
    #[error("is no message, presence or iq of jabber:client")]
    Kind,
    #[error("has a type that cannot be sent")]
    Type,
    #[error("is an iq without an id, or without exactly one element in it")]
    Iq,
    #[error("has a from or to that is {0}")]
    Address(#[from] JidError),
}

impl Kind {
    pub fn of(element: &Element) -> Option<Self> {
        if element.ns != CLIENT {
            return None;
        }
        match element.name.as_str() {
            "message" => Some(Self::Message),
            "presence" => Some(Self::Presence),
            "iq" => Some(Self::Iq),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Presence => "presence",
            Self::Iq => "iq",
        }
    }
}

impl Stanza {
    /// What may be published: nothing that answers somebody.
    pub fn published(text: &[u8]) -> Result<Self, StanzaError> {
        let element = Element::parse(text)?;
        if matches!(element.attr("type"), Some("error" | "result")) {
            return Err(StanzaError::Type);
        }
        Self::of(element)
    }

    /// What an origin may say: answers too.
    pub fn said(text: &[u8]) -> Result<Self, StanzaError> {
        Self::of(Element::parse(text)?)
    }

    pub fn of(mut element: Element) -> Result<Self, StanzaError> {
        let kind = Kind::of(&element).ok_or(StanzaError::Kind)?;
        let of_type = element.attr("type");
        let known: &[&str] = match kind {
            Kind::Message => &["chat", "error", "groupchat", "headline", "normal"],
            Kind::Presence => {
                &["error", "probe", "subscribe", "subscribed", "unavailable", "unsubscribe", "unsubscribed"]
            }
            Kind::Iq => &["get", "set", "result", "error"],
        };
        if of_type.is_some_and(|name| !known.contains(&name)) {
            return Err(StanzaError::Type);
        }
        if kind == Kind::Iq {
            let children = element.children().count();
            let whole = match of_type {
                Some("get" | "set") => children == 1,
                Some("result") => children <= 1,
                Some(_) => children >= 1,
                None => false,
            };
            if !whole || element.attr("id").is_none_or(str::is_empty) {
                return Err(StanzaError::Iq);
            }
        }
        let address = |name| element.attr(name).map(Jid::parse).transpose();
        let (from, to) = (address("from")?, address("to")?);
        element.unset("from");
        element.unset("to");
        let (mut attributes, mut content) = (String::new(), String::new());
        element.write_attributes(&mut attributes);
        element.write_nodes(&mut content);
        let extension = element.children().find(|child| child.ns != CLIENT);
        let payload = extension.unwrap_or(&element);
        // It is put into elements of any namespace: its own is always said.
        let payload = payload.to_xml(if payload.ns.is_empty() { CLIENT } else { "" });
        Ok(Self { kind, from, to, attributes, content, payload })
    }

    /// A message with this XML in it.
    pub fn message(content: &str) -> Self {
        let (attributes, payload) = (String::new(), String::new());
        Self { kind: Kind::Message, from: None, to: None, attributes, content: content.into(), payload }
    }

    /// What a log keeps of it.
    pub(crate) fn parts(&self) -> Parts<'_> {
        let whole = self.whole();
        Parts {
            kind: self.kind as u8,
            from: self.from.as_ref().map(Jid::as_str),
            to: self.to.as_ref().map(Jid::as_str),
            attributes: &self.attributes,
            content: &self.content,
            payload: (self.payload != whole).then_some(&*self.payload),
        }
    }

    /// What [`Self::parts`] were of.
    pub(crate) fn of_parts(parts: &Parts<'_>) -> Option<Self> {
        let address = |text: Option<&str>| text.map(Jid::parse).transpose().ok();
        let mut stanza = Self {
            kind: [Kind::Message, Kind::Presence, Kind::Iq]
                .into_iter()
                .find(|kind| *kind as u8 == parts.kind)?,
            from: address(parts.from)?,
            to: address(parts.to)?,
            attributes: parts.attributes.to_owned(),
            content: parts.content.to_owned(),
            payload: String::new(),
        };
        stanza.payload = parts.payload.map_or_else(|| stanza.whole(), str::to_owned);
        Some(stanza)
    }

    /// The payload of one that carries no extension.
    fn whole(&self) -> String {
        let Self { kind, attributes, content, .. } = self;
        let name = kind.name();
        let end = if content.is_empty() { "/>".to_owned() } else { format!(">{content}</{name}>") };
        format!("<{name} xmlns='{CLIENT}'{attributes}{end}")
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn payload(&self) -> &str {
        &self.payload
    }

    /// Of a copy, as it is written, without its addresses and stamp, which have at most some 44 kB.
    pub fn bytes(&self) -> usize {
        self.attributes.len() + self.content.len() + 2 * self.kind.name().len() + "< from='' to=''></>".len()
    }

    /// Bytes that it holds.
    pub fn weight(&self) -> usize {
        let addresses = [&self.from, &self.to].into_iter().flatten().map(|jid| jid.as_str().len());
        self.attributes.len() + self.content.len() + self.payload.len() + addresses.sum::<usize>()
    }

    /// As it could be published again.
    pub fn text(&self) -> String {
        let name = self.kind.name();
        let mut text = format!("<{name}");
        for (address, jid) in [("from", &self.from), ("to", &self.to)] {
            jid.iter().for_each(|jid| push_attribute(address, jid.as_str(), &mut text));
        }
        let Self { attributes, content, .. } = self;
        text + &format!("{attributes}>{content}</{name}>")
    }

    /// The form of which copies are made; `more` is XML that is put behind what is in it.
    pub fn sealed(&self, from: &str, more: &str) -> Copies {
        let name = self.kind.name();
        let mut head = format!("<{name}");
        push_attribute("from", from, &mut head);
        head.push_str(" to='");
        let Self { attributes, content, .. } = self;
        Copies { head: head.into(), tail: format!("'{attributes}>{content}{more}</{name}>").into() }
    }
}

/// How a stanza is named to origins (RFC 3923).
pub const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/xmpp+xml");

/// Whether a body is said to be a stanza, by any of the fields that say what it is.
pub fn is_media(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_TYPE).iter().any(|value| {
        let named = value.as_bytes().to_ascii_lowercase();
        named.windows(MEDIA_TYPE.len()).any(|part| MEDIA_TYPE == part)
    })
}

/// A stanza in pieces.
pub(crate) struct Parts<'s> {
    pub(crate) kind: u8,
    pub(crate) from: Option<&'s str>,
    pub(crate) to: Option<&'s str>,
    pub(crate) attributes: &'s str,
    pub(crate) content: &'s str,
    /// None: the stanza itself.
    pub(crate) payload: Option<&'s str>,
}

/// A stanza of which each addressee gets a copy.
#[derive(Clone, Debug)]
pub struct Copies {
    head: Bytes,
    tail: Bytes,
}

impl Copies {
    /// Appends the copy for `to`.
    pub fn write(&self, to: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        if to.bytes().any(|byte| matches!(byte, b'&' | b'<' | b'\'')) {
            let mut escaped = String::new();
            escape_value(to, &mut escaped);
            out.extend_from_slice(escaped.as_bytes());
        } else {
            out.extend_from_slice(to.as_bytes());
        }
        out.extend_from_slice(&self.tail);
    }
}

/// XEP-0203: when something was first to be sent, `ms` since 1970.
pub fn delay(from: &str, ms: u64) -> String {
    let mut out = String::from("<delay xmlns='urn:xmpp:delay'");
    push_attribute("from", from, &mut out);
    push_attribute("stamp", &timestamp(ms), &mut out);
    out.push_str("/>");
    out
}

/// XEP-0082, in UTC.
fn timestamp(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1000 % 86_400);
    // The calendar repeats every 400 years; counted from March, a leap day is a year's last.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200_007, "2024-03-01T00:00:00.007Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(timestamp(ms), expected);
        }
    }
}
