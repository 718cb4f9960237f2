//! Answers to stanzas: results, and errors with their conditions (RFC 6120 8.3).

use super::xml::Element;

/// Why a stanza is not done what it asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition {
    BadRequest,
    FeatureNotImplemented,
    Forbidden,
    InternalServerError,
    ItemNotFound,
    JidMalformed,
    NotAllowed,
    PolicyViolation,
    RemoteServerTimeout,
    ResourceConstraint,
    ServiceUnavailable,
    UnexpectedRequest,
}

impl Condition {
    /// Its name, and what who asks can do about it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::BadRequest => ("bad-request", "modify"),
            Self::FeatureNotImplemented => ("feature-not-implemented", "cancel"),
            Self::Forbidden => ("forbidden", "auth"),
            Self::InternalServerError => ("internal-server-error", "wait"),
            Self::ItemNotFound => ("item-not-found", "cancel"),
            Self::JidMalformed => ("jid-malformed", "modify"),
            Self::NotAllowed => ("not-allowed", "cancel"),
            Self::PolicyViolation => ("policy-violation", "modify"),
            Self::RemoteServerTimeout => ("remote-server-timeout", "wait"),
            Self::ResourceConstraint => ("resource-constraint", "wait"),
            Self::ServiceUnavailable => ("service-unavailable", "cancel"),
            Self::UnexpectedRequest => ("unexpected-request", "cancel"),
        }
    }
}

/// A stanza back to where `asked` came from.
fn back(asked: &Element, of_type: &str) -> Element {
    let mut answer = Element::new(&asked.ns, &asked.name).with("type", of_type);
    for (name, of) in [("id", "id"), ("from", "to"), ("to", "from")] {
        if let Some(value) = asked.attr(of) {
            answer.set(name, value);
        }
    }
    answer
}

pub fn result(asked: &Element) -> Element {
    back(asked, "result")
}

/// `None` for what must not be answered with an error: an error, a result, presence, and what many get.
pub fn error(asked: &Element, condition: Condition, text: &str) -> Option<Element> {
    detailed(asked, condition, text, None)
}

/// Like [`error`], with a condition of the application's own.
pub fn detailed(
    asked: &Element,
    condition: Condition,
    text: &str,
    detail: Option<Element>,
) -> Option<Element> {
    let answered = match asked.name.as_str() {
        "iq" => matches!(asked.attr("type"), Some("get" | "set")),
        "message" => !matches!(asked.attr("type"), Some("error" | "groupchat" | "headline")),
        _ => false,
    };
    if !answered || asked.attr("from").is_none() {
        return None;
    }
    let (name, of_type) = condition.names();
    let mut error = Element::new(&asked.ns, "error").with("type", of_type);
    error = error.containing(Element::new(STANZAS, name));
    if !text.is_empty() {
        let text = Element::new(STANZAS, "text").with("xml:lang", "en").saying(text);
        error = error.containing(text);
    }
    if let Some(detail) = detail {
        error = error.containing(detail);
    }
    Some(back(asked, "error").containing(error))
}

/// Whether an error says that there is nobody at the address, and will not be. Of an address whose server is not found,
/// that is not known.
pub fn is_for_good(answer: &Element) -> bool {
    let error = answer.children().find(|child| child.name == "error" && child.attr("type") == Some("cancel"));
    error.is_some_and(|error| {
        ["gone", "item-not-found"].iter().any(|name| error.child(STANZAS, name).is_some())
    })
}

const STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
