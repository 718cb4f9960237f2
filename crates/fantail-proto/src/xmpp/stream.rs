//! The stream of a component and its server (XEP-0114): what opens it, what proves the secret, and what comes of the
//! server's bytes. A stanza that is over a limit is passed over, with its head told; only the server itself can end
//! the stream.

use rxml::{Event as Xml, Parse, Parser, error::EndOrError};

use super::{
    MAX_STANZA_BYTES,
    xml::{self, Builder, Element, Excess, XmlError, parser, push_attribute},
};

/// What opens a component's stream.
pub fn opening(domain: &str) -> String {
    let mut out = String::from(
        "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
         xmlns:stream='http://etherx.jabber.org/streams'",
    );
    push_attribute("to", domain, &mut out);
    out + ">"
}

/// The proof of the secret for the stream that the server has given this id.
pub fn handshake(id: &str, secret: &[u8]) -> String {
    let mut hash = sha1_smol::Sha1::new();
    hash.update(id.as_bytes());
    hash.update(secret);
    let hex: String = hash.digest().bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("<handshake>{hex}</handshake>")
}

/// What ends a stream in order.
pub const CLOSING: &str = "</stream:stream>";

/// What ends it for what the server has sent.
pub fn complaint(condition: &str) -> String {
    format!(
        "<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>{CLOSING}"
    )
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Open {
        id: String,
    },
    /// The server has taken the proof.
    Accepted,
    Stanza(Element),
    /// A stanza that is over a limit: its name and attributes, and which limit.
    Excess(Element, Excess),
    /// The server's reason for ending the stream: a condition of RFC 6120 4.9.3.
    Failed(String),
    Closed,
}

/// The server speaks no XMPP.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Broken {
    #[error("the stream {0}")]
    Xml(XmlError),
    #[error("it is no stream of XMPP")]
    NoStream,
}

impl Broken {
    /// What the server is told.
    pub fn condition(&self) -> &'static str {
        match self {
            Self::Xml(XmlError::Restricted) => "restricted-xml",
            Self::Xml(_) => "not-well-formed",
            Self::NoStream => "invalid-namespace",
        }
    }
}

/// Reads a server's bytes.
#[derive(Debug)]
pub struct Reader {
    parser: Parser,
    /// Of elements, the stream's own included.
    depth: usize,
    bytes: usize,
    /// What was counted belongs to what is over.
    between: bool,
    builder: Builder,
    /// Of what is passed over: its beginning, and why.
    passed: Option<(Element, Excess)>,
    /// The name of what is read, and who sends it to whom.
    head: Option<Element>,
}

impl Default for Reader {
    fn default() -> Self {
        let mut parser = parser();
        // What is no XML is noticed at its first letter.
        parser.set_text_buffering(false);
        let builder = Builder::default();
        Self { parser, depth: 0, bytes: 0, between: false, builder, passed: None, head: None }
    }
}

impl Reader {
    /// The next event of `input`, which is taken as far as it is needed; `None` when it is used up.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Event>, Broken> {
        loop {
            if std::mem::take(&mut self.between) {
                self.bytes = 0;
            }
            let before = input.len();
            let event = match self.parser.parse(input, false) {
                Ok(Some(event)) => event,
                Ok(None) | Err(EndOrError::NeedMoreData) => {
                    self.bytes += before - input.len();
                    return Ok(None);
                }
                Err(EndOrError::Error(error)) => return Err(Broken::Xml(error.into())),
            };
            self.bytes += before - input.len();
            if let Some(event) = self.event(event)? {
                return Ok(Some(event));
            }
        }
    }

    /// Of the stanza that was read last.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn event(&mut self, event: Xml) -> Result<Option<Event>, Broken> {
        match event {
            Xml::XmlDeclaration(..) => Ok(None),
            Xml::StartElement(_, (ns, name), attributes) if self.depth == 0 => {
                self.depth = 1;
                if ns.as_str() != STREAMS || name.as_str() != "stream" {
                    return Err(Broken::NoStream);
                }
                self.between = true;
                let id = attributes.get(&rxml::Namespace::NONE, "id").cloned().unwrap_or_default();
                Ok(Some(Event::Open { id }))
            }
            Xml::Text(..) if self.depth == 1 => {
                self.between = true;
                Ok(None)
            }
            Xml::EndElement(_) if self.depth == 1 => {
                self.depth = 0;
                Ok(Some(Event::Closed))
            }
            event => Ok(self.inner(event)),
        }
    }

    /// An event of a stanza.
    fn inner(&mut self, event: Xml) -> Option<Event> {
        let starts = self.depth == 1;
        match &event {
            Xml::StartElement(..) => self.depth += 1,
            Xml::EndElement(_) => self.depth -= 1,
            _ => {}
        }
        if starts {
            self.builder = Builder::default();
            self.head = xml::head(&event);
        }
        let ends = self.depth == 1;
        self.between = ends;
        if self.passed.is_none() {
            let outcome = if self.bytes > MAX_STANZA_BYTES {
                Err(XmlError::Excess(Excess::Bytes))
            } else {
                self.builder.push(event)
            };
            match outcome {
                Ok(Some(element)) => return Some(self.whole(element)),
                Ok(None) => {}
                Err(XmlError::Excess(excess)) => {
                    self.passed = Some((self.head.take().unwrap_or_default(), excess));
                }
                // The parser lets nothing else through.
                Err(_) => self.passed = Some((Element::default(), Excess::Nodes)),
            }
        }
        if ends { self.passed.take().map(|(head, excess)| Event::Excess(head, excess)) } else { None }
    }

    fn whole(&mut self, element: Element) -> Event {
        if element.is(STREAMS, "error") {
            let condition =
                element.children().find(|child| child.ns == STREAM_ERRORS && child.name != "text");
            return Event::Failed(condition.map_or("undefined-condition", |child| &child.name).to_owned());
        }
        if element.is(super::CLIENT, "handshake") { Event::Accepted } else { Event::Stanza(element) }
    }
}

const STREAMS: &str = "http://etherx.jabber.org/streams";
const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
