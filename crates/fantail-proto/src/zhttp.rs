//! ZHTTP (spec appendix A): requests to workers behind ZeroMQ and their responses, as values. [`Said`] is what we
//! send, [`Packet`] what a worker sends, [`Session`] the rules that hold between them: sequence, credits, leases.
//! It knows no socket; which worker gets what is decided elsewhere.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub use self::session::{Broken, Session};
use crate::tnetstring::{self, Value};

mod session;
#[cfg(test)]
mod tests;

/// What is sent to a worker.
#[derive(Clone, Copy, Debug)]
pub enum Said<'s> {
    /// The first packet of a session. `more`: a body follows. `streams` is false for `zhttpreq`, where all is in
    /// this packet.
    Request {
        method: &'s str,
        uri: &'s str,
        headers: &'s HeaderMap,
        body: &'s [u8],
        more: bool,
        streams: bool,
        flags: Flags,
    },
    /// More of a request's body, or of a WebSocket's message.
    Data {
        body: &'s [u8],
        more: bool,
        binary: bool,
    },
    Ping(&'s [u8]),
    Pong(&'s [u8]),
    Close(Option<(u16, &'s str)>),
    /// Nothing but the credits of the [`Envelope`].
    Credit,
    KeepAlive,
    HandoffProceed,
    Cancel,
}

/// What a worker that connects to an origin itself may do there, as the route's target says.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Flags {
    /// Private addresses are allowed.
    pub ignore_policies: bool,
    pub trust_connect_host: bool,
    pub ignore_tls_errors: bool,
}

/// What every packet has.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'e> {
    /// Who we are: where workers send their responses.
    pub from: &'e str,
    pub id: &'e str,
    /// `None` for `zhttpreq`.
    pub seq: Option<u32>,
    /// Bytes of body that the worker may send beyond what it may already.
    pub credits: u32,
}

/// What a worker sends.
#[derive(Clone, Debug, PartialEq)]
pub struct Packet {
    /// Who it is: where more for the session goes. May be empty where it was said before.
    pub from: Bytes,
    /// The sessions that this is for, at least one.
    pub ids: Vec<Id>,
    /// Bytes of body that the worker is ready for beyond what it was.
    pub credits: u32,
    pub content: Content,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Id {
    pub id: Bytes,
    pub seq: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// `head` is in the first packet that has data.
    Data {
        head: Option<Box<Head>>,
        body: Bytes,
        more: bool,
        binary: bool,
    },
    Ping(Bytes),
    Pong(Bytes),
    /// The code may be any that a worker thinks of.
    Close(Option<(u16, String)>),
    Credit,
    KeepAlive,
    HandoffStart,
    Cancel,
    Error(Condition),
    /// A WebSocket is not wanted, and this is the answer.
    Rejected {
        head: Box<Head>,
        body: Bytes,
    },
}

/// The beginning of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    pub status: StatusCode,
    pub reason: String,
    pub headers: HeaderMap,
}

/// What a worker says is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Condition {
    #[error("remote-connection-failed")]
    RemoteConnectionFailed,
    #[error("connection-timeout")]
    ConnectionTimeout,
    #[error("tls-error")]
    TlsError,
    #[error("bad-request")]
    BadRequest,
    #[error("policy-violation")]
    PolicyViolation,
    #[error("max-size-exceeded")]
    MaxSizeExceeded,
    #[error("length-required")]
    LengthRequired,
    #[error("disconnected")]
    Disconnected,
    #[error("session-timeout")]
    SessionTimeout,
    #[error("a condition without a name here")]
    Other,
}

/// What no packet of a worker can be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Malformed {
    #[error("it does not begin with T")]
    Format,
    #[error("its TNetString is malformed")]
    Value,
    #[error("it is not a map")]
    NotMap,
    #[error("its id is missing, too long, or there are too many")]
    Id,
    #[error("its {0} is not what it should be")]
    Member(&'static str),
    #[error("its type is unknown")]
    Type,
}

impl Content {
    /// Bytes of body, which count against credits.
    pub fn body_len(&self) -> usize {
        match self {
            Self::Data { body, .. } | Self::Ping(body) | Self::Pong(body) | Self::Rejected { body, .. } => {
                body.len()
            }
            Self::Close(_)
            | Self::Credit
            | Self::KeepAlive
            | Self::HandoffStart
            | Self::Cancel
            | Self::Error(_) => 0,
        }
    }
}

impl Condition {
    fn named(name: &[u8]) -> Self {
        let all = [
            Self::RemoteConnectionFailed,
            Self::ConnectionTimeout,
            Self::TlsError,
            Self::BadRequest,
            Self::PolicyViolation,
            Self::MaxSizeExceeded,
            Self::LengthRequired,
            Self::Disconnected,
            Self::SessionTimeout,
        ];
        all.into_iter().find(|known| known.to_string().as_bytes() == name).unwrap_or(Self::Other)
    }

