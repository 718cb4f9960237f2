//! What the origin's answer asks for: `Grip-*` headers and `application/grip-instruct` bodies (spec 3).
//! Values only: limits on the number of channels and the route's prefix are applied by the caller.

use std::{str, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

use crate::{
    filter::Filter,
    hop,
    json::Json,
    log::Start,
    members::{self, Fault, Members},
    params::{self, Element},
};

/// A parsed answer. `reply` is what the client gets: `Grip-*` headers and those of framing removed,
/// `Grip-Status` and `Grip-Expose-Headers` applied. Values of the JSON body count over headers.
#[derive(Clone, Debug)]
pub struct Instruct {
    pub hold: Option<Hold>,
    /// In the order given. A channel may come twice: the later one's `prev_id` and filters count.
    pub channels: Vec<Channel>,
    /// Sets subscription meta, which filters read; of repeated names the last one counts.
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
    Response { timeout: Duration },
    /// `keep_alive` is `None` also when its content is empty: there would be nothing to send.
    Stream { keep_alive: Option<KeepAlive> },
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Channel {
    /// As the origin wrote it, without the route's prefix.
    pub name: String,
    pub prev_id: Option<String>,
    /// Without a `prev_id`: the newest items that the client is to begin with.
    pub late: Option<Start>,
    /// At most 5 were named.
    pub filters: Vec<Filter>,
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
    /// Absolute or relative, as written.
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
    // One look at each name is cheaper than a lookup. Of several types the first counts.
    let mut typed = false;
    headers.iter().any(|(name, value)| {
        name.as_str().starts_with("grip-")
            || *name == CONTENT_TYPE && !std::mem::replace(&mut typed, true) && is_json(value)
    })
}

impl Instruct {
    /// Parses an answer. With a body too large to collect, call it with an empty `body` and look at
    /// `hold`: a grip-instruct content type then is an error, because its body is needed.
    pub fn parse(code: u16, reason: &str, headers: &HeaderMap, body: Bytes) -> Result<Self, InstructError> {
        let fields = Fields::of(headers);
        let mut draft = Draft::of_headers(&fields)?;
        let kept = reply_headers(headers, &fields.expose_headers);
        let mut reply = Reply { headers: kept, ..status(fields.status, code, reason)? };
        if fields.content_type.is_some_and(is_json) {
            if code != 200 {
                return Err(fault("response code for application/grip-instruct content must be 200"));
            }
            let json = Json::parse(&body)
                .map_err(|_| fault("failed to parse application/grip-instruct content as JSON"))?;
            let json = Members::new("instruct", &json).ok_or_else(|| fault("instruct must be an object"))?;
            if let Some(hold) = json.object("hold", "hold")? {
                draft.add(hold)?;
            }
            reply = Reply { headers: HeaderMap::new(), body: Bytes::new(), ..reply };
            if let Some(response) = json.object("response", "response")? {
                reply = replaced(reply, response)?;
            }
        } else {
            reply.body = body;
        }
        let (next, gone) = links(&fields.link)?;
        Ok(Self {
            hold: draft.mode.map(|mode| mode.hold(draft.timeout, draft.keep_alive)),
            channels: draft.channels,
            meta: draft.meta,
            next,
            gone,
            last: last_ids(&fields.last)?,
            reply,
        })
    }
}

impl From<Fault> for InstructError {
    fn from(Fault(text): Fault) -> Self {
        Self(text)
    }
}

/// An answer's `Grip-*` headers. One look at each header is cheaper than a lookup of what mostly is not there.
/// Of those that can be there once the first counts.
#[derive(Default)]
struct Fields<'h> {
    hold: Option<&'h HeaderValue>,
    channel: Vec<&'h HeaderValue>,
    timeout: Option<&'h HeaderValue>,
    keep_alive: Option<&'h HeaderValue>,
    set_meta: Vec<&'h HeaderValue>,
    status: Option<&'h HeaderValue>,
    expose_headers: Vec<&'h HeaderValue>,
    link: Vec<&'h HeaderValue>,
    last: Vec<&'h HeaderValue>,
    content_type: Option<&'h HeaderValue>,
}

impl<'h> Fields<'h> {
    fn of(headers: &'h HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in headers {
            let single = match name.as_str() {
                "grip-hold" => &mut fields.hold,
                "grip-timeout" => &mut fields.timeout,
                "grip-keep-alive" => &mut fields.keep_alive,
                "grip-status" => &mut fields.status,
                "content-type" => &mut fields.content_type,
                list => {
                    match list {
                        "grip-channel" => fields.channel.push(value),
                        "grip-set-meta" => fields.set_meta.push(value),
                        "grip-expose-headers" => fields.expose_headers.push(value),
                        "grip-link" => fields.link.push(value),
                        "grip-last" => fields.last.push(value),
                        _ => {}
                    }
                    continue;
                }
            };
            single.get_or_insert(value);
        }
        fields
    }
}

