//! stub until the real one lands
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::route::Route;

pub const GRIP_SIG: HeaderName = HeaderName::from_static("grip-sig");
#[derive(Debug)]
pub struct Rules;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct RuleError;
pub fn claims_tls(_: &HeaderMap) -> bool {
    false
}
pub fn strip_hop_by_hop(h: &mut HeaderMap) {
    for n in ["connection", "keep-alive", "transfer-encoding"] {
        h.remove(n);
    }
}
#[derive(Debug)]
pub struct Forward<'a> {
    pub trusted: bool,
    pub grip: bool,
    pub tls: bool,
    pub peer: Option<IpAddr>,
    pub signature: Option<HeaderValue>,
    pub last_ids: &'a [(String, String)],
    pub route: &'a Route,
    pub rules: &'a Rules,
}
impl Forward<'_> {
    pub fn apply(self, h: &mut HeaderMap) -> bool {
        strip_hop_by_hop(h);
        h.remove("accept-encoding");
        h.remove("content-length");
        h.remove("expect");
        h.remove("host");
        if let Some(s) = self.signature {
            h.insert(GRIP_SIG, s);
        }
        h.insert("grip-feature", HeaderValue::from_static("status"));
        false
    }
}
