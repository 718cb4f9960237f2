//! The endpoints for webhooks on the control port, for the default realm and, below `/realm/{realm}`, for each: those
//! of Fanout Cloud, and more. Owns their forms; it knows no table and no queue.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{
        HeaderMap, Method, Response, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE},
    },
    routing::{MethodRouter, get, post},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    Trouble, Webhooks,
    book::{Death, Said},
    endpoint::{Id, Wish},
    now,
};
use crate::{
    config::DEFAULT_REALM,
    publish::{
        Publisher,
        answer::{self, Format},
        http::{denied, overload},
    },
};

/// What answers; without a folder for data there are no webhooks, and it says so.
#[derive(Debug)]
pub struct Subscriptions {
    publisher: Arc<Publisher>,
    webhooks: Option<Arc<Webhooks>>,
}

/// Where a request is about.
#[derive(Debug)]
struct Place {
    realm: String,
    channel: String,
    url: String,
    dead: String,
}

impl Subscriptions {
    pub fn new(publisher: Arc<Publisher>, webhooks: Option<Arc<Webhooks>>) -> Self {
        Self { publisher, webhooks }
    }

    pub fn router(self: Arc<Self>) -> Router {
        let mut router = Router::new();
        for base in ["", "/realm/{realm}"] {
            for slash in ["", "/"] {
                let one = format!("{base}/channel/{{channel}}/hrq-subscription/{{url}}");
                let routes: [(String, MethodRouter<Arc<Self>>, &'static str); 9] = [
                    (format!("{base}/hrq-subscriptions"), get(list), "GET, HEAD"),
                    (
                        format!("{base}/channel/{{channel}}/hrq-subscriptions"),
                        get(list).post(subscribe),
                        "GET, HEAD, POST",
                    ),
                    (one.clone(), get(read).patch(change).delete(unsubscribe), "GET, HEAD, PATCH, DELETE"),
                    (format!("{one}/secrets"), get(secrets).post(rotate), "GET, HEAD, POST"),
                    (format!("{one}/enable"), post(enable), "POST"),
                    (format!("{one}/retry"), post(retry), "POST"),
                    (format!("{one}/dead-letters"), get(dead_letters), "GET, HEAD"),
                    (format!("{one}/dead-letters/replay"), post(replay), "POST"),
                    (format!("{one}/dead-letters/{{dead}}/replay"), post(replay), "POST"),
                ];
                for (path, route, allowed) in routes {
                    let route = route.fallback(move |method: Method| async move {
                        answer::wrong_method(&method, allowed)
                    });
                    router = router.route(&format!("{path}{slash}"), route);
                }
            }
        }
        router.with_state(self)
    }

    /// Whose webhooks, if the request may ask.
    fn admit(
        &self,
        parts: &HashMap<String, String>,
        headers: &HeaderMap,
    ) -> Result<(&Arc<Webhooks>, Place), Refused> {
        let part = |name: &str| parts.get(name).cloned();
        let realm = part("realm").unwrap_or_else(|| DEFAULT_REALM.into());
        self.publisher.authorize(&realm, headers.get(AUTHORIZATION)).map_err(|_| Refused::Denied)?;
        let webhooks = self.webhooks.as_ref().ok_or(Refused::NoFolder)?;
        let text = |name| part(name).unwrap_or_default();
        let (channel, url, dead) = (text("channel"), text("url"), text("dead"));
        if channel.len() > self.publisher.channel_bytes() {
            return Err(Refused::Form("the channel's name is too long".into()));
        }
        Ok((webhooks, Place { realm, channel, url, dead }))
    }
}

/// Why a request is not answered with 2xx.
#[derive(Debug)]
enum Refused {
    Denied,
    NoFolder,
    Form(String),
    Trouble(Trouble),
}

impl From<Trouble> for Refused {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<Refused> for Response<Body> {
    fn from(refused: Refused) -> Self {
        let trouble = match refused {
            Refused::Denied => return denied(),
            Refused::NoFolder => return answer::text(StatusCode::NOT_IMPLEMENTED, NO_FOLDER),
            Refused::Form(text) => return answer::text(StatusCode::BAD_REQUEST, &text),
            Refused::Trouble(trouble) => trouble,
        };
        let status = match trouble {
            Trouble::Absent => StatusCode::NOT_FOUND,
            Trouble::Many | Trouble::Crowded => StatusCode::FORBIDDEN,
            Trouble::Disabled => StatusCode::CONFLICT,
            Trouble::Url(_) | Trouble::Forbidden(_) | Trouble::Wish(_) | Trouble::Unverified(_) => {
                StatusCode::BAD_REQUEST
            }
            Trouble::Store(_) | Trouble::NoRoom | Trouble::Stopping => return overload(&trouble.to_string()),
        };
        answer::text(status, &trouble.to_string())
    }
}

type Shared = State<Arc<Subscriptions>>;
type Parts = Path<HashMap<String, String>>;

async fn subscribe(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    respond(async move {
        let format = Format::accepted(request.headers()).unwrap_or(Format::Text);
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        let form = is_form(request.headers());
        let body = read_body(request).await?;
        let wish = if form {
            let url = form_value(&body, "url");
            Wish::of_url(url.ok_or_else(|| Refused::Form("the form has no url".into()))?)
        } else {
            parse::<Wish>(&body)?
        };
        let (id, endpoint) = webhooks.subscribe(&place.realm, &place.channel, wish).await?;
        if form && format == Format::Text {
            return Ok(answer::text(StatusCode::OK, "Subscribed"));
        }
        let mut shown = endpoint.shown(id);
        shown["secrets"] = endpoint.secrets(now());
        Ok(answer::json(StatusCode::OK, &shown))
    })
    .await
}

async fn unsubscribe(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        webhooks.unsubscribe(&place.realm, &place.channel, &place.url).await?;
        Ok(done(&request, "Unsubscribed"))
    })
    .await
}

