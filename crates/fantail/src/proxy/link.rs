//! Following the links of held streams (spec 3.10), and telling origins of holds that are gone (3.11). A task for each
//! page, shared by all who wait for the same; what a page means for a stream is *hold*'s.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use fantail_pin::{KeepAlive, PinId};
use fantail_proto::{
    filter::{self, Filter},
    grip::{Hold, Instruct, InstructError},
    link::{Place, retry_ms},
};
use http::{Method, response};
use http_body_util::BodyExt;

use super::{
    errand::{Errand, Lost, ask},
    holding::{broken_continuity, subscriptions},
};
use crate::{
    hold::{Fetch, GripLink, Held, Page, Trail, beats, jitter_ms},
    shard::Shard,
    upstream::{self, Download, PageLanded as Landed, Seat},
};

/// Starts the task that fetches a page for streams.
pub fn fetch(shard: &Rc<Shard>, fetch: Box<Fetch>) {
    let shard = Rc::clone(shard);
    tokio::task::spawn_local(async move { Chase { shard, fetch }.run().await });
}

/// Starts the task that tells an origin that a hold is gone. There may be too many: then this one is not told.
pub fn say_gone(shard: &Rc<Shard>, link: GripLink) {
    if shard.departures.get() >= MAX_DEPARTURES {
        shard.counters.gone_dropped.add(1);
        return;
    }
    shard.departures.set(shard.departures.get() + 1);
    let shard = Rc::clone(shard);
    tokio::task::spawn_local(async move {
        let told = tell(&shard, &link).await;
        shard.departures.set(shard.departures.get() - 1);
        match told {
            Ok(()) => shard.counters.gone_told.add(1),
            Err(lost) => {
                shard.counters.gone_failed.add(1);
                tracing::warn!(target: "fantail::proxy", place = link.place.path_and_query(), %lost, "a gone link");
            }
        }
    });
}

async fn tell(shard: &Rc<Shard>, link: &GripLink) -> Result<(), Lost> {
    let Ok(_turn) = shard.departing.acquire().await else { return Err(Lost::Unreached) };
    let snapshot = shard.snapshot.load_full();
    let answer = ask(shard, &snapshot, Errand::new(&link.trail, &link.place, Method::POST)).await?;
    if !answer.head.status.is_success() {
        return Err(Lost::Status(answer.head.status.as_u16()));
    }
    match answer.collect(0).await? {
        (body, None) if body.is_empty() => Ok(()),
        _ => Err(Lost::Body),
    }
}

/// A page on its trail to the streams that wait for it.
struct Chase {
    shard: Rc<Shard>,
    fetch: Box<Fetch>,
}

impl Chase {
    async fn run(self) {
        let lead = match self.shard.pages.board(&self.fetch.key, self.fetch.fresh) {
            Seat::Lead(lead) => Some(lead),
            Seat::Wait(waiting) => match waiting.landing().await {
                Landed::Page(page) => return self.give(&page).await,
                Landed::Failed => return self.fail(RETRIEVE, false).await,
                Landed::Alone => None,
            },
        };
        let land = |landed: Landed| lead.into_iter().for_each(|lead| lead.land(landed.clone()));
        match self.persist().await {
            Ok((head, body, None)) => {
                let page = Arc::new(upstream::Page { head, body: body.into() });
                land(Landed::Page(Arc::clone(&page)));
                self.give(&page).await;
            }
            Ok((head, body, Some(rest))) => {
                land(Landed::Alone);
                self.stream(head, body, rest).await;
            }
            Err(landed) => {
                land(landed);
                self.fail(RETRIEVE, false).await;
            }
        }
    }

    /// Asks until there is an answer, or it is no use any more.
    async fn persist(&self) -> Result<(response::Parts, Vec<u8>, Option<Download>), Landed> {
        let mut attempts = 0;
        loop {
            let lost = match self.once().await {
                Ok(answer) => return Ok(answer),
                Err(lost) => lost,
            };
            let path = self.fetch.link.place.path_and_query();
            tracing::info!(target: "fantail::proxy", path, %lost, attempts, "a link is not answered");
            let wait = retry_ms(attempts).ok_or(Landed::Failed)? + u64::from(jitter_ms());
            attempts += 1;
            self.shard.counters.link_retries.add(1);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            if !self.shard.holds(|holds| holds.await_page(&self.fetch.pins)) {
                return Err(Landed::Alone);
            }
        }
    }

