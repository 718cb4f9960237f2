//! Addresses of names, asked of the system. Owns what was found and how many questions are under way; it judges no
//! address. The system's look-up blocks a thread for as long as a name server is silent, so names that are slow, and those
//! of which nothing is known, have parts of the threads and no more, as has each realm; and an old answer is better than
//! waiting.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::lookup_host,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::spawn_local,
    time::Instant,
};

/// A realm's number, and a name: realms do not wait for each other's answers.
type Key = (u32, String);

#[derive(Debug)]
pub(super) struct Names {
    known: Rc<RefCell<HashMap<Key, Entry>>>,
    /// For names of which nothing is known, that were quick the last time, and that were slow.
    lanes: [Rc<Lane>; 3],
    /// How long an answer, also that there is none, is not asked for again.
    fresh: Duration,
}

/// What is known of a name.
#[derive(Debug, Default)]
struct Entry {
    found: Vec<IpAddr>,
    /// When it was found; none before the first answer.
    at: Option<Instant>,
    /// The last question took long.
    slow: bool,
    /// The question that is under way or waits for its turn, held by its task: who waits for it subscribes.
    asking: Weak<watch::Sender<()>>,
}

/// Questions of one kind that may be under way.
#[derive(Debug)]
struct Lane {
    all: Arc<Semaphore>,
    /// By realm.
    own: RefCell<HashMap<u32, Arc<Semaphore>>>,
}

/// Of the realm, and of all.
type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Lane {
    fn new() -> Rc<Self> {
        Rc::new(Self { all: Arc::new(Semaphore::new(AT_ONCE)), own: RefCell::default() })
    }

    fn own(&self, realm: u32) -> Arc<Semaphore> {
        let mut own = self.own.borrow_mut();
        Arc::clone(own.entry(realm).or_insert_with(|| Arc::new(Semaphore::new(REALM_AT_ONCE))))
    }

    fn try_place(&self, realm: u32) -> Option<Place> {
        let own = self.own(realm).try_acquire_owned().ok()?;
        Some((own, Arc::clone(&self.all).try_acquire_owned().ok()?))
    }

    async fn place(&self, realm: u32) -> Option<Place> {
        let own = self.own(realm).acquire_owned().await.ok()?;
        Some((own, Arc::clone(&self.all).acquire_owned().await.ok()?))
    }
}

impl Names {
    /// `fresh`: `webhooks.lookup_every`.
    pub(super) fn new(fresh: Duration) -> Self {
        Self { known: Rc::default(), lanes: [Lane::new(), Lane::new(), Lane::new()], fresh }
    }

    /// The addresses of a name; `None` when it has none, or nobody could be asked. To be given up at will.
    pub(super) async fn find(&self, realm: u32, name: &str) -> Option<Vec<IpAddr>> {
        let now = Instant::now();
        let key = (realm, name.to_owned());
        let mut asking = {
            let mut known = self.known.borrow_mut();
            make_room(&mut known, &key, now);
            let entry = known.entry(key.clone()).or_default();
            let since = entry.at.map(|at| now - at);
            let fresh = since.is_some_and(|since| since < self.fresh);
            let usable = since.is_some_and(|since| since < STALE) && !entry.found.is_empty();
            let lane = match (entry.at, entry.slow) {
                (None, _) => 0,
                (Some(_), false) => 1,
                (Some(_), true) => 2,
            };
            let lane = &self.lanes[lane];
            let asking = entry.asking.upgrade();
            if fresh || usable {
                if !fresh && asking.is_none() {
                    // If there is no place for it now, there is another time.
                    let place = lane.try_place(realm);
                    place.into_iter().for_each(|place| drop(self.ask(key.clone(), entry, lane, Some(place))));
                }
                return Some(entry.found.clone()).filter(|found| !found.is_empty());
            }
            asking.unwrap_or_else(|| self.ask(key.clone(), entry, lane, None)).subscribe()
        };
        // Its sender says nothing but that it is gone.
        drop(asking.changed().await);
        let known = self.known.borrow();
        known.get(&key).map(|entry| entry.found.clone()).filter(|found| !found.is_empty())
    }

