//! What becomes of a request's headers on the way to the origin (spec 1.3, 1.9): which are removed,
//! which are ours alone to set, and how `X-Forwarded-For` is made. Never touches a URI or a target.
//!
//! Many frameworks read `_` in a header's name as `-`. So whatever only Fantail may say is refused to
//! clients in both spellings.

use std::{fmt::Write, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{hop, route::Route};

/// What the configuration says about headers, for all requests.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub forwarded_for: ForwardedFor,
    /// The same for trusted clients.
    pub forwarded_for_trusted: ForwardedFor,
    pub set_protocol: SetProtocol,
    /// A client's `X-Forwarded-Proto` is believed, by [`claims_tls`], and so not passed on.
    pub accept_protocol: bool,
    /// Headers of which routes with `orig_headers` make no marked copy.
    pub need_mark: Vec<HeaderName>,
    /// `Pushpin-Route` is for us.
    pub accept_pushpin_route: bool,
    /// Our name in `CDN-Loop` (RFC 8586); without one the header passes unread.
    pub cdn_loop: Option<HeaderValue>,
}

/// Which headers say that the client came by TLS. They never say that it did not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SetProtocol {
    Off,
    /// `X-Forwarded-Proto`
    #[default]
    ProtoOnly,
    /// `X-Forwarded-Protocol` too.
    Both,
}

/// The rules `truncate:N` and `append` (spec 1.9). The default passes on what came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ForwardedFor {
    /// How many of the last addresses stay; `None`: all.
    keep: Option<usize>,
    append: bool,
}

/// A rule that is neither `truncate:N` nor `append`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is no rule: write \"append\", \"truncate:N\", or both with a comma between")]
pub struct RuleError(pub String);

/// One request's headers, to be made the origin's.
#[derive(Debug)]
pub struct Forward<'f> {
    /// The client's `Grip-Sig` was good (spec 1.4): its `Grip-*` headers pass, and none are set.
    pub trusted: bool,
    pub tls: bool,
    /// It asks for a WebSocket.
    pub websocket: bool,
    /// `None`: a Unix socket.
    pub peer: Option<IpAddr>,
    /// Our `Grip-Sig`.
    pub signature: Option<HeaderValue>,
    /// Channels and their last ids, said in `Grip-Last`.
    pub last_ids: &'f [(String, String)],
    pub route: &'f Route,
    pub rules: &'f Rules,
}

impl ForwardedFor {
    pub fn parse(rules: &str) -> Result<Self, RuleError> {
        let mut parsed = Self::default();
        for rule in rules.split(',').map(str::trim).filter(|_| !rules.trim().is_empty()) {
            match rule.strip_prefix("truncate:").map(str::parse) {
                Some(Ok(keep)) => parsed.keep = Some(keep),
                None if rule == "append" => parsed.append = true,
                _ => return Err(RuleError(rule.to_owned())),
            }
        }
        Ok(parsed)
    }