    /// Until the head, and as much of the body as is collected.
    async fn once(&self) -> Result<(response::Parts, Vec<u8>, Option<Download>), Lost> {
        let snapshot = self.shard.snapshot.load_full();
        self.shard.counters.link_fetches.add(1);
        let Fetch { link, last_ids, .. } = &*self.fetch;
        let errand = Errand { last_ids, ..Errand::new(&link.trail, &link.place, Method::GET) };
        let mut answer = ask(&self.shard, &snapshot, errand).await?;
        if !answer.head.status.is_success() {
            return Err(Lost::Status(answer.head.status.as_u16()));
        }
        let head = std::mem::replace(&mut answer.head, http::Response::new(()).into_parts().0);
        let (body, rest) = answer.collect(snapshot.config.grip.instruct_bytes).await?;
        Ok((head, body, rest))
    }

    async fn give(&self, page: &upstream::Page) {
        match self.read(&page.head, page.body.clone(), true) {
            // The next is not asked for before its clients have taken this one.
            Ok(mut page) if page.hold.is_none() && page.next.is_some() => {
                if self.pour(&std::mem::take(&mut page.body)).await {
                    self.turn(&page).await;
                }
            }
            Ok(page) => self.turn(&page).await,
            Err(error) => self.refuse(&error).await,
        }
    }

    /// A page that is too large to be collected goes to its clients as they take it.
    async fn stream(&self, head: response::Parts, ready: Vec<u8>, mut rest: Download) {
        let page = match self.read(&head, Bytes::new(), false) {
            Ok(page) => page,
            Err(error) => return self.refuse(&error).await,
        };
        for pins in self.fetch.pins.chunks(CHUNK) {
            self.shard.holds(|holds| holds.begin_page(pins, &page));
            yield_between(&self.fetch.pins).await;
        }
        if !self.pour(&ready).await {
            return;
        }
        drop(ready);
        while let Some(frame) = rest.frame().await {
            match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => {
                    if !self.pour(&data).await {
                        return;
                    }
                }
                Ok(Err(_)) => {}
                Err(error) => {
                    tracing::info!(target: "fantail::proxy", %error, "a page breaks off");
                    return self.fail(RETRIEVE, true).await;
                }
            }
        }
        self.turn(&page).await;
    }

    /// False when nobody is left.
    async fn pour(&self, data: &[u8]) -> bool {
        for part in data.chunks(PART_BYTES) {
            let mut wait = PAUSE;
            let most = self.shard.snapshot.load().config.client.queue_bytes / 2;
            let mut left = self.part(part).await;
            while left.is_some_and(|waits| waits > most.min(BACKLOG_BYTES)) {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_PAUSE);
                left = self.part(&[]).await;
            }
            if left.is_none() {
                return false;
            }
        }
        true
    }

    async fn part(&self, part: &[u8]) -> Option<usize> {
        let mut most = None;
        for pins in self.fetch.pins.chunks(CHUNK) {
            most = most.max(self.shard.holds(|holds| holds.page_part(pins, part)));
            yield_between(&self.fetch.pins).await;
        }
        most
    }

    async fn turn(&self, page: &Page) {
        for pins in self.fetch.pins.chunks(CHUNK) {
            self.shard.holds(|holds| holds.page(pins, page));
            yield_between(&self.fetch.pins).await;
        }
    }

    async fn refuse(&self, error: &InstructError) {
        tracing::info!(target: "fantail::proxy", %error, "a page is refused");
        self.shard.counters.instruct_errors.add(1);
        self.fail(&error.0, false).await;
    }

    async fn fail(&self, why: &str, cut: bool) {
        let text = self.fetch.link.trail.debug.then(|| format!("\n\n{why}\n"));
        for pins in self.fetch.pins.chunks(CHUNK) {
            self.shard.holds(|holds| holds.page_failed(pins, text.as_deref(), cut));
            yield_between(&self.fetch.pins).await;
        }
    }

    /// What a page says. `whole`: its body is here.
    fn read(&self, head: &response::Parts, body: Bytes, whole: bool) -> Result<Page, InstructError> {
        let mut instruct = Instruct::parse(head.status.as_u16(), "", &head.headers, body)?;
        let filters = instruct.channels.iter().flat_map(|channel| channel.filters.iter().copied());
        let filters: Vec<Filter> = filters.collect();
        if filters.contains(&Filter::BuildId) {
            if !whole {
                return Err(InstructError("a page is too large for build-id".into()));
            }
            let built = filter::apply_to_body(&filters, &instruct.reply.body, &instruct.meta);
            let built = built.map_err(|error| InstructError(format!("filter error: {error}")))?;
            instruct.reply.body = built.into_owned().into();
        }
        let link = &self.fetch.link;
        let next = match &instruct.next {
            Some(next) => Some(follow(&link.trail, &link.place, next)?),
            None => None,
        };
        let hold = match &instruct.hold {
            None => None,
            Some(Hold::Response { .. }) => {
                return Err(InstructError("Next link returned non-stream hold.".into()));
            }
            Some(Hold::Stream { keep_alive }) => {
                if let Some(why) = broken_continuity(&self.shard, &link.trail.route, &instruct) {
                    return Err(InstructError(why));
                }
                let config = &self.shard.snapshot.load().config.grip;
                let keep_alive: Option<Rc<KeepAlive>> = keep_alive.as_ref().map(|beat| Rc::new(beats(beat)));
                let Trail { route, target, .. } = &*link.trail;
                let subscriptions = subscriptions(config, &route.rule, *target, &instruct)?;
                Some(Held { subscriptions, meta: instruct.meta.clone(), keep_alive })
            }
        };
        let scanty = whole && instruct.reply.body.len() < SCANTY_BYTES;
        Ok(Page { hold, next, body: instruct.reply.body, scanty })
    }
}

