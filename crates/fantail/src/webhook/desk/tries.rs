//! From the disk to the endpoint, and what becomes of a delivery after a try.

use std::{
    borrow::Cow,
    rc::Rc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use fantail_proto::{
    filter::{self, Applied},
    item,
    webhook::{
        retry::{MAX_DELAY, Verdict},
        signature,
        target::Target,
    },
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::json;
use tokio::{
    task::{self, JoinError},
    time::Instant,
};

use super::{Desk, lost, ms};
use crate::webhook::{
    book::{Change, Death, Keep, LastFault, Letter, Page},
    courier::{Call, Fault},
    endpoint::{Disabled, Endpoint, Id},
    lines::{Class, Landed, Slice},
};

/// What a try is about.
#[derive(Clone, Copy)]
pub(super) struct Flight {
    id: Id,
    seq: u64,
    class: Class,
    failed: u32,
}

/// The end of a try.
pub(super) struct Landing {
    took: Duration,
    outcome: Result<(), Fault>,
}

/// What is to be sent now.
enum Job {
    Send {
        url: String,
        call: Call,
        failed: u32,
    },
    /// The endpoint is gone, or its time is over.
    Nobody,
    /// It is not in the queue: of two replays at once it was the second.
    Nothing,
    /// What was to be said is not on disk any more, or cannot be understood.
    Missing,
    Disabled {
        tries: u32,
    },
    /// A filter cannot be applied to what is said.
    Unfit {
        tries: u32,
    },
}

impl Desk {
    /// Starts tries that may start, a slice of them. True if there may be more: what is under way has its turn first.
    pub(super) fn launch(&mut self) -> bool {
        let now = self.clock.now();
        if now < self.unread_until {
            return false;
        }
        let mut page = None;
        let (mut slice, mut made) = (SLICE, 0);
        while let Some((id, seq)) = self.lines.start(now, &mut slice) {
            let class = self.lines.class(id);
            let opened = page.take().map_or_else(|| Page::open(&self.store).map_err(lost), Ok);
            let opened = match opened {
                Ok(opened) => page.insert(opened),
                Err(error) => {
                    self.lines.put_back(id, class, seq);
                    self.cannot_read(&error);
                    return false;
                }
            };
            match self.job(opened, id, seq) {
                Ok(Job::Send { url, call, failed }) => {
                    made += call.body.len();
                    let courier = Rc::clone(&self.courier);
                    let flight = self.flights.spawn_local(async move {
                        let begun = Instant::now();
                        let outcome = courier.deliver(id.realm(), &url, call, failed).await;
                        Landing { took: begun.elapsed(), outcome }
                    });
                    self.aloft.insert(flight.id(), Flight { id, seq, class, failed });
                }
                Ok(Job::Nobody) => {
                    self.lines.landed(id, class, Landed::Unsent);
                    if self.ailing.remove(&id).is_some() {
                        self.changes.push_back(Change::Healthy { id });
                    }
                    self.done(id, seq);
                }
                Ok(Job::Disabled { tries }) => {
                    self.lines.landed(id, class, Landed::Unsent);
                    self.bury(id, seq, "the endpoint is disabled", tries);
                }
                Ok(Job::Unfit { tries }) => {
                    self.lines.landed(id, class, Landed::Unsent);
                    self.bury(id, seq, "a filter cannot be applied", tries);
                }
                Ok(Job::Nothing) => {
                    self.lines.landed(id, class, Landed::Unsent);
                    self.done(id, seq);
                }
                Ok(Job::Missing) => {
                    tracing::error!(endpoint = %id, number = seq, "what a webhook says is not on disk: it is lost");
                    self.counts.webhook_dead_failed.add(1);
                    self.lines.landed(id, class, Landed::Unsent);
                    self.done(id, seq);
                }
                Err(error) => {
                    self.lines.landed(id, class, Landed::Unsent);
                    self.lines.wait(id, seq, now + UNREADABLE_MS);
                    self.cannot_read(&error);
                    return false;
                }
            }
            if made > MADE_AT_ONCE {
                return true;
            }
        }
        self.lines.is_cut(&slice)
    }

    /// The file is closed, and opened again soon: a line in the log for all that waits.
    fn cannot_read(&mut self, error: &redb::Error) {
        tracing::error!(%error, "webhooks cannot be read from disk: nothing is sent meanwhile");
        self.unread_until = self.clock.now() + READ_AGAIN_MS;
    }

    fn job(&self, page: &Page, id: Id, seq: u64) -> Result<Job, redb::Error> {
        let now = self.clock.unix();
        let Some(endpoint) = page.endpoint(id)?.filter(|endpoint| !endpoint.has_expired(now)) else {
            return Ok(Job::Nobody);
        };
        let Some(failed) = page.failed(id, seq)? else { return Ok(Job::Nothing) };
        if endpoint.disabled.is_some() {
            return Ok(Job::Disabled { tries: failed });
        }
        let failed = self.tries.get(&(id, seq)).copied().unwrap_or(failed);
        let Some(letter) = page.letter(seq)? else { return Ok(Job::Missing) };
        let Some(body) = said(&endpoint, &letter) else { return Ok(Job::Unfit { tries: failed }) };
        let call = call(&endpoint, &letter, body, now);
        Ok(Job::Send { url: endpoint.url, call, failed })
    }

    pub(super) fn land(&mut self, landed: Result<(task::Id, Landing), JoinError>) {
        let (flight, landing) = match landed {
            Ok((flight, landing)) => (flight, Some(landing)),
            Err(error) => {
                tracing::error!(%error, "a try of a webhook has failed");
                (error.id(), None)
            }
        };
        let Some(Flight { id, seq, class, failed }) = self.aloft.remove(&flight) else { return };
        // A fault of ours is one more reason to try again, and no less to let the next one go.
        let Some(Landing { took, outcome }) = landing else {
            return self.failed(id, seq, class, failed + 1, &Fault::Broken);
        };
        self.counts.webhook_latency.observe(took);
        match outcome {
            Ok(()) => {
                self.counts.webhook_delivered.add(1);
                // While it rests all the same, that and why is still to be known.
                let rests = self.lines.paused_until(id) > self.clock.now();
                if !rests && self.ailing.remove(&id).is_some() {
                    self.changes.push_back(Change::Healthy { id });
                }
                self.lines.landed(id, class, Landed::Delivered);
                self.done(id, seq);
            }
            Err(fault) => self.failed(id, seq, class, failed + 1, &fault),
        }
    }

    fn failed(&mut self, id: Id, seq: u64, class: Class, failed: u32, fault: &Fault) {
        self.count(fault);
        tracing::debug!(endpoint = %id, ?fault, failed, "a webhook was not delivered");
        // Its endpoint may have been unsubscribed meanwhile: nothing is owed any more.
        let page = Page::open(&self.store).map_err(lost);
        if matches!(page.and_then(|page| page.failed(id, seq)), Ok(None)) {
            self.lines.landed(id, class, Landed::Unsent);
            return self.done(id, seq);
        }
        let (now, unix_ms, steady_ms) = (self.clock.now(), self.clock.unix_ms(), self.clock.steady_ms());
        let (asked, verdict) = match fault {
            Fault::Status { verdict, retry_after, .. } => (*retry_after, Some(*verdict)),
            _ => (None, None),
        };
        let (since, failures) = self.ailing.get(&id).copied().unwrap_or((steady_ms, 0));
        let failures = failures.saturating_add(1);
        self.ailing.insert(id, (since, failures));
        let landed = if verdict.is_some() { Landed::Refused } else { Landed::Unheard };
        let in_a_row = self.lines.landed(id, class, landed);
        let dice = self.roll();
        let pause = asked.filter(|_| verdict == Some(Verdict::Busy)).map(|asked| asked.min(MAX_DELAY));
        if let Some(pause) = pause.max(self.config.retry.rest(in_a_row, dice)) {
            self.lines.pause(id, now.saturating_add(ms(pause)));
        }
        let pause = self.lines.paused_until(id).saturating_sub(now);
        let paused_until = if pause == 0 { 0 } else { unix_ms.saturating_add(pause) };
        let last = LastFault { at: unix_ms, paused_until, why: fault.to_string() };
        self.changes.push_back(Change::Failing { id, since: self.clock.wall(since), failures, last });
        let gone = verdict == Some(Verdict::Gone);
        let next = self.config.retry.delay(failed, asked, dice).filter(|_| !gone);
        match next {
            Some(delay) => {
                self.changes.push_back(Change::Again {
                    id,
                    seq,
                    failed,
                    due: unix_ms.saturating_add(ms(delay)),
                });
                self.tries.insert((id, seq), failed);
                self.lines.wait(id, seq, now.saturating_add(ms(delay)));
            }
            None => self.bury(id, seq, &fault.to_string(), failed),
        }
        // Only at the end of a delivery's tries: between two deliveries there may have been days without any.
        let long = next.is_none()
            && Duration::from_millis(steady_ms.saturating_sub(since)) >= self.config.disable_after;
        if gone {
            self.disable(id, "it has answered 410");
        } else if long && failures >= self.config.retry.tries() {
            self.disable(id, "nothing could be delivered for too long");
        }
    }

    /// A delivery is over; its letter is, too, when nobody else waits for it.
    pub(super) fn done(&mut self, id: Id, seq: u64) {
        self.tries.remove(&(id, seq));
        let bytes = self.letters.size(seq);
        let last = self.letters.done(seq);
        self.changes.push_back(Change::Done { id, seq, last });
        self.lines.release(id, bytes);
    }

    /// How many dead letters are kept.
    pub(super) fn keep(&self) -> Keep {
        Keep {
            letters: self.config.dead_letters as u64,
            bytes: self.config.dead_letter_bytes,
            realm_bytes: self.config.realm_dead_letter_bytes,
            all_bytes: self.config.all_dead_letter_bytes,
        }
    }

    /// A delivery is given up.
    fn bury(&mut self, id: Id, seq: u64, cause: &str, tries: u32) {
        self.counts.webhook_dead_failed.add(1);
        self.tries.remove(&(id, seq));
        let bytes = self.letters.size(seq);
        let last = self.letters.done(seq);
        let death = Death { at: self.clock.unix_ms(), cause: cause.to_owned(), tries };
        self.changes.push_back(Change::Dead { id, seq, letter: None, death, last, keep: self.keep() });
        self.lines.release(id, bytes);
    }

    /// Nothing more is sent to an endpoint until somebody enables it, and its realm is told.
    fn disable(&mut self, id: Id, cause: &str) {
        let endpoint =
            Page::open(&self.store).map_err(lost).and_then(|page| page.endpoint(id)).ok().flatten();
        let Some(endpoint) = endpoint.filter(|endpoint| endpoint.disabled.is_none()) else { return };
        // Of several tries that end so at once the first has said it.
        if !self.dismissed.insert(id) {
            return;
        }
        self.ailing.remove(&id);
        self.counts.webhook_disabled.add(1);
        let host = Target::parse(&endpoint.url).map(|target| target.authority()).unwrap_or_default();
        tracing::warn!(endpoint = %id, host, channel = ?endpoint.channel, cause, "a webhook endpoint was disabled");
        let disabled = Disabled { at: self.clock.unix(), cause: cause.to_owned() };
        self.changes.push_back(Change::Disable { id, disabled });
        // The disk knows how often each was tried.
        let why = format!("the endpoint was disabled: {cause}");
        let waiting = self.lines.drain(id);
        // Of more than are kept, the oldest would be written to be removed.
        let kept = self.keep().newest(waiting.iter().rev().map(|seq| self.letters.size(*seq)));
        let first = waiting.len() - kept;
        for (n, seq) in waiting.into_iter().enumerate() {
            if n < first {
                self.counts.webhook_dead_failed.add(1);
                self.done(id, seq);
            } else {
                self.bury(id, seq, &why, 0);
            }
        }
        self.lines.forgive(id);
        self.tell(id, &endpoint, cause);
    }

    /// An item on the realm's channel for notices, for every transport.
    fn tell(&self, id: Id, endpoint: &Endpoint, cause: &str) {
        let number = id.realm();
        let realm = self.numbers.iter().find(|(_, own)| **own == number).map(|(realm, _)| *realm);
        let (Some(realm), false) = (realm, self.config.notices.is_empty()) else { return };
        let text = json!({
            "type": "webhook.disabled", "id": id.to_string(), "channel": endpoint.channel, "url": endpoint.url,
            "cause": cause, "at": self.clock.unix(),
        });
        let line = format!("{text}\n");
        let content_type = json!([["Content-Type", "application/json"]]);
        let body = json!({ "items": [{ "channel": self.config.notices, "formats": {
            "http-stream": { "content": line },
            "http-response": { "headers": content_type, "body": line },
            "ws-message": { "content": text.to_string() },
            "http-request": { "headers": content_type, "body": text.to_string() },
        } }] });
        let items = item::decode(body.to_string().as_bytes(), None).unwrap_or_default();
        if self.hub.publish(realm, items, false).is_err() {
            tracing::warn!("there was no room for a notice of webhooks");
        }
    }

    fn count(&self, fault: &Fault) {
        let counts = &self.counts;
        let count = match fault {
            Fault::Status { verdict: Verdict::Gone, .. } => &counts.webhook_gone,
            Fault::Status { verdict: Verdict::Redirect, .. } | Fault::Downgrade => &counts.webhook_redirected,
            Fault::Status { .. } => &counts.webhook_status,
            Fault::Timeout => &counts.webhook_timeout,
            Fault::Forbidden(_) => &counts.webhook_forbidden,
            Fault::Name | Fault::Url(_) => &counts.webhook_name,
            Fault::Connect | Fault::Tls => &counts.webhook_unreachable,
            Fault::Broken => &counts.webhook_broken,
        };
        count.add(1);
    }
}

/// The body for one endpoint, as its filters make it.
fn said(endpoint: &Endpoint, letter: &Letter) -> Option<Bytes> {
    let filters = endpoint.filters();
    if !filters.iter().any(|filter| filter.changes_content()) {
        return Some(letter.body.clone());
    }
    let id = |channel: &str| if channel == endpoint.channel { letter.head.item.as_deref() } else { None };
    match filter::apply(&filters, &[], &letter.body, &endpoint.meta, id).ok()? {
        Applied::Content(Cow::Borrowed(_)) => Some(letter.body.clone()),
        Applied::Content(Cow::Owned(body)) => Some(body.into()),
        // An endpoint has no filters that ask.
        Applied::Skipped | Applied::Asks(..) => None,
    }
}

/// The request: what the item says, what the endpoint wants to be said to it, and the signatures of both.
fn call(endpoint: &Endpoint, letter: &Letter, body: Bytes, now: u64) -> Call {
    let mut headers: HeaderMap = HeaderMap::new();
    for (name, value) in letter.headers() {
        headers.append(name, value);
    }
    // In place of the item's.
    headers.extend(endpoint.headers());
    // Receivers compare it with their clocks.
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let signed = signature::signatures(&endpoint.signs_with(now), &letter.head.id, unix, &body);
    let ours = [
        ("webhook-id", letter.head.id.clone()),
        ("webhook-timestamp", unix.to_string()),
        ("webhook-signature", signed),
    ];
    for (name, value) in ours {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let method = Method::from_bytes(letter.head.method.as_bytes()).unwrap_or(Method::POST);
    Call { method, headers, body }
}

/// Tries of each class that are started at once. A thousand of the dead, whose time has come together, would else keep
/// the answers of the living waiting, and the next item.
const SLICE: Slice = [64, 16, 4];
/// Bytes that filters make and secrets sign in a slice, but for the last: a realm's large ones do not hold all others.
const MADE_AT_ONCE: usize = 1 << 20;
/// Before anything is read again when the file cannot be.
const READ_AGAIN_MS: u64 = 500;
/// Before a delivery is read again that could not be, although the file was open: meanwhile the others are sent.
const UNREADABLE_MS: u64 = 60_000;
