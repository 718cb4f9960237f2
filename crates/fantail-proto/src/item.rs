//! Items: what a publisher sent, decoded and validated (spec 5.3–5.6). One [`Item`] is one message on
//! one channel with a body per transport. All items of a request decode, or none does.

mod packet;
pub mod record;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};

use crate::{
    hop,
    json::Json,
    members::{Fault, Members},
    patch,
    websocket::frame::CONTROL_MAX,
    xmpp::stanza::Stanza,
};

pub use packet::{decode_list, decode_packet};

/// One message on one channel. Valid by construction: names and values of headers have no CR, LF or NUL.
#[derive(Clone, Debug, Default)]
pub struct Item {
    pub channel: String,
    pub id: Option<String>,
    pub prev_id: Option<String>,
    pub response: Option<HttpResponse>,
    pub stream: Option<HttpStream>,
    pub message: Option<WsMessage>,
    pub request: Option<HttpRequest>,
    /// The `xmpp-stanza` format; of its actions only `send` means anything.
    pub stanza: Option<Box<Stanza>>,
    /// The `json-object` format, as JSON: for the subscribers of nodes.
    pub object: Option<Bytes>,
    pub written_for: WrittenFor,
    /// Publish meta, which filters read (spec 6.2).
    pub meta: Vec<(String, String)>,
    pub size: Option<u64>,
    pub no_seq: bool,
}

/// `content-filters`: the filters that content was written for, by format (spec 6.9). `None`: any.
#[derive(Clone, Debug, Default)]
pub struct WrittenFor {
    pub response: Option<Vec<String>>,
    pub stream: Option<Vec<String>>,
    pub message: Option<Vec<String>>,
    pub request: Option<Vec<String>>,
}

/// The `http-response` format: what a long-poll is answered with.
#[derive(Clone, Debug)]
pub enum HttpResponse {
    Send(Response),
    Hint,
    Close,
    Refresh,
}

#[derive(Clone, Debug)]
pub struct Response {
    /// 200..=999; 1xx is refused, because it could not end a response.
    pub code: u16,
    /// Empty: the standard phrase.
    pub reason: String,
    /// At most 100, without `Grip-*` and without those that Fantail frames itself.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `Grip-Expose-Headers`: of all headers of the answer only these reach the client.
    pub expose: Option<Vec<HeaderName>>,
    pub body: ResponseBody,
}

#[derive(Clone, Debug)]
pub enum ResponseBody {
    Whole(Bytes),
    /// RFC 6902, applied by [`crate::patch::apply`] to the body that the origin gave with the hold.
    Patch(json_patch::Patch),
}

/// The `http-stream` format: what is appended to a stream. `Send` may be empty: then nothing is written.
#[derive(Clone, Debug)]
pub enum HttpStream {
    Send(Bytes),
    Hint,
    Close,
    Refresh,
}

/// The `ws-message` format.
#[derive(Clone, Debug)]
pub enum WsMessage {
    Send {
        kind: WsKind,
        content: Bytes,
    },
    Hint,
    /// Without a code (0 counts as none) the client sees 1000.
    Close {
        code: Option<u16>,
        reason: String,
    },
    Refresh,
}

/// The `http-request` format: what webhooks say.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    pub method: Method,
    /// At most 100, without those that concern one connection, `Host`, and `Webhook-*`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WsKind {
    Text,
    Binary,
    Ping,
    Pong,
}

/// Why a publish body was refused; its text is what the publisher reads (spec 5.2, 5.3).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ItemError(pub String);

/// Decodes the body of `POST /publish/`: all of its items, or none. `channel` is the channel of the URL
/// for the older realm endpoint, whose items need not name one but must not name another.
pub fn decode(body: &[u8], channel: Option<&str>) -> Result<Vec<Item>, ItemError> {
    let json = Json::parse(body).map_err(|_| ItemError("Body is not valid JSON.".into()))?;
    let Some(request) = Members::new("object", &json) else {
        return Err(ItemError("Invalid format.".into()));
    };
    items(request, channel).map_err(|Fault(text)| ItemError(format!("Invalid format: {text}")))
}

fn items(request: Members<'_, '_>, channel: Option<&str>) -> Result<Vec<Item>, Fault> {
    let items = request.list("items")?.ok_or_else(|| request.missing("items"))?;
    count(items.len())?;
    items.iter().map(|json| item(json, channel)).collect()
}

/// Before they are decoded: a small item takes many times its text.
fn count(items: usize) -> Result<(), Fault> {
    if items > MAX_ITEMS { Err(Fault(format!("more than {MAX_ITEMS} items"))) } else { Ok(()) }
}

