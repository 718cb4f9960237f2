//! One session with a worker: is a packet the next one, how much may be sent either way, when is the worker told
//! that we are there, and when is it taken for gone (spec appendix A). Never keeps what was said.

use bytes::Bytes;

use super::{CREDITS, Condition, Content, Malformed};

/// What both sides may do, from the first packet to the last.
#[derive(Debug)]
pub struct Session {
    /// Where the worker is; empty until it has said so.
    worker: Bytes,
    next_in: u32,
    next_out: u32,
    /// Bytes of body that the worker is ready for.
    credits: u64,
    /// It hands the session over to another worker, who has not been heard of yet.
    moving: bool,
    /// In milliseconds: when the worker was heard last, and spoken to last.
    heard_ms: u64,
    said_ms: u64,
}

/// Why a session is over before its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Broken {
    #[error("the worker says: {0}")]
    Said(Condition),
    #[error("the worker has cancelled it")]
    Cancelled,
    #[error("a packet of the worker is missing")]
    Sequence,
    #[error("the worker does not say who it is")]
    Nameless,
    #[error("the worker is silent")]
    Expired,
    #[error("the worker has gone")]
    Gone,
    /// Workers have gone before anything of the request was written to them, and no other came.
    #[error("no worker has taken it")]
    Untaken,
    #[error("the worker sends more than it may")]
    Flood,
    #[error("a packet of the worker cannot be understood: {0}")]
    Malformed(Malformed),
    #[error("the worker's answer {0}")]
    Answer(&'static str),
}

impl Broken {
    /// The worker is to be told: it thinks that the session goes on.
    pub fn is_to_be_told(self) -> bool {
        !matches!(self, Self::Said(_) | Self::Cancelled | Self::Gone | Self::Untaken | Self::Nameless)
    }
}

impl Session {
    /// Begins with our first packet, which is on its way and has number 0.
    pub fn new(now_ms: u64) -> Self {
        Self {
            worker: Bytes::new(),
            next_in: 0,
            next_out: 1,
            credits: 0,
            moving: false,
            heard_ms: now_ms,
            said_ms: now_ms,
        }
    }

    /// Takes note of a packet. It must not be looked at when this fails.
    ///
    /// # Errors
    /// The packet is not the next, or it ends the session.
    pub fn hear(
        &mut self,
        from: &Bytes,
        seq: Option<u32>,
        credits: u32,
        content: &Content,
        now_ms: u64,
    ) -> Result<(), Broken> {
        match content {
            Content::Cancel => return Err(Broken::Cancelled),
            Content::Error(condition) => return Err(Broken::Said(*condition)),
            _ => {}
        }
        // A worker that answers with one packet need not number it.
        if seq.unwrap_or(0) != self.next_in {
            return Err(Broken::Sequence);
        }
        self.next_in = self.next_in.wrapping_add(1);
        if !from.is_empty() {
            self.worker = from.clone();
        }
        self.heard_ms = now_ms;
        self.moving = matches!(content, Content::HandoffStart);
        self.credits = self.credits.saturating_add(credits.into()).min(MOST_CREDITS);
        let goes_on = !matches!(content, Content::Data { more: false, .. } | Content::Rejected { .. });
        if goes_on && self.worker.is_empty() { Err(Broken::Nameless) } else { Ok(()) }
    }

    /// Where packets for the worker go; `None` while that is not known.
    pub fn worker(&self) -> Option<&Bytes> {
        Some(&self.worker).filter(|worker| !worker.is_empty())
    }

    /// Bytes of body that may be sent now.
    pub fn room(&self) -> usize {
        if self.worker.is_empty() || self.moving {
            0
        } else {
            usize::try_from(self.credits).unwrap_or(usize::MAX)
        }
    }

    /// Whether a packet without a body may be sent now.
    pub fn may_speak(&self) -> bool {
        !self.worker.is_empty() && !self.moving
    }

    /// The number of the next packet, which has so many bytes of body.
    pub fn say(&mut self, body: usize, now_ms: u64) -> u32 {
        self.credits = self.credits.saturating_sub(body as u64);
        self.said_ms = now_ms;
        let seq = self.next_out;
        self.next_out = self.next_out.wrapping_add(1);
        seq
    }

    /// The worker cannot be reached to be told that we are there: that is tried again later.
    pub fn put_off(&mut self, now_ms: u64) {
        self.said_ms = now_ms;
    }

    /// When [`Self::is_silent`] or [`Self::keep_alive_is_due`] may become true, in milliseconds.
    pub fn due_ms(&self) -> u64 {
        let expires = self.heard_ms + EXPIRY_MS;
        if self.may_speak() { expires.min(self.said_ms + KEEP_ALIVE_MS) } else { expires }
    }

    /// The worker was not heard of for so long that it is taken for gone.
    pub fn is_silent(&self, now_ms: u64) -> bool {
        now_ms >= self.heard_ms + EXPIRY_MS
    }

    /// The worker is to be told that we are there.
    pub fn keep_alive_is_due(&self, now_ms: u64) -> bool {
        self.may_speak() && now_ms >= self.said_ms + KEEP_ALIVE_MS
    }
}

/// A session without packets ends (spec appendix A).
const EXPIRY_MS: u64 = 60_000;
/// Early enough that the worker does not end it (spec 0.1).
const KEEP_ALIVE_MS: u64 = 45_000;
/// No more is ever sent ahead, whatever adds up.
const MOST_CREDITS: u64 = 1 << 32;
const _: () = assert!((CREDITS as u64) < MOST_CREDITS);
