//! What the origin's answer asks for: `Grip-*` headers and `application/grip-instruct` bodies (spec 3).
//! Values only: limits on the number of channels and the route's prefix are applied by the caller.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

/// A parsed answer. `reply` is what the client gets: `Grip-*` and hop-by-hop headers removed,
/// `Grip-Status` and `Grip-Expose-Headers` applied.
#[derive(Clone, Debug)]
pub struct Instruct {
    pub hold: Option<Hold>,
    pub channels: Vec<Channel>,
    /// Sets subscription meta, which filters read.
    pub meta: Vec<(String, String)>,
    pub next: Option<Link>,
    pub gone: Option<String>,
    /// `Grip-Last` from the origin (session service).
    pub last: Vec<(String, String)>,
    pub reply: Reply,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hold {
    /// Long-poll: `reply` is kept and sent when the time is up. Default 55 s, at least 5 s.
    Response {
        timeout: Duration,
    },
    Stream {
        keep_alive: Option<KeepAlive>,
    },
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Channel {
    /// As the origin wrote it, without the route's prefix.
    pub name: String,
    pub prev_id: Option<String>,
    pub filters: Vec<String>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeepAlive {
    pub content: Bytes,
    /// Whole seconds, at least 1.
    pub timeout: Duration,
    pub mode: KeepAliveMode,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeepAliveMode {
    /// The time starts again with every delivery.
    Idle,
    /// A fixed cadence.
    Interval,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    pub uri: String,
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct Reply {
    /// 200..=999
    pub code: u16,
    /// Empty: the standard phrase, or none.
    pub reason: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The origin's fault; the text is for the log, and for the client when the route has `debug`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct InstructError(pub String);

/// True when an answer enters GRIP processing (spec 1.8).
pub fn is_instruct(headers: &HeaderMap) -> bool {
    let _ = headers;
    false
}

impl Instruct {
    /// Parses an answer. With a body too large to collect, call it with an empty `body` and look at
    /// `hold`: a grip-instruct content type then is an error, because its body is needed.
    pub fn parse(code: u16, reason: &str, headers: &HeaderMap, body: Bytes) -> Result<Self, InstructError> {
        let _ = (code, reason, headers, body);
        Err(InstructError("not written".into()))
    }
}
