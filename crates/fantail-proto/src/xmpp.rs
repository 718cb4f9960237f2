//! XMPP as an external component speaks it (XEP-0114): addresses, stanzas, the stream, and what entities ask of a
//! component. XML is read strictly and within limits: no document types, entities, processing instructions or
//! comments (RFC 6120 11.1).

pub mod answer;
pub mod jid;
pub mod pubsub;
pub mod request;
pub mod stanza;
pub mod stream;
pub mod xml;

/// Of a stanza, as XML: what Prosody takes from a client.
pub const MAX_STANZA_BYTES: usize = 262_144;

/// The namespace of stanzas. Streams of components have another for the same elements: trees have only this one.
pub const CLIENT: &str = "jabber:client";

#[cfg(test)]
mod tests;
