//! The command socket (spec 5.7): one request of a tnetstring map, one response. A request that cannot be parsed
//! gets no answer.

use std::{sync::Arc, time::Duration};

use fantail_proto::{
    item::{Item, ItemError, WsMessage, decode_list},
    tnetstring::{self, Value},
};
use tokio::time::timeout;

use super::{Inputs, Refusal};
use crate::config::Endpoint;

/// Why a command failed: Pushpin's words for it, and text.
struct Failed<'v>(&'static str, Option<Value<'v>>);

impl Inputs {
    /// The answer to a request, if it was understood.
    pub(super) async fn command(self: &Arc<Self>, request: &[u8]) -> Option<Vec<u8>> {
        let Ok(request) = tnetstring::decode(request) else { return self.malformed() };
        let Some(Value::Bytes(method)) = member(&request, b"method") else { return self.malformed() };
        let no_args = Value::Map(Vec::new());
        let args = member(&request, b"args").unwrap_or(&no_args);
        let text;
        let outcome = match *method {
            b"get-zmq-uris" => Ok(self.uris()),
            b"publish" => match self.items(args) {
                Ok(items) => match self.publisher.publish_all(items).await {
                    Ok(()) => Ok(Value::Null),
                    Err(why) => {
                        text = why.to_string();
                        Err(Failed("internal-error", Some(Value::Bytes(text.as_bytes()))))
                    }
                },
                Err(why) => {
                    text = why.to_string();
                    Err(Failed("bad-request", Some(Value::Bytes(text.as_bytes()))))
                }
            },
            b"recover" => {
                self.publisher.recover(self.publisher.default_realm());
                Ok(Value::Null)
            }
            b"refresh" => self.refresh(args).await,
            b"conncheck" => self.conncheck(args),
            _ => Err(Failed("method-not-found", None)),
        };
        let mut response = Vec::new();
        if let Some(id @ Value::Bytes(_)) = member(&request, b"id") {
            response.push((&b"id"[..], id.clone()));
        }
        response.push((b"success", Value::Bool(outcome.is_ok())));
        match outcome {
            Ok(value) => {
                self.counts.commands_done.add(1);
                response.push((b"value", value));
            }
            Err(Failed(condition, value)) => {
                self.counts.commands_failed.add(1);
                response.push((b"condition", Value::Bytes(condition.as_bytes())));
                response.extend(value.map(|value| (&b"value"[..], value)));
            }
        }
        let mut out = Vec::new();
        tnetstring::encode(&Value::Map(response), &mut out);
        Some(out)
    }

    fn malformed<T>(&self) -> Option<T> {
        self.counts.commands_malformed.add(1);
        self.complain(|| tracing::warn!("IN command: bad format, skipping"));
        None
    }

    fn uris(&self) -> Value<'_> {
        let config = &self.config;
        let publish_sub = config.sub.first().filter(|_| !config.sub_connect);
        let uris: [(&[u8], Option<&Endpoint>); 3] = [
            (b"command", config.command.as_ref()),
            (b"publish-pull", config.pull.first()),
            (b"publish-sub", publish_sub),
        ];
        let found = uris
            .into_iter()
            .filter_map(|(name, endpoint)| Some((name, Value::Bytes(endpoint?.spec.as_bytes()))));
        Value::Map(found.collect())
    }

    fn items(&self, args: &Value<'_>) -> Result<Vec<Item>, Refusal> {
        let Some(Value::List(items)) = member(args, b"items") else {
            return Err(ItemError("object does not contain 'items'".into()).into());
        };
        let items = decode_list(items)?;
        self.publisher.check(self.publisher.default_realm(), &items)?;
        Ok(items)
    }

    /// Which of these connections are there.
    fn conncheck<'v>(&self, args: &Value<'v>) -> Result<Value<'v>, Failed<'v>> {
        let bad = || Failed("bad-request", None);
        let Some(Value::List(list)) = member(args, b"ids") else { return Err(bad()) };
        let text = |id: &Value<'v>| match id {
            Value::Bytes(id) => str::from_utf8(id).ok(),
            _ => None,
        };
        let ids: Vec<&'v str> = list.iter().map(text).collect::<Option<_>>().ok_or_else(bad)?;
        let Some(board) = &self.board else { return Ok(Value::List(Vec::new())) };
        let there = ids.iter().zip(board.present(&ids)).filter(|(_, there)| *there);
        Ok(Value::List(there.map(|(id, _)| Value::Bytes(id.as_bytes())).collect()))
    }

    /// WebSockets of a channel, or one, ask their origins what there is to say.
    async fn refresh<'v>(&self, args: &Value<'_>) -> Result<Value<'v>, Failed<'v>> {
        if let Some(Value::Bytes(id)) = member(args, b"cid") {
            let id = str::from_utf8(id).map_err(|_| Failed("bad-request", None))?;
            let found = match &self.board {
                Some(board) => timeout(ERRAND, board.refresh(id)).await,
                None => Ok(false),
            };
            return match found {
                Ok(true) => Ok(Value::Null),
                Ok(false) => Err(Failed("item-not-found", None)),
                Err(_) => Err(Failed("timeout", None)),
            };
        }
        let Some(Value::Bytes(channel)) = member(args, b"channel") else {
            return Err(Failed("bad-request", None));
        };
        let Ok(channel) = str::from_utf8(channel) else { return Err(Failed("bad-request", None)) };
        let message = Some(WsMessage::Refresh);
        let item = Item { channel: channel.into(), message, ..Item::default() };
        drop(self.publisher.publish_all(vec![item]).await);
        Ok(Value::Null)
    }
}

/// Shards see to errands within milliseconds, or are in trouble.
const ERRAND: Duration = Duration::from_secs(5);

fn member<'m, 'v>(map: &'m Value<'v>, name: &[u8]) -> Option<&'m Value<'v>> {
    let Value::Map(members) = map else { return None };
    members.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| value)
}
