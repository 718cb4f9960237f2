//! Elements of XML: read within limits, written with their namespaces and nothing that was not said. Prefixes of
//! elements are resolved when they are read, so that no writer depends on what was declared around it.

use rxml::{Event, Parse, XMLNS_XML, XMLNS_XMLNS};

use super::CLIENT;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Element {
    pub ns: String,
    pub name: String,
    attributes: Vec<Attribute>,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Node {
    Element(Element),
    Text(String),
    /// What was written before, with its namespaces; nothing that is read becomes this.
    Written(String),
}

/// Without a namespace `ns` is empty.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Attribute {
    ns: String,
    name: String,
    value: String,
}

/// Why bytes are no element.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum XmlError {
    #[error("is not well-formed: {0}")]
    Malformed(rxml::Error),
    #[error("has a document type, entity, comment or processing instruction")]
    Restricted,
    #[error("ends too early")]
    Cut,
    #[error("has something behind its end, or text around it")]
    Around,
    #[error("{0}")]
    Excess(#[from] Excess),
}

/// Which limit is exceeded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Excess {
    #[error("has more than {} bytes", super::MAX_STANZA_BYTES)]
    Bytes,
    #[error("has more than {MAX_DEPTH} elements in each other")]
    Depth,
    #[error("has more than {MAX_NODES} elements and texts")]
    Nodes,
    #[error("has an element with more than {MAX_ATTRIBUTES} attributes")]
    Attributes,
    #[error("has a namespace of more than {MAX_NAMESPACE_BYTES} bytes")]
    Namespace,
    /// Parsers of servers do not take what the newest XML does, and one refusal ends the stream of everybody.
    #[error(
        "has a name with other characters than A-Z, a-z, 0-9, '-', '_' and '.', or a namespace with white space, \
         or that XML keeps for itself"
    )]
    Name,
}

impl From<rxml::Error> for XmlError {
    fn from(error: rxml::Error) -> Self {
        match error {
            // Of syntax it finds invalid what begins as a comment, a reference or a declaration.
            rxml::Error::RestrictedXml(_) | rxml::Error::UndeclaredEntity | rxml::Error::InvalidSyntax(_) => {
                Self::Restricted
            }
            error => Self::Malformed(error),
        }
    }
}

impl Element {
    pub fn new(ns: &str, name: &str) -> Self {
        Self { ns: ns.into(), name: name.into(), ..Self::default() }
    }

    /// Reads one element and nothing else. Where nothing else is declared it is of [`CLIENT`].
    pub fn parse(text: &[u8]) -> Result<Self, XmlError> {
        if text.len() > super::MAX_STANZA_BYTES {
            return Err(Excess::Bytes.into());
        }
        // The parser takes a declaration in front; a stream does not.
        if text.starts_with(b"<?") {
            return Err(XmlError::Restricted);
        }
        let mut parser = parser();
        let (mut rest, mut builder, mut done) = (text, Builder::default(), None);
        loop {
            match parser.parse(&mut rest, true) {
                Ok(Some(event)) if done.is_none() => done = builder.push(event)?,
                Ok(Some(_)) => return Err(XmlError::Around),
                Ok(None) => return done.ok_or(XmlError::Cut),
                Err(rxml::error::EndOrError::NeedMoreData) => return Err(XmlError::Cut),
                Err(rxml::error::EndOrError::Error(rxml::Error::InvalidEof(_))) => return Err(XmlError::Cut),
                Err(rxml::error::EndOrError::Error(_)) if done.is_some() => return Err(XmlError::Around),
                Err(rxml::error::EndOrError::Error(error)) => return Err(error.into()),
            }
        }
    }

    pub fn is(&self, ns: &str, name: &str) -> bool {
        self.ns == ns && self.name == name
    }

    pub fn attr(&self, name: &str) -> Option<&str> {
        let found =
            self.attributes.iter().find(|attribute| attribute.ns.is_empty() && attribute.name == name);
        found.map(|attribute| attribute.value.as_str())
    }

