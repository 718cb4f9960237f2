//! What a webhook says of an item that has no `http-request`: the item itself, in the form in which it could be
//! published again.

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Map, Value, json};

use crate::{
    item::{HttpResponse, ResponseBody, WsKind},
    render::{MessagePart, Rendered, StreamPart},
};

/// The item as JSON; `None` when it has nothing to say: no content in any format.
pub fn envelope(channel: &str, item: &Rendered) -> Option<Vec<u8>> {
    let mut formats = Map::new();
    if let Some(StreamPart::Send(chunk)) = &item.stream {
        formats.insert("http-stream".into(), content("content", chunk.content_slice()));
    }
    if let Some(HttpResponse::Send(response)) = &item.response
        && let ResponseBody::Whole(body) = &response.body
    {
        let mut format = content("body", body);
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = response.headers.iter().map(|(name, value)| json!([name.as_str(), text(value)]));
        format["code"] = json!(response.code);
        format["headers"] = headers.collect();
        formats.insert("http-response".into(), format);
    }
    if let Some(MessagePart::Send(message)) = &item.message
        && matches!(message.kind(), WsKind::Text | WsKind::Binary)
    {
        formats.insert("ws-message".into(), content("content", message.content()));
    }
    if let Some(stanza) = &item.stanza {
        formats.insert("xmpp-stanza".into(), content("content", stanza.text().as_bytes()));
    }
    if let Some(object) = &item.object
        && let Ok(object) = serde_json::from_slice::<Value>(object)
    {
        formats.insert("json-object".into(), object);
    }
    if formats.is_empty() {
        return None;
    }
    let mut all = Map::new();
    all.insert("channel".into(), json!(channel));
    for (name, id) in [("id", &item.id), ("prev-id", &item.prev_id)] {
        if let Some(id) = id {
            all.insert(name.into(), json!(id));
        }
    }
    if !item.meta.is_empty() {
        all.insert(
            "meta".into(),
            item.meta.iter().map(|(name, value)| (name.clone(), json!(value))).collect(),
        );
    }
    all.insert("formats".into(), Value::Object(formats));
    serde_json::to_vec(&all).ok()
}

/// Text as it is, else base64 under the name that says so.
fn content(name: &str, bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ name: text }),
        Err(_) => json!({ format!("{name}-bin"): BASE64.encode(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item;

    fn of(body: &Value) -> Option<Value> {
        let item = item::decode(json!({ "items": [body] }).to_string().as_bytes(), None).unwrap().remove(0);
        envelope("c", &Rendered::from(item)).map(|bytes| serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn an_envelope_could_be_published() {
        let item = json!({
            "channel": "c", "id": "2", "prev-id": "1", "formats": {
                "http-stream": { "content": "x\n" },
                "http-response": { "code": 201, "headers": [["a", "b"]], "body": "y" },
                "ws-message": { "content-bin": "/wA=" },
            }
        });
        assert_eq!(of(&item), Some(item.clone()));
        // Each alone is something to say.
        let stanza = "<message from='a@b' to='c@d' type='chat'><body>1 &lt; 2</body><x xmlns='y'/></message>";
        for (format, content) in [
            ("http-stream", json!({ "content": "x" })),
            ("ws-message", json!({ "content": "x" })),
            ("xmpp-stanza", json!({ "content": stanza })),
            ("json-object", json!({ "a": [1, null, "b"] })),
            ("json-object", json!("text")),
        ] {
            let item = json!({ "channel": "c", "meta": { "sender": "ann" }, "formats": { format: content } });
            assert_eq!(of(&item), Some(item.clone()));
        }
    }

    #[test]
    fn what_says_nothing_has_none() {
        for formats in [
            json!({ "http-stream": { "action": "close" } }),
            json!({ "http-response": { "body-patch": [] }, "ws-message": { "type": "ping" } }),
            json!({ "http-request": { "body": "x" } }),
        ] {
            assert_eq!(of(&json!({ "channel": "c", "formats": formats })), None);
        }
    }
}
