//! What a client has said and its origin has not accepted yet: events in the order in which they came, kept
//! as the bytes of the request that will carry them. Decides how much a partial acceptance leaves over
//! (spec 7.2.6), never when a request is due.

use bytes::Bytes;

use crate::{
    item::WsKind,
    websocket::events::{self, Kind, Span},
};

/// Events in order. Empty, it has no heap.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    encoded: Vec<u8>,
    /// Bytes at the front of `encoded` that were offered before and not accepted.
    offered: usize,
    /// Bytes of content among them.
    replayed: u64,
    events: usize,
}

/// The body of a request, kept until it is settled.
#[derive(Debug)]
pub(super) struct Offer {
    pub body: Bytes,
    /// `Content-Bytes-Replayed`.
    pub replayed: u64,
    /// True when it carries all that there was.
    pub whole: bool,
}

/// How much of an offer was accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Accepted {
    All,
    Some,
    /// None of at least one byte.
    Nothing,
}

/// An acceptance that cannot be.
#[derive(Debug)]
pub(super) enum Unacceptable {
    /// More than was offered.
    Excess,
    /// All that came before a CLOSE, and not all of the CLOSE.
    PartOfClose,
}

impl Backlog {
    pub(super) fn push(&mut self, kind: WsKind, content: &[u8]) {
        events::encode_message(kind, content, &mut self.encoded);
        self.events += 1;
    }

    pub(super) fn push_close(&mut self, close: Option<(u16, &[u8])>) {
        events::encode_close(close, &mut self.encoded);
        self.events += 1;
    }

    pub(super) fn push_disconnect(&mut self) {
        events::encode(&events::Event::Disconnect, &mut self.encoded);
        self.events += 1;
    }

    /// Encoded bytes, and events.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.encoded.len(), self.events)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }

    /// True when it holds what was never offered.
    pub(super) fn has_new(&self) -> bool {
        self.encoded.len() > self.offered
    }

    /// Takes all out, or the first event.
    pub(super) fn offer(&mut self, one_event: bool) -> Offer {
        let Self { mut encoded, offered, replayed, events } = std::mem::take(self);
        let first = if one_event { spans(&encoded).next().map_or(0, |span| span.end) } else { encoded.len() };
        let whole = first == encoded.len();
        let body = if whole {
            encoded.into()
        } else {
            // The rest of one event is all that can have been offered before.
            debug_assert!(offered <= first);
            let body = Bytes::copy_from_slice(&encoded[..first]);
            encoded.drain(..first);
            *self = Self { encoded, offered: 0, replayed: 0, events: events - 1 };
            body
        };
        Offer { body, replayed, whole }
    }

    /// Puts back to the front what is left of `offer` when the origin accepted so many bytes of content, or all.
    pub(super) fn settle(&mut self, offer: &Offer, accepted: Option<u64>) -> Result<Accepted, Unacceptable> {
        let Some(accepted) = accepted else { return Ok(Accepted::All) };
        let content: u64 = spans(&offer.body).map(|span| length(&span)).sum();
        if accepted > content {
            return Err(Unacceptable::Excess);
        }
        if accepted == content {
            return Ok(Accepted::All);
        }
        let close = spans(&offer.body).find(|span| span.kind == Kind::Close);
        if close.is_some_and(|close| accepted >= content - length(&close)) {
            return Err(Unacceptable::PartOfClose);
        }
        let (mut rest, events) = rest(&offer.body, accepted);
        self.offered = rest.len();
        self.replayed = content - accepted;
        self.events += events;
        rest.append(&mut self.encoded);
        self.encoded = rest;
        Ok(if accepted == 0 { Accepted::Nothing } else { Accepted::Some })
    }
}

/// What follows the first `accepted` bytes of content, and how many events that is. An empty message right
/// behind them counts as not accepted: twice is better than never.
fn rest(body: &[u8], accepted: u64) -> (Vec<u8>, usize) {
    let (mut before, mut spans) = (0, spans(body));
    let first = spans.find(|span| {
        let end = before + length(span);
        let left = end > accepted || (end == accepted && span.content.is_empty());
        if !left {
            before = end;
        }
        left
    });
    let Some(first) = first else { return (Vec::new(), 0) };
    let mut rest = Vec::with_capacity(body.len() - first.at);
    match (first.kind, usize::try_from(accepted - before)) {
        (Kind::Message(kind), Ok(skipped @ 1..)) => {
            let content = &body[first.content];
            events::encode_message(kind, content.get(skipped..).unwrap_or_default(), &mut rest);
            rest.extend_from_slice(&body[first.end..]);
        }
        _ => rest.extend_from_slice(&body[first.at..]),
    }
    (rest, 1 + spans.count())
}

fn length(span: &Span) -> u64 {
    span.content.len() as u64
}

