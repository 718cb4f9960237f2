//! The first section of a line (spec 2.3): which requests the route is for, and what it does to them.

use std::net::Ipv6Addr;

use http::{HeaderName, HeaderValue, Method, header};

use super::{Host, Reason, Route, line::Section, target};
use crate::{slow::Slow, sockjs::is_callback};

/// Reads a condition. What is wrong goes to `reasons`, and the route is then of no use.
pub(super) fn read(section: Section, reasons: &mut Vec<Reason>) -> Route {
    let mut route = Route::default();
    match host(section.value) {
        Ok(host) => route.host = host,
        Err(reason) => reasons.push(reason),
    }
    for (name, value) in section.parameters {
        reasons.extend(set(&mut route, name, value).err());
    }
    if route.host == Host::None && route.id.is_empty() {
        reasons.push(Reason::Unreachable);
    }
    route
}

/// `host` or `host:port` as a target or `as_host` writes it; IPv6 in brackets, which are kept.
pub(super) fn authority(name: &'static str, value: String) -> Result<String, Reason> {
    let (host, port) = match value.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (value.as_str(), None),
    };
    if is_host(host) && port.is_none_or(|port| self::port(port).is_some()) {
        return Ok(value);
    }
    Err(Reason::Value { name, value, wanted: "a host, or host:port, IPv6 in brackets" })
}

/// A name or IPv4 address, or an IPv6 address in brackets.
pub(super) fn is_host(text: &str) -> bool {
    let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=LONGEST_HOST).contains(&text.len()) && text.bytes().all(name) || bracketed(text).is_some()
}

/// 1..=65535 in digits only.
pub(super) fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

pub(super) fn filled(name: &'static str, value: String) -> Result<String, Reason> {
    if value.is_empty() { Err(Reason::Value { name, value, wanted: "must not be empty" }) } else { Ok(value) }
}

/// Parameters of a condition.
pub(super) const KNOWN: &[&str] = &[
    "proto",
    "ssl",
    "path_beg",
    "id",
    "sig_iss",
    "sig_key",
    "prefix",
    "orig_headers",
    "as_host",
    "path_rem",
    "replace_beg",
    "debug",
    "header",
    "no_grip",
    "session",
    "aco",
    "jsonp_mode",
    "jsonp_cb",
    "jsonp_body",
    "jsonp_defcb",
    "jsonp_defmethod",
    "sockjs",
    "sockjs_as_path",
    "log_level",
    "realm",
    "slow",
];

fn host(mut value: String) -> Result<Host, Reason> {
    if value.is_empty() {
        return Ok(Host::None);
    }
    if value == "*" {
        return Ok(Host::Any);
    }
    if !is_host(&value) {
        let wanted = match value.as_bytes() {
            [b'*', ..] => "a host is exact; only * alone stands for all",
            text if !text.is_ascii() => "write an international name in its xn-- form",
            text if text.contains(&b':') => "a host has no port here, and IPv6 needs brackets",
            _ => "a name, an address or *",
        };
        return Err(Reason::Host { value, wanted });
    }
    if let Some(address) = bracketed(&value) {
        return Ok(Host::Exact(address.to_string()));
    }
    value.make_ascii_lowercase();
    Ok(Host::Exact(value))
}

