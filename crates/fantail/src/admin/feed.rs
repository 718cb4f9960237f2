//! The feed of subscriptions, as Fanout Cloud had it, so that a publisher need not publish what nobody hears:
//!
//! - `GET /realm/{realm}/subscriptions/items/?since=cursor:…`: the last change of each channel, in pages
//! - `GET /realm/{realm}/subscriptions/stream/`: each change as it comes, a line of JSON each
//!
//! each also without `/realm/{realm}`, for the realm `default`, and without the slash at the end.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{
        HeaderMap, HeaderValue, Method, Response, StatusCode, Uri,
        header::{AUTHORIZATION, CONTENT_TYPE},
    },
    routing::{MethodRouter, get},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body::Frame;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};

use super::Phase;
use crate::{
    config::DEFAULT_REALM,
    hub::{Cursor, RealmId, Turn},
    publish::{
        answer,
        http::{denied, overload},
    },
};

pub(super) fn router(state: &Arc<super::State>) -> Router {
    let mut router = Router::new();
    for realm in ["", "/realm/{realm}"] {
        for slash in ["", "/"] {
            router = router
                .route(&format!("{realm}/subscriptions/items{slash}"), only_get(get(items)))
                .route(&format!("{realm}/subscriptions/stream{slash}"), only_get(get(stream)));
        }
    }
    router.with_state(Arc::clone(state))
}

type Shared = State<Arc<super::State>>;

/// What a path names.
#[derive(Deserialize)]
struct Named {
    realm: Option<String>,
}

impl Named {
    fn realm(&self, state: &super::State, headers: &HeaderMap) -> Option<RealmId> {
        let name = self.realm.as_deref().unwrap_or(DEFAULT_REALM);
        state.endpoints.publisher().authorize(name, headers.get(AUTHORIZATION)).ok()
    }
}

async fn items(
    State(state): Shared,
    Path(named): Path<Named>,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let Some(realm) = named.realm(&state, &headers) else { return denied() };
    let since = uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("since="));
    let cursor = match since.map(|text| percent_decode_str(text).decode_utf8_lossy().into_owned()) {
        None => None,
        Some(text) => match text.strip_prefix("cursor:").and_then(read) {
            Some(cursor) => Some(cursor),
            None => return answer::text(StatusCode::BAD_REQUEST, "since is cursor: and a last_cursor"),
        },
    };
    let Some((turns, cursor)) = state.hub.subscriptions(realm, cursor, PAGE) else {
        return answer::text(StatusCode::NOT_FOUND, "The cursor is too old.");
    };
    let items: Vec<Value> = turns.iter().map(item).collect();
    answer::json(StatusCode::OK, &json!({ "items": items, "last_cursor": write(cursor) }))
}

async fn stream(State(state): Shared, Path(named): Path<Named>, headers: HeaderMap) -> Response<Body> {
    let Some(realm) = named.realm(&state, &headers) else { return denied() };
    let Ok(permit) = Arc::clone(&state.streams).try_acquire_owned() else {
        return overload("Too many follow the feed of subscriptions.");
    };
    let cursor = state.hub.feed_cursor(realm);
    let reader = Reader { state, realm, cursor, _permit: permit };
    let mut response = Response::new(Body::new(Lines { next: Box::pin(reader.read()) }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// Follows the feed of a realm.
struct Reader {
    state: Arc<super::State>,
    realm: RealmId,
    cursor: Cursor,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// The next lines: changes, or an empty one so that everybody sees that the connection lives. `None`: this is the end.
    async fn read(mut self) -> Next {
        let until = Instant::now() + KEEP_ALIVE;
        loop {
            let state = Arc::clone(&self.state);
            let mut turned = pin!(state.hub.turned());
            // Before asking: what changes in between then wakes us.
            turned.as_mut().enable();
            if state.phase() == Phase::Draining {
                return None;
            }
            let turns = state.hub.turns(self.realm, self.cursor, PAGE)?;
            if !turns.is_empty() {
                let mut lines = String::new();
                for turn in &turns {
                    let next = Cursor { number: turn.number, ..self.cursor };
                    let line = json!({
                        "item": item(turn), "cursor": write(next), "prev_cursor": write(self.cursor),
                    });
                    lines.push_str(&format!("{line}\n"));
                    self.cursor = next;
                }
                return Some((lines.into(), self));
            }
            if Instant::now() >= until {
                return Some((Bytes::from_static(b"\n"), self));
            }
            // Whether it was notified does not matter.
            drop(timeout(LOOK, turned).await);
        }
    }
}

/// A body that is read from a feed.
struct Lines {
    next: Pin<Box<dyn Future<Output = Next> + Send>>,
}

type Next = Option<(Bytes, Reader)>;

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some((bytes, reader)) = ready!(self.next.as_mut().poll(cx)) else { return Poll::Ready(None) };
        self.next = Box::pin(reader.read());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

fn item(turn: &Turn) -> Value {
    let state = if turn.subscribed { "subscribed" } else { "unsubscribed" };
    json!({ "channel": &*turn.channel, "state": state })
}

/// Clients of Fanout Cloud read base64, and compare what is behind the first `_`.
fn write(Cursor { epoch, number }: Cursor) -> String {
    BASE64_STANDARD.encode(format!("fantail_{epoch}-{number}"))
}

fn read(text: &str) -> Option<Cursor> {
    let text = String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()?;
    let (epoch, number) = text.strip_prefix("fantail_")?.split_once('-')?;
    Some(Cursor { epoch: epoch.parse().ok()?, number: number.parse().ok()? })
}

fn only_get(route: MethodRouter<Arc<super::State>>) -> MethodRouter<Arc<super::State>> {
    route.fallback(async |method: Method| answer::wrong_method(&method, "GET, HEAD"))
}

/// Channels in one answer.
const PAGE: usize = 1000;
/// Clients take a minute of silence for a lost connection.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How often a silent stream looks whether the server stops.
const LOOK: Duration = Duration::from_millis(500);
/// Streams of the feed at once; each has a seat of the control port.
pub(super) const STREAMS: usize = 64;
