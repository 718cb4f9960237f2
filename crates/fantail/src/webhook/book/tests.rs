use std::collections::{BTreeMap, BTreeSet};

use fantail_proto::webhook::target::Target;
use proptest::prelude::*;

use super::*;

const KEEP: usize = 3;

fn keep(realm_bytes: u64) -> Keep {
    Keep { letters: KEEP as u64, bytes: u64::MAX, realm_bytes, all_bytes: u64::MAX }
}

/// What an owner and time do to an endpoint, in any order.
#[derive(Clone, Debug)]
enum Step {
    Subscribe,
    Unsubscribe,
    /// Of the next number.
    Queue,
    /// The n-th of what waits is given up, or delivered.
    Bury(usize),
    Deliver(usize),
    /// The n-th dead letter goes back into the queue.
    Replay(usize),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => Just(Step::Subscribe),
        1 => Just(Step::Unsubscribe),
        8 => Just(Step::Queue),
        8 => (0..9_usize).prop_map(Step::Bury),
        2 => (0..9_usize).prop_map(Step::Deliver),
        4 => (0..9_usize).prop_map(Step::Replay),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

/// What the tables should hold.
#[derive(Debug, Default)]
struct Model {
    subscribed: bool,
    queue: BTreeSet<u64>,
    /// With the number of the letter that was published.
    dead: BTreeMap<u64, u64>,
    letters: BTreeMap<u64, u64>,
    next: u64,
}

impl Model {
    fn step(&mut self, step: &Step, id: Id) -> Vec<Change> {
        let nth = |of: &BTreeSet<u64>, n: usize| of.iter().nth(n % of.len().max(1)).copied();
        match step {
            Step::Queue if self.subscribed => {
                self.next += 1;
                self.queue.insert(self.next);
                self.letters.insert(self.next, self.next);
                vec![Change::Queue { seq: self.next, letter: letter(self.next), to: vec![id], due: 0 }]
            }
            Step::Bury(n) => nth(&self.queue, *n).map_or(Vec::new(), |seq| {
                self.queue.remove(&seq);
                let of = self.letters.remove(&seq).expect("what waits has a letter");
                self.dead.insert(seq, of);
                while self.dead.len() > KEEP {
                    self.dead.pop_first();
                }
                let death = Death { at: seq, cause: "status 500".into(), tries: 1 };
                vec![Change::Dead { id, seq, letter: None, death, last: true, keep: keep(u64::MAX) }]
            }),
            Step::Deliver(n) => nth(&self.queue, *n).map_or(Vec::new(), |seq| {
                self.queue.remove(&seq);
                self.letters.remove(&seq);
                vec![Change::Done { id, seq, last: true }]
            }),
            Step::Replay(n) => {
                let numbers: BTreeSet<u64> = self.dead.keys().copied().collect();
                nth(&numbers, *n).map_or(Vec::new(), |dead| {
                    self.next += 1;
                    let of = self.dead.remove(&dead).expect("as found");
                    self.queue.insert(self.next);
                    self.letters.insert(self.next, of);
                    vec![Change::Replay { id, dead, seq: self.next, due: 0 }]
                })
            }
            // What waited is taken out by the desk, as delivered.
            Step::Unsubscribe => {
                self.dead.clear();
                self.letters.clear();
                let gone = std::mem::take(&mut self.queue).into_iter();
                gone.map(|seq| Change::Done { id, seq, last: true }).collect()
            }
            Step::Queue | Step::Subscribe | Step::Reopen => Vec::new(),
        }
    }
}

fn letter(of: u64) -> Bytes {
    let head = Head { id: format!("msg_{of}"), method: "POST".into(), headers: Vec::new(), item: None };
    Letter { head, body: Bytes::from(of.to_string()) }.encode()
}

async fn open(path: &std::path::Path) -> Store {
    loop {
        match Store::open(path, 1 << 20) {
            // The thread of the one before ends in its own time.
            Err(crate::store::OpenError::InUse(_)) => std::thread::yield_now(),
            opened => {
                let store = opened.expect("a store");
                prepare(&store).await.expect("tables");
                return store;
            }
        }
    }
}

async fn edit_row(store: &Store, id: Id, subscribed: bool) {
    let work = Box::new(move |tx: &WriteTransaction| {
        edit(tx, "r", id, 0, |_, _, _| match subscribed {
            true => Edit::Put(Box::new(Endpoint::new("c", &Target::parse("http://h/").expect("a URL"), 0))),
            false => Edit::Remove,
        })
    });
    store.write(work).await.expect("written");
}

async fn check(steps: Vec<Step>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.redb");
    let mut store = open(&path).await;
    let id = Id::new(0, 1, "c", "http://h/");
    let mut model = Model::default();
    for step in &steps {
        let changes = model.step(step, id);
        match step {
            Step::Subscribe | Step::Unsubscribe => {
                model.subscribed = matches!(step, Step::Subscribe);
                edit_row(&store, id, model.subscribed).await;
            }
            Step::Reopen => {
                drop(store);
                store = open(&path).await;
            }
            _ => {}
        }
        store.write(Box::new(move |tx| apply(tx, &changes))).await.expect("written");
        let page = Page::open(&store).expect("a page");
        let dead: Vec<(u64, String)> = page
            .dead(id, 0, usize::MAX)
            .expect("dead letters")
            .into_iter()
            .map(|(seq, _, letter)| (seq, letter.head.id))
            .collect();
        let expected: Vec<_> = model.dead.iter().map(|(seq, of)| (*seq, format!("msg_{of}"))).collect();
        assert_eq!(dead, expected, "{steps:?}");
        let mut queue = BTreeSet::new();
        page.queue(|_, seq, _, _| _ = queue.insert(seq)).expect("a queue");
        assert_eq!(queue, model.queue, "{steps:?}");
        let letters = page.0.open_table(LETTERS).expect("letters").len().expect("a count");
        assert_eq!(letters, model.letters.len() as u64, "no letter is left behind: {steps:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn dead_letters_are_kept_as_they_should(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(check([vec![Step::Subscribe], steps].concat()));
    }
}

/// The oldest of a realm go first, whoever's they are, and other realms keep theirs.
#[tokio::test]
async fn dead_letters_of_a_realm_have_a_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.redb");
    let store = open(&path).await;
    let ids = ["http://a/", "http://b/", "http://c/"].map(|url| Id::new(0, 1, "c", url));
    let other = Id::new(1, 1, "c", "http://a/");
    for (realm, id) in [("r", ids[0]), ("r", ids[1]), ("r", ids[2]), ("s", other)] {
        let put = move |tx: &WriteTransaction| {
            edit(tx, realm, id, 0, |_, _, _| {
                Edit::Put(Box::new(Endpoint::new("c", &Target::parse("http://h/").expect("a URL"), 0)))
            })
        };
        store.write(Box::new(put)).await.expect("written");
    }
    let death = || Death { at: 0, cause: "status 500".into(), tries: 1 };
    let bury = async |store: &Store, id: Id, seq: u64, bytes: usize, realm_bytes: u64| {
        let head = Head { id: String::new(), method: "POST".into(), headers: Vec::new(), item: None };
        let letter = Some(Letter { head, body: vec![b'x'; bytes].into() }.encode());
        let change = Change::Dead { id, seq, letter, death: death(), last: false, keep: keep(realm_bytes) };
        store.write(Box::new(move |tx| apply(tx, &[change]))).await.expect("written");
    };
    let kept = |store: &Store| -> Vec<u64> {
        let page = Page::open(store).expect("a page");
        let of = |id| page.dead(id, 0, usize::MAX).expect("dead letters");
        let mut all: Vec<u64> = ids.into_iter().chain([other]).flat_map(of).map(|(seq, ..)| seq).collect();
        all.sort_unstable();
        all
    };
    for (id, seq) in [(ids[0], 1), (ids[1], 2), (ids[0], 3), (other, 4), (ids[2], 5)] {
        bury(&store, id, seq, 1000, 5000).await;
    }
    assert_eq!(kept(&store), [1, 2, 3, 4, 5]);
    bury(&store, ids[2], 6, 1000, 5000).await;
    assert_eq!(kept(&store), [2, 3, 4, 5, 6]);
    // A file from before there was a limit.
    let older = |tx: &WriteTransaction| {
        tx.delete_table(TableDefinition::<(u32, u64, u128), ()>::new("dead-age"))?;
        tx.delete_table(TableDefinition::<u32, u64>::new("dead-realm"))?;
        Ok(())
    };
    store.write(Box::new(older)).await.expect("written");
    drop(store);
    let store = open(&path).await;
    bury(&store, ids[0], 7, 2500, 5000).await;
    assert_eq!(kept(&store), [4, 5, 6, 7]);
    store.write(Box::new(move |tx| edit(tx, "r", ids[0], 0, |_, _, _| Edit::Remove))).await.expect("written");
    bury(&store, ids[1], 8, 2500, 5000).await;
    assert_eq!(kept(&store), [4, 5, 6, 8], "what is gone with its endpoint takes no room");
    bury(&store, ids[1], 9, 6000, 5000).await;
    assert_eq!(kept(&store), [4], "too long for any");
}

/// However many ids have to go, no commit takes long for them.
#[tokio::test]
async fn ids_go_some_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder.path().join("w.redb")).await;
    let many = 2 * ids::REMOVED_AT_ONCE as u64 + 1;
    let note = |number, first| Change::Ids { number, at: 0, digests: vec![7], first };
    let all: Vec<Change> = (0..many).map(|number| note(number, 0)).collect();
    store.write(Box::new(move |tx| apply(tx, &all))).await.expect("written");
    let mut left = Vec::new();
    for number in many..many + 4 {
        let next = [note(number, many)];
        store.write(Box::new(move |tx| apply(tx, &next))).await.expect("written");
        let mut rows = 0;
        let page = Page::open(&store).expect("a page");
        page.ids(|number, _, _| rows += usize::from(number < many)).expect("rows");
        left.push(rows);
    }
    assert_eq!(left, [ids::REMOVED_AT_ONCE + 1, 1, 0, 0]);
}