    /// Sets an attribute without a namespace.
    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.attributes.push(Attribute { ns: String::new(), name: name.into(), value: value.into() });
    }

    pub fn unset(&mut self, name: &str) {
        self.attributes.retain(|attribute| !attribute.ns.is_empty() || attribute.name != name);
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    pub fn containing(mut self, child: Self) -> Self {
        self.nodes.push(Node::Element(child));
        self
    }

    pub fn saying(mut self, text: &str) -> Self {
        self.nodes.push(Node::Text(text.into()));
        self
    }

    pub fn holding(mut self, written: String) -> Self {
        self.nodes.push(Node::Written(written));
        self
    }

    pub fn children(&self) -> impl Iterator<Item = &Self> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) | Node::Written(_) => None,
        })
    }

    pub fn child(&self, ns: &str, name: &str) -> Option<&Self> {
        self.children().find(|child| child.is(ns, name))
    }

    /// Its own text, without that of elements in it.
    pub fn text(&self) -> String {
        let texts = self.nodes.iter().filter_map(|node| match node {
            Node::Text(text) => Some(text.as_str()),
            Node::Element(_) | Node::Written(_) => None,
        });
        texts.collect()
    }

    /// As XML, where `default` is the default namespace of what it is written into.
    pub fn to_xml(&self, default: &str) -> String {
        let mut out = String::new();
        self.write(default, &mut out);
        out
    }

    pub(super) fn write(&self, default: &str, out: &mut String) {
        out.push('<');
        out.push_str(&self.name);
        if self.ns != default {
            push_attribute("xmlns", &self.ns, out);
        }
        self.write_attributes(out);
        if self.nodes.is_empty() {
            out.push_str("/>");
            return;
        }
        out.push('>');
        self.write_nodes(out);
        out.push_str("</");
        out.push_str(&self.name);
        out.push('>');
    }

    /// Each with a space in front.
    pub(super) fn write_attributes(&self, out: &mut String) {
        for (at, Attribute { ns, name, value }) in self.attributes.iter().enumerate() {
            if ns.is_empty() {
                push_attribute(name, value, out);
            } else if ns == XMLNS_XML {
                push_attribute(&format!("xml:{name}"), value, out);
            } else {
                push_attribute(&format!("xmlns:a{at}"), ns, out);
                push_attribute(&format!("a{at}:{name}"), value, out);
            }
        }
    }

    pub(super) fn write_nodes(&self, out: &mut String) {
        for node in &self.nodes {
            match node {
                Node::Element(element) => element.write(&self.ns, out),
                Node::Text(text) => escape(text, out),
                Node::Written(xml) => out.push_str(xml),
            }
        }
    }
}

/// Collects the events of one element.
#[derive(Debug, Default)]
pub(super) struct Builder {
    open: Vec<Element>,
    nodes: usize,
    /// The outermost element has declared no namespace for those in it.
    undeclared: bool,
}

impl Builder {
    /// The element, when this was its last event.
    pub(super) fn push(&mut self, event: Event) -> Result<Option<Element>, XmlError> {
        match event {
            Event::XmlDeclaration(..) => Err(XmlError::Restricted),
            Event::StartElement(_, (ns, name), attributes) => {
                self.count()?;
                if self.open.len() >= MAX_DEPTH {
                    return Err(Excess::Depth.into());
                }
                if attributes.len() > MAX_ATTRIBUTES {
                    return Err(Excess::Attributes.into());
                }
                check(&ns, &name)?;
                if ns == XMLNS_XML {
                    return Err(Excess::Name.into());
                }
                attributes.iter().try_for_each(|((ns, name), _)| check(ns, name))?;
                let attributes = attributes.into_iter().map(|((ns, name), value)| Attribute {
                    ns: ns.as_str().into(),
                    name: name.to_string(),
                    value,
                });
                let mut attributes: Vec<_> = attributes.collect();
                attributes.sort_by(|a, b| (&a.ns, &a.name).cmp(&(&b.ns, &b.name)));
                let ns = self.canonical(ns.as_str()).into();
                self.open.push(Element { ns, name: name.to_string(), attributes, nodes: Vec::new() });
                Ok(None)
            }
            Event::EndElement(_) => {
                let Some(done) = self.open.pop() else { return Err(XmlError::Around) };
                match self.open.last_mut() {
                    None => return Ok(Some(done)),
                    Some(parent) => parent.nodes.push(Node::Element(done)),
                }
                Ok(None)
            }
            Event::Text(_, text) => {
                let Some(parent) = self.open.last_mut() else { return Err(XmlError::Around) };
                // A long text comes in pieces.
                if let Some(Node::Text(before)) = parent.nodes.last_mut() {
                    before.push_str(&text);
                } else {
                    parent.nodes.push(Node::Text(text));
                    self.count()?;
                }
                Ok(None)
            }
        }
    }

