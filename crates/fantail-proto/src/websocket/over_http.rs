//! One client's WebSocket as a series of POSTs to its origin (spec 7.2): what to ask next, and what an answer
//! means for the client. Owns the order of events, what is not accepted yet, sticky meta, retries and polling.
//! Connection-Id, URI, Grip-Sig, the client's headers, and what a message means to GRIP
//! ([`super::control`]) are the caller's.
//!
//! How a [`Session`] is driven: after each call, and when [`Session::due_ms`] has come, ask [`Session::next`]
//! for a request, of which there is one at a time; report it with [`Session::answered`] or
//! [`Session::failed`] and do the [`Action`]s in order; go on until [`Session::is_ended`]. A session may
//! outlive its client: what the origin must still hear is sent first.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use self::{
    backlog::{Accepted, Backlog, Offer, Unacceptable},
    meta::Meta,
};
use super::events::{self, Event, EventsError};
use crate::{hop, item::WsKind};

mod backlog;
mod meta;

pub use meta::{MAX_META, MAX_META_BYTES};

/// Bytes in the body of an answer (spec 7.2.3); more is [`Cause::TooLarge`].
pub const MAX_ANSWER_BYTES: usize = 1_000_000;

/// Events that wait for one request: few enough that an origin that answers each of them, and as many left
/// over, stays below [`events::MAX_EVENTS`].
pub const MAX_PENDING_EVENTS: usize = 4096;

/// One WebSocket. Idle, it has no heap unless the origin set meta.
///
/// ```text
/// New ─▶ Connecting ─ OPEN ─▶ Open ─ client's close ─▶ ClientClosed ─ CLOSE ─────────▶ Leaving ─▶ Ended
///            │                 └────────── CLOSE ────▶ OriginClosed ─ client's close ────▲
///            └─ refused ─▶ Ended       any: Session::leave, or a fault of the origin ────┘
/// ```
#[derive(Debug)]
pub struct Session {
    backlog: Backlog,
    flight: Option<Box<Flight>>,
    meta: Meta,
    /// When to ask without a reason; `u64::MAX`: never.
    poll_ms: u64,
    /// `Keep-Alive-Interval`, 0: off.
    interval_s: u32,
    /// Bytes of events that may wait or be on their way.
    limit: u32,
    phase: Phase,
    one_event: bool,
    /// A request is due at once.
    again: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    New,
    /// The origin heard OPEN and has not answered OPEN.
    Connecting,
    Open,
    /// The client's CLOSE is among the backlog, on its way or accepted; the origin's is awaited.
    ClientClosed,
    /// The origin's CLOSE went to the client; the client's is awaited. What the origin says is ignored.
    OriginClosed,
    /// The client is gone or no concern any more; the backlog still goes to the origin.
    Leaving,
    Ended,
}

/// A request on its way.
#[derive(Debug)]
struct Flight {
    offer: Offer,
    /// It carries OPEN alone, and is never repeated.
    opening: bool,
    retries: u8,
    /// When to send it again, `None` while an answer is awaited.
    again_ms: Option<u64>,
}

/// What to do for the client, in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Answer 101, with [`opening_headers`] of this answer.
    Open,
    /// Answer with the origin's own status, headers and body: it does not want this WebSocket.
    Reject,
    /// Whole, unfragmented. Text may not be UTF-8.
    Message(WsKind, Bytes),
    /// Send a close frame; any code, 0 included, any bytes as the reason. If the client has closed before,
    /// this answers it and the connection is over.
    Close(Option<(u16, Bytes)>),
    /// Let go without a close frame; before [`Action::Open`], answer 502.
    Drop(Cause),
}