    /// The next target may have the request (spec 1.6).
    pub fn is_unreached(self) -> bool {
        matches!(self, Self::RemoteConnectionFailed | Self::ConnectionTimeout | Self::TlsError)
    }
}

impl Said<'_> {
    /// The packet's bytes.
    pub fn encode(&self, envelope: Envelope<'_>) -> Vec<u8> {
        let mut map = vec![
            (&b"from"[..], Value::Bytes(envelope.from.as_bytes())),
            (b"id", Value::Bytes(envelope.id.as_bytes())),
        ];
        map.extend(envelope.seq.map(|seq| (&b"seq"[..], Value::Integer(seq.into()))));
        if let Some(name) = self.type_name() {
            map.push((b"type", Value::Bytes(name)));
        }
        if envelope.credits > 0 {
            map.push((b"credits", Value::Integer(envelope.credits.into())));
        }
        self.members(&mut map);
        let mut out = vec![b'T'];
        tnetstring::encode(&Value::Map(map), &mut out);
        out
    }

    fn type_name(&self) -> Option<&'static [u8]> {
        Some(match self {
            Self::Request { .. } | Self::Data { .. } => return None,
            Self::Ping(_) => b"ping",
            Self::Pong(_) => b"pong",
            Self::Close(_) => b"close",
            Self::Credit => b"credit",
            Self::KeepAlive => b"keep-alive",
            Self::HandoffProceed => b"handoff-proceed",
            Self::Cancel => b"cancel",
        })
    }

    fn members<'m>(&'m self, map: &mut Vec<(&'m [u8], Value<'m>)>) {
        match *self {
            Self::Request { method, uri, headers, body, more, streams, flags } => {
                map.push((b"method", Value::Bytes(method.as_bytes())));
                map.push((b"uri", Value::Bytes(uri.as_bytes())));
                let header = |(name, value): (&'m HeaderName, &'m HeaderValue)| {
                    let name = Value::Bytes(name.as_str().as_bytes());
                    Value::List(vec![name, Value::Bytes(value.as_bytes())])
                };
                map.push((b"headers", Value::List(headers.iter().map(header).collect())));
                if !body.is_empty() {
                    map.push((b"body", Value::Bytes(body)));
                }
                for (name, is_set) in [
                    (&b"more"[..], more),
                    (b"stream", streams),
                    (b"router-resp", streams),
                    (b"ignore-policies", flags.ignore_policies),
                    (b"trust-connect-host", flags.trust_connect_host),
                    (b"ignore-tls-errors", flags.ignore_tls_errors),
                ] {
                    map.extend(is_set.then_some((name, Value::Bool(true))));
                }
            }
            Self::Data { body, more, binary } => {
                map.push((b"body", Value::Bytes(body)));
                if binary {
                    map.push((b"content-type", Value::Bytes(b"binary")));
                }
                if more {
                    map.push((b"more", Value::Bool(true)));
                }
            }
            Self::Ping(body) | Self::Pong(body) => map.push((b"body", Value::Bytes(body))),
            Self::Close(Some((code, reason))) => {
                map.push((b"code", Value::Integer(code.into())));
                map.push((b"body", Value::Bytes(reason.as_bytes())));
            }
            Self::Close(None) | Self::Credit | Self::KeepAlive | Self::HandoffProceed | Self::Cancel => {}
        }
    }
}

impl Packet {
    /// Reads one packet, `T` and a TNetString map; what stands behind that is ignored, and so are members that are
    /// not known.
    ///
    /// # Errors
    /// It is no packet of a worker.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let text = bytes.strip_prefix(b"T").ok_or(Malformed::Format)?;
        let Value::Map(map) = tnetstring::decode(text).map_err(|_| Malformed::Value)? else {
            return Err(Malformed::NotMap);
        };
        let members = Members(&map);
        let credits = members.number("credits")?.unwrap_or(0).clamp(0, MAX_CREDITS.into());
        Ok(Self {
            from: Bytes::copy_from_slice(members.bytes("from")?.unwrap_or_default()),
            ids: members.ids()?,
            credits: u32::try_from(credits).map_err(|_| Malformed::Member("credits"))?,
            content: members.content()?,
        })
    }
}

struct Members<'m>(&'m [(&'m [u8], Value<'m>)]);

impl<'m> Members<'m> {
    fn get(&self, name: &str) -> Option<&'m Value<'m>> {
        let found = self.0.iter().find(|(key, _)| *key == name.as_bytes());
        found.map(|(_, value)| value).filter(|value| !matches!(value, Value::Null))
    }

