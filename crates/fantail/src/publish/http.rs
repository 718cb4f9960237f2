//! Publishing over HTTP (spec 5.2; the realms' endpoints of Fanout Cloud):
//!
//! - `POST /publish`, `/realm/{realm}/publish`, and the older `/realm/{realm}/publish/{channel}`
//! - `POST /recover`
//!
//! each with or without a slash at the end. Owns the limits of one request and of requests at once.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{
        HeaderValue, Method, Response, StatusCode,
        header::{AUTHORIZATION, CONTENT_LENGTH, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    routing::{MethodRouter, post},
};
use bytes::Bytes;
use fantail_proto::log::Durability;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Name, Pending, Publisher, Refusal, Wanted,
    answer::{self, Format},
};
use crate::{
    config::{self, DEFAULT_REALM},
    hub::{Order, Receipt},
    metrics::Process,
    realm::Denied,
};

/// The endpoints of publishers.
#[derive(Debug)]
pub struct Endpoints {
    publisher: Arc<Publisher>,
    counts: Arc<Process>,
    body_bytes: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) receipt_timeout: Duration,
    patience: Duration,
    at_once: Semaphore,
}

impl Endpoints {
    pub fn new(publisher: Arc<Publisher>, counts: Arc<Process>, control: &config::Control) -> Self {
        Self {
            publisher,
            counts,
            body_bytes: control.body_bytes,
            body_timeout: BODY_TIMEOUT,
            receipt_timeout: RECEIPT_TIMEOUT,
            patience: control.publish_timeout,
            at_once: Semaphore::new(AT_ONCE),
        }
    }

    pub fn router(self: Arc<Self>) -> Router {
        let publish = || only_post(post(publish));
        let realm = || only_post(post(publish_to_realm));
        let channel = || only_post(post(publish_to_channel));
        let recover = || only_post(post(recover));
        Router::new()
            .route("/publish", publish())
            .route("/publish/", publish())
            .route("/recover", recover())
            .route("/recover/", recover())
            .route("/realm/{realm}/publish", realm())
            .route("/realm/{realm}/publish/", realm())
            .route("/realm/{realm}/publish/{channel}", channel())
            .route("/realm/{realm}/publish/{channel}/", channel())
            .with_state(self)
    }

    /// Where the credentials of a request are judged.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    async fn publish(&self, realm: &str, channel: Option<&str>, request: Request) -> Response<Body> {
        let outcome = self.decide(realm, channel, request).await;
        let count = match &outcome {
            Ok(_) => &self.counts.publishes_accepted,
            Err(Refused::Denied) => &self.counts.publishes_denied,
            Err(Refused::Busy) => &self.counts.publishes_overload,
            Err(Refused::Publish(refusal)) if refusal.is_overload() => &self.counts.publishes_overload,
            Err(Refused::Slow | Refused::Cut) => &self.counts.publishes_cut,
            Err(Refused::Query | Refused::Large | Refused::Publish(_)) => &self.counts.publishes_invalid,
        };
        count.add(1);
        match outcome {
            Ok(accepted) => accepted.response(self.receipt_timeout).await,
            Err(refused) => refused.response(),
        }
    }

    /// Cheap refusals come first: nothing of a body is read for who may not publish.
    async fn decide(
        &self,
        realm: &str,
        channel: Option<&str>,
        request: Request,
    ) -> Result<Accepted, Refused> {
        let format = Format::accepted(request.headers()).unwrap_or(Format::Text);
        let wanted = wanted(request.uri().query())?;
        let authorization = request.headers().get(AUTHORIZATION);
        let realm = self.publisher.authorize(realm, authorization).map_err(|Denied| Refused::Denied)?;
        if announced(&request).is_some_and(|length| length > self.body_bytes as u64) {
            return Err(Refused::Large);
        }
        let permit = timeout(self.patience, self.at_once.acquire()).await;
        let _permit = permit.map_err(|_| Refused::Busy)?.expect("the semaphore is never closed");
        let body = self.read(request.into_body()).await?;
        let published = self.publisher.publish(realm, &body, channel, wanted.unwrap_or_default()).await?;
        let asked = wanted.is_some_and(|wanted| wanted.durability > Durability::Accepted);
        let says = asked || published.durability > Durability::Accepted;
        let durability = says.then_some(published.durability.name());
        Ok(Accepted { format, durability, pending: published.pending })
    }

    async fn read(&self, body: Body) -> Result<Bytes, Refused> {
        let body = Limited::new(body, self.body_bytes).collect();
        match timeout(self.body_timeout, body).await {
            Err(_) => Err(Refused::Slow),
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refused::Large),
            Ok(Err(_)) => Err(Refused::Cut),
        }
    }
}

#[derive(Debug)]
struct Accepted {
    format: Format,
    /// What happened to all items, where that is more than acceptance.
    durability: Option<&'static str>,
    pending: Option<Pending>,
}

impl Accepted {
    /// 200 with a receipt per item where that was asked for, or 202 when they are not all there in time; the items stay
    /// accepted.
    async fn response(self, patience: Duration) -> Response<Body> {
        #[derive(Serialize)]
        struct Published {
            message: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            durability: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            items: Option<Vec<Line>>,
        }
        let Self { format, durability, pending } = self;
        let message = "Published";
        let (status, format, items) = match pending {
            None => (StatusCode::OK, format, None),
            Some(pending) => match timeout(patience, pending.wait()).await {
                Ok(Some(receipts)) => {
                    (StatusCode::OK, Format::Json, Some(receipts.into_iter().map(Line::from).collect()))
                }
                Ok(None) | Err(_) => (StatusCode::ACCEPTED, Format::Json, None),
            },
        };
        let mut response = match format {
            Format::Text => answer::text(status, message),
            Format::Json => answer::json(status, &Published { message, durability, items }),
        };
        if let Some(durability) = durability {
            response.headers_mut().insert(DURABILITY, HeaderValue::from_static(durability));
        }
        response
    }
}

