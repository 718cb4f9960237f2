//! A session with a worker, as seen from the shard: what it says in order, what we say when it has room, and the
//! lease that both renew (spec appendix A). What the content means is for who talks.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fantail_proto::zhttp::{Broken, CREDITS, Content, Envelope, Said, Session};
use tokio::time::{Instant, sleep_until};

use super::{
    super::Failure,
    crew::{Crew, Ear, Heard},
};

/// A session with a worker, as long as it lasts.
pub(super) struct Talk {
    crew: Arc<Crew>,
    ear: Ear,
    id: String,
    session: Session,
    started: Instant,
    /// Bytes of body that were read and not granted again.
    owed: u32,
    is_over: bool,
}

impl Drop for Talk {
    fn drop(&mut self) {
        if !self.is_over {
            self.speak(Said::Cancel, 0);
        }
    }
}

impl Talk {
    /// Hands a request to a worker; `patience`: how long to wait for one to be connected.
    pub(super) async fn begin(
        crew: &Arc<Crew>,
        patience: Duration,
        packet: impl FnOnce(Envelope<'_>) -> Vec<u8>,
    ) -> Result<Self, Failure> {
        let mut ear = crew.listen();
        let id = ear.id();
        let packet = packet(Envelope { from: crew.name(), id: &id, seq: Some(0), credits: CREDITS });
        if !ear.ask(&packet, patience).await {
            return Err(Failure::NoWorker(patience));
        }
        let started = Instant::now();
        Ok(Self {
            crew: Arc::clone(crew),
            ear,
            id,
            session: Session::new(0),
            started,
            owed: 0,
            is_over: false,
        })
    }

    /// What the worker says next that is not about the session itself. May be given up at any time.
    ///
    /// # Errors
    /// The session is over.
    pub(super) async fn hear(&mut self) -> Result<Content, Broken> {
        loop {
            let due = self.started + Duration::from_millis(self.session.due_ms());
            let (owes, worker) = (self.owes() && self.may_speak(), self.worker());
            let heard = tokio::select! {
                heard = self.ear.hear() => Some(heard?),
                () = sleep_until(due) => None,
                () = self.crew.news(&worker), if owes => {
                    self.say(Said::Credit, 0);
                    continue;
                }
            };
            let now_ms = self.now_ms();
            let Some(Heard { from, seq, credits, content }) = heard else {
                if self.session.is_silent(now_ms) {
                    return Err(Broken::Expired);
                }
                if self.session.keep_alive_is_due(now_ms) && !self.say(Said::KeepAlive, 0) {
                    self.session.put_off(now_ms);
                }
                continue;
            };
            self.session.hear(&from, seq, credits, &content, now_ms)?;
            match content {
                Content::HandoffStart => self.proceed(),
                Content::KeepAlive => {}
                content => return Ok(content),
            }
        }
    }

    pub(super) fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// Where the worker is; empty until it has said so.
    pub(super) fn worker(&self) -> Bytes {
        self.session.worker().cloned().unwrap_or_default()
    }

    pub(super) fn may_speak(&self) -> bool {
        self.session.may_speak()
    }

    /// Bytes of body that may be said now.
    pub(super) fn room(&self) -> usize {
        self.session.room()
    }

    /// Says something with so many bytes of body; false, and nothing is said, if the worker cannot have it now.
    pub(super) fn say(&mut self, said: Said<'_>, body: usize) -> bool {
        if !self.session.may_speak() {
            return false;
        }
        self.speak(said, body)
    }

    fn speak(&mut self, said: Said<'_>, body: usize) -> bool {
        let Some(place) = self.session.worker().and_then(|worker| self.crew.place(worker)) else {
            return false;
        };
        let seq = self.session.say(body, self.now_ms());
        let credits = if matches!(said, Said::Cancel) { 0 } else { std::mem::take(&mut self.owed) };
        place.take(&said.encode(Envelope { from: self.crew.name(), id: &self.id, seq: Some(seq), credits }));
        true
    }

    fn proceed(&mut self) {
        // If it cannot be told, it gives up by itself.
        self.speak(Said::HandoffProceed, 0);
    }

    /// So much of what the worker has sent is out of the way.
    pub(super) fn read(&mut self, bytes: usize) {
        self.owed = self.owed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.owes() {
            // If that cannot be now, hearing sees to it.
            self.say(Said::Credit, 0);
        }
    }

    /// Whether so much is owed that it is worth a packet.
    fn owes(&self) -> bool {
        self.owed >= CREDITS / 4
    }

    /// The worker knows that the session is over. One that is dropped without this is cancelled.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