/// Bodies here were written by [`Backlog`], so that they can be read.
fn spans(body: &[u8]) -> impl Iterator<Item = Span> {
    events::spans(body).map_while(Result::ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(messages: &[&str], close: Option<&str>) -> Backlog {
        let mut backlog = Backlog::default();
        messages.iter().for_each(|message| backlog.push(WsKind::Text, message.as_bytes()));
        if let Some(reason) = close {
            backlog.push_close((!reason.is_empty()).then_some((1000, reason.as_bytes())));
        }
        backlog
    }

    #[test]
    fn what_an_acceptance_leaves() {
        let table: [(&[&str], u64, Accepted, &str); 12] = [
            (&["hello"], 5, Accepted::All, ""),
            (&["hello"], 3, Accepted::Some, "TEXT 2\r\nlo\r\n"),
            (&["hello"], 0, Accepted::Nothing, "TEXT 5\r\nhello\r\n"),
            (&["ab", "cd"], 2, Accepted::Some, "TEXT 2\r\ncd\r\n"),
            (&["ab", "cd"], 3, Accepted::Some, "TEXT 1\r\nd\r\n"),
            (&["ab", "cd", "ef"], 1, Accepted::Some, "TEXT 1\r\nb\r\nTEXT 2\r\ncd\r\nTEXT 2\r\nef\r\n"),
            (&["", "ab"], 0, Accepted::Nothing, "TEXT\r\nTEXT 2\r\nab\r\n"),
            (&["", "ab"], 1, Accepted::Some, "TEXT 1\r\nb\r\n"),
            (&["ab", "", "cd"], 2, Accepted::Some, "TEXT\r\nTEXT 2\r\ncd\r\n"),
            (&["ab", "", "cd"], 3, Accepted::Some, "TEXT 1\r\nd\r\n"),
            (&["ab", ""], 2, Accepted::All, ""),
            (&[], 0, Accepted::All, ""),
        ];
        for (messages, accepted, expected, left) in table {
            let mut backlog = backlog(messages, None);
            let offer = backlog.offer(false);
            assert_eq!(backlog.settle(&offer, Some(accepted)).unwrap(), expected, "{messages:?} {accepted}");
            assert!(!backlog.has_new());
            let again = backlog.offer(false);
            assert_eq!(again.body, left, "{messages:?} {accepted}");
            let bytes: usize = messages.iter().map(|message| message.len()).sum();
            assert_eq!(again.replayed, bytes as u64 - accepted);
        }
    }

    #[test]
    fn a_close_is_accepted_whole_or_later() {
        let settle = |reason, accepted| {
            let mut backlog = backlog(&["ab"], Some(reason));
            let offer = backlog.offer(false);
            backlog.settle(&offer, Some(accepted)).map(|_| backlog.offer(false).body)
        };
        assert_eq!(settle("bye", 7).unwrap(), "");
        assert_eq!(settle("bye", 1).unwrap(), &b"TEXT 1\r\nb\r\nCLOSE 5\r\n\x03\xe8bye\r\n"[..]);
        assert_eq!(settle("", 2).unwrap(), "");
        assert_eq!(settle("", 0).unwrap(), "TEXT 2\r\nab\r\nCLOSE\r\n");
        for accepted in [2, 3, 6] {
            assert!(matches!(settle("bye", accepted), Err(Unacceptable::PartOfClose)), "{accepted}");
        }
        assert!(matches!(settle("bye", 8), Err(Unacceptable::Excess)));
        assert!(matches!(settle("", 3), Err(Unacceptable::Excess)));
    }

    #[test]
    fn what_came_meanwhile_stays_behind_what_is_left() {
        let mut backlog = backlog(&["ab", "cd"], None);
        let offer = backlog.offer(false);
        backlog.push(WsKind::Binary, b"ef");
        backlog.settle(&offer, Some(1)).unwrap();
        assert!(backlog.has_new());
        assert_eq!(backlog.size().1, 3);
        let offer = backlog.offer(false);
        assert_eq!(
            (&*offer.body, offer.replayed),
            (&b"TEXT 1\r\nb\r\nTEXT 2\r\ncd\r\nBINARY 2\r\nef\r\n"[..], 3)
        );
    }

    #[test]
    fn one_event_at_a_time() {
        let mut backlog = backlog(&["", "ab"], Some(""));
        let bodies = ["TEXT\r\n", "TEXT 2\r\nab\r\n", "CLOSE\r\n", ""];
        for (n, body) in bodies.into_iter().enumerate() {
            let offer = backlog.offer(true);
            assert_eq!((&*offer.body, offer.whole), (body.as_bytes(), n >= 2));
            assert_eq!(backlog.size().1, 2_usize.saturating_sub(n));
        }
    }

    #[test]
    fn once_all_is_offered_nothing_is_kept() {
        for one_event in [false, true] {
            let mut backlog = backlog(&["hello", "you"], None);
            while !backlog.is_empty() {
                backlog.offer(one_event);
            }
            assert_eq!((backlog.encoded.capacity(), backlog.size()), (0, (0, 0)));
        }
    }
}
