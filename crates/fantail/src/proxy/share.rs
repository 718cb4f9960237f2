//! Request sharing (`proxy.share_requests`, spec 1.10): concurrent requests of one shard for the same
//! become one request to the origin. Only GET and HEAD without a body, and only answers that fit into
//! memory and are for anybody: whoever waited for another asks for itself.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use http_body::Body;
use http_body_util::BodyExt;

use super::{
    Exchange,
    ask::{Answer, Ask, says_who},
};
use crate::{
    error::Fault,
    upstream::{Download, Landed, Lead},
};

/// Asks the origin, or waits for the answer to a request that is the same.
pub(super) async fn send(mut ask: Ask, exchange: &mut Exchange) -> Result<Answer, Fault> {
    let flights = exchange.shard().flights.clone();
    let key = ask.key();
    let Some(flight) = flights.find(&key) else {
        return lead(ask, exchange, flights.lead(key)).await;
    };
    match flight.landing().await {
        Landed::Shared { head, body, target } => Ok(ask.answer(target, *head, body, None)),
        Landed::Alone => ask.send(exchange).await,
    }
}

async fn lead(mut ask: Ask, exchange: &mut Exchange, lead: Lead) -> Result<Answer, Fault> {
    let limit = exchange.snapshot.config.grip.instruct_bytes;
    let mut answer = ask.send(exchange).await?;
    let fits = |download: &Download| download.size_hint().exact().is_some_and(|size| size <= limit as u64);
    if !is_for_anybody(&answer.head.headers)
        || answer.download.as_ref().is_some_and(|download| !fits(download))
    {
        return Ok(answer);
    }
    if let Some(mut download) = answer.download.take() {
        let mut body = Vec::new();
        while let Some(frame) = download.frame().await {
            let frame =
                frame.map_err(|_| Fault::AnswerLost { target: answer.target().address.to_string() })?;
            body.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
        answer.ready = Bytes::from(body);
    }
    let head = Box::new(answer.head.clone());
    lead.land(Landed::Shared { head, body: answer.ready.clone(), target: answer.target });
    Ok(answer)
}

/// Whether an answer is for all whose requests have the same key.
fn is_for_anybody(headers: &HeaderMap) -> bool {
    let listed = |name: HeaderName| {
        let values = headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or("*"));
        values.flat_map(|value| value.split(',')).map(|part| part.trim().to_ascii_lowercase())
    };
    let is_own = |directive: &str| {
        let name = directive.split('=').next().unwrap_or_default().trim_end();
        matches!(name, "private" | "no-store" | "*")
    };
    !headers.contains_key(header::SET_COOKIE)
        && !listed(header::CACHE_CONTROL).any(|directive| is_own(&directive))
        && !listed(header::VARY).any(|name| name == "*" || says_who(&name))
}