#[test]
fn of_those_that_die_together_the_newest_are_kept() {
    let keep = Keep { letters: 3, bytes: 100, ..keep(1000) };
    let table: [(&[usize], usize); 4] = [(&[], 0), (&[1; 9], 3), (&[60, 40, 1], 2), (&[101, 1], 0)];
    for (sizes, count) in table {
        assert_eq!(keep.newest(sizes.iter().copied()), count, "{sizes:?}");
    }
}

/// What was not written, or of which nobody knows whether it was, is written again.
#[tokio::test]
async fn changes_may_be_done_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder.path().join("w.redb")).await;
    let id = Id::new(0, 1, "c", "http://h/");
    edit_row(&store, id, true).await;
    let queue = Change::Queue { seq: 1, letter: letter(1), to: vec![id], due: 0 };
    let again = Change::Again { id, seq: 1, failed: 1, due: 7 };
    let death = Death { at: 0, cause: "status 500".into(), tries: 2 };
    let dead = Change::Dead { id, seq: 1, letter: None, death, last: true, keep: keep(u64::MAX) };
    for changes in [vec![queue], vec![again.clone(), dead.clone()], vec![again, dead]] {
        store.write(Box::new(move |tx| apply(tx, &changes))).await.expect("written");
    }
    let page = Page::open(&store).expect("a page");
    assert_eq!((page.queued(id).expect("a count"), page.dead(id, 0, 9).expect("letters").len()), (0, 1));
}

