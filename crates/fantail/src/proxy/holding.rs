//! An answer that asks for something: it is collected, read, and its request becomes a hold, or a
//! rewritten response (spec 3).

use std::{collections::VecDeque, future::poll_fn, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use fantail_pin::Form;
use fantail_proto::{
    filter::{self, Filter},
    grip::{self, Hold, Instruct, InstructError, KeepAlive, Reply},
    log::Start,
    route,
};
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::{
    Exchange, Parked, Relay,
    ask::{Answer, Shape},
    conversation::Reserved,
    errand::trail,
    link::follow,
    session, upload,
    watch::response_head,
};
use crate::{
    config,
    error::Fault,
    hold::{self, Asked, GripLink, Subscription, Trail},
    logging::Outcome,
    route::Route,
    shard::Shard,
    upstream::Download,
};

/// Turns the answer into a response, or parks the request.
pub(super) async fn take(exchange: &mut Exchange, mut answer: Answer) -> Result<Response<Relay>, Fault> {
    let config = exchange.snapshot.config.grip.clone();
    if exchange.conversation.uploaded() > config.instruct_bytes as u64 {
        return Err(Fault::RequestTooLarge);
    }
    let Collected { ready, mut rest } = read(exchange, &mut answer, config.instruct_bytes).await?;
    let whole = if rest.is_none() { concat(&ready) } else { Bytes::new() };
    let reason = answer.head.extensions.get::<hyper::ext::ReasonPhrase>();
    let reason = reason.and_then(|reason| std::str::from_utf8(reason.as_bytes()).ok()).unwrap_or_default();
    let mut instruct = Instruct::parse(answer.head.status.as_u16(), reason, &answer.head.headers, whole)
        .map_err(|error| at(&answer, error))?;
    let session = Box::pin(session::keep(exchange, &answer, &instruct.last)).await;
    let hold = instruct.hold.take();
    let builds = instruct.channels.iter().any(|channel| channel.filters.contains(&Filter::BuildId));
    if builds && rest.is_none() {
        let filters: Vec<Filter> =
            instruct.channels.iter().flat_map(|channel| channel.filters.iter().copied()).collect();
        let body = filter::apply_to_body(&filters, &instruct.reply.body, &instruct.meta);
        let body = body.map_err(|error| at(&answer, InstructError(format!("filter error: {error}"))))?;
        instruct.reply.body = body.into_owned().into();
    }
    // Without a hold, what follows is where the link leads.
    let pages = hold.is_none() && instruct.next.is_some();
    let streams = pages || matches!(hold, Some(Hold::Stream { .. }));
    // Ids are written into a body that is there whole.
    if rest.is_some() && (!streams || builds) {
        return Err(Fault::AnswerTooLarge { target: answer.target().address.to_string() });
    }
    let hold = match hold {
        Some(hold) => hold,
        None if pages => Hold::Stream { keep_alive: None },
        None => return Ok(exchange.reply(instruct.reply)),
    };
    arrive(exchange, &answer, rest.as_mut()).await?;
    if (streams || pages && exchange.jsonp.is_some())
        && let Some(why) = unstreamable(exchange, &instruct)
    {
        return Err(at(&answer, InstructError(why.into())));
    }
    let asked = asked(exchange, &answer, &instruct, (pages, streams)).map_err(|error| at(&answer, error))?;
    let asked = Asked { session, ..asked };
    let missed = match hold {
        Hold::Stream { .. } if !pages && asked.again.is_none() => {
            unproven(exchange.shard(), &answer, &instruct)
        }
        _ => Vec::new(),
    };
    match hold {
        Hold::Stream { .. } if has_no_body(&answer, instruct.reply.code) => {
            instruct.reply.body = Bytes::new();
            Ok(exchange.reply(instruct.reply))
        }
        // As for a long-poll: the origin may know what the log does not.
        Hold::Stream { .. } if !missed.is_empty() && exchange.conversation.state().has_record() => {
            let asked = Asked { subscriptions: Vec::new(), ..asked };
            instruct.reply.body = Bytes::new();
            park_poll(exchange, answer, instruct, asked, missed, 0).await
        }
        Hold::Stream { keep_alive } => {
            let why = broken_continuity(exchange.shard(), &answer.route, &instruct).filter(|_| !pages);
            let beginning = rest.map(|rest| (ready, rest));
            hold_stream(exchange, instruct.reply, (asked, answer.shape, keep_alive), beginning, why).await
        }
        Hold::Response { timeout } => {
            let timeout_ms = u32::try_from(timeout.min(config.max_timeout).as_millis()).unwrap_or(u32::MAX);
            park_poll(exchange, answer, instruct, asked, Vec::new(), timeout_ms).await
        }
    }
}

/// Why a stream cannot be held, whatever it is asked for.
fn unstreamable(exchange: &Exchange, instruct: &Instruct) -> Option<&'static str> {
    if exchange.jsonp.is_some() {
        return Some("a script cannot have a stream");
    }
    let coding = instruct.reply.headers.get(CONTENT_ENCODING).filter(|coding| *coding != "identity");
    coding.map(|_| "a stream with Content-Encoding cannot be held: items are not encoded")
}

