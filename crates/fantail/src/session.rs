//! Asking an external server for sessions (spec 10.1). Owns the questions that are on their way; who connects to answer
//! them, and over what, is others' business. A question without an answer is said, and then as if nobody had asked.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use fantail_proto::{
    session::{self, Condition, LastIds, Request, Response, Rule, Said},
    tnetstring::Value,
    zmtp,
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

/// Shared by all threads.
#[derive(Debug, Default)]
pub struct Sessions {
    /// Who answers; the first is asked next.
    peers: Mutex<Vec<mpsc::Sender<Bytes>>>,
    open: Mutex<HashMap<u64, oneshot::Sender<Bytes>>>,
    number: AtomicU64,
    complained: Mutex<Option<Instant>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("nobody is connected who keeps sessions, or takes more")]
    Nobody,
    #[error("no answer within {TIMEOUT:?}")]
    Late,
    #[error("the answer is {0}")]
    Failed(Condition),
}

impl Sessions {
    pub async fn rules(&self, domain: &str, path: &str) -> Vec<Rule> {
        self.ask(Request::Rules { domain, path }, session::rules).await.unwrap_or_default()
    }

    /// Empty for a session that is not known.
    pub async fn last_ids(&self, sid: &str) -> LastIds {
        self.ask(Request::LastIds { sid }, session::last_ids).await.unwrap_or_default()
    }

    /// Keeps what an origin has said of a session.
    pub async fn store(&self, said: &Said, last_ids: &[(String, String)]) {
        if !said.rules.is_empty() {
            self.ask(Request::SetRules(&said.rules), |_| ()).await;
        }
        if let Some(sid) = &said.sid {
            self.ask(Request::Update { sid, last_ids }, |_| ()).await;
        }
    }

    /// Says what clients of sessions have been given, and waits for no answer.
    pub fn update(&self, sessions: &[(String, LastIds)]) {
        let number = self.number.fetch_add(1, Relaxed);
        if let Err(why) = self.send(&Request::UpdateMany(sessions), number) {
            self.complain(&why);
        }
    }

    /// One more answers questions; it is written what comes out.
    pub fn join(&self) -> mpsc::Receiver<Bytes> {
        let (peer, questions) = mpsc::channel(MOST_WAITING);
        self.peers.lock().push(peer);
        questions
    }

    /// A message of one who answers.
    pub fn answered(&self, message: &Bytes) {
        let number =
            Response::decode(message).and_then(|response| str::from_utf8(response.id).ok()?.parse().ok());
        // One that comes late, or that nobody waits for, is not missed.
        if let Some(asked) = number.and_then(|number: u64| self.open.lock().remove(&number)) {
            _ = asked.send(message.clone());
        }
    }

    async fn ask<T>(&self, request: Request<'_>, read: impl FnOnce(&Value<'_>) -> T) -> Option<T> {
        let answer = self.answer(&request, read).await;
        // That a session is not known is an answer.
        let unknown = matches!(&answer, Err(Unanswered::Failed(why)) if why.is_unknown());
        answer
            .inspect_err(|why| {
                if !unknown {
                    self.complain(why)
                }
            })
            .ok()
    }

    async fn answer<T>(
        &self,
        request: &Request<'_>,
        read: impl FnOnce(&Value<'_>) -> T,
    ) -> Result<T, Unanswered> {
        let number = self.number.fetch_add(1, Relaxed);
        let (asked, answer) = oneshot::channel();
        {
            let mut open = self.open.lock();
            if open.len() >= MOST_OPEN {
                return Err(Unanswered::Nobody);
            }
            open.insert(number, asked);
        }
        let _asked = Asked(self, number);
        self.send(request, number)?;
        let message = timeout(TIMEOUT, answer).await.ok().and_then(Result::ok).ok_or(Unanswered::Late)?;
        match Response::decode(&message).map(|response| response.outcome) {
            Some(Ok(value)) => Ok(read(&value)),
            Some(Err(why)) => Err(Unanswered::Failed(why)),
            None => Err(Unanswered::Late),
        }
    }

    /// Gives a question to the next who takes it.
    fn send(&self, request: &Request<'_>, number: u64) -> Result<(), Unanswered> {
        // The empty frame is the way back that REP wants.
        let message = zmtp::message(&[b"", &request.encode(&number.to_string())]);
        let mut peers = self.peers.lock();
        peers.retain(|peer| !peer.is_closed());
        for _ in 0..peers.len() {
            peers.rotate_left(1);
            if peers.last().is_some_and(|peer| peer.try_send(message.clone()).is_ok()) {
                return Ok(());
            }
        }
        Err(Unanswered::Nobody)
    }

    fn complain(&self, why: &Unanswered) {
        let now = Instant::now();
        let mut last = self.complained.lock();
        if last.is_none_or(|last| now - last >= COMPLAINTS_EVERY) {
            *last = Some(now);
            tracing::warn!(%why, "sessions");
        }
    }
}

/// A question that somebody waits for.
struct Asked<'s>(&'s Sessions, u64);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.open.lock().remove(&self.1);
    }
}

/// Pushpin's (spec 10.1).
const TIMEOUT: Duration = Duration::from_secs(1);
/// A second of questions; more is answered as if nobody was there.
const MOST_OPEN: usize = 10_000;
/// Questions that one who answers may be behind.
const MOST_WAITING: usize = 1000;
const COMPLAINTS_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_question_is_answered_late_or_by_nobody() {
        let sessions = Sessions::default();
        assert!(sessions.last_ids("s").await.is_empty(), "nobody");
        let mut questions = sessions.join();
        let answer = async {
            let question = questions.recv().await.expect("a question");
            assert!(
                question.ends_with(b"6:method,20:session-get-last-ids,4:args,10:3:sid,1:s,}}"),
                "{question:?}"
            );
            sessions.answered(&Bytes::from_static(b"garbage"));
            sessions.answered(&Bytes::from_static(b"45:2:id,1:1,7:success,4:true!5:value,8:1:c,1:5,}}"));
        };
        let asked = sessions.last_ids("s");
        assert_eq!(tokio::join!(asked, answer).0, [("c".to_owned(), "5".to_owned())]);
        assert!(sessions.last_ids("s").await.is_empty(), "late");
        assert!(sessions.open.lock().is_empty());
    }
}