fn bracketed(text: &str) -> Option<Ipv6Addr> {
    text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

fn set(route: &mut Route, name: String, value: String) -> Result<(), Reason> {
    match name.as_str() {
        "proto" => route.ws = Some(websocket(value)?),
        "ssl" => route.tls = Some(yes_or_no(value)?),
        "path_beg" => route.path_beg = path("path_beg", value).and_then(rooted("path_beg"))?,
        "id" => route.id = filled("id", value)?,
        "sig_iss" => route.sig_iss = Some(value).filter(|value| !value.is_empty()),
        "sig_key" => route.sig_key = Some(value).filter(|value| !value.is_empty()),
        "prefix" => route.prefix = value,
        "orig_headers" => route.orig_headers = true,
        "as_host" => route.as_host = Some(authority("as_host", value)?),
        "path_rem" => route.path_rem = number("path_rem", value, "a number of bytes")?,
        "replace_beg" => route.replace_beg = Some(path("replace_beg", value)?),
        "debug" => route.debug = true,
        "header" => route.headers.push(header(value)?),
        "no_grip" => route.no_grip = true,
        "session" => route.session = true,
        "aco" => route.aco = true,
        "jsonp_mode" => route.jsonp.basic = basic(value)?,
        "jsonp_cb" => route.jsonp.callback = Some(filled("jsonp_cb", value)?),
        "jsonp_body" => route.jsonp.body = Some(filled("jsonp_body", value)?),
        "jsonp_defcb" => route.jsonp.default_callback = Some(callback(value)?),
        "jsonp_defmethod" => route.jsonp.default_method = Some(method(value)?),
        "sockjs" => route.sockjs = Some(base(value)?),
        "sockjs_as_path" => {
            route.sockjs_as_path = Some(path("sockjs_as_path", value).and_then(rooted("sockjs_as_path"))?);
        }
        "log_level" => route.log_level = Some(level(value)?),
        "realm" => route.realm = Some(filled("realm", value)?),
        "slow" => route.slow = slow(value)?,
        _ => return Err(Reason::unknown(name, KNOWN, target::KNOWN, "a target")),
    }
    Ok(())
}

fn websocket(value: String) -> Result<bool, Reason> {
    match value.as_str() {
        "http" => Ok(false),
        "ws" => Ok(true),
        _ => Err(Reason::Value { name: "proto", value, wanted: "http or ws" }),
    }
}

fn basic(value: String) -> Result<bool, Reason> {
    match value.as_str() {
        "basic" => Ok(true),
        "extended" => Ok(false),
        _ => Err(Reason::Value { name: "jsonp_mode", value, wanted: "basic or extended" }),
    }
}

fn callback(value: String) -> Result<String, Reason> {
    if is_callback(&value) {
        return Ok(value);
    }
    Err(Reason::Value {
        name: "jsonp_defcb",
        value,
        wanted: "letters, digits, \"_\", \"$\", \"-\" and \".\"",
    })
}

fn method(value: String) -> Result<Method, Reason> {
    let method = Method::from_bytes(value.as_bytes()).ok().filter(|method| *method != Method::CONNECT);
    method.ok_or(Reason::Value { name: "jsonp_defmethod", value, wanted: "a method" })
}

fn yes_or_no(value: String) -> Result<bool, Reason> {
    match value.as_str() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(Reason::Value { name: "ssl", value, wanted: "yes or no" }),
    }
}

/// A piece of a path as it stands in a request: what could not be there would never match, or would
/// break the request to the origin.
fn path(name: &'static str, value: String) -> Result<String, Reason> {
    if value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#')) {
        return Ok(value);
    }
    Err(Reason::Value { name, value, wanted: "a percent-encoded path, without query" })
}

fn rooted(name: &'static str) -> impl FnOnce(String) -> Result<String, Reason> {
    move |value| {
        if value.starts_with('/') {
            Ok(value)
        } else {
            Err(Reason::Value { name, value, wanted: "must begin with /" })
        }
    }
}

/// Where SockJS is spoken; a slash at the end means nothing.
fn base(value: String) -> Result<String, Reason> {
    let mut base = path("sockjs", value).and_then(rooted("sockjs"))?;
    base.truncate(base.trim_end_matches('/').len());
    Ok(base)
}

fn number<N: std::str::FromStr>(
    name: &'static str,
    value: String,
    wanted: &'static str,
) -> Result<N, Reason> {
    value.parse().map_err(|_| Reason::Value { name, value, wanted })
}

fn level(value: String) -> Result<u8, Reason> {
    match value.parse() {
        Ok(level @ 0..=4) => Ok(level),
        _ => Err(Reason::Value { name: "log_level", value, wanted: "0 to 4" }),
    }
}

fn slow(value: String) -> Result<Slow, Reason> {
    Slow::named(&value).ok_or(Reason::Value { name: "slow", value, wanted: "close, repair or newest" })
}

fn header(value: String) -> Result<(HeaderName, HeaderValue), Reason> {
    let wanted = "Name:Value with characters that a header may have, or Name: to delete";
    // The header's value may be a secret: only its name is told.
    let told = |mut value: String| {
        value.truncate(value.find(':').unwrap_or(0));
        value
    };
    let parsed = value.split_once(':').and_then(|(name, value)| {
        let value = HeaderValue::from_str(value.trim()).ok()?;
        Some((name.parse::<HeaderName>().ok()?, value))
    });
    match parsed {
        Some((name, _)) if FRAMING.contains(&name) => Err(Reason::Value {
            name: "header",
            value: told(value),
            wanted: "this header is not a route's to set",
        }),
        Some(header) => Ok(header),
        None => Err(Reason::Value { name: "header", value: told(value), wanted }),
    }
}

/// RFC 1035 2.3.4
const LONGEST_HOST: usize = 255;

/// They say where a request goes and where it ends; `as_host` and `host` are for the first.
const FRAMING: [HeaderName; 4] =
    [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
