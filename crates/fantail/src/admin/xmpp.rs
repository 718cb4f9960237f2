//! Subscriptions of XMPP addresses over HTTP, with the keys of the realm:
//!
//! - `POST /realm/{realm}/channel/{channel}/xs-subscriptions/`: a form, `jid` and perhaps `presence=true`; `GET`: a page
//! - `DELETE` and `GET /realm/{realm}/channel/{channel}/xs-subscription/{jid}/`
//! - `DELETE` and `GET /realm/{realm}/xs-subscriber/{jid}/`: of all channels
//!
//! each also without `/realm/{realm}`, for the realm `default`, and without the slash at the end.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Method, Response, StatusCode, Uri, header::AUTHORIZATION},
    routing::{MethodRouter, get},
};
use fantail_proto::xmpp::{jid::Jid, pubsub::Shows};
use http_body_util::{BodyExt as _, Limited};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{
    config::DEFAULT_REALM,
    publish::{
        answer::{self, Format},
        http::{denied, overload},
    },
    xmpp::{Desk, Page, Place, Refused, Subscription, Terms},
};

/// Without a component there are no such paths.
pub(super) fn router(state: &Arc<super::State>) -> Router {
    if state.xmpp.is_none() {
        return Router::new();
    }
    let list = || other_methods(get(list).post(subscribe), "GET, HEAD, POST");
    let one = || other_methods(get(show).delete(unsubscribe), "DELETE, GET, HEAD");
    let all = || other_methods(get(of).delete(unsubscribe_all), "DELETE, GET, HEAD");
    let mut router = Router::new();
    for realm in ["", "/realm/{realm}"] {
        for slash in ["", "/"] {
            let channel = format!("{realm}/channel/{{channel}}");
            router = router
                .route(&format!("{channel}/xs-subscriptions{slash}"), list())
                .route(&format!("{channel}/xs-subscription/{{jid}}{slash}"), one())
                .route(&format!("{realm}/xs-subscriber/{{jid}}{slash}"), all());
        }
    }
    router.with_state(Arc::clone(state))
}

type Shared = State<Arc<super::State>>;

/// What a path names.
#[derive(Deserialize)]
struct Named {
    realm: Option<String>,
    /// Empty where it is about all.
    #[serde(default)]
    channel: String,
    jid: Option<String>,
}