async fn read(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        let (id, endpoint, page) = webhooks.find(&place.realm, &place.channel, &place.url)?;
        let mut shown = endpoint.shown(id);
        shown["queued"] = json!(page.queued(id).map_err(Trouble::from)?);
        let health = page.health(id).map_err(Trouble::from)?;
        shown["failing"] =
            health.map_or(Value::Null, |(since, tries)| json!({ "since": since / 1000, "tries": tries }));
        let last = page.last_fault(id).map_err(Trouble::from)?;
        let pause = last.as_ref().map(|last| last.paused_until / 1000).filter(|until| *until > now());
        shown["paused_until"] = json!(pause);
        shown["last_fault"] =
            last.map_or(Value::Null, |last| json!({ "at": last.at / 1000, "fault": last.why }));
        Ok(answer::json(StatusCode::OK, &shown))
    })
    .await
}

async fn change(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        let wish: Wish = parse(&read_body(request).await?)?;
        if wish.url.is_some() {
            return Err(Refused::Form("the url of an endpoint cannot be changed: subscribe another".into()));
        }
        let (id, endpoint) = webhooks.grant(&place.realm, &place.channel, &place.url, wish).await?;
        Ok(answer::json(StatusCode::OK, &endpoint.shown(id)))
    })
    .await
}

async fn secrets(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        let (_, endpoint, _) = webhooks.find(&place.realm, &place.channel, &place.url)?;
        Ok(answer::json(StatusCode::OK, &json!({ "secrets": endpoint.secrets(now()) })))
    })
    .await
}

/// A new secret; the ones before it go on for a while.
async fn rotate(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    #[derive(Default, Deserialize)]
    struct Rotation {
        /// Seconds.
        overlap: Option<u64>,
        #[serde(flatten)]
        rest: serde_json::Map<String, Value>,
    }
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        let body = read_body(request).await?;
        let rotation: Rotation = if body.is_empty() { Rotation::default() } else { parse(&body)? };
        let overlap = rotation.overlap.unwrap_or(webhooks.config.secret_overlap.as_secs());
        let wish: Wish = serde_json::from_value(Value::Object(rotation.rest)).map_err(malformed)?;
        let change = move |endpoint: &mut super::Endpoint| endpoint.rotate(&wish, overlap, now());
        let (_, endpoint) = webhooks.change(&place.realm, &place.channel, &place.url, change).await?;
        Ok(answer::json(StatusCode::OK, &json!({ "secrets": endpoint.secrets(now()) })))
    })
    .await
}

async fn enable(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        webhooks.enable(&place.realm, &place.channel, &place.url).await?;
        Ok(done(&request, "Enabled"))
    })
    .await
}

async fn retry(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        webhooks.retry(&place.realm, &place.channel, &place.url).await?;
        Ok(done(&request, "Retrying"))
    })
    .await
}

async fn list(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        let query = Query::parse(&request)?;
        let after = match &query.after {
            Some(text) => Some(Id::parse(text).ok_or_else(|| Refused::Form("after is no id".into()))?),
            None => None,
        };
        let channel = (!place.channel.is_empty()).then_some(&*place.channel);
        let (found, next) = webhooks.list(&place.realm, channel, after, query.limit)?;
        let next = next.map(|id| id.to_string());
        Ok(answer::json(StatusCode::OK, &json!({ "endpoints": found, "next": next })))
    })
    .await
}