/// Makes an answer that is relayed a call of the page's function.
pub(super) async fn call(exchange: &mut Exchange, mut answer: Answer) -> Result<Response<Relay>, Fault> {
    let limit = exchange.snapshot.config.grip.instruct_bytes;
    let address = answer.target().address.to_string();
    let collected = collect(&mut answer, limit).await;
    let Ok(Collected { ready, rest: None }) = collected else {
        return Err(match collected {
            Ok(_) => Fault::AnswerTooLarge { target: address },
            Err(_) => Fault::AnswerLost { target: address },
        });
    };
    let reason = answer.head.extensions.get::<hyper::ext::ReasonPhrase>();
    let reason = reason.and_then(|reason| std::str::from_utf8(reason.as_bytes()).ok()).unwrap_or_default();
    let reply = Reply {
        code: answer.head.status.as_u16(),
        reason: reason.to_owned(),
        headers: std::mem::take(&mut answer.head.headers),
        body: concat(&ready),
    };
    Ok(exchange.reply(reply))
}

/// Begins a stream: its beginning is written, and then it is held, if nothing speaks against that. A beginning that is not
/// whole in `reply` is relayed: what came of it, and the rest.
async fn hold_stream(
    exchange: &mut Exchange,
    mut reply: Reply,
    (mut asked, shape, keep_alive): (Asked, Shape, Option<KeepAlive>),
    beginning: Option<(VecDeque<Bytes>, Download)>,
    why_not: Option<String>,
) -> Result<Response<Relay>, Fault> {
    if let Some(why) = why_not {
        tracing::info!(target: "fantail::proxy", why, "stream not held");
        let told = if exchange.debug { format!("\n\n{why}\n") } else { String::new() };
        let (ready, rest) = match beginning {
            Some((ready, rest)) => (ready, Some(rest)),
            None => (VecDeque::from([std::mem::take(&mut reply.body)]), None),
        };
        let body = Relay::new(Rc::clone(&exchange.conversation), ready, rest, exchange.entry.take());
        return Ok(exchange.with_head(reply, body.ending(told.into())));
    }
    if beginning.is_none() {
        asked.begin = begin(exchange, &mut reply, shape);
    }
    let form = if shape.http11 { Form::Coded } else { Form::Plain };
    let id = exchange.shard().holds(|holds| holds.reserve_stream(asked, form, shape.keep_alive));
    let id = id.ok_or(Fault::Full)?;
    let reserved = Reserved::new(Rc::clone(exchange.shard()), id);
    let parked = Parked::Stream { reserved, keep_alive };
    let Some((mut ready, rest)) = beginning else { return park(exchange, parked).await };
    exchange.conversation.will_park(parked);
    ready.retain(|data| !data.is_empty());
    let body = Relay::new(Rc::clone(&exchange.conversation), ready, Some(rest), exchange.entry.take());
    Ok(exchange.with_head(reply, body.parking()))
}