/// Why a client is let go; the text is for the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Cause {
    #[error("the origin said that it has gone")]
    Disconnected,
    #[error("the origin did not answer 200 with events")]
    NotEvents,
    #[error("the origin could not be asked")]
    Unreachable,
    #[error("the origin's answer was cut off")]
    Cut,
    #[error("the origin's answer has more than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    #[error("the origin answered what are no events: {0}")]
    Events(#[from] EventsError),
    #[error("the origin did not begin with OPEN")]
    NotOpened,
    #[error("the origin opened what is open")]
    OpenedTwice,
    #[error("the origin accepted content that was not offered, or a part of a CLOSE")]
    Unacceptable,
    #[error("the origin accepted nothing, and there is nothing more to offer")]
    Stalled,
    #[error("the origin did not answer CLOSE")]
    CloseIgnored,
    #[error("the origin set more than {MAX_META} names or {MAX_META_BYTES} bytes of meta")]
    Meta,
}

/// Why a request has no answer (spec 7.2.7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// Connecting, TLS included, failed or took too long.
    NotReached,
    /// Any error or time-out while a part of the request was still unsent.
    Unsent,
    /// Any other: the origin may have acted on the request.
    Fatal,
}

/// The last thing that an origin hears.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Farewell {
    /// CLOSE without a code: a `detach`, or a close that was published.
    Close,
    /// DISCONNECT: the client is gone without a closing handshake, or broke the protocol.
    Disconnect,
}

impl Session {
    /// `limit` is how many bytes of events may wait or be on their way before [`Session::has_room`] says no.
    pub fn new(limit: u32, one_event: bool) -> Self {
        Self {
            backlog: Backlog::default(),
            flight: None,
            meta: Meta::default(),
            poll_ms: u64::MAX,
            interval_s: 0,
            limit,
            phase: Phase::New,
            one_event,
            again: false,
        }
    }

    /// The body of the next request, or of the same one again, if one is due; then
    /// [`Session::write_headers`] gives its headers.
    pub fn next(&mut self, now_ms: u64) -> Option<Bytes> {
        if let Some(flight) = &mut self.flight {
            flight.again_ms.take_if(|again_ms| *again_ms <= now_ms)?;
            return Some(flight.offer.body.clone());
        }
        if !self.is_due(now_ms) {
            return None;
        }
        self.again = false;
        let opening = matches!(self.phase, Phase::New | Phase::Connecting);
        let offer = if opening {
            self.phase = Phase::Connecting;
            Offer { body: Bytes::from_static(b"OPEN\r\n"), replayed: 0, whole: true }
        } else {
            self.backlog.offer(self.one_event)
        };
        let body = offer.body.clone();
        self.flight = Some(Box::new(Flight { offer, opening, retries: 0, again_ms: None }));
        Some(body)
    }