fn item(json: &Json<'_>, channel: Option<&str>) -> Result<Item, Fault> {
    const OF: &str = "publish item object";
    let members = Members::new(OF, json).ok_or_else(|| Fault(format!("{OF} is not an object")))?;
    let channel = match (members.text("channel")?, channel) {
        (Some(own), Some(url)) if own != url => {
            return Err(Fault(format!("{OF} contains another 'channel' than the URL")));
        }
        (own, url) => own.or(url).ok_or_else(|| members.missing("channel"))?,
    };
    let formats = match members.object("formats", "'formats'")? {
        Some(formats) if !formats.is_empty() => formats,
        None if members.has_any(&FORMATS) || members.has_any(&FOREIGN_FORMATS) => members,
        _ => return Err(Fault("no formats specified".into())),
    };
    let (response, stream, message) =
        (format(formats, HTTP_RESPONSE)?, format(formats, HTTP_STREAM)?, format(formats, WS_MESSAGE)?);
    let request = format(formats, HTTP_REQUEST)?;
    let stanza = format(formats, XMPP_STANZA)?;
    let size = members.int("size")?.map(u64::try_from).transpose().map_err(|_| members.invalid("size"))?;
    Ok(Item {
        channel: channel.to_owned(),
        id: members.text("id")?.map(str::to_owned),
        prev_id: members.text("prev-id")?.map(str::to_owned),
        response: response.map(http_response).transpose()?,
        stream: stream.map(http_stream).transpose()?,
        message: message.map(ws_message).transpose()?,
        request: request.map(http_request).transpose()?.flatten(),
        stanza: stanza.map(xmpp_stanza).transpose()?.flatten(),
        object: formats.get(JSON_OBJECT).map(|json| serde_json::Value::from(json).to_string().into()),
        written_for: WrittenFor {
            response: written_for(response)?,
            stream: written_for(stream)?,
            message: written_for(message)?,
            request: written_for(request)?,
        },
        meta: members.meta()?,
        size,
        no_seq: members.bool("no-seq")?.unwrap_or(false),
    })
}

