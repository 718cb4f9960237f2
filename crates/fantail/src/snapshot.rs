//! What a reload replaces, all of it or nothing: the reloadable configuration with what was made of it.
//! Requests and publishers read the snapshot that was current when they began.

use std::{fmt, io, sync::Arc};

use fantail_proto::{forward, request, route::Asked, xmpp::jid::Jid};
use http::HeaderMap;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    certificate::{CertificateError, Certificates},
    channel::RealmId,
    config::Config,
    realm::{RealmError, Realms},
    route::{Route, RouteError, Routes},
    sign::{KeyError, Verifier},
    upstream,
};

#[derive(Debug)]
pub struct Snapshot {
    pub config: Config,
    pub routes: Routes,
    pub realms: Arc<Realms>,
    pub certificates: Certificates,
    /// Pairs that cannot be used, and were not found to be so before.
    pub broken: Vec<CertificateError>,
    pub request_limits: request::Limits,
    /// Of a request, kept while it may become a hold that is asked again.
    pub record_bytes: usize,
    verifier: Option<Verifier>,
}

/// What is wrong with a configuration, beyond its form.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    #[error(transparent)]
    Realm(RealmError),
    #[error(transparent)]
    Route(RouteError),
    #[error("tls: {0}")]
    Certificate(CertificateError),
    #[error("tls: no certificate can be used")]
    NoCertificate,
    #[error("origin.ca_file: {0}")]
    CaFile(io::Error),
    #[error("proxy.upstream_key: {0}")]
    UpstreamKey(KeyError),
}

/// Everything that is wrong, one a line.
#[derive(Debug)]
pub struct AllInvalid(pub Vec<Invalid>);

impl fmt::Display for AllInvalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for invalid in &self.0 {
            writeln!(f, "{invalid}")?;
        }
        Ok(())
    }
}

impl Snapshot {
    /// Makes a snapshot; realms keep the numbers that they had in `previous`. Blocks on files.
    ///
    /// # Errors
    /// All that is wrong with keys, realms and routes.
    pub fn load(config: Config, previous: Option<&Self>) -> Result<Self, AllInvalid> {
        let realms = Realms::load(&config, previous.map(|previous| &*previous.realms))
            .map_err(|errors| AllInvalid(errors.into_iter().map(Invalid::Realm).collect()))?;
        let routes = Routes::load(&config, &realms, previous.is_none())
            .map_err(|errors| AllInvalid(errors.into_iter().map(Invalid::Route).collect()))?;
        let proxy = &config.proxy;
        let verifier = Verifier::load(&proxy.upstream_key, &config.base)
            .map_err(|error| AllInvalid(vec![Invalid::UpstreamKey(error)]))?;
        if let Some(file) = &config.origin.ca_file {
            upstream::roots(file).map_err(|error| AllInvalid(vec![Invalid::CaFile(error)]))?;
        }
        let (certificates, broken) = certificates(&config, previous)?;
        let client = &config.client;
        Ok(Self {
            request_limits: request::Limits {
                head_bytes: client.head_bytes,
                headers: client.headers,
                target_bytes: client.target_bytes,
                body_bytes: client.body_bytes,
            },
            record_bytes: config.grip.instruct_bytes + client.head_bytes,
            realms: Arc::new(realms),
            routes,
            certificates,
            broken,
            verifier,
            config,
        })
    }

    /// Until when a client's `Grip-Sig` is good, in Unix seconds, if it is (spec 1.4): it is another Fantail's, or
    /// a Pushpin's.
    pub fn trusts(&self, headers: &HeaderMap, now: u64) -> Option<u64> {
        let verifier = self.verifier.as_ref()?;
        verifier.good_until(headers.get(forward::GRIP_SIG)?.as_bytes(), now)
    }

    /// The route of stanzas to an address of the component: they are requests like any other.
    pub fn stanza_route(&self, to: &Jid) -> Option<&Arc<Route>> {
        let path = stanza_path(to);
        self.routes.find(Asked { host: to.domain(), path: &path, tls: false, ws: false, id: None })
    }

    /// Whether a realm may send stanzas in the name of an address of the component's: nobody's, or its own.
    pub fn may_speak(&self, realm: RealmId, from: &Jid) -> bool {
        self.stanza_route(from).is_none_or(|route| route.realm == realm)
    }
}

/// The path of stanzas to an address of the component.
pub fn stanza_path(to: &Jid) -> String {
    format!("/xmpp/{}", utf8_percent_encode(to.as_str(), &IN_PATH))
}

/// RFC 3986 3.3, without what an address and a path both use.
const IN_PATH: percent_encoding::AsciiSet =
    NON_ALPHANUMERIC.remove(b'@').remove(b'.').remove(b'-').remove(b'_').remove(b'~');

/// A pair that was good before stays as it was, and one of many may be bad from the start. Without any there would be
/// nothing to show to a client.
fn certificates(
    config: &Config,
    previous: Option<&Snapshot>,
) -> Result<(Certificates, Vec<CertificateError>), AllInvalid> {
    let (certificates, errors) =
        Certificates::load(&config.tls, previous.map(|previous| &previous.certificates));
    if !config.server.tls_listen.is_empty() && !certificates.is_usable() {
        let errors = errors.into_iter().map(Invalid::Certificate);
        return Err(AllInvalid(errors.chain([Invalid::NoCertificate]).collect()));
    }
    Ok((certificates, errors))
}
