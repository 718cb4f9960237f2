//! Addresses of names, asked of the system. Owns what was found and how many questions are under way; it judges no
//! address. The system's look-up blocks a thread for as long as a name server is silent, so slow names have a part
//! of the threads and no more, and an old answer is better than waiting.

use std::{cell::RefCell, collections::HashMap, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    net::lookup_host,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::spawn_local,
    time::Instant,
};

#[derive(Debug)]
pub(super) struct Names {
    known: Rc<RefCell<HashMap<String, Entry>>>,
    quick: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    /// How long an answer, also that there is none, is not asked for again.
    fresh: Duration,
}

/// What is known of a name.
#[derive(Debug, Default)]
struct Entry {
    found: Vec<IpAddr>,
    /// When it was found; none while the first question is under way.
    at: Option<Instant>,
    /// The last question took long.
    slow: bool,
    /// Those who wait for the question that is under way.
    asking: Option<watch::Receiver<()>>,
}

impl Names {
    /// `fresh`: `webhooks.lookup_every`.
    pub(super) fn new(fresh: Duration) -> Self {
        let lane = || Arc::new(Semaphore::new(AT_ONCE));
        Self { known: Rc::default(), quick: lane(), slow: lane(), fresh }
    }

    /// The addresses of a name; `None` when it has none, or nobody could be asked. To be given up at will.
    pub(super) async fn find(&self, name: &str) -> Option<Vec<IpAddr>> {
        let now = Instant::now();
        let (answer, mut asking) = {
            let mut known = self.known.borrow_mut();
            make_room(&mut known, name, now);
            let entry = known.entry(name.to_owned()).or_default();
            let fresh = entry.at.is_some_and(|at| now - at < self.fresh);
            let usable = entry.at.is_some_and(|at| now - at < STALE) && !entry.found.is_empty();
            // Its task may have ended before its time.
            entry.asking.take_if(|asking| asking.has_changed().is_err());
            if !fresh && entry.asking.is_none() {
                self.ask(name, entry);
            }
            ((fresh || usable).then(|| entry.found.clone()), entry.asking.clone())
        };
        if let Some(answer) = answer {
            return Some(answer).filter(|found| !found.is_empty());
        }
        if let Some(asking) = &mut asking {
            // Its sender says nothing but that it is gone.
            drop(asking.changed().await);
        }
        let known = self.known.borrow();
        known.get(name).map(|entry| entry.found.clone()).filter(|found| !found.is_empty())
    }

    /// Asks in a task of its own, which no one's impatience ends: the thread would go on all the same.
    fn ask(&self, name: &str, entry: &mut Entry) {
        let lane = Arc::clone(if entry.slow { &self.slow } else { &self.quick });
        let now = lane.clone().try_acquire_owned().ok();
        if now.is_none() && entry.slow {
            return;
        }
        let (done, asking) = watch::channel(());
        entry.asking = Some(asking);
        let (known, name) = (Rc::clone(&self.known), name.to_owned());
        spawn_local(async move {
            let permit: Option<OwnedSemaphorePermit> = match now {
                Some(permit) => Some(permit),
                None => lane.acquire_owned().await.ok(),
            };
            let begun = Instant::now();
            let found = lookup_host((name.as_str(), 0)).await;
            let found = found.map_or(Vec::new(), |found| found.map(|address| address.ip()).collect());
            drop(permit);
            if let Some(entry) = known.borrow_mut().get_mut(&name) {
                let took = begun.elapsed();
                entry.slow = took > SLOW;
                // Better an old answer than none, while it is not too old.
                let old = entry.at.is_some_and(|at| at.elapsed() < STALE) && !entry.found.is_empty();
                if !found.is_empty() || !old {
                    entry.found = found;
                    entry.at = Some(Instant::now());
                }
                entry.asking = None;
            }
            drop(done);
        });
    }
}

/// Forgets what is too old, or else everything that nobody waits for.
fn make_room(known: &mut HashMap<String, Entry>, name: &str, now: Instant) {
    if known.len() < MOST || known.contains_key(name) {
        return;
    }
    known.retain(|_, entry| entry.asking.is_some() || entry.at.is_some_and(|at| now - at < STALE));
    if known.len() >= MOST {
        known.retain(|_, entry| entry.asking.is_some());
    }
}

/// Questions under way, each of which has a thread: of names that were slow before, and of others.
const AT_ONCE: usize = 64;
/// A question that takes longer is one of a slow name the next time.
const SLOW: Duration = Duration::from_secs(1);
/// How long an answer is used while the next is awaited, or cannot be had.
const STALE: Duration = Duration::from_secs(600);
/// Names that are remembered.
const MOST: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_whose_task_has_failed_is_asked_again() {
        let names = Names::new(Duration::from_secs(60));
        let asking = Some(watch::channel(()).1);
        names.known.borrow_mut().insert("localhost".into(), Entry { asking, ..Entry::default() });
        let found = tokio::task::LocalSet::new().run_until(names.find("localhost")).await;
        assert!(found.is_some_and(|found| found.iter().all(IpAddr::is_loopback)));
    }
}
