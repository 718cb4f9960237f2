//! What a reload replaces, all of it or nothing: the reloadable configuration with what was made of it.
//! Requests and publishers read the snapshot that was current when they began.

use std::{fmt, io, sync::Arc};

use fantail_proto::{
    forward::{self, ForwardedFor},
    request,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    config::{self, Config},
    realm::{RealmError, Realms},
    route::{RouteError, Routes},
    sign::{KeyError, Verifier},
    upstream,
};

#[derive(Debug)]
pub struct Snapshot {
    pub config: Config,
    pub routes: Routes,
    pub realms: Arc<Realms>,
    /// Decides about headers on the way to origins.
    pub forward: forward::Rules,
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
    #[error("origin.ca_file: {0}")]
    CaFile(io::Error),
    #[error("proxy.upstream_key: {0}")]
    UpstreamKey(KeyError),
    #[error("proxy.{key}: {error}")]
    ForwardedFor { key: &'static str, error: forward::RuleError },
    #[error("proxy.cdn_loop: not a name that a header can say")]
    CdnLoop,
    #[error("proxy.orig_headers_need_mark: {0:?} is no header")]
    NeedMark(String),
}

fn rules(proxy: &config::Proxy) -> Result<forward::Rules, AllInvalid> {
    let mut wrong = Vec::new();
    let mut addresses = |key, text: &str| {
        ForwardedFor::parse(text).unwrap_or_else(|error| {
            wrong.push(Invalid::ForwardedFor { key, error });
            ForwardedFor::default()
        })
    };
    let forwarded_for = addresses("x_forwarded_for", &proxy.x_forwarded_for);
    let forwarded_for_trusted = addresses("x_forwarded_for_trusted", &proxy.x_forwarded_for_trusted);
    let cdn_loop = HeaderValue::from_str(&proxy.cdn_loop).unwrap_or_else(|_| {
        wrong.push(Invalid::CdnLoop);
        HeaderValue::from_static("")
    });
    let mut need_mark = Vec::new();
    for name in &proxy.orig_headers_need_mark {
        match HeaderName::try_from(name) {
            Ok(name) => need_mark.push(name),
            Err(_) => wrong.push(Invalid::NeedMark(name.clone())),
        }
    }
    if !wrong.is_empty() {
        return Err(AllInvalid(wrong));
    }
    Ok(forward::Rules {
        forwarded_for,
        forwarded_for_trusted,
        set_protocol: match proxy.set_x_forwarded_protocol {
            config::SetProtocol::Off => forward::SetProtocol::Off,
            config::SetProtocol::ProtoOnly => forward::SetProtocol::ProtoOnly,
            config::SetProtocol::Both => forward::SetProtocol::Both,
        },
        accept_protocol: proxy.accept_x_forwarded_protocol,
        need_mark,
        accept_pushpin_route: proxy.accept_pushpin_route,
        cdn_loop: Some(cdn_loop).filter(|name| !name.is_empty()),
    })
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
        let routes = Routes::load(&config, &realms)
            .map_err(|errors| AllInvalid(errors.into_iter().map(Invalid::Route).collect()))?;
        let proxy = &config.proxy;
        let verifier = Verifier::load(&proxy.upstream_key, &config.base)
            .map_err(|error| AllInvalid(vec![Invalid::UpstreamKey(error)]))?;
        if let Some(file) = &config.origin.ca_file {
            upstream::roots(file).map_err(|error| AllInvalid(vec![Invalid::CaFile(error)]))?;
        }
        let client = &config.client;
        Ok(Self {
            forward: rules(&config.proxy)?,
            request_limits: request::Limits {
                head_bytes: client.head_bytes,
                headers: client.headers,
                target_bytes: client.target_bytes,
                body_bytes: client.body_bytes,
            },
            record_bytes: config.grip.instruct_bytes + client.head_bytes,
            realms: Arc::new(realms),
            routes,
            verifier,
            config,
        })
    }

    /// Whether a client's `Grip-Sig` is good (spec 1.4): it is another Fantail's, or a Pushpin's.
    pub fn trusts(&self, headers: &HeaderMap, now: u64) -> bool {
        let Some(verifier) = &self.verifier else { return false };
        headers.get(forward::GRIP_SIG).is_some_and(|token| verifier.verify(token.as_bytes(), now))
    }
}