/// What headers and body say about the hold, before it is known which hold it is.
struct Draft {
    mode: Option<Mode>,
    channels: Vec<Channel>,
    timeout: Duration,
    keep_alive: Option<KeepAlive>,
    meta: Vec<(String, String)>,
}

#[derive(Clone, Copy)]
enum Mode {
    Response,
    Stream,
}

impl Draft {
    fn of_headers(fields: &Fields<'_>) -> Result<Self, InstructError> {
        let mode = match fields.hold.map(|value| Mode::named(value.as_bytes())) {
            Some(None) => return Err(fault("Grip-Hold must be set to either 'response' or 'stream'")),
            mode => mode.flatten(),
        };
        let channels = params::elements(fields.channel.iter().copied()).map(|element| channel(&element));
        let timeout = match fields.timeout {
            Some(value) => seconds(value.as_bytes()).map_err(|bad| match bad {
                BadSeconds::Unreadable => fault("failed to parse Grip-Timeout"),
                BadSeconds::Negative => fault("Grip-Timeout has invalid value"),
            })?,
            None => DEFAULT_TIMEOUT,
        };
        let keep_alive = fields.keep_alive.and_then(|value| Element::parse(value.as_bytes()));
        Ok(Self {
            mode,
            channels: channels.collect::<Result<_, _>>()?,
            timeout,
            keep_alive: keep_alive.map(|element| keep_alive_of(&element)).transpose()?.flatten(),
            meta: params::parameter_lists(fields.set_meta.iter().copied())
                .filter_map(|pairs| pairs.into_iter().next())
                .map(|(name, value)| Ok((text(name, "Grip-Set-Meta")?, text(&value, "Grip-Set-Meta")?)))
                .collect::<Result<_, InstructError>>()?,
        })
    }

    /// Adds `hold` of the JSON body (spec 3.3).
    fn add(&mut self, hold: Members<'_, '_>) -> Result<(), InstructError> {
        let mode = hold.text("mode")?.map_or(Some(Mode::Response), |mode| Mode::named(mode.as_bytes()));
        let mode = mode.ok_or_else(|| fault("hold 'mode' must be set to either 'response' or 'stream'"))?;
        self.mode = Some(mode);
        for json in hold.list("channels")?.ok_or_else(|| hold.missing("channels"))? {
            self.channels.push(json_channel(json)?);
        }
        self.timeout = json_seconds(hold)?.unwrap_or(self.timeout);
        if let Some(keep_alive) = hold.object("keep-alive", "keep-alive")? {
            self.keep_alive = json_keep_alive(keep_alive)?;
        }
        self.meta.extend(hold.meta()?);
        Ok(())
    }
}

impl Mode {
    fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"response" => Some(Self::Response),
            b"stream" => Some(Self::Stream),
            _ => None,
        }
    }

    fn hold(self, timeout: Duration, keep_alive: Option<KeepAlive>) -> Hold {
        match self {
            Self::Response => Hold::Response { timeout: timeout.max(MIN_TIMEOUT) },
            Self::Stream => Hold::Stream { keep_alive },
        }
    }
}

fn channel(element: &Element<'_>) -> Result<Channel, InstructError> {
    let name = text(element.first, "Grip-Channel")?;
    let named = element.params.iter().filter(|(name, _)| *name == b"filter");
    let named = named.map(|(_, value)| text(value, "Grip-Channel")).collect::<Result<Vec<_>, _>>()?;
    let parameter = |name| element.get(name).map(|value| text(value, "Grip-Channel")).transpose();
    let (prev_id, last, since) = (parameter("prev-id")?, parameter("last")?, parameter("since")?);
    let late = Start::late(last.as_deref(), since.as_deref())
        .map_err(|bad| InstructError(format!("channel '{name:.64}': {bad}")))?;
    Ok(Channel { filters: filters(&name, named.iter().map(String::as_str))?, name, prev_id, late })
}

fn json_channel(json: &Json<'_>) -> Result<Channel, InstructError> {
    let channel = Members::new("channel", json).ok_or_else(|| fault("channel is not an object"))?;
    let name = channel.text("name")?.ok_or_else(|| channel.missing("name"))?.to_owned();
    let named = channel.texts("filters")?.unwrap_or_default();
    let prev_id = channel.text("prev-id")?.map(str::to_owned);
    let late = late(channel)?;
    Ok(Channel { filters: filters(&name, named.into_iter())?, name, prev_id, late })
}