    fn bytes(&self, name: &'static str) -> Result<Option<&'m [u8]>, Malformed> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
            Some(_) => Err(Malformed::Member(name)),
        }
    }

    fn number(&self, name: &'static str) -> Result<Option<i64>, Malformed> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Integer(number)) => Ok(Some(*number)),
            Some(_) => Err(Malformed::Member(name)),
        }
    }

    fn is_set(&self, name: &'static str) -> Result<bool, Malformed> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(Malformed::Member(name)),
        }
    }

    fn seq(&self) -> Result<Option<u32>, Malformed> {
        let seq = self.number("seq")?.filter(|seq| *seq >= 0);
        seq.map(u32::try_from).transpose().map_err(|_| Malformed::Member("seq"))
    }

    fn ids(&self) -> Result<Vec<Id>, Malformed> {
        let one = |id: &[u8], seq| {
            let fits = (1..=MAX_ID_BYTES).contains(&id.len());
            if fits { Ok(Id { id: Bytes::copy_from_slice(id), seq }) } else { Err(Malformed::Id) }
        };
        match self.get("id") {
            Some(Value::Bytes(id)) => Ok(vec![one(id, self.seq()?)?]),
            Some(Value::List(list)) if (1..=MAX_IDS).contains(&list.len()) => {
                let read = list.iter().map(|entry| {
                    let Value::Map(map) = entry else { return Err(Malformed::Id) };
                    let entry = Members(map);
                    one(entry.bytes("id")?.unwrap_or_default(), entry.seq()?)
                });
                read.collect()
            }
            _ => Err(Malformed::Id),
        }
    }

    fn content(&self) -> Result<Content, Malformed> {
        let body = || Ok(Bytes::copy_from_slice(self.bytes("body")?.unwrap_or_default()));
        Ok(match self.bytes("type")? {
            None | Some(b"") => Content::Data {
                head: self.head()?,
                body: body()?,
                more: self.is_set("more")?,
                binary: self.bytes("content-type")? == Some(b"binary"),
            },
            Some(b"ping") => Content::Ping(body()?),
            Some(b"pong") => Content::Pong(body()?),
            Some(b"close") => Content::Close(self.close()?),
            Some(b"credit") => Content::Credit,
            Some(b"keep-alive") => Content::KeepAlive,
            Some(b"handoff-start") => Content::HandoffStart,
            Some(b"cancel") => Content::Cancel,
            Some(b"error") => match self.bytes("condition")?.unwrap_or_default() {
                b"rejected" => {
                    Content::Rejected { head: self.head()?.ok_or(Malformed::Member("code"))?, body: body()? }
                }
                name => Content::Error(Condition::named(name)),
            },
            Some(_) => return Err(Malformed::Type),
        })
    }

    fn close(&self) -> Result<Option<(u16, String)>, Malformed> {
        let Some(code) = self.number("code")?.and_then(|code| u16::try_from(code).ok()) else {
            return Ok(None);
        };
        let reason = self.bytes("body")?.unwrap_or_default();
        Ok(Some((code, String::from_utf8_lossy(reason).into_owned())))
    }

    fn head(&self) -> Result<Option<Box<Head>>, Malformed> {
        let Some(code) = self.number("code")? else { return Ok(None) };
        let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or(Malformed::Member("code"))?;
        let reason = self.bytes("reason")?.unwrap_or_default();
        let reason = str::from_utf8(reason).ok().filter(|reason| !reason.chars().any(char::is_control));
        let reason = reason.ok_or(Malformed::Member("reason"))?.to_owned();
        let mut headers = HeaderMap::new();
        let list = match self.get("headers") {
            None => &[][..],
            Some(Value::List(list)) if list.len() <= MAX_HEADERS => list,
            Some(_) => return Err(Malformed::Member("headers")),
        };
        for entry in list {
            let Value::List(pair) = entry else { return Err(Malformed::Member("headers")) };
            let [Value::Bytes(name), Value::Bytes(value)] = &pair[..] else {
                return Err(Malformed::Member("headers"));
            };
            let name = HeaderName::from_bytes(name).map_err(|_| Malformed::Member("headers"))?;
            let value = HeaderValue::from_bytes(value).map_err(|_| Malformed::Member("headers"))?;
            headers.append(name, value);
        }
        Ok(Some(Box::new(Head { status, reason, headers })))
    }
}

/// Bytes of body that a worker may send ahead of who reads them (spec appendix A).
pub const CREDITS: u32 = 200_000;
/// Of a body of `zhttpreq`, either way (spec 2.4).
pub const MAX_WHOLE_BYTES: usize = 1_000_000;
/// No worker has more room than that.
const MAX_CREDITS: u32 = 1 << 30;
/// Ours are much shorter.
const MAX_ID_BYTES: usize = 256;
/// Sessions of one packet.
const MAX_IDS: usize = 1000;
/// As of an answer over HTTP.
const MAX_HEADERS: usize = 200;
