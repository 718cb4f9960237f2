//! Items as ZeroMQ publishers send them (spec 5.1, 5.3): `J` and JSON, `T` and a TNetString, or a bare TNetString.
//! Bodies and contents of a TNetString are raw bytes; its `-bin` members are ignored, but for `content-bin` of
//! `ws-message`, which makes a message binary.

use std::borrow::Cow;

use super::{FORMATS, Item, ItemError, WS_MESSAGE, count, item};
use crate::{
    json::Json,
    members::Fault,
    tnetstring::{self, Value},
};

/// Decodes one item. A `channel` that came with the packet wins over the one inside (spec 5.1).
pub fn decode_packet(packet: &[u8], channel: Option<&str>) -> Result<Item, ItemError> {
    let mut json = match packet {
        [b'J', text @ ..] => Json::parse(text).map_err(|_| ItemError("not valid JSON".into()))?,
        [b'T', text @ ..] | text => decode(text)?,
    };
    if let (Json::Object(members), Some(_)) = (&mut json, channel) {
        members.retain(|(name, _)| name != "channel");
    }
    item(&json, channel).map_err(|Fault(text)| ItemError(text))
}

/// Decodes the `items` of a `publish` on the command socket (spec 5.7): all of them, or none.
pub fn decode_list(items: &[Value<'_>]) -> Result<Vec<Item>, ItemError> {
    count(items.len()).map_err(|Fault(text)| ItemError(text))?;
    let decode = |value| item(&members(value)?, None).map_err(|Fault(text)| ItemError(text));
    items.iter().map(decode).collect()
}

fn decode(text: &[u8]) -> Result<Json<'_>, ItemError> {
    members(&tnetstring::decode(text).map_err(|malformed| ItemError(malformed.to_string()))?)
}

fn members<'v>(item: &Value<'v>) -> Result<Json<'v>, ItemError> {
    map(item, |name, value| match name {
        "formats" => map(value, format),
        _ if FORMATS.contains(&name) => format(name, value),
        _ => plain(value),
    })
}

fn format<'v>(name: &str, value: &Value<'v>) -> Result<Json<'v>, ItemError> {
    let is_message = name == WS_MESSAGE.0;
    let Value::Map(members) = value else { return plain(value) };
    let kept = members.iter().filter(|(member, _)| match *member {
        b"body-bin" => false,
        b"content-bin" => is_message,
        _ => true,
    });
    let members = kept.map(|(member, value)| {
        let value = match (*member, value) {
            (b"body" | b"content" | b"content-bin", Value::Bytes(raw)) => Json::Bytes(raw),
            _ => plain(value)?,
        };
        Ok((Cow::Borrowed(text(member)?), value))
    });
    Ok(Json::Object(members.collect::<Result<_, ItemError>>()?))
}

/// An object with its values as `each` makes them; what is no map stays what it is.
fn map<'v>(
    value: &Value<'v>,
    each: impl Fn(&str, &Value<'v>) -> Result<Json<'v>, ItemError>,
) -> Result<Json<'v>, ItemError> {
    let Value::Map(members) = value else { return plain(value) };
    let members = members.iter().map(|(name, value)| {
        let name = text(name)?;
        Ok((Cow::Borrowed(name), each(name, value)?))
    });
    Ok(Json::Object(members.collect::<Result<_, ItemError>>()?))
}

/// A value all of whose strings are text.
fn plain<'v>(value: &Value<'v>) -> Result<Json<'v>, ItemError> {
    Ok(match value {
        Value::Bytes(bytes) => Json::String(Cow::Borrowed(text(bytes)?)),
        Value::Integer(number) => Json::Number((*number).into()),
        Value::Float(number) => serde_json::Number::from_f64(*number).map_or(Json::Null, Json::Number),
        Value::Bool(flag) => Json::Bool(*flag),
        Value::Null => Json::Null,
        Value::List(list) => Json::Array(list.iter().map(plain).collect::<Result<_, _>>()?),
        Value::Map(_) => map(value, |_, value| plain(value))?,
    })
}

fn text(bytes: &[u8]) -> Result<&str, ItemError> {
    str::from_utf8(bytes).map_err(|_| ItemError("a text is not UTF-8".into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::item::{HttpResponse, HttpStream, ResponseBody, WsKind, WsMessage};

    fn encoded(value: &Value<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        tnetstring::encode(value, &mut out);
        out
    }

    fn packet<'v>(formats: Vec<(&'v [u8], Value<'v>)>) -> Value<'v> {
        Value::Map(vec![
            (b"channel", Value::Bytes(b"c")),
            (b"id", Value::Bytes(b"1")),
            (b"meta", Value::Map(vec![(b"content", Value::Bytes(b"v"))])),
            (b"formats", Value::Map(formats)),
        ])
    }

    #[test]
    fn the_three_framings() {
        let json = br#"{"channel":"c","http-stream":{"content":"x"}}"#;
        let bare = b"47:7:channel,1:c,11:http-stream,14:7:content,1:x,}}".to_vec();
        let framed = [b"T", &bare[..]].concat();
        for packet in [[b"J", &json[..]].concat(), bare, framed] {
            let item = decode_packet(&packet, None).expect("an item");
            assert_eq!(item.channel, "c");
            assert!(matches!(&item.stream, Some(HttpStream::Send(content)) if content == "x"));
            let item = decode_packet(&packet, Some("other")).expect("an item");
            assert_eq!(item.channel, "other", "the channel beside the packet wins");
        }
        for bad in [&b""[..], b"J", b"T", b"x", b"J[]", b"T0:]", b"J{}"] {
            assert!(decode_packet(bad, None).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn contents_are_raw_bytes() {
        let raw = Value::Bytes(b"\xff\x00");
        let item = decode_packet(
            &encoded(&packet(vec![
                (
                    b"http-response",
                    Value::Map(vec![(b"body", raw.clone()), (b"body-bin", Value::Bytes(b"eA=="))]),
                ),
                (
                    b"http-stream",
                    Value::Map(vec![(b"content", raw.clone()), (b"content-bin", Value::Bytes(b"eA=="))]),
                ),
                (b"ws-message", Value::Map(vec![(b"content-bin", raw)])),
            ])),
            None,
        )
        .expect("an item");
        let Some(HttpResponse::Send(response)) = &item.response else { panic!("{item:?}") };
        assert!(matches!(&response.body, ResponseBody::Whole(body) if body == &b"\xff\0"[..]));
        assert!(matches!(&item.stream, Some(HttpStream::Send(content)) if content == &b"\xff\0"[..]));
        assert!(
            matches!(&item.message, Some(WsMessage::Send { kind: WsKind::Binary, content }) if content == &b"\xff\0"[..])
        );
        assert_eq!(item.meta, [("content".to_owned(), "v".to_owned())]);
        assert_eq!(item.id.as_deref(), Some("1"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let text =
            |content| packet(vec![(b"ws-message", Value::Map(vec![(b"content", Value::Bytes(content))]))]);
        assert!(decode_packet(&encoded(&text(b"good")), None).is_ok());
        assert!(decode_packet(&encoded(&text(b"\xff")), None).is_err(), "text that is not UTF-8");
        let only_bin =
            packet(vec![(b"http-stream", Value::Map(vec![(b"content-bin", Value::Bytes(b"eA=="))]))]);
        assert!(decode_packet(&encoded(&only_bin), None).is_err());
        let list = [text(b"good"), text(b"\xff")];
        assert_eq!(decode_list(&list[..1]).map(|items| items.len()), Ok(1));
        assert!(decode_list(&list).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(decode_packet(&bytes, None));
        }
    }
}