/// `last` and `since` of a subscription.
pub(crate) fn late(members: Members<'_, '_>) -> Result<Option<Start>, Fault> {
    let last = members.int("last")?.map(|last| last.to_string());
    let since = members.text("since")?;
    Start::late(last.as_deref(), since)
        .map_err(|_| members.invalid(if last.is_some() { "last" } else { "since" }))
}

fn filters<'n>(
    channel: &str,
    names: impl ExactSizeIterator<Item = &'n str>,
) -> Result<Vec<Filter>, InstructError> {
    if names.len() > MAX_FILTERS {
        return Err(InstructError(format!("too many filters for channel '{channel:.64}'")));
    }
    Ok(names.filter_map(Filter::named).collect())
}

/// `Grip-Keep-Alive` (spec 3.8).
fn keep_alive_of(element: &Element<'_>) -> Result<Option<KeepAlive>, InstructError> {
    if element.first.is_empty() {
        // A header without anything is as good as none.
        let nothing = element.params.is_empty();
        return if nothing { Ok(None) } else { Err(fault("Grip-Keep-Alive cannot be empty")) };
    }
    let content = match element.get("format").unwrap_or_default() {
        b"" | b"raw" => Bytes::copy_from_slice(element.first),
        b"cstring" => unescaped(element.first)
            .ok_or_else(|| fault("failed to parse Grip-Keep-Alive cstring format"))?
            .into(),
        b"base64" => members::lenient_base64(element.first).into(),
        other => return Err(no_such("format", other)),
    };
    let mode = match element.get("mode").unwrap_or_default() {
        b"" | b"idle" => KeepAliveMode::Idle,
        b"interval" => KeepAliveMode::Interval,
        other => return Err(no_such("mode", other)),
    };
    let timeout = element.get("timeout").map(seconds).transpose().map_err(|bad| match bad {
        BadSeconds::Unreadable => fault("failed to parse Grip-Keep-Alive timeout value"),
        BadSeconds::Negative => fault("Grip-Keep-Alive timeout has invalid value"),
    })?;
    Ok(KeepAlive::of(content, timeout, mode))
}

/// `hold.keep-alive`. Its `mode` is Fantail's own; without it the cadence is fixed, as Pushpin has it.
fn json_keep_alive(json: Members<'_, '_>) -> Result<Option<KeepAlive>, InstructError> {
    let mode = match json.text("mode")? {
        None | Some("interval") => KeepAliveMode::Interval,
        Some("idle") => KeepAliveMode::Idle,
        Some(_) => return Err(json.invalid("mode").into()),
    };
    let content = json.bytes("content-bin", "content")?.unwrap_or_default();
    Ok(KeepAlive::of(content, json_seconds(json)?, mode))
}

impl KeepAlive {
    fn of(content: Bytes, timeout: Option<Duration>, mode: KeepAliveMode) -> Option<Self> {
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT).max(MIN_KEEP_ALIVE);
        (!content.is_empty()).then_some(Self { content, timeout, mode })
    }
}

/// The `cstring` format; an escape that means nothing vanishes. `None` when an escape is incomplete.
fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let hex = |digit: u8| char::from(digit).to_digit(16);
    let mut content = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            content.push(byte);
            continue;
        }
        match bytes.next()? {
            b'\\' => content.push(b'\\'),
            b'r' => content.push(b'\r'),
            b'n' => content.push(b'\n'),
            b'x' => {
                let (high, low) = (hex(bytes.next()?)?, hex(bytes.next()?)?);
                content.push(u8::try_from(high * 16 + low).ok()?);
            }
            _ => {}
        }
    }
    Some(content)
}

/// `Grip-Status`, or else what the origin said. Headers and body are still empty.
fn status(said: Option<&HeaderValue>, code: u16, reason: &str) -> Result<Reply, InstructError> {
    let status = said.map(|value| text(value.as_bytes(), "Grip-Status")).transpose()?;
    let (code, reason) = match status.as_deref() {
        None | Some("") => (code, reason),
        Some(status) => {
            let (code, reason) = status.split_once(' ').unwrap_or((status, ""));
            let code = code.parse().map_err(|_| fault("Grip-Status contains invalid status code"))?;
            (code, reason.trim())
        }
    };
    let code =
        members::final_status(code).ok_or_else(|| fault("Grip-Status contains invalid status code"))?;
    let reason = if members::is_reason(reason) { reason } else { "" };
    Ok(Reply { code, reason: reason.to_owned(), headers: HeaderMap::new(), body: Bytes::new() })
}