/// One format of an item, by its name and by the name that faults have for it.
fn format<'j, 'a>(
    formats: Members<'j, 'a>,
    (name, of): (&str, &'static str),
) -> Result<Option<Members<'j, 'a>>, Fault> {
    match formats.get(name) {
        None => Ok(None),
        Some(json) => Members::new(of, json).map(Some).ok_or_else(|| Fault(format!("{of} is not an object"))),
    }
}

fn http_response(format: Members<'_, '_>) -> Result<HttpResponse, Fault> {
    Ok(match action(format)? {
        Action::Send => HttpResponse::Send(response(format)?),
        Action::Hint => HttpResponse::Hint,
        Action::Close => HttpResponse::Close,
        Action::Refresh => HttpResponse::Refresh,
    })
}

fn response(format: Members<'_, '_>) -> Result<Response, Fault> {
    let headers = format.headers()?;
    let body = match format.bytes("body-bin", "body")? {
        Some(bytes) => ResponseBody::Whole(bytes),
        None => match format.get("body-patch") {
            Some(json) => {
                ResponseBody::Patch(patch::parse(json).ok_or_else(|| format.invalid("body-patch"))?)
            }
            None => {
                let text = "'http-response' does not contain 'body', 'body-bin', or 'body-patch'";
                return Err(Fault(text.into()));
            }
        },
    };
    Ok(Response {
        code: format.code()?.unwrap_or(200),
        reason: format.reason()?.to_owned(),
        headers: headers.fields,
        expose: headers.expose,
        body,
    })
}

fn http_stream(format: Members<'_, '_>) -> Result<HttpStream, Fault> {
    Ok(match action(format)? {
        Action::Send => {
            let content = format.bytes("content-bin", "content")?;
            HttpStream::Send(content.ok_or_else(|| no_content("'http-stream'"))?)
        }
        Action::Hint => HttpStream::Hint,
        Action::Close => HttpStream::Close,
        Action::Refresh => HttpStream::Refresh,
    })
}

fn ws_message(format: Members<'_, '_>) -> Result<WsMessage, Fault> {
    Ok(match action(format)? {
        Action::Send => {
            let kind = match format.text("type")? {
                None if format.has_any(&["content-bin"]) => WsKind::Binary,
                None | Some("text") => WsKind::Text,
                Some("binary") => WsKind::Binary,
                Some("ping") => WsKind::Ping,
                Some("pong") => WsKind::Pong,
                Some(_) => return Err(unknown_value("'ws-message'", "type")),
            };
            let content = match format.bytes("content-bin", "content")? {
                Some(content) => content,
                None if matches!(kind, WsKind::Ping | WsKind::Pong) => Bytes::new(),
                None => return Err(no_content("'ws-message'")),
            };
            match kind {
                // A client would have to end the connection.
                WsKind::Text if std::str::from_utf8(&content).is_err() => {
                    Err(Fault("'ws-message' of type text is not UTF-8".into()))?;
                }
                WsKind::Ping | WsKind::Pong if content.len() > CONTROL_MAX => {
                    Err(Fault(format!(
                        "'ws-message' of type ping or pong has more than {CONTROL_MAX} bytes"
                    )))?;
                }
                _ => {}
            }
            WsMessage::Send { kind, content }
        }
        Action::Hint => WsMessage::Hint,
        Action::Close => {
            let code =
                format.int("code")?.map(u16::try_from).transpose().map_err(|_| format.invalid("code"))?;
            let reason = format.text("reason")?.unwrap_or_default().to_owned();
            WsMessage::Close { code: code.filter(|code| *code != 0), reason }
        }
        Action::Refresh => WsMessage::Refresh,
    })
}

/// Only what is sent means something to a webhook.
fn http_request(format: Members<'_, '_>) -> Result<Option<HttpRequest>, Fault> {
    if !matches!(action(format)?, Action::Send) {
        return Ok(None);
    }
    let text = format.text("method")?.unwrap_or("POST");
    let method = Method::from_bytes(text.as_bytes())
        .ok()
        .filter(|method| text.len() <= MAX_METHOD && !matches!(*method, Method::CONNECT | Method::TRACE));
    let method = method.ok_or_else(|| format.invalid("method"))?;
    let mut headers = format.headers()?.fields;
    headers.retain(|(name, _)| !is_of_webhook(name));
    let body = format.bytes("body-bin", "body")?.unwrap_or_default();
    Ok(Some(HttpRequest { method, headers, body }))
}

/// True for headers of a request that only Fantail writes.
pub fn is_of_webhook(name: &HeaderName) -> bool {
    *name == http::header::HOST || hop::is_framing(name) || name.as_str().starts_with("webhook-")
}

fn xmpp_stanza(format: Members<'_, '_>) -> Result<Option<Box<Stanza>>, Fault> {
    if !matches!(action(format)?, Action::Send) {
        return Ok(None);
    }
    let content = format.bytes("content-bin", "content")?.ok_or_else(|| no_content("'xmpp-stanza'"))?;
    match Stanza::published(&content) {
        Ok(stanza) => Ok(Some(Box::new(stanza))),
        Err(why) => Err(Fault(format!("the content of 'xmpp-stanza' {why}"))),
    }
}

enum Action {
    Send,
    Hint,
    Close,
    Refresh,
}

fn action(format: Members<'_, '_>) -> Result<Action, Fault> {
    match format.text("action")? {
        None | Some("send") => Ok(Action::Send),
        Some("hint") => Ok(Action::Hint),
        Some("close") => Ok(Action::Close),
        Some("refresh") => Ok(Action::Refresh),
        Some(_) => Err(unknown_value(format.of(), "action")),
    }
}

/// Only what is sent has content.
fn written_for(format: Option<Members<'_, '_>>) -> Result<Option<Vec<String>>, Fault> {
    let Some(format) = format else { return Ok(None) };
    if !matches!(action(format)?, Action::Send) {
        return Ok(None);
    }
    let names = format.texts("content-filters")?;
    Ok(names.map(|names| names.into_iter().map(str::to_owned).collect()))
}

fn unknown_value(of: &str, name: &str) -> Fault {
    Fault(format!("{of} contains '{name}' with unknown value"))
}

fn no_content(of: &str) -> Fault {
    Fault(format!("{of} does not contain 'content' or 'content-bin'"))
}

const HTTP_RESPONSE: (&str, &str) = (FORMATS[0], "'http-response'");
const HTTP_STREAM: (&str, &str) = (FORMATS[1], "'http-stream'");
const WS_MESSAGE: (&str, &str) = (FORMATS[2], "'ws-message'");
const XMPP_STANZA: (&str, &str) = (FORMATS[3], "'xmpp-stanza'");
const JSON_OBJECT: &str = "json-object";

const HTTP_REQUEST: (&str, &str) = (FORMATS[4], "'http-request'");

const FORMATS: [&str; 5] = ["http-response", "http-stream", "ws-message", "xmpp-stanza", "http-request"];

/// Items of one request. The hub takes a request whole, under its lock: this many take it for some
/// milliseconds at most, and are a sixth of the default `hub.mailbox_items`.
pub const MAX_ITEMS: usize = 10_000;

/// Bytes; the longest registered method has 17.
const MAX_METHOD: usize = 32;

/// Other formats of Fanout Cloud; items may consist of them alone.
const FOREIGN_FORMATS: [&str; 2] = [JSON_OBJECT, "fpp"];

#[cfg(test)]
mod tests;
