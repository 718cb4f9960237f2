//! Items: what a publisher sent, decoded and validated (spec 5.3–5.6). One [`Item`] is one message on
//! one channel with a body per transport. All items of a request decode, or none does.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

/// One message on one channel. Valid by construction: names and values of headers have no CR, LF or NUL.
#[derive(Clone, Debug, Default)]
pub struct Item {
    pub channel: String,
    pub id: Option<String>,
    pub prev_id: Option<String>,
    pub response: Option<HttpResponse>,
    pub stream: Option<HttpStream>,
    pub message: Option<WsMessage>,
    /// Publish meta, which filters read (spec 6.2).
    pub meta: Vec<(String, String)>,
    pub size: Option<u64>,
    pub no_seq: bool,
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
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: ResponseBody,
}

#[derive(Clone, Debug)]
pub enum ResponseBody {
    Whole(Bytes),
    /// RFC 6902, applied to the body that the origin gave with the hold.
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

/// The `ws-message` format, decoded and kept; WebSocket holds do not exist yet.
#[derive(Clone, Debug)]
pub enum WsMessage {
    Send { kind: WsKind, content: Bytes },
    Hint,
    Close { code: Option<u16>, reason: String },
    Refresh,
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

/// Decodes the body of `POST /publish/`. `channel` is the channel of the URL for the older realm
/// endpoint, whose items need not name one.
pub fn decode(body: &[u8], channel: Option<&str>) -> Result<Vec<Item>, ItemError> {
    let _ = (body, channel);
    Err(ItemError("not written".into()))
}