/// What waited for one that is gone is nothing to who is subscribed in its place: not to the next try, either.
#[tokio::test]
async fn who_is_subscribed_again_has_no_past() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.redb");
    let store = open(&path).await;
    let id = Id::new(0, 1, "c", "http://h/");
    let wish: crate::webhook::endpoint::Wish = serde_json::from_str(r#"{ "ttl": 5 }"#).expect("a wish");
    let subscribe = async |now: u64| {
        let wish = wish.clone();
        let put = move |tx: &WriteTransaction| {
            edit(tx, "r", id, now, |_, _, _| {
                let mut endpoint = Endpoint::new("c", &Target::parse("http://h/").expect("a URL"), now);
                endpoint.wish(&wish, 10, now).expect("a wish that is granted");
                Edit::Put(Box::new(endpoint))
            })
        };
        store.write(Box::new(put)).await.expect("written");
    };
    subscribe(0).await;
    let last = LastFault { at: 3, paused_until: 9, why: "status 500".into() };
    let failing = Change::Failing { id, since: 0, failures: 1, last: last.clone() };
    let queue = Change::Queue { seq: 1, letter: letter(1), to: vec![id], due: 0 };
    let before = [queue, failing.clone()];
    store.write(Box::new(move |tx| apply(tx, &before))).await.expect("written");
    subscribe(4).await;
    let page = Page::open(&store).expect("a page");
    assert_eq!((page.queued(id).unwrap(), page.last_fault(id).unwrap()), (1, Some(last)));
    drop(page);
    // Its time was over.
    subscribe(9).await;
    let death = Death { at: 0, cause: "status 500".into(), tries: 2 };
    let late = [
        Change::Again { id, seq: 1, failed: 1, due: 7 },
        Change::Dead { id, seq: 1, letter: None, death, last: false, keep: keep(u64::MAX) },
    ];
    store.write(Box::new(move |tx| apply(tx, &late))).await.expect("written");
    let page = Page::open(&store).expect("a page");
    assert_eq!(
        (page.queued(id).unwrap(), page.health(id).unwrap(), page.last_fault(id).unwrap()),
        (0, None, None)
    );
    assert!(page.dead(id, 0, 9).unwrap().is_empty());
    store.write(Box::new(move |tx| edit(tx, "r", id, 9, |_, _, _| Edit::Remove))).await.expect("written");
    store.write(Box::new(move |tx| apply(tx, &[failing]))).await.expect("written");
    let page = Page::open(&store).expect("a page");
    assert_eq!((page.health(id).unwrap(), page.last_fault(id).unwrap()), (None, None));
}