/// Why a publish request is not answered with 2xx; every variant is one status.
#[derive(Debug)]
enum Refused {
    Query,
    Denied,
    Large,
    Slow,
    Cut,
    Busy,
    Publish(Refusal),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Publish(refusal)
    }
}

impl Refused {
    fn response(&self) -> Response<Body> {
        match self {
            Self::Query => answer::text(
                StatusCode::BAD_REQUEST,
                "Invalid query: receipt=true and durability=accepted, logged or synced are known.",
            ),
            Self::Denied => denied(),
            Self::Large => answer::text(StatusCode::PAYLOAD_TOO_LARGE, "Request body too large."),
            Self::Slow => answer::text(StatusCode::REQUEST_TIMEOUT, "Request body too slow."),
            Self::Cut => answer::text(StatusCode::BAD_REQUEST, "Request body incomplete or malformed."),
            Self::Busy => overload("Too many publish requests at once."),
            Self::Publish(refusal) if refusal.is_overload() => overload(&refusal.to_string()),
            Self::Publish(refusal) => answer::text(StatusCode::BAD_REQUEST, &refusal.to_string()),
        }
    }
}

/// 503 for what may work in a moment.
pub fn overload(line: &str) -> Response<Body> {
    let mut response = answer::text(StatusCode::SERVICE_UNAVAILABLE, line);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// 401, without a word about why.
pub fn denied() -> Response<Body> {
    let mut response = answer::text(StatusCode::UNAUTHORIZED, &Denied.to_string());
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"fantail\""));
    response
}

type Shared = State<Arc<Endpoints>>;

async fn publish(State(endpoints): Shared, request: Request) -> Response<Body> {
    endpoints.publish(DEFAULT_REALM, None, request).await
}

async fn publish_to_realm(
    State(endpoints): Shared,
    Path(realm): Path<String>,
    request: Request,
) -> Response<Body> {
    endpoints.publish(&realm, None, request).await
}

async fn publish_to_channel(
    State(endpoints): Shared,
    Path((realm, channel)): Path<(String, String)>,
    request: Request,
) -> Response<Body> {
    endpoints.publish(&realm, Some(&channel), request).await
}

async fn recover(State(endpoints): Shared, request: Request) -> Response<Body> {
    if endpoints.publisher.authorize(DEFAULT_REALM, request.headers().get(AUTHORIZATION)).is_err() {
        return denied();
    }
    endpoints.publisher.recover();
    answer::done(Format::accepted(request.headers()).unwrap_or(Format::Text), "Updated")
}

fn only_post(route: MethodRouter<Arc<Endpoints>>) -> MethodRouter<Arc<Endpoints>> {
    route.fallback(async |method: Method| answer::wrong_method(&method, "POST"))
}

/// `None` without a query.
fn wanted(query: Option<&str>) -> Result<Option<Wanted>, Refused> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    let mut wanted = Wanted::default();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("receipt", "true")) => wanted.receipts = true,
            Some(("receipt", "false")) => wanted.receipts = false,
            Some(("durability", name)) => {
                wanted.durability = Durability::named(name).ok_or(Refused::Query)?;
            }
            _ => return Err(Refused::Query),
        }
    }
    Ok(Some(wanted))
}

fn announced(request: &Request) -> Option<u64> {
    request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// One item's receipt as JSON.
#[derive(Serialize)]
struct Line {
    channel: String,
    id: Option<String>,
    duplicate: bool,
    /// How it came, if not in its turn.
    order: Option<&'static str>,
    delivered: u64,
    queued: u64,
    filtered: u64,
    recovered: u64,
    left_to_log: u64,
    passed_over: u64,
    dropped: Dropped,
}

#[derive(Serialize)]
struct Dropped {
    gone: u64,
    overflow: u64,
    filter: u64,
}

impl From<(Name, Receipt)> for Line {
    fn from((name, receipt): (Name, Receipt)) -> Self {
        Self {
            channel: name.channel,
            id: name.id,
            duplicate: receipt.duplicate,
            order: match receipt.order {
                Order::Kept => None,
                Order::Held => Some("held"),
                Order::Late => Some("late"),
                Order::Dropped => Some("dropped"),
            },
            delivered: receipt.delivered,
            queued: receipt.queued,
            filtered: receipt.filtered,
            recovered: receipt.recovered,
            left_to_log: receipt.left_to_log,
            passed_over: receipt.passed_over,
            dropped: Dropped {
                gone: receipt.dropped_gone,
                overflow: receipt.dropped_overflow,
                filter: receipt.dropped_filter,
            },
        }
    }
}

/// What has happened to the items of a publish.
const DURABILITY: &str = "fantail-durability";
/// Publish requests whose bodies are in memory, as many as Pushpin has connections: with the default
/// `control.body_bytes`, 128 MB. More wait, in order, for `control.publish_timeout`.
const AT_ONCE: usize = 128;
/// For a whole body: the default limit of 1 MB at 33 kB/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// A shard that has not delivered by then is stuck or far behind; the items stay accepted.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);