    /// Asks in a task of its own. One that waits for its place is given up when nobody waits for its answer; one under way
    /// is not: its thread would go on all the same.
    fn ask(
        &self,
        key: Key,
        entry: &mut Entry,
        lane: &Rc<Lane>,
        place: Option<Place>,
    ) -> Rc<watch::Sender<()>> {
        let done = Rc::new(watch::Sender::new(()));
        entry.asking = Rc::downgrade(&done);
        let (asking, known, lane) = (Rc::clone(&done), Rc::clone(&self.known), Rc::clone(lane));
        spawn_local(async move {
            let place = match place {
                Some(place) => Some(place),
                None => tokio::select! {
                    place = lane.place(key.0) => place,
                    () = asking.closed() => {
                        let mut known = known.borrow_mut();
                        if known.get(&key).is_some_and(|entry| entry.at.is_none()) {
                            known.remove(&key);
                        }
                        return;
                    }
                },
            };
            let begun = Instant::now();
            let found = lookup_host((key.1.as_str(), 0)).await;
            let found = found.map_or(Vec::new(), |found| found.map(|address| address.ip()).collect());
            drop(place);
            if let Some(entry) = known.borrow_mut().get_mut(&key) {
                let took = begun.elapsed();
                entry.slow = took > SLOW;
                // Better an old answer than none, while it is not too old.
                let old = entry.at.is_some_and(|at| at.elapsed() < STALE) && !entry.found.is_empty();
                if !found.is_empty() || !old {
                    entry.found = found;
                    entry.at = Some(Instant::now());
                }
            }
        });
        done
    }
}

/// Forgets what is too old, or else what the realm with the most names has, but for that which is being asked.
fn make_room(known: &mut HashMap<Key, Entry>, key: &Key, now: Instant) {
    if known.len() < MOST || known.contains_key(key) {
        return;
    }
    let is_asked = |entry: &Entry| entry.asking.strong_count() > 0;
    known.retain(|_, entry| is_asked(entry) || entry.at.is_some_and(|at| now - at < STALE));
    if known.len() < MOST {
        return;
    }
    let mut counts: HashMap<u32, usize> = HashMap::new();
    known.keys().for_each(|(realm, _)| *counts.entry(*realm).or_default() += 1);
    let largest = counts.into_iter().max_by_key(|(_, count)| *count).map(|(realm, _)| realm);
    known.retain(|(realm, _), entry| Some(*realm) != largest || is_asked(entry));
}

/// Questions under way in each lane, each of which has a thread.
const AT_ONCE: usize = 64;
/// Of these those of one realm.
const REALM_AT_ONCE: usize = 16;
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
        let asking = Rc::downgrade(&Rc::new(watch::Sender::new(())));
        names.known.borrow_mut().insert((1, "localhost".into()), Entry { asking, ..Entry::default() });
        let found = tokio::task::LocalSet::new().run_until(names.find(1, "localhost")).await;
        assert!(found.is_some_and(|found| found.iter().all(IpAddr::is_loopback)));
    }

    /// Whatever a realm asks that is never answered, it takes nothing from another, and leaves nothing behind.
    #[tokio::test]
    async fn a_realm_waits_for_itself_alone() {
        let names = Names::new(Duration::from_secs(60));
        let full =
            names.lanes[0].own(1).acquire_many_owned(u32::try_from(REALM_AT_ONCE).unwrap()).await.unwrap();
        let all = tokio::task::LocalSet::new();
        all.run_until(async {
            let mut waiting: Vec<_> = (0..100)
                .map(|n| {
                    let name = format!("n{n}.example");
                    let names = &names;
                    Box::pin(async move { names.find(1, &name).await })
                })
                .collect();
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(waiting.iter_mut().all(|one| one.as_mut().poll(&mut context).is_pending()));
            assert_eq!(names.known.borrow().len(), 100);
            assert!(names.find(2, "localhost").await.is_some());
            drop(waiting);
            while names.known.borrow().len() > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(full);
        assert!(all.run_until(names.find(1, "localhost")).await.is_some());
    }

    /// Who has few names keeps them, whatever others do.
    #[test]
    fn the_largest_makes_room() {
        let now = Instant::now();
        let entry = |at| Entry { at: Some(at), ..Entry::default() };
        let mut known: HashMap<Key, Entry> =
            (1..MOST).map(|n| ((1, format!("n{n}.example")), entry(now))).collect();
        known.insert((2, "good.example".into()), entry(now));
        make_room(&mut known, &(1, "n1.example".into()), now);
        assert_eq!(known.len(), MOST, "it is known");
        make_room(&mut known, &(3, "new.example".into()), now);
        assert_eq!(known.into_keys().collect::<Vec<_>>(), [(2, "good.example".to_owned())]);
    }
}
