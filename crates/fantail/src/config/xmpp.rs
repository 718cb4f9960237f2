//! The section `[xmpp]`: the component that Fantail is to an XMPP server, if it is one. It connects to nothing and
//! reads no secret from a file.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use fantail_proto::xmpp::jid::Jid;
use serde::Deserialize;

use super::file::{Invalid, at_least};

#[derive(Clone)]
pub struct Xmpp {
    /// Where the server waits for components: `HOST:PORT`.
    pub server: String,
    /// The component's own address.
    pub domain: Jid,
    pub secret: Secret,
    /// Who may publish over XMPP; bare.
    pub admins: Vec<Jid>,
    /// Realms to whose channels anybody may subscribe as to nodes.
    pub open_realms: Vec<String>,
    pub subscriptions: usize,
    pub realm_subscriptions: usize,
    pub subscriptions_per_jid: usize,
    pub absences: usize,
    pub realm_absences: usize,
    pub queue_items: usize,
    pub queue_bytes: usize,
    pub realm_queue_items: usize,
    pub realm_queue_bytes: usize,
    pub origin_requests: usize,
    pub realm_origin_requests: usize,
    pub sender_stanzas: usize,
    pub sender_bytes: usize,
    pub unacknowledged_bytes: usize,
    pub stanza_bytes: usize,
}

impl fmt::Debug for Xmpp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xmpp")
            .field("server", &self.server)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

/// What proves to the server that the component is itself.
#[derive(Clone, Eq, PartialEq)]
pub enum Secret {
    Bytes(Vec<u8>),
    /// Absolute.
    File(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    server: String,
    domain: String,
    secret: String,
    admins: Vec<String>,
    open_realms: Vec<String>,
    subscriptions: usize,
    realm_subscriptions: usize,
    subscriptions_per_jid: usize,
    absences: usize,
    realm_absences: usize,
    queue_items: usize,
    queue_bytes: usize,
    realm_queue_items: usize,
    realm_queue_bytes: usize,
    origin_requests: usize,
    realm_origin_requests: usize,
    sender_stanzas: usize,
    sender_bytes: usize,
    unacknowledged_bytes: usize,
    stanza_bytes: usize,
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The section as far as each value alone is good: `None` in a place means that it is not set.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) server: Option<String>,
    pub(super) domain: Option<Jid>,
    pub(super) secret: Option<Secret>,
    pub(super) open_realms: Vec<String>,
    rest: Rest,
}

#[derive(Debug)]
struct Rest {
    admins: Vec<Jid>,
    /// In the order of [`Xmpp`].
    limits: [usize; 15],
}

impl Section {
    pub(super) fn build(self, base: &Path) -> Result<Draft, Invalid> {
        let admin = |text: String| match Jid::parse(&text) {
            Ok(jid) if jid.is_bare() && jid.local().is_some() => Ok(jid),
            _ => Err(Invalid::Jid(text)),
        };
        let domain = |text: String| match Jid::parse(&text) {
            Ok(jid) if jid.is_bare() && jid.local().is_none() => Ok(jid),
            _ => Err(Invalid::Domain(text)),
        };
        Ok(Draft {
            server: set(self.server).map(server).transpose()?,
            domain: set(self.domain).map(domain).transpose()?,
            secret: set(self.secret).map(|text| secret(&text, base)).transpose()?,
            open_realms: self.open_realms,
            rest: Rest {
                admins: self.admins.into_iter().map(admin).collect::<Result<_, _>>()?,
                limits: [
                    at_least(1, self.subscriptions)?,
                    part(self.realm_subscriptions, self.subscriptions),
                    at_least(1, self.subscriptions_per_jid)?,
                    at_least(1, self.absences)?,
                    part(self.realm_absences, self.absences),
                    at_least(1, self.queue_items)?,
                    at_least(1, self.queue_bytes)?,
                    part(self.realm_queue_items, self.queue_items),
                    part(self.realm_queue_bytes, self.queue_bytes),
                    at_least(1, self.origin_requests)?,
                    part(self.realm_origin_requests, self.origin_requests),
                    at_least(1, self.sender_stanzas)?,
                    at_least(1, self.sender_bytes)?,
                    at_least(1, self.unacknowledged_bytes)?,
                    at_least(LEAST_STANZA_BYTES, self.stanza_bytes)?,
                ],
            },
        })
    }
}

impl Draft {
    /// `None` without a server, or while something is missing, which [`super::check_whole`] has said.
    pub(super) fn finish(self) -> Option<Xmpp> {
        let [
            subscriptions,
            realm_subscriptions,
            subscriptions_per_jid,
            absences,
            realm_absences,
            queue_items,
            queue_bytes,
            realm_queue_items,
            realm_queue_bytes,
            origin_requests,
            realm_origin_requests,
            sender_stanzas,
            sender_bytes,
            unacknowledged_bytes,
            stanza_bytes,
        ] = self.rest.limits;
        Some(Xmpp {
            server: self.server?,
            domain: self.domain?,
            secret: self.secret?,
            admins: self.rest.admins,
            open_realms: self.open_realms,
            subscriptions,
            realm_subscriptions,
            subscriptions_per_jid,
            absences,
            realm_absences,
            queue_items,
            queue_bytes,
            realm_queue_items,
            realm_queue_bytes,
            origin_requests,
            realm_origin_requests,
            sender_stanzas,
            sender_bytes,
            unacknowledged_bytes,
            stanza_bytes,
        })
    }
}

/// What every server must take (RFC 6120 13.12).
const LEAST_STANZA_BYTES: usize = 10_000;

/// What one realm may have of all; 0: three quarters.
const fn part(own: usize, all: usize) -> usize {
    if own == 0 { all - all / 4 } else { own }
}

fn set(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn server(text: String) -> Result<String, Invalid> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let in_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']');
        !host.is_empty() && host.chars().all(in_host) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if good { Ok(text) } else { Err(Invalid::XmppServer(text)) }
}

fn secret(text: &str, base: &Path) -> Result<Secret, Invalid> {
    use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
    if let Some(path) = text.strip_prefix("file:") {
        return if path.is_empty() { Err(Invalid::Secret) } else { Ok(Secret::File(base.join(path))) };
    }
    let bytes = match text.strip_prefix("base64:") {
        Some(text) => BASE64.decode(text).map_err(|_| Invalid::Secret)?,
        None => text.as_bytes().to_vec(),
    };
    if bytes.is_empty() { Err(Invalid::Secret) } else { Ok(Secret::Bytes(bytes)) }
}
