//! What entities ask of the component itself: service discovery (XEP-0030), ping (0199), subscriptions (0060), and
//! commands (0050). Reads a stanza, decides nothing, and writes what answers it.

use super::{
    CLIENT,
    pubsub::{ERRORS, OWNER, PUBSUB, Shows},
    xml::Element,
};

pub const INFO: &str = "http://jabber.org/protocol/disco#info";
pub const ITEMS: &str = "http://jabber.org/protocol/disco#items";
pub const COMMANDS: &str = "http://jabber.org/protocol/commands";
pub const FORM: &str = "jabber:x:data";
pub const PING: &str = "urn:xmpp:ping";

/// The only command.
pub const PUBLISH: &str = "publish";

/// An iq of type get or set, as far as it is understood. Nodes and addresses are as they were written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    Ping,
    Info {
        node: Option<String>,
    },
    Items {
        node: Option<String>,
    },
    Subscribe {
        node: String,
        jid: String,
        shows: Shows,
    },
    Unsubscribe {
        node: String,
        jid: String,
    },
    Subscriptions {
        node: Option<String>,
    },
    /// Of the log of a channel: the newest, at most so many, or those of these ids.
    Retrieve {
        node: String,
        most: Option<usize>,
        ids: Vec<String>,
    },
    /// Of XEP-0060, but not here.
    Unsupported {
        feature: &'static str,
    },
    Command {
        node: String,
        step: Step,
        session: Option<String>,
    },
    /// Of an extension that is known, but nothing that it knows; where the extension has a word for what is wrong, its
    /// namespace and that.
    Malformed(Option<(&'static str, &'static str)>),
    Unknown,
}

/// What a command is asked to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    Execute,
    Cancel,
    /// The form, filled in: names and values, of several values a line each.
    Submit(Vec<(String, String)>),
}

impl Request {
    pub fn of(iq: &Element) -> Self {
        let mut children = iq.children();
        let (Some(child), None) = (children.next(), children.next()) else { return Self::Malformed(None) };
        let is_set = iq.attr("type") == Some("set");
        let node = || child.attr("node").filter(|node| !node.is_empty()).map(str::to_owned);
        match (child.ns.as_str(), child.name.as_str()) {
            (PING, "ping") if !is_set => Self::Ping,
            (INFO, "query") if !is_set => Self::Info { node: node() },
            (ITEMS, "query") if !is_set => Self::Items { node: node() },
            (COMMANDS, "command") if is_set => command(child),
            (PUBSUB, "pubsub") => pubsub(child, is_set),
            (OWNER, "pubsub") => owner(child),
            _ => Self::Unknown,
        }
    }
}

fn pubsub(pubsub: &Element, is_set: bool) -> Request {
    let Some(asked) = pubsub.children().find(|child| child.ns == PUBSUB) else {
        return Request::Malformed(None);
    };
    let node = asked.attr("node").filter(|node| !node.is_empty()).map(str::to_owned);
    let lacks = |what| Request::Malformed(Some((ERRORS, what)));
    let jid = asked.attr("jid").map(str::to_owned);
    match (asked.name.as_str(), is_set, node, jid) {
        ("subscribe", true, Some(node), Some(jid)) => match shows(pubsub) {
            Some(shows) => Request::Subscribe { node, jid, shows },
            None => lacks("invalid-options"),
        },
        ("unsubscribe", true, Some(node), Some(jid)) => Request::Unsubscribe { node, jid },
        ("subscriptions", false, node, _) => Request::Subscriptions { node },
        ("items", false, Some(node), _) => {
            let most = asked.attr("max_items").map(str::parse);
            let named = asked.children().filter(|child| child.is(PUBSUB, "item"));
            let ids: Option<Vec<_>> = named.map(|item| item.attr("id").map(str::to_owned)).collect();
            match (most.transpose(), ids) {
                (Ok(most), Some(ids)) => Request::Retrieve { node, most, ids },
                _ => Request::Malformed(None),
            }
        }
        ("subscribe" | "unsubscribe", true, Some(_), None) => lacks("jid-required"),
        ("subscribe" | "unsubscribe", true, ..) | ("items", false, ..) => lacks("nodeid-required"),
        (name, ..) => unsupported(
            name,
            &[
                ("affiliations", "retrieve-affiliations"),
                ("create", "create-nodes"),
                ("default", "retrieve-default-sub"),
                ("options", "subscription-options"),
                ("publish", "publish"),
                ("retract", "retract-items"),
            ],
        ),
    }
}

/// What owners of nodes may ask elsewhere: here channels have none.
fn owner(pubsub: &Element) -> Request {
    let asked = pubsub.children().find(|child| child.ns == OWNER);
    unsupported(
        asked.map_or("", |asked| &asked.name),
        &[
            ("affiliations", "modify-affiliations"),
            ("configure", "config-node"),
            ("default", "retrieve-default"),
            ("delete", "delete-nodes"),
            ("purge", "purge-nodes"),
            ("subscriptions", "manage-subscriptions"),
        ],
    )
}