    /// Who the request is from, for logs and statistics: the first of the addresses that stay, or else the peer.
    pub fn client(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Option<IpAddr> {
        if self.keep == Some(0) || !headers.contains_key(X_FORWARDED_FOR) {
            return peer;
        }
        let count = addresses(headers).count();
        let first = addresses(headers).nth(count.saturating_sub(self.keep.unwrap_or(count)));
        first.and_then(|address| address.parse().ok()).or(peer)
    }

    /// `came`: there are some.
    fn apply(&self, headers: &mut HeaderMap, peer: Option<IpAddr>, came: bool) {
        let several = || headers.get_all(X_FORWARDED_FOR).iter().nth(1).is_some();
        if !self.append && (!came || self.keep.is_none() && !several()) {
            return;
        }
        let count = addresses(headers).count();
        let skipped = count - self.keep.unwrap_or(count).min(count);
        let mut list = String::new();
        for address in addresses(headers).skip(skipped) {
            push_element(&mut list, address);
        }
        if let Some(peer) = peer.filter(|_| self.append) {
            push_element(&mut list, peer.to_canonical());
        }
        headers.remove(X_FORWARDED_FOR);
        if let Some(value) = HeaderValue::from_str(&list).ok().filter(|value| !value.is_empty()) {
            headers.insert(X_FORWARDED_FOR, value);
        }
    }
}

impl Rules {
    /// As [`ForwardedFor::client`]. `trusted`: its `Grip-Sig` was good.
    pub fn client(&self, trusted: bool, headers: &HeaderMap, peer: Option<IpAddr>) -> Option<IpAddr> {
        let rules = if trusted { &self.forwarded_for_trusted } else { &self.forwarded_for };
        rules.client(headers, peer)
    }
}

impl Forward<'_> {
    /// Rewrites `headers`; `true` when `CDN-Loop` shows that the request was here before, and so must
    /// be answered with 508. `Host` is left to whoever knows the target.
    #[must_use]
    pub fn apply(&self, headers: &mut HeaderMap) -> bool {
        let copies = self.marked_copies(headers);
        // Grows the map at most once. One that cannot grow is as full as the inserts below allow for.
        headers.try_reserve(ADDED).ok();
        if self.extend_cdn_loop(headers) {
            return true;
        }
        hop::strip(headers);
        self.set_route_headers(headers);
        for (name, value) in copies {
            // Full only when a client may send tens of thousands of headers.
            if headers.try_append(name, value).is_err() {
                break;
            }
        }
        let forwarded_for = self.remove_reserved(headers);
        if !self.trusted && !self.route.no_grip {
            self.set_grip_headers(headers);
        }
        if self.tls && self.rules.set_protocol != SetProtocol::Off {
            let scheme = if self.websocket { WSS } else { HTTPS };
            headers.insert(X_FORWARDED_PROTO, scheme.clone());
            if self.rules.set_protocol == SetProtocol::Both {
                headers.insert(X_FORWARDED_PROTOCOL, scheme);
            }
        }
        let rules = if self.trusted { &self.rules.forwarded_for_trusted } else { &self.rules.forwarded_for };
        rules.apply(headers, self.peer, forwarded_for);
        false
    }

    fn extend_cdn_loop(&self, headers: &mut HeaderMap) -> bool {
        let Some(own) = &self.rules.cdn_loop else { return false };
        let mut list = Vec::new();
        for id in headers.get_all(CDN_LOOP).into_iter().flat_map(|value| value.as_bytes().split(is_comma)) {
            let name = id.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
            if name.eq_ignore_ascii_case(own.as_bytes()) {
                return true;
            }
            if !name.is_empty() {
                list.extend_from_slice(id.trim_ascii());
                list.extend_from_slice(b", ");
            }
        }
        list.extend_from_slice(own.as_bytes());
        let value = HeaderValue::from_bytes(&list).expect("parts of valid values make a valid value");
        headers.insert(CDN_LOOP, value);
        false
    }

    fn set_route_headers(&self, headers: &mut HeaderMap) {
        if self.route.headers.is_empty() {
            return;
        }
        let set = |name: &HeaderName| {
            self.route.headers.iter().any(|(own, _)| reads_as(name.as_str(), own.as_str()))
        };
        hop::remove_where(headers, set);
        for (name, value) in self.route.headers.iter().filter(|(_, value)| !value.is_empty()) {
            headers.append(name, value.clone());
        }
    }

    /// What the client said, for a route with `orig_headers`: to be made before anything is changed.
    fn marked_copies(&self, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        if !self.route.orig_headers || self.trusted {
            return Vec::new();
        }
        let unmarked = headers.iter().filter(|(name, _)| !name.as_str().starts_with(MARK));
        unmarked
            .filter(|(name, _)| !self.rules.need_mark.contains(name))
            .filter_map(|(name, value)| {
                Some((HeaderName::try_from(format!("{MARK}{name}")).ok()?, value.clone()))
            })
            .collect()
    }

    /// Removes what neither the client nor the route may say to the origin, and says whether there is an
    /// `X-Forwarded-For`.
    fn remove_reserved(&self, headers: &mut HeaderMap) -> bool {
        let protocol = self.rules.accept_protocol || self.rules.set_protocol != SetProtocol::Off;
        let mut forwarded_for = false;
        hop::remove_where(headers, |name| {
            let name = name.as_str();
            match name {
                "x-forwarded-for" => {
                    forwarded_for = true;
                    false
                }
                "accept-encoding" | "expect" | "transfer-encoding" => true,
                "pushpin-route" => self.rules.accept_pushpin_route,
                "x-forwarded-proto" | "x-forwarded-protocol" => protocol,
                _ if name.starts_with("grip-") => !self.trusted,
                _ if name.starts_with(MARK) => !self.route.orig_headers,
                _ => name.as_bytes().contains(&b'_') && is_disguised(name),
            }
        });
        forwarded_for
    }