async fn dead_letters(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        let query = Query::parse(&request)?;
        let from = match &query.after {
            Some(text) => number(text)?.saturating_add(1),
            None => 0,
        };
        let (id, _, page) = webhooks.find(&place.realm, &place.channel, &place.url)?;
        let found = page.dead(id, from, query.limit).map_err(Trouble::from)?;
        let found: Vec<Value> =
            found.iter().map(|(seq, death, letter)| letter_shown(*seq, death, letter)).collect();
        let last = found.last().filter(|_| found.len() == query.limit).map(|last| last["id"].clone());
        Ok(answer::json(StatusCode::OK, &json!({ "dead_letters": found, "next": last })))
    })
    .await
}

async fn replay(State(all): Shared, Path(parts): Parts, request: Request) -> Response<Body> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Since {
        /// Unix seconds.
        #[serde(default)]
        since: u64,
    }
    respond(async move {
        let (webhooks, place) = all.admit(&parts, request.headers())?;
        let one = if place.dead.is_empty() { None } else { Some(number(&place.dead)?) };
        let body = read_body(request).await?;
        let Since { since } = if body.is_empty() { Since::default() } else { parse(&body)? };
        let (id, endpoint, page) = webhooks.find(&place.realm, &place.channel, &place.url)?;
        drop(page);
        // They would die again at once.
        if endpoint.disabled.is_some() {
            return Err(Trouble::Disabled.into());
        }
        let outcome = webhooks.replay(id, one, since.saturating_mul(1000)).await?;
        if one.is_some() && outcome.replayed + outcome.left == 0 {
            return Ok(answer::text(StatusCode::NOT_FOUND, "no such dead letter"));
        }
        Ok(answer::json(StatusCode::OK, &json!({ "replayed": outcome.replayed, "left": outcome.left })))
    })
    .await
}

async fn respond(deciding: impl Future<Output = Result<Response<Body>, Refused>>) -> Response<Body> {
    deciding.await.unwrap_or_else(Response::from)
}

fn done(request: &Request, word: &'static str) -> Response<Body> {
    answer::done(Format::accepted(request.headers()).unwrap_or(Format::Text), word)
}

fn letter_shown(seq: u64, death: &Death, letter: &Said) -> Value {
    json!({
        "id": format!("{seq:x}"), "webhook_id": letter.head.id, "at": death.at / 1000, "cause": death.cause,
        "tries": death.tries, "method": letter.head.method, "bytes": letter.bytes,
    })
}

fn number(text: &str) -> Result<u64, Refused> {
    u64::from_str_radix(text, 16).map_err(|_| Refused::Form("that is no id of a dead letter".into()))
}

/// `limit` and `after` of a list that comes in pages.
struct Query {
    limit: usize,
    after: Option<String>,
}

impl Query {
    fn parse(request: &Request) -> Result<Self, Refused> {
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let limit = match form_value(query, "limit") {
            Some(text) => text.parse().ok().filter(|limit| (1..=PAGE_MOST).contains(limit)),
            None => Some(PAGE),
        };
        let limit = limit.ok_or_else(|| Refused::Form(format!("limit is a number from 1 to {PAGE_MOST}")))?;
        Ok(Self { limit, after: form_value(query, "after") })
    }
}

async fn read_body(request: Request) -> Result<Bytes, Refused> {
    let body = Limited::new(request.into_body(), BODY_BYTES).collect();
    match timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        _ => {
            Err(Refused::Form(format!("the body is longer than {BODY_BYTES} bytes, or did not arrive whole")))
        }
    }
}

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(malformed)
}

/// Where and what, but not the text itself: there may be a secret in it.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn malformed(error: serde_json::Error) -> Refused {
    Refused::Form(match error.classify() {
        serde_json::error::Category::Data => {
            let text = error.to_string();
            // The value behind the colon may be one that was to stay secret.
            text.split(": ").next().unwrap_or_default().to_owned()
                + ": the body is not of the form that is documented"
        }
        _ => "the body is not JSON".into(),
    })
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
    kind.is_none_or(|kind| kind.starts_with(b"application/x-www-form-urlencoded"))
}

/// The first value of a name in a form or a query.
fn form_value(form: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(form).ok()?;
    let decode =
        |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8().ok().map(|t| t.into_owned());
    let mut pairs = text.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| decode(key).as_deref() == Some(name)).and_then(|(_, value)| decode(value))
}

const NO_FOLDER: &str = "Webhooks are kept on disk: set server.data_dir to a folder, and start again.";
/// An endpoint has at most 8 kB.
const BODY_BYTES: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const PAGE: usize = 100;
const PAGE_MOST: usize = 1000;