/// A letter that was taken out of the queue for another reason than its own last try was tried as often as that says.
#[tokio::test]
async fn who_is_buried_was_tried() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder.path().join("w.redb")).await;
    let id = Id::new(0, 1, "c", "http://h/");
    edit_row(&store, id, true).await;
    let death = Death { at: 0, cause: "the endpoint was disabled".into(), tries: 0 };
    let changes = [
        Change::Queue { seq: 1, letter: letter(1), to: vec![id], due: 0 },
        Change::Again { id, seq: 1, failed: 5, due: 7 },
        Change::Dead { id, seq: 1, letter: None, death, last: true, keep: keep(u64::MAX) },
    ];
    store.write(Box::new(move |tx| apply(tx, &changes))).await.expect("written");
    let dead = Page::open(&store).expect("a page").dead(id, 0, 9).expect("letters");
    assert_eq!(dead[0].1.tries, 5);
}

/// A table that cannot be written takes nothing else with it.
#[tokio::test]
async fn what_fails_for_good_is_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder.path().join("w.redb")).await;
    let id = Id::new(0, 1, "c", "http://h/");
    edit_row(&store, id, true).await;
    let queue = [Change::Queue { seq: 1, letter: letter(1), to: vec![id], due: 0 }];
    store.write(Box::new(move |tx| apply(tx, &queue))).await.expect("written");
    let other: TableDefinition<'_, u128, u8> = TableDefinition::new("health");
    let spoil = move |tx: &WriteTransaction| {
        tx.delete_table(TableDefinition::<u128, (u64, u32)>::new("health"))?;
        tx.open_table(other)?;
        Ok(())
    };
    store.write(Box::new(spoil)).await.expect("spoiled");
    let last = LastFault { at: 0, paused_until: 0, why: "status 500".into() };
    let failing = Change::Failing { id, since: 0, failures: 1, last };
    let changes = [failing, Change::Again { id, seq: 1, failed: 7, due: 0 }];
    let strict = changes.clone();
    store.write(Box::new(move |tx| apply(tx, &strict))).await.expect_err("one of them cannot be");
    store.write(Box::new(move |tx| apply_possible(tx, &changes))).await.expect("the other can");
    let page = Page::open(&store).expect("a page");
    assert_eq!(page.failed(id, 1).expect("a count"), Some(7));
}

/// Bytes on disk and of memory of so many endpoints, each of a channel of its own.
async fn weigh(count: u32) -> (u64, u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.redb");
    let store = open(&path).await;
    let wish: crate::webhook::endpoint::Wish = serde_json::from_str("{}").expect("a wish");
    for first in (0..count).step_by(1000) {
        let wish = wish.clone();
        let work = Box::new(move |tx: &WriteTransaction| {
            for n in first..(first + 1000).min(count) {
                let channel = format!("test-{n}");
                let target = Target::parse(&format!("https://hooks.example.com/e{n}")).expect("a URL");
                let mut endpoint = Endpoint::new(&channel, &target, 1_764_441_000);
                endpoint.wish(&wish, 10, 1_764_441_000).expect("a wish that is granted");
                let id = Id::new(0, 1, &channel, &endpoint.url);
                edit(tx, "default", id, 0, |_, _, _| Edit::Put(Box::new(endpoint)))?;
            }
            Ok(())
        });
        store.write(work).await.expect("written");
    }
    drop(store);
    let store = open(&path).await;
    let before = resident();
    let hub = crate::hub::Hub::new(1, &crate::config::Config::default().hub);
    let page = Page::open(&store).expect("a page");
    let place = hub.place(crate::hub::Outpost::Webhooks);
    page.channels(Id::of_realm(0), |channel| _ = hub.join(place, crate::hub::RealmId(0), channel))
        .expect("channels");
    assert_eq!((hub.channels(), page.endpoints().expect("a count")), (count as usize, u64::from(count)));
    (std::fs::metadata(&path).expect("the file").len(), resident().saturating_sub(before))
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[tokio::test]
async fn endpoints_are_small() {
    let (disk, _) = weigh(5000).await;
    // The file grows in steps.
    assert!(disk / 5000 < 1000, "{} bytes on disk each", disk / 5000);
}

/// `cargo test --release -p fantail a_million_endpoints -- --ignored --nocapture`
#[tokio::test]
#[ignore = "takes a minute; a figure for docs/webhooks.md"]
async fn a_million_endpoints_fit() {
    let (disk, memory) = weigh(1_000_000).await;
    println!("an endpoint: {} bytes on disk, {} of memory", disk / 1_000_000, memory / 1_000_000);
    assert!(disk <= 1 << 30 && memory <= 300_000_000);
}
