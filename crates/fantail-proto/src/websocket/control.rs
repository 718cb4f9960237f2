//! What a message from a GRIP origin is: data for the client, or an instruction to Fantail (spec 7.3, 7.4).
//! Decides from the message alone, over HTTP and native alike; channels' prefixes, limits on subscriptions
//! and the timers that are asked for here are the caller's.

use std::time::Duration;

use bytes::Bytes;

use super::events::MAX_PING_BYTES;
use crate::{
    filter::Filter,
    grip::{self, KeepAliveMode},
    item::WsKind,
    json::Json,
    log::Start,
    members::{Fault, Members},
};

/// Bytes in a control message, `c:` included: keep-alive content has room, a parser is not kept busy.
pub const MAX_CONTROL_BYTES: usize = 65_536;

/// A message from the origin.
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: WsKind,
    pub content: Bytes,
    /// True when it came in more than one frame.
    pub fragmented: bool,
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Control(Control),
    /// For the client, with the kind that it came with.
    Data(Bytes),
    /// For nobody; the reason is for the log.
    Dropped(Dropped),
    /// The client is closed with 1011, and this reason if the route has `debug` (spec 7.5).
    Close(FilterError),
}

/// An instruction (spec 7.4). Channels are as the origin wrote them, without the route's prefix, and not empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Control {
    /// `prev_id` is Fantail's own: what the client has seen of the channel already.
    Subscribe {
        channel: String,
        filters: Vec<Filter>,
        prev_id: Option<String>,
        /// Without a `prev_id`: the newest items that it is to get.
        late: Option<Start>,
    },
    Unsubscribe {
        channel: String,
    },
    /// The origin's side is over; the client stays, and gets what is published.
    Detach,
    /// Without an id the connection belongs to no session.
    Session {
        id: Option<String>,
    },
    /// Without a value the name is removed. The name is not empty.
    SetMeta {
        name: String,
        value: Option<String>,
    },
    /// `None` switches it off.
    KeepAlive(Option<KeepAlive>),
    /// Sent after the time given; one that waits already is sent first.
    SendDelayed {
        kind: WsKind,
        content: Bytes,
        after: Duration,
    },
    FlushDelayed,
}

/// What the client gets as long as the origin wishes. Pings and pongs have at most 125 bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeepAlive {
    pub kind: WsKind,
    pub content: Bytes,
    /// Whole seconds, at least 1.
    pub timeout: Duration,
    pub mode: KeepAliveMode,
}

/// Why a message reached nobody.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Dropped {
    #[error("the message does not begin with the message prefix")]
    NoPrefix,
    #[error("a control message came in fragments")]
    Fragmented,
    #[error("a control message is longer than {MAX_CONTROL_BYTES} bytes")]
    TooLong,
    #[error("a control message is not valid: {0}")]
    Invalid(String),
}

/// A subscription with filters that cannot be applied: without them the client would see too much.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FilterError {
    #[error("too many filters for channel '{0:.64}'")]
    TooMany(String),
}

impl Message {
    /// `prefix` is the message prefix that was agreed on, `None` when the origin did not ask for GRIP: then
    /// everything is data. The check for `c:` comes first, whatever the prefix; binary messages are data.
    pub fn classify(self, prefix: Option<&[u8]>) -> Verdict {
        let Self { kind, content, fragmented } = self;
        let Some(prefix) = prefix else { return Verdict::Data(content) };
        match kind {
            WsKind::Ping | WsKind::Pong => Verdict::Data(content),
            WsKind::Text if content.starts_with(CONTROL) => {
                if fragmented {
                    Verdict::Dropped(Dropped::Fragmented)
                } else if content.len() > MAX_CONTROL_BYTES {
                    Verdict::Dropped(Dropped::TooLong)
                } else {
                    control(&content[CONTROL.len()..])
                }
            }
            WsKind::Text | WsKind::Binary if content.starts_with(prefix) => {
                Verdict::Data(content.slice(prefix.len()..))
            }
            WsKind::Text | WsKind::Binary => Verdict::Dropped(Dropped::NoPrefix),
        }
    }
}

/// Why a control message has no effect.
enum Unheeded {
    Invalid(Fault),
    Filters(FilterError),
}

impl From<Fault> for Unheeded {
    fn from(fault: Fault) -> Self {
        Self::Invalid(fault)
    }
}