/// Where a link in a document leads.
///
/// # Errors
/// To nothing that can be asked.
pub(super) fn follow(
    trail: &Rc<Trail>,
    document: &Place,
    link: &fantail_proto::grip::Link,
) -> Result<GripLink, InstructError> {
    let timeout_ms = u32::try_from(link.timeout.as_millis()).unwrap_or(u32::MAX);
    let place =
        document.resolve(&link.uri).ok_or_else(|| InstructError("Grip-Link contains invalid link".into()))?;
    Ok(GripLink { trail: Rc::clone(trail), place, timeout_ms })
}

/// A long-poll that is asked about again: if it is not held again, it is gone.
#[derive(Debug)]
pub(super) struct Farewell {
    shard: Rc<Shard>,
    link: Option<GripLink>,
}

impl Farewell {
    pub(super) fn new(shard: Rc<Shard>, link: GripLink) -> Self {
        Self { shard, link: Some(link) }
    }

    /// It is held again.
    pub(super) fn keep(mut self) -> Option<GripLink> {
        self.link.take()
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            self.shard.holds(|holds| holds.say_gone(link));
        }
    }
}

async fn yield_between(pins: &[PinId]) {
    if pins.len() > CHUNK {
        tokio::task::yield_now().await;
    }
}

/// Streams that get a page between two looks at the shard's other work.
const CHUNK: usize = 512;
/// A large page goes to its clients in such parts, the next when no client is further behind than this.
const PART_BYTES: usize = 64 << 10;
const BACKLOG_BYTES: usize = 256 << 10;
const PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Gone holds of a shard whose origins are still to hear of it: a thousand a second, for ten seconds.
const MAX_DEPARTURES: usize = 10_000;
/// A page of less is [`Page::scanty`].
const SCANTY_BYTES: usize = 1024;
const RETRIEVE: &str = "Failed to retrieve next link.";
