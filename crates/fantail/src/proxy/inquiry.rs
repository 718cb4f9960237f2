//! Asking an origin about an item, for filters that do (spec 6.8): a task for each question, which shards share when
//! theirs is the same. What becomes of the item is *hold*'s.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use fantail_proto::filter::{
    Filter,
    question::{MOST_BYTES, PUB_META, SUB_META, Word},
    template::TemplateError,
};
use http::Method;
use tokio::time::timeout;

use super::errand::{Errand, Lost, ask};
use crate::{
    hold::{Holds, Question, Wording},
    shard::Shard,
    upstream::{Failure, Page, PageLanded as Landed, Seat},
};

/// Starts the task that asks, and gives the answer to those who wait for it.
pub fn inquire(shard: &Rc<Shard>, question: Box<Question>) {
    let shard = Rc::clone(shard);
    tokio::task::spawn_local(async move {
        let word = put(&shard, &question).await;
        if let Some(Err(error)) = &word {
            tracing::info!(target: "fantail::proxy", %error, "an origin was asked about an item");
        }
        let go_on = |holds: &mut Holds| match &word {
            Some(word) => holds.answered_about(question.inquiry, word),
            None => holds.ask_on(),
        };
        while shard.holds(go_on) {
            tokio::task::yield_now().await;
        }
    });
}

/// What the origin says; `None` if nobody waits for it any more when it is to be asked.
async fn put(shard: &Rc<Shard>, question: &Question) -> Option<Result<Word, TemplateError>> {
    let filter = question.wording.filter;
    let lead = loop {
        match shard.pages.board(&question.key, false) {
            Seat::Lead(lead) => break lead,
            Seat::Wait(waiting) => match waiting.landing().await {
                Landed::Page(page) => return Some(read(filter, &page)),
                Landed::Failed => return Some(Err(failed("general error"))),
                // Nobody waited for it on the shard that was to ask.
                Landed::Alone => {}
            },
        }
    };
    let Ok(_turn) = shard.asking.acquire().await else { return Some(Err(failed("general error"))) };
    if shard.holds(|holds| holds.withdraw(question.inquiry)) {
        return None;
    }
    let answer = match timeout(PATIENCE, once(shard, question)).await {
        Ok(answer) => answer,
        Err(_) => Err(failed("request timed out")),
    };
    let counters = &shard.counters;
    let (landed, word) = match answer {
        Ok(page) => (Landed::Page(Arc::clone(&page)), read(filter, &page)),
        Err(error) => (Landed::Failed, Err(error)),
    };
    lead.land(landed);
    let count = match &word {
        Ok(Word::Keep) => &counters.questions_kept,
        Ok(Word::Skip) => &counters.questions_skipped,
        Ok(Word::Replace(_)) => &counters.questions_replaced,
        Err(_) => &counters.questions_failed,
    };
    count.add(1);
    Some(word)
}

fn read(filter: Filter, page: &Page) -> Result<Word, TemplateError> {
    Word::read(filter, page.head.status, &page.head.headers, page.body.clone())
}

async fn once(shard: &Rc<Shard>, question: &Question) -> Result<Arc<Page>, TemplateError> {
    let Question {
        wording: Wording { filter, trail, place, sub_meta, pub_meta, content, .. }, last_ids, ..
    } = question;
    let snapshot = shard.snapshot.load_full();
    let fields = [(SUB_META, sub_meta.clone()), (PUB_META, pub_meta.clone())];
    let errand = Errand {
        last_ids,
        fields: &fields,
        body: content.clone(),
        ..Errand::new(trail, place, Method::POST)
    };
    let mut answer = ask(shard, &snapshot, errand).await.map_err(|lost| failed(condition(&lost)))?;
    let head = std::mem::replace(&mut answer.head, http::Response::new(()).into_parts().0);
    let (body, rest) = answer.collect(MOST_BYTES).await.map_err(|_| failed("disconnected"))?;
    let body = match (filter, rest) {
        (Filter::HttpModify, None) => Bytes::from(body),
        (Filter::HttpModify, Some(_)) => {
            let why = format!("network response exceeded {MOST_BYTES} bytes");
            return Err(TemplateError::Unanswered(why));
        }
        // It means nothing.
        _ => Bytes::new(),
    };
    Ok(Arc::new(Page { head, body }))
}

fn failed(condition: &str) -> TemplateError {
    TemplateError::Unanswered(format!("network request failed: {condition}"))
}

/// In the words of the specification.
fn condition(lost: &Lost) -> &'static str {
    match lost {
        Lost::Unreached | Lost::Upstream(Failure::Unreachable(_)) => "connection refused",
        Lost::Upstream(Failure::ConnectTimeout(_)) => "connection timed out",
        Lost::Upstream(Failure::Tls(_)) => "tls error",
        Lost::Upstream(Failure::Silent(_)) => "request timed out",
        Lost::Upstream(Failure::Broken(_)) | Lost::Cut(_) => "disconnected",
        Lost::Upstream(_) | Lost::Status(_) | Lost::Body => "general error",
    }
}

/// From its turn to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