/// What a stream's client is sent before it is held.
fn begin(exchange: &Exchange, reply: &mut Reply, shape: Shape) -> Bytes {
    if let Some(cors) = &exchange.cors {
        cors.apply(&mut reply.headers);
    }
    exchange.conversation.tally(|traffic| {
        let status = StatusCode::from_u16(reply.code).unwrap_or_default();
        traffic.client.header_sent.add(response_head(status, &reply.headers));
        traffic.client.content_sent.add(reply.body.len() as u64);
    });
    hold::Shape::from(shape).begin_stream(reply)
}

/// Makes the request a hold that writes the whole response itself.
async fn park(exchange: &mut Exchange, parked: Parked) -> Result<Response<Relay>, Fault> {
    if let Some(entry) = exchange.entry.take() {
        entry.write(exchange.shard(), Outcome::Accept);
    }
    exchange.conversation.will_park(parked);
    exchange.conversation.park();
    std::future::pending().await
}

async fn park_poll(
    exchange: &mut Exchange,
    answer: Answer,
    instruct: Instruct,
    asked: Asked,
    missed: Vec<(String, String)>,
    timeout_ms: u32,
) -> Result<Response<Relay>, Fault> {
    let mut request = exchange.conversation.state().take_record().ok_or(Fault::RequestTooLarge)?;
    request.shrink_to_fit();
    let mut reply = instruct.reply;
    // Copies: what came from the origin shares a buffer that is much larger than it.
    reply.body = Bytes::copy_from_slice(&reply.body);
    for value in reply.headers.values_mut() {
        *value = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
    }
    let poll = hold::Poll {
        request,
        unread: Vec::new(),
        shape: answer.shape.into(),
        answered: false,
        due: !missed.is_empty(),
        missed,
        doubts: asked.again.as_ref().map_or(0, |again| again.doubts),
        cors: exchange.cors.clone(),
        jsonp: exchange.jsonp.take(),
        reply,
    };
    let id = exchange.shard().holds(|holds| holds.reserve_poll(asked, poll)).ok_or(Fault::Full)?;
    let reserved = Reserved::new(Rc::clone(exchange.shard()), id);
    park(exchange, Parked::Poll { reserved, timeout_ms }).await
}

/// What the hold is to be: there is none, but more to come (`pages`), or it is a stream.
fn asked(
    exchange: &mut Exchange,
    answer: &Answer,
    instruct: &Instruct,
    (pages, streams): (bool, bool),
) -> Result<Asked, InstructError> {
    let rule = &answer.route.rule;
    let asks = instruct.channels.iter().any(|channel| channel.filters.iter().any(|filter| filter.asks()));
    let linked = instruct.next.is_some() || instruct.gone.is_some();
    let trail = if linked || asks {
        let trail = trail(exchange, &answer.route, answer.target, (&answer.host, &answer.path_and_query));
        let why = "Grip-Link cannot be resolved for this Host";
        Some(Rc::new(trail.ok_or_else(|| InstructError(why.into()))?))
    } else {
        None
    };
    let (next, gone) = match &trail {
        Some(trail) => links(trail, instruct)?,
        None => (None, None),
    };
    let subscriptions = match pages {
        true => Vec::new(),
        false => subscriptions(&exchange.snapshot.config.grip, rule, answer.target, instruct)?,
    };
    let most = if pages { usize::MAX } else { exchange.snapshot.config.grip.subscriptions };
    let refused = instruct.channels.len().saturating_sub(most);
    exchange.shard().counters.subscriptions_refused.add(refused as u64);
    let named = subscriptions.iter().any(|s| !s.filters.is_empty() || s.prev_id.is_some());
    let prefix = if named || next.is_some() { rule.prefix.clone() } else { String::new() };
    // The first link of a long-poll counts, however often it is asked about.
    let gone = exchange.farewell.take().and_then(|farewell| farewell.keep()).or(gone);
    let (meta, uri) = (instruct.meta.clone(), exchange.said_uri());
    let next = next.filter(|_| streams);
    Ok(Asked {
        realm: answer.route.realm,
        subscriptions,
        meta,
        prefix,
        uri,
        debug: exchange.debug,
        next,
        continues: pages,
        gone,
        trail: trail.filter(|_| asks),
        session: None,
        presence: exchange.conversation.presence(),
        events: instruct.reply.headers.get(CONTENT_TYPE).is_some_and(is_events),
        begin: Bytes::new(),
        slow: rule.slow,
        again: exchange.replay.take(),
    })
}