    fn set_grip_headers(&self, headers: &mut HeaderMap) {
        if let Some(signature) = &self.signature {
            headers.insert(GRIP_SIG, signature.clone());
        }
        headers.insert(GRIP_FEATURE, FEATURES);
        for (channel, id) in self.last_ids {
            append_last_id(headers, channel, id);
        }
    }
}

/// Says what a client has last of a channel. A name that no header can carry cannot be asked about.
pub fn append_last_id(headers: &mut HeaderMap, channel: &str, id: &str) {
    if let Ok(value) = HeaderValue::try_from(format!("{channel}; last-id={id}").into_bytes()) {
        headers.append(GRIP_LAST, value);
    }
}

/// True when the client says that it came by TLS (spec 1.1): for whom `accept_x_forwarded_protocol` is set.
pub fn claims_tls(headers: &HeaderMap) -> bool {
    let said = |name| headers.get(name).filter(|value| !value.is_empty());
    let protocol = said(X_FORWARDED_PROTO).or_else(|| said(X_FORWARDED_PROTOCOL));
    protocol.is_some_and(|value| value == "https" || value == "wss")
}

/// Removes what an origin's answer says to us alone.
pub fn hide_grip(headers: &mut HeaderMap) {
    hop::remove_where(headers, |name| name.as_str().starts_with("grip-"));
}

/// Whether frameworks that read `_` in a header's name as `-` take one name for the other; both in lower case.
pub fn reads_as(name: &str, other: &str) -> bool {
    let dash = |byte: u8| if byte == b'_' { b'-' } else { byte };
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(|(a, b)| dash(a) == dash(b))
}

/// Whether a name's beginning [`reads_as`] the prefix.
pub fn begins_as(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| reads_as(start, prefix))
}

/// True for a name with `_` that reads as one that is ours to say.
fn is_disguised(name: &str) -> bool {
    begins_as(name, "grip-")
        || begins_as(name, MARK)
        || RESERVED.iter().any(|reserved| reads_as(name, reserved))
}

/// The addresses of all `X-Forwarded-For` headers.
fn addresses(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(X_FORWARDED_FOR).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|address| !address.is_empty())
}

fn push_element(list: &mut String, element: impl std::fmt::Display) {
    let separator = if list.is_empty() { "" } else { ", " };
    write!(list, "{separator}{element}").expect("a String takes every write");
}

fn is_comma(byte: &u8) -> bool {
    *byte == b','
}

pub const GRIP_SIG: HeaderName = HeaderName::from_static("grip-sig");
pub const GRIP_FEATURE: HeaderName = HeaderName::from_static("grip-feature");
pub const GRIP_LAST: HeaderName = HeaderName::from_static("grip-last");
pub const PUSHPIN_ROUTE: HeaderName = HeaderName::from_static("pushpin-route");

/// `Grip-Feature`: what an origin can ask of Fantail (spec 1.5).
pub const FEATURES: HeaderValue = HeaderValue::from_static(concat!(
    "status, link:next, link:gone, filter:skip-self, filter:skip-users, filter:require-sub, ",
    "filter:build-id, filter:var-subst, filter:http-check, filter:http-modify"
));

const HTTPS: HeaderValue = HeaderValue::from_static("https");
const WSS: HeaderValue = HeaderValue::from_static("wss");

const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PROTOCOL: HeaderName = HeaderName::from_static("x-forwarded-protocol");

/// Headers that a request usually gets on its way: ours, and `Host` by whoever knows the target.
const ADDED: usize = 4;

/// What the names of a client's original headers begin with, where a route wants them (1.3 b, c).
const MARK: &str = "eb9bf0f5-";

/// Names that are removed or set by us, besides `Grip-*` and marked ones.
const RESERVED: [&str; 10] = [
    "accept-encoding",
    "cdn-loop",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "pushpin-route",
    "transfer-encoding",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-protocol",
];

#[cfg(test)]
mod tests;