/// The origin's headers as the client may see them: all, or those that `Grip-Expose-Headers` names.
fn reply_headers(headers: &HeaderMap, exposed: &[&HeaderValue]) -> HeaderMap {
    let exposed: Vec<&[u8]> = params::texts(exposed.iter().copied()).collect();
    let is_kept = |name: &HeaderName| {
        let listed = |wanted: &&[u8]| wanted.eq_ignore_ascii_case(name.as_str().as_bytes());
        !members::is_ours(name) && (exposed.is_empty() || exposed.iter().any(listed))
    };
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| is_kept(name)) {
        kept.append(name, value.clone());
    }
    for name in hop::named(headers) {
        kept.remove(name);
    }
    kept
}

/// `response` of the JSON body.
fn replaced(mut reply: Reply, json: Members<'_, '_>) -> Result<Reply, InstructError> {
    if let Some(code) = json.code()? {
        reply.code = code;
        reply.reason = String::new();
    }
    let reason = json.reason()?;
    if !reason.is_empty() {
        reply.reason = reason.to_owned();
    }
    for (name, value) in json.headers()?.fields {
        reply.headers.append(name, value);
    }
    reply.body = json.bytes("body-bin", "body")?.unwrap_or_default();
    Ok(reply)
}

/// `Grip-Link`: of each kind the last one counts.
fn links(said: &[&HeaderValue]) -> Result<(Option<Link>, Option<String>), InstructError> {
    let (mut next, mut gone) = (None, None);
    let elements = params::elements(said.iter().copied());
    for element in elements.filter(|element| !element.params.is_empty()) {
        let uri = element.first.strip_prefix(b"<").and_then(|uri| uri.strip_suffix(b">"));
        let uri =
            uri.filter(|uri| !uri.is_empty()).ok_or_else(|| fault("failed to parse Grip-Link value"))?;
        if !uri.iter().all(|byte| is_uri_byte(*byte)) {
            return Err(fault("Grip-Link contains invalid link"));
        }
        let uri = text(uri, "Grip-Link")?;
        match element.get("rel") {
            Some(b"next") => {
                let timeout = element.get("timeout").map(seconds).transpose().map_err(|bad| match bad {
                    BadSeconds::Unreadable => fault("failed to parse Grip-Link timeout value"),
                    BadSeconds::Negative => fault("Grip-Link timeout has invalid value"),
                })?;
                next = Some(Link { uri, timeout: timeout.unwrap_or(DEFAULT_LINK_TIMEOUT) });
            }
            Some(b"gone") => gone = Some(uri),
            _ => {}
        }
    }
    Ok((next, gone))
}

/// What may stand in a URI reference (RFC 3986 2), and raw UTF-8, which resolvers escape.
fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

/// `Grip-Last: CHANNEL; last-id=ID`; elements without an id are left out.
fn last_ids(said: &[&HeaderValue]) -> Result<Vec<(String, String)>, InstructError> {
    let mut ids = Vec::new();
    for element in params::elements(said.iter().copied()) {
        if let Some(id) = element.get("last-id") {
            ids.push((text(element.first, "Grip-Last")?, text(id, "Grip-Last")?));
        }
    }
    Ok(ids)
}

fn is_json(content_type: &HeaderValue) -> bool {
    let media_type = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    media_type.trim_ascii() == b"application/grip-instruct"
}

enum BadSeconds {
    Unreadable,
    Negative,
}

/// Whole seconds; more than 68 years are unreadable, so that no sum with a clock can overflow.
fn seconds(text: &[u8]) -> Result<Duration, BadSeconds> {
    let seconds: i32 =
        str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(BadSeconds::Unreadable)?;
    u64::try_from(seconds).map(Duration::from_secs).map_err(|_| BadSeconds::Negative)
}

fn json_seconds(json: Members<'_, '_>) -> Result<Option<Duration>, Fault> {
    let Some(seconds) = json.int("timeout")? else { return Ok(None) };
    let seconds = i32::try_from(seconds).ok().and_then(|seconds| u64::try_from(seconds).ok());
    Ok(Some(Duration::from_secs(seconds.ok_or_else(|| json.invalid("timeout"))?)))
}

fn text(bytes: &[u8], header: &str) -> Result<String, InstructError> {
    match str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(InstructError(format!("{header} is not UTF-8"))),
    }
}

fn no_such(what: &str, name: &[u8]) -> InstructError {
    InstructError(format!("no such Grip-Keep-Alive {what} '{:.64}'", String::from_utf8_lossy(name)))
}

fn fault(text: &str) -> InstructError {
    InstructError(text.to_owned())
}

/// Of a long-poll and of a keep-alive (spec 3.2, 3.8).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(55);
const MIN_TIMEOUT: Duration = Duration::from_secs(5);
const MIN_KEEP_ALIVE: Duration = Duration::from_secs(1);
const DEFAULT_LINK_TIMEOUT: Duration = Duration::from_secs(120);

/// Filters run once per subscriber and item.
const MAX_FILTERS: usize = 5;

#[cfg(test)]
mod tests;