fn is_events(content_type: &HeaderValue) -> bool {
    let essence = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// What a stream's client has, by channel, where neither a log nor a link leads on from there.
fn unproven(shard: &Shard, answer: &Answer, instruct: &Instruct) -> Vec<(String, String)> {
    if instruct.next.is_some() {
        return Vec::new();
    }
    let (realm, prefix, log) = (answer.route.realm, &answer.route.rule.prefix, shard.hub.log());
    let proves = |name: &str, id: &str| log.span(realm, name, &Start::Id(id.into()), 1, 1).is_some();
    let missed = instruct.channels.iter().filter_map(|channel| {
        let (id, name) = (channel.prev_id.as_ref()?, format!("{prefix}{}", channel.name));
        (log.keeps(realm, &name) && !proves(&name, id)).then(|| (channel.name.clone(), id.clone()))
    });
    missed.collect()
}

/// Where the links of an answer lead.
fn links(
    trail: &Rc<Trail>,
    instruct: &Instruct,
) -> Result<(Option<GripLink>, Option<GripLink>), InstructError> {
    let home = &trail.home;
    let next = instruct.next.as_ref().map(|next| follow(trail, home, next)).transpose()?;
    let gone = instruct
        .gone
        .as_ref()
        .map(|uri| follow(trail, home, &grip::Link { uri: uri.clone(), timeout: Duration::ZERO }));
    Ok((next, gone.transpose()?))
}

/// What a hold subscribes to: the instruct's channels, as many as are allowed, each once and with the
/// route's prefix, and the target's own (spec 3.4).
pub(super) fn subscriptions(
    config: &config::Grip,
    rule: &route::Route,
    target: usize,
    instruct: &Instruct,
) -> Result<Vec<Subscription>, InstructError> {
    let mut subscriptions: Vec<Subscription> = Vec::with_capacity(instruct.channels.len());
    for channel in instruct.channels.iter().take(config.subscriptions) {
        let name = format!("{}{}", rule.prefix, channel.name);
        if name.len() > config.channel_bytes {
            let limit = config.channel_bytes;
            return Err(InstructError(format!("a channel's name has more than {limit} bytes")));
        }
        match subscriptions.iter_mut().find(|subscription| subscription.channel == name) {
            Some(earlier) => {
                earlier.filters.clone_from(&channel.filters);
                earlier.prev_id.clone_from(&channel.prev_id);
                earlier.late.clone_from(&channel.late);
            }
            None => subscriptions.push(Subscription {
                channel: name,
                filters: channel.filters.clone(),
                prev_id: channel.prev_id.clone(),
                late: channel.late.clone(),
            }),
        }
    }
    for name in &rule.targets[target].subs {
        if !subscriptions.iter().any(|subscription| subscription.channel == *name) {
            subscriptions.push(Subscription::implicit(name));
        }
    }
    Ok(subscriptions)
}

/// A stream that continues from an id needs a link to fetch what comes after it (spec 4.4), or a log that has it: without
/// either it ends after its beginning, for this reason.
pub(super) fn broken_continuity(shard: &Shard, to: &Route, instruct: &Instruct) -> Option<String> {
    let kept = |name: &str| shard.hub.log().keeps(to.realm, &format!("{}{name}", to.rule.prefix));
    let channel = instruct.channels.iter().find(|c| c.prev_id.is_some() && !kept(&c.name))?;
    let name = &channel.name;
    instruct.next.is_none().then(|| format!("channel '{name}' specifies prev-id, but no next link found"))
}

/// A response that cannot have a body cannot stream.
fn has_no_body(answer: &Answer, code: u16) -> bool {
    answer.shape.head
        || StatusCode::from_u16(code)
            .is_ok_and(|code| matches!(code, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED))
}

/// A body that was read as far as it may be collected, and what is left of it.
struct Collected {
    ready: VecDeque<Bytes>,
    rest: Option<Download>,
}

/// As much of the body as may be collected.
async fn read(exchange: &Exchange, answer: &mut Answer, limit: usize) -> Result<Collected, Fault> {
    let collected = collect(answer, limit).await.map_err(|error| {
        tracing::debug!(%error, "an answer broke off");
        Fault::AnswerLost { target: answer.target().address.to_string() }
    })?;
    let size = collected.ready.iter().map(|data| data.len() as u64).sum();
    exchange.conversation.tally(|traffic| traffic.server.content_received.add(size));
    Ok(collected)
}

async fn collect(answer: &mut Answer, limit: usize) -> Result<Collected, crate::upstream::DownloadError> {
    let mut size = answer.ready.len();
    let mut ready = VecDeque::with_capacity(USUAL_PARTS);
    ready.push_back(std::mem::take(&mut answer.ready));
    let Some(mut download) = answer.download.take() else { return Ok(Collected { ready, rest: None }) };
    if size > limit {
        return Ok(Collected { ready, rest: Some(download) });
    }
    while let Some(frame) = download.frame().await {
        if let Ok(data) = frame?.into_data() {
            size += data.len();
            ready.push_back(data);
            if size > limit {
                return Ok(Collected { ready, rest: Some(download) });
            }
        }
    }
    Ok(Collected { ready, rest: None })
}

/// Waits for the rest of a request that its origin did not wait for: nothing of it may be left in the
/// socket of a hold. What arrives while the answer goes on, at `rest`, still goes to the origin.
async fn arrive(exchange: &Exchange, answer: &Answer, rest: Option<&mut Download>) -> Result<(), Fault> {
    let config = &exchange.snapshot.config;
    let conversation = &exchange.conversation;
    let limit = config.grip.instruct_bytes as u64;
    let done = || conversation.state().is_complete() || conversation.uploaded() > limit;
    if done() {
        return Ok(());
    }
    match rest {
        // The driver of the connection minds that the client is in time.
        None => upload::drain(conversation, limit).await?,
        // An origin may neither read nor end its answer.
        Some(download) => {
            let sent = poll_fn(|cx| if done() { Poll::Ready(()) } else { download.poll_upload(cx) });
            if timeout(config.client.body_timeout, sent).await.is_err() {
                tracing::debug!("an origin does not read what it has answered");
            }
        }
    }
    if conversation.uploaded() > limit {
        return Err(Fault::RequestTooLarge);
    }
    if !conversation.state().is_complete() {
        let why = "the request was answered before it had arrived whole";
        return Err(at(answer, InstructError(why.into())));
    }
    Ok(())
}

pub(super) fn concat(parts: &VecDeque<Bytes>) -> Bytes {
    let mut filled = parts.iter().filter(|part| !part.is_empty());
    match (filled.next(), filled.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => only.clone(),
        _ => parts.iter().flatten().copied().collect(),
    }
}

fn at(answer: &Answer, error: InstructError) -> Fault {
    Fault::Instruct { target: answer.target().address.to_string(), error }
}

/// What there was already, and a body that came with its head or behind it.
const USUAL_PARTS: usize = 3;