fn control(text: &[u8]) -> Verdict {
    let read = || {
        let json = Json::parse(text).map_err(|_| Fault("not JSON".into()))?;
        let members = Members::new(OF, &json).ok_or_else(|| Fault("not an object".into()))?;
        instruction(members)
    };
    match read() {
        Ok(control) => Verdict::Control(control),
        Err(Unheeded::Invalid(Fault(reason))) => Verdict::Dropped(Dropped::Invalid(reason)),
        Err(Unheeded::Filters(error)) => Verdict::Close(error),
    }
}

fn instruction(members: Members<'_, '_>) -> Result<Control, Unheeded> {
    Ok(match members.text("type")?.ok_or_else(|| members.missing("type"))? {
        "subscribe" => {
            let channel = named(members, "channel")?;
            let filters = filters(&channel, &members.texts("filters")?.unwrap_or_default())?;
            let prev_id = members.text("prev-id")?.map(str::to_owned);
            Control::Subscribe { channel, filters, prev_id, late: grip::late(members)? }
        }
        "unsubscribe" => Control::Unsubscribe { channel: named(members, "channel")? },
        "detach" => Control::Detach,
        "session" => {
            let id = members.text("id")?.filter(|id| !id.is_empty());
            Control::Session { id: id.map(str::to_owned) }
        }
        "set-meta" => {
            let name = named(members, "name")?;
            Control::SetMeta { name, value: members.text("value")?.map(str::to_owned) }
        }
        "keep-alive" => Control::KeepAlive(keep_alive(members)?),
        "send-delayed" => {
            let (kind, content) = message(members)?;
            let after = seconds(members)?.unwrap_or(DEFAULT_DELAY);
            Control::SendDelayed { kind, content: content.unwrap_or_default(), after }
        }
        "flush-delayed" => Control::FlushDelayed,
        other => return Err(Fault(format!("unknown type '{:.64}'", other.escape_default())).into()),
    })
}

fn keep_alive(members: Members<'_, '_>) -> Result<Option<KeepAlive>, Fault> {
    let (kind, content) = message(members)?;
    let timeout = seconds(members)?.filter(|timeout| !timeout.is_zero()).unwrap_or(DEFAULT_KEEP_ALIVE);
    let mode = match members.text("mode")? {
        Some("interval") => KeepAliveMode::Interval,
        _ => KeepAliveMode::Idle,
    };
    Ok(content.map(|content| KeepAlive { kind, content, timeout, mode }))
}

fn message(members: Members<'_, '_>) -> Result<(WsKind, Option<Bytes>), Fault> {
    let kind = match members.text("message-type")? {
        None | Some("text") => WsKind::Text,
        Some("binary") => WsKind::Binary,
        Some("ping") => WsKind::Ping,
        Some("pong") => WsKind::Pong,
        Some(_) => return Err(members.invalid("message-type")),
    };
    let content = members.bytes("content-bin", "content")?;
    let sendable = |content: &Bytes| match kind {
        WsKind::Text => std::str::from_utf8(content).is_ok(),
        WsKind::Binary => true,
        WsKind::Ping | WsKind::Pong => content.len() <= MAX_PING_BYTES,
    };
    if content.as_ref().is_none_or(sendable) { Ok((kind, content)) } else { Err(members.invalid("content")) }
}

/// Whole seconds below 2^31, so that no sum with a clock can overflow.
fn seconds(members: Members<'_, '_>) -> Result<Option<Duration>, Fault> {
    let Some(seconds) = members.int("timeout")? else { return Ok(None) };
    let seconds = i32::try_from(seconds).ok().and_then(|seconds| u64::try_from(seconds).ok());
    Ok(Some(Duration::from_secs(seconds.ok_or_else(|| members.invalid("timeout"))?)))
}

fn named(members: Members<'_, '_>, member: &str) -> Result<String, Fault> {
    let name = members.text(member)?.ok_or_else(|| members.missing(member))?;
    if name.is_empty() { Err(members.invalid(member)) } else { Ok(name.to_owned()) }
}

fn filters(channel: &str, names: &[&str]) -> Result<Vec<Filter>, Unheeded> {
    if names.len() > MAX_FILTERS {
        return Err(Unheeded::Filters(FilterError::TooMany(channel.to_owned())));
    }
    Ok(names.iter().filter_map(|name| Filter::named(name)).collect())
}

const CONTROL: &[u8] = b"c:";

/// How faults call the JSON object.
const OF: &str = "control message";

/// Spec 7.4.
const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(55);
const DEFAULT_DELAY: Duration = Duration::from_secs(1);

/// Filters run once per subscriber and item (spec 6.1).
const MAX_FILTERS: usize = 5;

#[cfg(test)]
mod tests;