/// Why nothing was done.
enum Wrong {
    Denied,
    Bad(&'static str),
    Channel(usize),
    Missing,
    Refused(Refused),
}

impl From<Refused> for Wrong {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl Wrong {
    fn response(&self) -> Response<Body> {
        match self {
            Self::Denied => denied(),
            Self::Bad(text) => answer::text(StatusCode::BAD_REQUEST, text),
            Self::Channel(limit) => {
                let text = format!("The channel's name is longer than {limit} bytes.");
                answer::text(StatusCode::BAD_REQUEST, &text)
            }
            Self::Missing => answer::text(StatusCode::NOT_FOUND, "Not subscribed."),
            Self::Refused(Refused::Own) => answer::text(StatusCode::BAD_REQUEST, OWN),
            Self::Refused(refused) => overload(&refused.to_string()),
        }
    }
}

/// One subscription, as it is shown.
#[derive(Serialize)]
struct Shown {
    jid: String,
    /// Where it is not said with what was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    /// Whether it gets `xmpp-stanza` items, and the channel's items as of a node.
    stanza: bool,
    node: bool,
    /// In which states of presence; always without any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    presence: Vec<&'static str>,
}

impl From<(String, Terms)> for Shown {
    fn from((jid, terms): (String, Terms)) -> Self {
        Self {
            jid,
            channel: None,
            stanza: terms.stanza,
            node: terms.node,
            presence: terms.shows.names().collect(),
        }
    }
}

async fn subscribe(
    State(state): Shared,
    Path(named): Path<Named>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    let format = Format::accepted(&headers).unwrap_or(Format::Text);
    let outcome = async {
        let (desk, place) = place(&state, &named, &headers)?;
        let body = timeout(FORM_TIMEOUT, Limited::new(body, FORM_BYTES).collect()).await;
        let Ok(Ok(body)) = body else {
            return Err(Wrong::Bad("The form is too long, too slow, or broke off."));
        };
        let body = body.to_bytes();
        let text = str::from_utf8(&body).map_err(|_| Wrong::Bad(FORM))?;
        let (mut jid, mut shows) = (None, Shows::ALWAYS);
        for (name, value) in pairs(text) {
            match (name.as_str(), value.as_str()) {
                ("jid", text) => jid = Some(Jid::parse(text).map_err(|_| Wrong::Bad(JID))?),
                ("presence", "true") => shows = Shows::ANY,
                ("presence", "false") => shows = Shows::ALWAYS,
                _ => return Err(Wrong::Bad(FORM)),
            }
        }
        Ok(desk.subscribe(place, jid.ok_or(Wrong::Bad(FORM))?, shows).await?)
    };
    outcome.await.map_or_else(|wrong| wrong.response(), |()| answer::done(format, "Subscribed"))
}

async fn unsubscribe(State(state): Shared, Path(named): Path<Named>, headers: HeaderMap) -> Response<Body> {
    let format = Format::accepted(&headers).unwrap_or(Format::Text);
    let outcome = async {
        let (desk, place) = place(&state, &named, &headers)?;
        if desk.unsubscribe(place, jid(&named)?).await? { Ok(()) } else { Err(Wrong::Missing) }
    };
    outcome.await.map_or_else(|wrong| wrong.response(), |()| answer::done(format, "Unsubscribed"))
}

async fn show(State(state): Shared, Path(named): Path<Named>, headers: HeaderMap) -> Response<Body> {
    let outcome = async {
        let (desk, place) = place(&state, &named, &headers)?;
        let found = desk.list(place, Page::Only(jid(&named)?)).await?;
        found.into_iter().next().map(Shown::from).ok_or(Wrong::Missing)
    };
    outcome.await.map_or_else(|wrong| wrong.response(), |shown| answer::json(StatusCode::OK, &shown))
}

/// In the order of the addresses; `next` is what to ask for with `after`, when there are more.
#[derive(Serialize)]
struct List {
    subscriptions: Vec<Shown>,
    next: Option<String>,
}

async fn list(
    State(state): Shared,
    Path(named): Path<Named>,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let outcome = async {
        let (desk, place) = place(&state, &named, &headers)?;
        let (mut after, mut most) = (None, PAGE);
        for (name, value) in pairs(uri.query().unwrap_or_default()) {
            match name.as_str() {
                "after" => after = Some(value),
                "limit" => {
                    most = value.parse().ok().filter(|n| (1..=MOST).contains(n)).ok_or(Wrong::Bad(QUERY))?
                }
                _ => return Err(Wrong::Bad(QUERY)),
            }
        }
        let mut found = desk.list(place, Page::Behind { after, most: most + 1 }).await?;
        let more = found.len() > most;
        found.truncate(most);
        let next = found.last().filter(|_| more).map(|(jid, _)| jid.clone());
        Ok(List { subscriptions: found.into_iter().map(Shown::from).collect(), next })
    };
    outcome.await.map_or_else(|wrong: Wrong| wrong.response(), |list| answer::json(StatusCode::OK, &list))
}

/// What an address, with any of its resources if it names none, is subscribed to in the realm.
async fn subscribed(
    state: &super::State,
    named: &Named,
    headers: &HeaderMap,
) -> Result<Vec<Subscription>, Wrong> {
    let (desk, place) = place(state, named, headers)?;
    let found = desk.of(place, jid(named)?).await?;
    if found.is_empty() { Err(Wrong::Missing) } else { Ok(found) }
}

async fn of(State(state): Shared, Path(named): Path<Named>, headers: HeaderMap) -> Response<Body> {
    let found = subscribed(&state, &named, &headers).await;
    let shown = |Subscription { place, jid, terms }| Shown {
        channel: Some(place.channel),
        ..Shown::from((jid.to_string(), terms))
    };
    let list = found.map(|found| List { subscriptions: found.into_iter().map(shown).collect(), next: None });
    list.map_or_else(|wrong| wrong.response(), |list| answer::json(StatusCode::OK, &list))
}

async fn unsubscribe_all(
    State(state): Shared,
    Path(named): Path<Named>,
    headers: HeaderMap,
) -> Response<Body> {
    let format = Format::accepted(&headers).unwrap_or(Format::Text);
    let outcome = async {
        let desk = state.xmpp.as_ref().ok_or(Wrong::Missing)?;
        for Subscription { place, jid, .. } in subscribed(&state, &named, &headers).await? {
            desk.unsubscribe(place, jid).await?;
        }
        Ok::<(), Wrong>(())
    };
    outcome.await.map_or_else(|wrong| wrong.response(), |()| answer::done(format, "Unsubscribed"))
}

/// The channel of a request that may change it.
fn place<'s>(
    state: &'s super::State,
    named: &Named,
    headers: &HeaderMap,
) -> Result<(&'s Desk, Place), Wrong> {
    let desk = state.xmpp.as_ref().ok_or(Wrong::Missing)?;
    let realm_name = named.realm.as_deref().unwrap_or(DEFAULT_REALM);
    let publisher = state.endpoints.publisher();
    let realm = publisher.authorize(realm_name, headers.get(AUTHORIZATION)).map_err(|_| Wrong::Denied)?;
    let limit = publisher.channel_bytes();
    if named.channel.len() > limit {
        return Err(Wrong::Channel(limit));
    }
    Ok((desk, Place { realm, realm_name: realm_name.to_owned(), channel: named.channel.clone() }))
}

fn jid(named: &Named) -> Result<Jid, Wrong> {
    Jid::parse(named.jid.as_deref().unwrap_or_default()).map_err(|_| Wrong::Bad(JID))
}

/// Of `application/x-www-form-urlencoded`.
fn pairs(text: &str) -> impl Iterator<Item = (String, String)> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    text.split('&').filter(|pair| !pair.is_empty()).map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    })
}

fn other_methods(
    route: MethodRouter<Arc<super::State>>,
    allowed: &'static str,
) -> MethodRouter<Arc<super::State>> {
    route.fallback(async move |method: Method| answer::wrong_method(&method, allowed))
}

const FORM: &str = "Write a form: jid=user%40example.com, and presence=true if presence is to decide.";
const JID: &str = "The jid is not an XMPP address.";
const OWN: &str = "The jid is of the component's own domain: what is sent to it would come back.";
const QUERY: &str = "Invalid query: after=JID and limit=N, up to 1000, are known.";
const FORM_BYTES: usize = 16_384;
/// From its first byte to its last.
const FORM_TIMEOUT: Duration = Duration::from_secs(5);
const PAGE: usize = 100;
const MOST: usize = 1000;