/// The feature that somebody who sends this element looks for.
fn unsupported(name: &str, features: &[(&str, &'static str)]) -> Request {
    match features.iter().find(|(known, _)| *known == name) {
        Some((_, feature)) => Request::Unsupported { feature },
        None => Request::Malformed(None),
    }
}

/// The option that says when a subscriber wants items; `None` for values that do not exist.
fn shows(pubsub: &Element) -> Option<Shows> {
    let form = pubsub.child(PUBSUB, "options").and_then(|options| options.child(FORM, "x"));
    let values = form.map(values).unwrap_or_default();
    let wanted = values.iter().find(|(name, _)| name == "pubsub#show-values");
    let names = wanted.map(|(_, names)| names.as_str()).unwrap_or_default();
    names.lines().try_fold(Shows::ALWAYS, |shows, name| Shows::named(name).map(|one| shows.and(one)))
}

fn command(command: &Element) -> Request {
    let Some(node) = command.attr("node").map(str::to_owned) else { return Request::Malformed(None) };
    let bad = |what| Request::Malformed(Some((COMMANDS, what)));
    let form = command.child(FORM, "x");
    let step = match (command.attr("action"), form) {
        (Some("cancel"), _) => Step::Cancel,
        (None | Some("execute" | "complete" | "next"), Some(form)) if form.attr("type") == Some("submit") => {
            Step::Submit(values(form))
        }
        (None | Some("execute"), None) => Step::Execute,
        (None | Some("execute" | "complete" | "next"), _) => return bad("bad-payload"),
        // There is one step, and none before it.
        (Some("prev"), _) => return bad("bad-action"),
        (Some(_), _) => return bad("malformed-action"),
    };
    Request::Command { node, step, session: command.attr("sessionid").map(str::to_owned) }
}

fn values(form: &Element) -> Vec<(String, String)> {
    let fields = form.children().filter(|field| field.is(FORM, "field"));
    let named = fields.filter_map(|field| {
        let values: Vec<_> =
            field.children().filter(|value| value.is(FORM, "value")).map(Element::text).collect();
        Some((field.attr("var")?.to_owned(), values.join("\n")))
    });
    named.collect()
}

/// What the component is (XEP-0030).
pub fn info(command_too: bool, logs: bool) -> Element {
    let mut features = vec![
        INFO,
        ITEMS,
        PING,
        "urn:xmpp:delay",
        "urn:xmpp:json:0",
        PUBSUB,
        "http://jabber.org/protocol/pubsub#subscribe",
        "http://jabber.org/protocol/pubsub#retrieve-subscriptions",
        "http://jabber.org/protocol/pubsub#item-ids",
    ];
    if logs {
        features.push("http://jabber.org/protocol/pubsub#persistent-items");
        features.push("http://jabber.org/protocol/pubsub#retrieve-items");
    }
    if command_too {
        features.push(COMMANDS);
    }
    described(None, ("pubsub", "service", "Fantail"), &features)
}

/// What a channel is.
pub fn node_info(node: &str) -> Element {
    described(Some(node), ("pubsub", "leaf", node), &[INFO, PUBSUB])
}

pub fn commands_info() -> Element {
    described(Some(COMMANDS), ("automation", "command-list", "Commands"), &[INFO, ITEMS])
}

pub fn command_info() -> Element {
    described(Some(PUBLISH), ("automation", "command-node", PUBLISH_TITLE), &[COMMANDS, FORM])
}

fn described(node: Option<&str>, (category, kind, name): (&str, &str, &str), features: &[&str]) -> Element {
    let mut query = Element::new(INFO, "query");
    if let Some(node) = node {
        query.set("node", node);
    }
    let identity =
        Element::new(INFO, "identity").with("category", category).with("type", kind).with("name", name);
    query = query.containing(identity);
    for feature in features {
        query = query.containing(Element::new(INFO, "feature").with("var", feature));
    }
    query
}

/// The list of commands, for who may use them; else nothing.
pub fn items(node: Option<&str>, commands_at: Option<&str>) -> Element {
    let mut query = Element::new(ITEMS, "query");
    if let Some(node) = node {
        query.set("node", node);
    }
    if let (Some(COMMANDS), Some(jid)) = (node, commands_at) {
        let item = Element::new(ITEMS, "item").with("jid", jid).with("node", PUBLISH);
        query = query.containing(item.with("name", PUBLISH_TITLE));
    }
    query
}

/// A subscription, as an answer to who subscribes.
pub fn subscription(node: &str, jid: &str) -> Element {
    Element::new(PUBSUB, "subscription")
        .with("node", node)
        .with("jid", jid)
        .with("subscription", "subscribed")
}

/// The form of the command, to be filled in.
pub fn publish_form(session: &str) -> Element {
    let mut form = Element::new(FORM, "x").with("type", "form");
    for (name, text) in [
        ("title", PUBLISH_TITLE),
        ("instructions", "Give a channel and a text, or items as JSON, as POST /publish/ takes them."),
    ] {
        form = form.containing(Element::new(FORM, name).saying(text));
    }
    for (var, kind, label) in [
        ("realm", "text-single", "Realm; default if empty"),
        ("channel", "text-single", "Channel"),
        ("content", "text-multi", "Text"),
        ("items", "text-multi", "Items as JSON"),
    ] {
        form = form
            .containing(Element::new(FORM, "field").with("var", var).with("type", kind).with("label", label));
    }
    let actions = Element::new(COMMANDS, "actions")
        .with("execute", "complete")
        .containing(Element::new(COMMANDS, "complete"));
    commanded(PUBLISH, session, "executing").containing(actions).containing(form)
}

/// The command is over, one way or the other.
pub fn commanded(node: &str, session: &str, status: &str) -> Element {
    Element::new(COMMANDS, "command").with("node", node).with("sessionid", session).with("status", status)
}

pub fn note(command: Element, kind: &str, text: &str) -> Element {
    command.containing(Element::new(COMMANDS, "note").with("type", kind).saying(text))
}

/// A chat message's text, if it has one.
pub fn body(message: &Element) -> Option<String> {
    message.child(CLIENT, "body").map(Element::text)
}

const PUBLISH_TITLE: &str = "Publish to a channel";