    /// Sets the headers that belong to the request on its way, and removes the client's own of these names:
    /// `Accept`, `Content-Type`, `Content-Bytes-Replayed`, `Meta-*`.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        headers.insert(header::ACCEPT, HeaderValue::from_static(events::MEDIA_TYPE));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(events::MEDIA_TYPE));
        match self.flight.as_ref().map_or(0, |flight| flight.offer.replayed) {
            0 => headers.remove(REPLAYED),
            replayed => headers.insert(REPLAYED, replayed.into()),
        };
        self.meta.write(headers);
    }

    /// When [`Session::next`] has something without any other call, if ever.
    pub fn due_ms(&self) -> Option<u64> {
        if let Some(flight) = &self.flight {
            return flight.again_ms;
        }
        (self.polls() && self.poll_ms < u64::MAX).then_some(self.poll_ms)
    }

    /// True when all is said: the session can be thrown away.
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// A message of the client's. False when there is no room for another: then the caller reads nothing
    /// more from the client until [`Session::has_room`]. What comes behind a close is ignored.
    pub fn push(&mut self, kind: WsKind, content: &[u8]) -> bool {
        if matches!(self.phase, Phase::New | Phase::Connecting | Phase::Open | Phase::OriginClosed) {
            self.backlog.push(kind, content);
        }
        self.has_room()
    }

    /// True while the client may go on. Waiting and on the way together are at most the limit and one message.
    pub fn has_room(&self) -> bool {
        let (bytes, events) = self.backlog.size();
        let flying = self.flight.as_ref().map_or(0, |flight| flight.offer.body.len());
        bytes.saturating_add(flying) < self.limit as usize && events < MAX_PENDING_EVENTS
    }

    /// Bytes of events that wait or are on their way.
    pub fn bytes(&self) -> usize {
        self.backlog.size().0 + self.flight.as_ref().map_or(0, |flight| flight.offer.body.len())
    }

    /// The client's close frame. Behind the origin's own CLOSE it ends the client's part; else the origin is
    /// to answer with CLOSE.
    pub fn close(&mut self, close: Option<(u16, &[u8])>) {
        match self.phase {
            Phase::Open => self.phase = Phase::ClientClosed,
            Phase::OriginClosed => self.phase = Phase::Leaving,
            // No client has frames before it has its 101.
            Phase::New | Phase::Connecting => return self.leave(Farewell::Disconnect),
            Phase::ClientClosed | Phase::Leaving | Phase::Ended => return,
        }
        self.backlog.push_close(close);
    }

    /// From here on the origin's answers are nothing to the client. Behind the request on its way it gets
    /// what waits, and the farewell unless the client has closed.
    pub fn leave(&mut self, farewell: Farewell) {
        match (self.phase, farewell) {
            (Phase::New, _) => return self.end(),
            (Phase::Leaving | Phase::Ended, _) => return,
            (Phase::ClientClosed, _) => {}
            (Phase::Connecting | Phase::Open | Phase::OriginClosed, Farewell::Close) => {
                self.backlog.push_close(None);
            }
            (Phase::Connecting | Phase::Open | Phase::OriginClosed, Farewell::Disconnect) => {
                self.backlog.push_disconnect();
            }
        }
        self.phase = Phase::Leaving;
        self.end_if_all_is_told();
    }

    /// Asks the origin, even if there is nothing to say (spec 5.6, `refresh`): after the request on its way,
    /// if there is one, because its answer may have been made before. False if it is not to be asked any more.
    pub fn refresh(&mut self) -> bool {
        let open = self.phase == Phase::Open;
        self.again |= open;
        open
    }

    /// The whole answer to the request on its way. Without one, or while it waits to be sent again, this is
    /// an answer too many and ignored.
    pub fn answered(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &Bytes,
        now_ms: u64,
    ) -> Vec<Action> {
        let Some(flight) = self.flight.take_if(|flight| flight.again_ms.is_none()) else { return Vec::new() };
        if status != StatusCode::OK || !is_events(headers) {
            let action = match self.phase {
                Phase::Connecting => Action::Reject,
                _ => Action::Drop(Cause::NotEvents),
            };
            return self.end_with(action);
        }
        let read = self.settle(&flight.offer, headers, now_ms).and_then(|accepted| {
            let events = events::decode(body)?;
            let mut actions = self.apply(events)?;
            actions.extend(self.proceed(accepted, flight.offer.whole));
            Ok(actions)
        });
        read.unwrap_or_else(|cause| self.fault(cause).into_iter().collect())
    }

    /// The request on its way has no answer. It is repeated up to five times, after 1, 2, 4, 8 and 16 s and
    /// `jitter_ms` of 0..=999, if the origin cannot have seen it whole; an opening request never is.
    pub fn failed(&mut self, failure: Failure, jitter_ms: u64, now_ms: u64) -> Vec<Action> {
        let Some(flight) = self.flight.as_mut().filter(|flight| flight.again_ms.is_none()) else {
            return Vec::new();
        };
        if failure != Failure::Fatal && !flight.opening && flight.retries < MAX_RETRIES {
            let delay_ms = (FIRST_RETRY_MS << flight.retries) + jitter_ms.min(MAX_JITTER_MS);
            flight.again_ms = Some(now_ms.saturating_add(delay_ms));
            flight.retries += 1;
            return Vec::new();
        }
        self.end_with(Action::Drop(Cause::Unreachable))
    }

    /// The answer to the request on its way began and cannot be had whole: the origin has heard the request, and
    /// may take the WebSocket for open.
    pub fn spoilt(&mut self, cause: Cause) -> Vec<Action> {
        if self.flight.take_if(|flight| flight.again_ms.is_none()).is_none() {
            return Vec::new();
        }
        if self.phase == Phase::Connecting {
            self.phase = Phase::Open;
        }
        self.fault(cause).into_iter().collect()
    }

    fn is_due(&self, now_ms: u64) -> bool {
        match self.phase {
            Phase::New => true,
            Phase::Connecting => self.poll_ms <= now_ms,
            Phase::Open | Phase::ClientClosed => {
                self.again || self.backlog.has_new() || self.poll_ms <= now_ms
            }
            // Before its close comes, a client may have more to say than there is room for.
            Phase::OriginClosed => !self.has_room(),
            Phase::Leaving => !self.backlog.is_empty(),
            Phase::Ended => false,
        }
    }

    fn polls(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Open | Phase::ClientClosed)
    }

    /// Takes over what the headers of an answer say, and puts back what was not accepted.
    fn settle(&mut self, offer: &Offer, headers: &HeaderMap, now_ms: u64) -> Result<Accepted, Cause> {
        if let Some(value) = headers.get(INTERVAL) {
            self.interval_s = interval(value);
        }
        self.poll_ms = match self.interval_s {
            0 => u64::MAX,
            seconds => now_ms.saturating_add(u64::from(seconds) * 1000),
        };
        self.meta.adopt(headers).map_err(|meta::Full| Cause::Meta)?;
        let accepted = match headers.get(ACCEPTED) {
            Some(value) => Some(number(value).ok_or(Cause::Unacceptable)?),
            None => None,
        };
        let opening = self.phase == Phase::Connecting;
        if opening {
            return if accepted.unwrap_or(0) == 0 { Ok(Accepted::All) } else { Err(Cause::Unacceptable) };
        }
        self.backlog.settle(offer, accepted).map_err(|error| match error {
            Unacceptable::Excess | Unacceptable::PartOfClose => Cause::Unacceptable,
        })
    }

    /// What an answer's events are to the client. A fault behind good events lets these pass.
    fn apply(&mut self, events: Vec<Event>) -> Result<Vec<Action>, Cause> {
        if matches!(self.phase, Phase::OriginClosed | Phase::Leaving) {
            return Ok(Vec::new());
        }
        let mut actions = Vec::with_capacity(events.len());
        let mut events = events.into_iter();
        if self.phase == Phase::Connecting {
            match events.next() {
                None if self.interval_s > 0 => return Ok(actions),
                Some(Event::Open) => self.phase = Phase::Open,
                _ => return Err(Cause::NotOpened),
            }
            actions.push(Action::Open);
        }
        for event in events {
            match event {
                Event::Message(kind, content) => actions.push(Action::Message(kind, content)),
                Event::Open => {
                    actions.extend(self.fault(Cause::OpenedTwice));
                    break;
                }
                Event::Close(close) => {
                    self.phase = match self.phase {
                        Phase::ClientClosed => Phase::Leaving,
                        _ => Phase::OriginClosed,
                    };
                    actions.push(Action::Close(close));
                    break;
                }
                Event::Disconnect => {
                    actions.extend(self.end_with(Action::Drop(Cause::Disconnected)));
                    break;
                }
            }
        }
        Ok(actions)
    }

    /// What is due after an answer, now that the phase is known.
    fn proceed(&mut self, accepted: Accepted, whole: bool) -> Option<Action> {
        let waits = !self.backlog.is_empty();
        match (self.phase, accepted) {
            (Phase::New | Phase::Connecting | Phase::Ended, _) => None,
            (Phase::Leaving, Accepted::Nothing) if !whole || !self.backlog.has_new() => {
                self.end();
                None
            }
            (Phase::Leaving, _) => {
                self.end_if_all_is_told();
                None
            }
            (Phase::OriginClosed, Accepted::Nothing) if self.has_room() => None,
            (Phase::OriginClosed, Accepted::Nothing) => self.fault(Cause::Stalled),
            (_, Accepted::Nothing) if !whole => self.fault(Cause::Stalled),
            (_, Accepted::Nothing) if self.backlog.has_new() => None,
            (Phase::ClientClosed, Accepted::Nothing) if self.interval_s > 0 => None,
            (Phase::ClientClosed, Accepted::Nothing) => self.fault(Cause::Stalled),
            (_, Accepted::Nothing) if !self.has_room() => self.fault(Cause::Stalled),
            (Phase::ClientClosed, Accepted::All) if !waits && self.interval_s == 0 => {
                self.end();
                Some(Action::Drop(Cause::CloseIgnored))
            }
            (phase, Accepted::Some) => {
                // Nothing that comes later would be a reason to offer the rest.
                self.again |= phase == Phase::ClientClosed || !self.has_room();
                None
            }
            (_, Accepted::All | Accepted::Nothing) => None,
        }
    }

    /// The origin broke the protocol. If it takes the WebSocket for open, it hears that it is not.
    fn fault(&mut self, cause: Cause) -> Option<Action> {
        match self.phase {
            Phase::New | Phase::Connecting => self.end(),
            Phase::Leaving | Phase::Ended => {
                self.end_if_all_is_told();
                return None;
            }
            Phase::Open | Phase::ClientClosed | Phase::OriginClosed => {
                self.backlog = Backlog::default();
                self.backlog.push_disconnect();
                self.phase = Phase::Leaving;
            }
        }
        Some(Action::Drop(cause))
    }

    /// Ends at once; the action is for a client that is still there.
    fn end_with(&mut self, action: Action) -> Vec<Action> {
        let gone = self.phase == Phase::Leaving;
        self.end();
        if gone { Vec::new() } else { vec![action] }
    }

    fn end_if_all_is_told(&mut self) {
        if self.flight.is_none() && self.backlog.is_empty() {
            self.end();
        }
    }

    fn end(&mut self) {
        self.phase = Phase::Ended;
        self.flight = None;
        self.backlog = Backlog::default();
    }
}