    /// Where nothing is declared, an element is of [`CLIENT`]. What is declared to have no namespace has none.
    fn canonical<'n>(&mut self, ns: &'n str) -> &'n str {
        let inherits = match self.open.last() {
            None => {
                self.undeclared = ns.is_empty();
                true
            }
            Some(parent) => self.undeclared && parent.ns == CLIENT,
        };
        if inherits && ns.is_empty() || ns == COMPONENT { CLIENT } else { ns }
    }

    fn count(&mut self) -> Result<(), Excess> {
        self.nodes += 1;
        if self.nodes > MAX_NODES { Err(Excess::Nodes) } else { Ok(()) }
    }
}

/// One that takes names and values of any length that a stanza may have.
pub(super) fn parser() -> rxml::Parser {
    use rxml::WithOptions;
    rxml::Parser::with_options(rxml::Options { max_token_length: MAX_TOKEN_BYTES, ..Default::default() })
}

/// What a start tag is of, but for what was inside of it: its name, and what it says of itself.
pub(super) fn head(event: &Event) -> Option<Element> {
    let Event::StartElement(_, (ns, name), attributes) = event else { return None };
    let ns = if ns.as_str() == COMPONENT { CLIENT } else { ns.as_str() };
    let said = ["from", "id", "to", "type"];
    let said =
        said.into_iter().filter_map(|name| Some((name, attributes.get(&rxml::Namespace::NONE, name)?)));
    Some(said.fold(Element::new(ns, name), |head, (name, value)| head.with(name, value)))
}

fn check(ns: &str, name: &str) -> Result<(), Excess> {
    // It is declared once, and is written again for each element and attribute that has it.
    if ns.len() > MAX_NAMESPACE_BYTES {
        return Err(Excess::Namespace);
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if name.bytes().all(plain) && !ns.contains(odd) && ns != XMLNS_XMLNS { Ok(()) } else { Err(Excess::Name) }
}

pub(super) fn push_attribute(name: &str, value: &str, out: &mut String) {
    out.push(' ');
    out.push_str(name);
    out.push_str("='");
    escape_value(value, out);
    out.push('\'');
}

/// Good between tags: what must be, so that little grows.
pub fn escape(text: &str, out: &mut String) {
    escape_with(text, out, |at, byte| match byte {
        b'&' => "&amp;",
        b'<' => "&lt;",
        b'>' if text[..at].ends_with("]]") => "&gt;",
        b'\r' => "&#13;",
        _ => "",
    });
}

/// Good between the single quotes of an attribute.
pub fn escape_value(text: &str, out: &mut String) {
    escape_with(text, out, |_, byte| match byte {
        b'&' => "&amp;",
        b'<' => "&lt;",
        b'\'' => "&apos;",
        b'\t' => "&#9;",
        b'\n' => "&#10;",
        b'\r' => "&#13;",
        _ => "",
    });
}

/// `of` says what is written for an ASCII character in this place; nothing: itself.
fn escape_with(text: &str, out: &mut String, of: impl Fn(usize, u8) -> &'static str) {
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate().filter(|(_, byte)| byte.is_ascii()) {
        let escaped = of(at, byte);
        if escaped.is_empty() {
            continue;
        }
        out.push_str(&text[plain..at]);
        out.push_str(escaped);
        plain = at + 1;
    }
    out.push_str(&text[plain..]);
}

/// Whether a character may stand in XML at all (XML 1.0, 2.2).
pub fn is_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Of the elements of a component's stream, where clients have [`CLIENT`].
const COMPONENT: &str = "jabber:component:accept";
/// Far over what extensions need.
pub const MAX_DEPTH: usize = 64;
pub const MAX_NODES: usize = 8192;
pub const MAX_ATTRIBUTES: usize = 64;
pub const MAX_NAMESPACE_BYTES: usize = 256;
/// A server may let longer stanzas through than are taken here; they are to be passed over, not to end the stream.
const MAX_TOKEN_BYTES: usize = 16 * super::MAX_STANZA_BYTES;