/// Headers of the 101 from those of the answer that opened (spec 7.1, 7.2.3): without what frames it or
/// concerns the session alone, and without the handshake's own, which the caller adds.
pub fn opening_headers(answer: &HeaderMap) -> HeaderMap {
    let mut headers = answer.clone();
    hop::strip(&mut headers);
    let foreign = |name: &&HeaderName| {
        OWN_HEADERS.contains(&name.as_str())
            || hop::is_framing(name)
            || meta::sets(name)
            || name.as_str().starts_with("grip-")
    };
    for name in answer.keys().filter(foreign) {
        headers.remove(name);
    }
    headers
}

/// Whether a body is of events. The media type may have parameters (Pushpin allows none in answers).
pub fn is_events(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_TYPE).iter().any(|value| {
        let media_type = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        media_type.trim_ascii().eq_ignore_ascii_case(events::MEDIA_TYPE.as_bytes())
    })
}

/// Seconds between polls, 0 for none: zero, negative and unreadable ones.
fn interval(value: &HeaderValue) -> u32 {
    match number(value) {
        None | Some(0) => 0,
        Some(seconds) => u32::try_from(seconds).unwrap_or(u32::MAX).max(MIN_INTERVAL_S),
    }
}

fn number(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.trim().parse().ok()
}

const REPLAYED: HeaderName = HeaderName::from_static("content-bytes-replayed");
const ACCEPTED: &str = "content-bytes-accepted";
const INTERVAL: &str = "keep-alive-interval";

const OWN_HEADERS: [&str; 5] =
    ["content-type", ACCEPTED, INTERVAL, "sec-websocket-accept", "sec-websocket-extensions"];

/// An origin that wants to be asked more often can be asked by what is published (spec 7.2.3).
const MIN_INTERVAL_S: u32 = 20;

/// Spec 7.2.7: together half a minute, in which most origins are restarted.
const MAX_RETRIES: u8 = 5;
const FIRST_RETRY_MS: u64 = 1000;
const MAX_JITTER_MS: u64 = 999;

/// A hundred thousand idle sessions are ten megabytes.
const _: () = assert!(size_of::<Session>() <= 96);

#[cfg(test)]
mod tests;
