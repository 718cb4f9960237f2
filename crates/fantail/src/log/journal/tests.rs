use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::mpsc::{self, Receiver},
};

use bytes::Bytes;
use fantail_proto::{
    item::{HttpStream, Item},
    log::{Limits, Pattern, Start},
};

use super::{
    moving::{Leaving, MOST_OWED, MOVED_AT_ONCE, STEPS},
    *,
};
use crate::{
    channel::RealmId,
    log::{Appended, Rule},
};

const R: RealmId = RealmId(0);
/// Of something that does not take long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A writer without its thread.
struct Desk {
    writer: Writer,
    journal: Journal,
    rings: Arc<Mutex<Rings>>,
    rules: Vec<Arc<Rule>>,
}

/// A rule for the log of each name.
fn rules(durability_of: impl Fn(Durability) -> Durability) -> Vec<Arc<Rule>> {
    let rule = |(place, name): (usize, Durability)| {
        Arc::new(Rule {
            place,
            realm: R,
            realm_name: "default".into(),
            pattern: Pattern::new(name.name()),
            limits: Limits { items: 1000, bytes: 1 << 20, age_s: 600 },
            total_bytes: 1 << 24,
            on_disk: true,
            durability: durability_of(name),
            slow: None,
        })
    };
    Durability::ALL.into_iter().enumerate().map(rule).collect()
}

impl Desk {
    fn open(folder: &Path) -> Self {
        Self::with(folder, rules(|own| own))
    }

    fn with(folder: &Path, rules: Vec<Arc<Rule>>) -> Self {
        let rings = Arc::new(Mutex::new(Rings::default()));
        let (writer, found) = Writer::open(folder.into(), &rings, &Arc::default()).unwrap();
        let journal = Journal { shared: Arc::clone(&writer.shared), thread: Mutex::default() };
        rings.lock().configure(rules.clone(), None);
        rings.lock().restore(found, 0, &journal);
        Self { writer, journal, rings, rules }
    }

    /// From now on all logs promise so much.
    fn promise_all(&mut self, durability: Durability) {
        self.rules = rules(|_| durability);
        self.rings.lock().configure(self.rules.clone(), Some(&self.journal));
    }

    /// Appends an item to the log of this name; what its publisher hears.
    fn append(&self, durability: Durability, id: u32) -> Receiver<Result<(), StoreError>> {
        let content = Some(HttpStream::Send(Bytes::from_static(b"content")));
        let item = Item { id: Some(id.to_string()), stream: content, ..Item::default() };
        let (rule, channel) = (&self.rules[durability as usize], (R, durability.name()));
        let record = item.to_record().into();
        let appended =
            self.rings.lock().append(rule, channel, (record, rule.durability), 0, Some(&self.journal));
        assert_ne!(appended, Appended::Never);
        let (sender, receiver) = mpsc::channel();
        let durability = rule.durability.max(appended.durability());
        self.journal.wait(durability, Box::new(move |outcome| drop(sender.send(outcome))));
        receiver
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let jobs = std::mem::take(&mut self.writer.shared.queue.lock().jobs);
        self.writer.write(jobs)
    }

    /// What a subscriber that has the first item is given.
    fn shown(&self, durability: Durability) -> Option<Vec<u32>> {
        let (rings, channel) = (self.rings.lock(), (R, durability.name()));
        let span = rings.span(channel, &Start::Id("1".into()), (usize::MAX, usize::MAX), 0)?;
        Some(rings.entries(channel, span).iter().map(|entry| entry.id().unwrap().parse().unwrap()).collect())
    }

    fn all_shown(&self) -> [Option<Vec<u32>>; 3] {
        Durability::ALL.map(|durability| self.shown(durability))
    }
}

/// What is written here is accepted and gone, and its fsync fails; or it has no room for anything.
fn device(name: &str) -> File {
    OpenOptions::new().write(true).open(name).unwrap()
}

#[test]
fn nobody_is_given_what_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(folder.path());
    let answers: Vec<_> =
        (1..3).flat_map(|id| Durability::ALL.map(|durability| desk.append(durability, id))).collect();
    assert_eq!(desk.all_shown(), [Some(vec![2]), None, None], "what promises nothing is there at once");
    desk.write().unwrap();
    assert!(answers.iter().all(|answer| answer.try_recv().unwrap().is_ok()));
    assert_eq!(desk.all_shown(), Durability::ALL.map(|_| Some(vec![2])));
}

/// A second fsync would say that all is well: what was written since the last is written again, elsewhere.
#[test]
fn after_a_failed_fsync_another_file_has_everything() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(folder.path());
    let _first = Durability::ALL.map(|durability| desk.append(durability, 1));
    desk.write().unwrap();
    let (first, file) = (desk.writer.end, std::mem::replace(&mut desk.writer.file, device("/dev/null")));
    let answers: Vec<_> =
        (2..4).flat_map(|id| Durability::ALL.map(|durability| desk.append(durability, id))).collect();
    desk.write().unwrap();
    assert!(answers.iter().all(|answer| answer.try_recv().unwrap().is_ok()));
    assert_eq!(desk.writer.end.number, first.number + 1);
    // What the disk may have of it does not count.
    file.write_all_at(&[0xa5; 99], first.synced).unwrap();
    desk.append(Durability::Logged, 4);
    desk.write().unwrap();
    drop(desk);
    for _ in 0..2 {
        let desk = Desk::open(folder.path());
        assert_eq!(desk.all_shown(), [None, Some(vec![2, 3, 4]), Some(vec![2, 3])], "after a kill");
        assert_eq!(desk.writer.counts.log_damaged.get(), 0);
    }
}

/// If there is no other file either, what is not kept was never there; the rest is written when there is one.
#[test]
fn what_cannot_be_kept_was_never_there() {
    for (name, logged) in [("/dev/null", true), ("/dev/full", false)] {
        let folder = tempfile::tempdir().unwrap();
        let mut desk = Desk::open(folder.path());
        let _first = Durability::ALL.map(|durability| desk.append(durability, 1));
        desk.write().unwrap();
        desk.writer.file = device(name);
        let good = std::mem::replace(&mut desk.writer.folder, "/nowhere".into());
        let mut answers = Durability::ALL.map(|durability| desk.append(durability, 2));
        if !logged {
            // Nobody waits for the disk here.
            answers[0] = desk.append(Durability::Accepted, 3);
        }
        desk.write().unwrap_err();
        let heard = answers.map(|answer| answer.try_recv().unwrap().is_ok());
        assert_eq!((heard[1], heard[2]), (logged, false), "{name}");
        assert_eq!(desk.shown(Durability::Logged).unwrap().len(), usize::from(logged));
        assert_eq!(desk.shown(Durability::Synced), Some(vec![]));
        assert!(matches!(desk.journal.refusal(), Some(StoreError::Disk(_))));
        desk.writer.folder = good;
        desk.writer.refused = Some(Instant::now() - RETRY_EVERY);
        desk.write().unwrap();
        assert!(desk.journal.refusal().is_none());
        let answer = desk.append(Durability::Synced, 3);
        desk.write().unwrap();
        answer.try_recv().unwrap().unwrap();
        desk.writer.finish();
        drop(desk);
        let desk = Desk::open(folder.path());
        let accepted = if logged { vec![2] } else { vec![2, 3] };
        let expected = [Some(accepted), Some(if logged { vec![2] } else { vec![] }), Some(vec![3])];
        assert_eq!(desk.all_shown(), expected, "{name}");
    }
}

/// Nothing passes what is pending: it would be shown before it is kept, and its publisher told otherwise.
#[test]
fn less_is_promised_while_answers_are_pending() {
    for less in [Durability::Logged, Durability::Accepted] {
        for fails in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let mut desk = Desk::open(folder.path());
            let _first = desk.append(Durability::Synced, 1);
            desk.write().unwrap();
            let before = desk.append(Durability::Synced, 2);
            desk.promise_all(less);
            let after = desk.append(Durability::Synced, 3);
            assert_eq!(desk.shown(Durability::Synced), Some(vec![]));
            if fails {
                desk.writer.file = device("/dev/null");
                desk.writer.folder = "/nowhere".into();
            }
            assert_eq!(desk.write().is_err(), fails);
            let heard = [before, after].map(|answer| answer.try_recv().unwrap().is_ok());
            assert_eq!(heard, [!fails; 2], "{less:?}");
            assert_eq!(desk.shown(Durability::Synced), Some(if fails { vec![] } else { vec![2, 3] }));
        }
    }
}

/// The newest entry on disk says what was promised: that must not speak for one behind it that was promised less, and is gone.
#[test]
fn less_is_promised_and_the_power_is_lost() {
    for restarted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut desk = Desk::open(folder.path());
        let _first = desk.append(Durability::Synced, 1);
        desk.write().unwrap();
        if restarted {
            drop(desk);
            desk = Desk::with(folder.path(), rules(|_| Durability::Logged));
        } else {
            desk.promise_all(Durability::Logged);
        }
        let begun = Instant::now();
        for id in 2..4 {
            let answer = desk.append(Durability::Synced, id);
            desk.write().unwrap();
            answer.try_recv().unwrap().unwrap();
            // Unless this has taken so long that the time for one had come.
            let synced = desk.writer.end.synced == desk.writer.end.written;
            assert!(synced == (id == 2) || begun.elapsed() >= SYNC_WITHIN, "once is enough");
            let copy = tempfile::tempdir().unwrap();
            for file in fs::read_dir(folder.path()).unwrap() {
                let path = file.unwrap().path();
                fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
            }
            let end = Head { boot: 1, ..desk.writer.end };
            fs::write(files::head(copy.path()), end.to_bytes()).unwrap();
            let last = OpenOptions::new().write(true).open(files::segment(copy.path(), end.number)).unwrap();
            last.set_len(end.synced).unwrap();
            assert_eq!(Desk::open(copy.path()).shown(Durability::Synced), None, "2 may have been lost");
        }
    }
}

/// A thread that waits for ever, as for a disk that does not answer.
#[test]
fn a_disk_that_hangs_does_not_keep_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let rings = Arc::default();
    let (journal, _) = open(folder.path(), &rings, &Arc::default()).unwrap();
    let hangs = rings.lock();
    let (at, kept) = (Place { epoch: 1, position: 1 }, Durability::Logged);
    let named = (&"default".into(), &"c".into(), 0);
    assert!(journal.append(named, at, Promise { kept, said: kept }, Vec::new().into()));
    journal.close_within(Duration::from_millis(20));
    assert!(!journal.shared.queue.lock().ended);
    drop(hangs);
    let mut queue = journal.shared.queue.lock();
    let waited = journal.shared.ended.wait_while_for(&mut queue, |queue| !queue.ended, PATIENCE);
    assert!(!waited.timed_out(), "{} bytes wait", queue.bytes);
}

/// Somebody repeats an item that has just been refused.
#[test]
fn who_waits_while_nothing_is_kept_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(folder.path());
    desk.writer.file = device("/dev/full");
    let _first = desk.append(Durability::Logged, 1);
    desk.write().unwrap_err();
    let (sender, answer) = mpsc::channel();
    desk.journal.wait(Durability::Logged, Box::new(move |outcome| drop(sender.send(outcome))));
    assert!(answer.try_recv().unwrap().is_err());
}

/// A file of which nothing counts, with so many bytes that take no room.
fn leaving(desk: &mut Desk, length: u64) {
    let path = files::segment(&desk.writer.folder, 0);
    let file = File::create(path).unwrap();
    file.set_len(length).unwrap();
    desk.writer.moves.leaving = Some(Leaving { number: 0, file, length });
}

#[test]
fn what_goes_makes_room_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(folder.path());
    leaving(&mut desk, SEGMENT_BYTES);
    desk.writer.file = device("/dev/full");
    let _first = desk.append(Durability::Logged, 1);
    desk.write().unwrap_err();
    desk.writer.move_on(0);
    assert!(desk.writer.moves.leaving.is_none() && !files::segment(folder.path(), 0).exists());
}

/// What is written is paid for by and by, or there would be no end of files.
#[test]
fn publishers_wait_for_some_bits_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(folder.path());
    let length = |desk: &Desk| desk.writer.moves.leaving.as_ref().unwrap().length;
    leaving(&mut desk, 8 * SEGMENT_BYTES);
    let mut left = 8 * SEGMENT_BYTES;
    for written in [SEGMENT_BYTES / 2, 0] {
        desk.writer.move_on(written);
        left -= STEPS * MOVED_AT_ONCE as u64;
        assert_eq!(length(&desk), left);
        assert!(desk.writer.moves.are_due(), "the rest is done when nobody waits");
    }
    let owed = desk.writer.moves.owed;
    desk.writer.move_on(SEGMENT_BYTES);
    assert_eq!(length(&desk), left - (owed + 3 * SEGMENT_BYTES - MOST_OWED));
}

/// What was looked at is not copied again, and a damaged file is kept for who wants to look at it.
#[test]
fn moving_goes_on_where_it_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(folder.path());
    for id in 1..4 {
        desk.append(Durability::Synced, id);
    }
    desk.write().unwrap();
    desk.writer.roll().unwrap();
    desk.writer.damaged.push(1);
    let file = std::mem::replace(&mut desk.writer.file, device("/dev/full"));
    desk.writer.move_on(0);
    assert!(desk.writer.moves.moving.is_some() && !desk.writer.moves.are_due());
    assert_eq!(desk.writer.damaged, [1]);
    desk.writer.file = file;
    desk.writer.broken = false;
    desk.writer.move_on(0);
    assert!(desk.writer.moves.moving.is_some(), "not so soon");
    desk.writer.moves.failed = None;
    let head = std::mem::replace(&mut desk.writer.head, device("/dev/null"));
    desk.writer.move_on(0);
    let copied = desk.writer.written;
    assert!(desk.writer.moves.moving.is_some() && desk.writer.segments.len() == 1);
    desk.writer.head = head;
    desk.writer.moves.failed = None;
    desk.writer.move_on(0);
    assert!(desk.writer.damaged.is_empty() && desk.writer.segments.is_empty());
    assert_eq!(desk.writer.written, copied);
    assert!(!files::segment(folder.path(), 1).exists());
    drop(desk);
    assert_eq!(Desk::open(folder.path()).shown(Durability::Synced), Some(vec![2, 3]));
}

#[test]
fn a_file_that_cannot_be_begun_costs_the_last_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(folder.path());
    desk.writer.end.written = SEGMENT_BYTES;
    desk.writer.folder = "/nowhere".into();
    for id in 1..4 {
        desk.append(Durability::Accepted, id);
        desk.write().unwrap_err();
        assert_eq!(desk.writer.end.written, SEGMENT_BYTES);
    }
}

/// Where it was: none. What it was is no part of it, whatever ends when.
#[test]
fn a_file_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(folder.path());
    for id in 1..4 {
        desk.append(Durability::Synced, id);
    }
    desk.write().unwrap();
    let node = |number| {
        let found = fs::metadata(files::segment(folder.path(), number)).ok()?;
        Some((found.ino(), found.len()))
    };
    let first = node(1).unwrap();
    desk.writer.roll().unwrap();
    // One is begun when the file is half full, and this one is better.
    desk.writer.ahead = Some(begin(folder.path(), 3, None).unwrap());
    desk.append(Durability::Synced, 4);
    desk.write().unwrap();
    desk.writer.segments[0].1 = 3 * SEGMENT_BYTES;
    desk.writer.move_on(SEGMENT_BYTES);
    let (seal, again) = (13, node(3).unwrap());
    assert_eq!((node(1), again), (None, (first.0, first.1 + seal)));
    let check = |newest: u32| {
        for power_lost in [false, true] {
            let copy = tempfile::tempdir().unwrap();
            for file in fs::read_dir(folder.path()).unwrap() {
                let path = file.unwrap().path();
                fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
            }
            if power_lost {
                let head = Head::parse(&fs::read(files::head(copy.path())).unwrap()).unwrap();
                fs::write(files::head(copy.path()), Head { boot: 1, ..head }.to_bytes()).unwrap();
            }
            for _ in 0..2 {
                let desk = Desk::open(copy.path());
                assert_eq!(desk.shown(Durability::Synced), Some((2..=newest).collect()), "{power_lost}");
                assert_eq!(desk.writer.counts.log_damaged.get(), 0);
            }
        }
    };
    check(4);
    for id in [5, 6] {
        desk.writer.roll().unwrap();
        desk.append(Durability::Synced, id);
        desk.write().unwrap();
        check(id);
    }
    assert_eq!(node(3), Some(again), "it has not grown");
}

/// Too much is not kept for a next file, and what cannot be the next is freed.
#[test]
fn a_file_that_is_not_used_again_goes() {
    for fails in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut desk = Desk::open(folder.path());
        desk.append(Durability::Synced, 1);
        desk.write().unwrap();
        desk.writer.roll().unwrap();
        let path = files::segment(folder.path(), 1);
        if fails {
            // No file can have that name.
            fs::create_dir(files::segment(folder.path(), 3)).unwrap();
        } else {
            OpenOptions::new().write(true).open(&path).unwrap().set_len(4 * SEGMENT_BYTES).unwrap();
        }
        desk.writer.segments[0].1 = 3 * SEGMENT_BYTES;
        desk.writer.move_on(SEGMENT_BYTES);
        assert_eq!(desk.writer.moves.failed.take().is_some(), fails);
        fs::remove_dir(files::segment(folder.path(), 3)).ok();
        desk.writer.move_on(8 * SEGMENT_BYTES);
        desk.writer.move_on(8 * SEGMENT_BYTES);
        assert!(desk.writer.moves.leaving.is_none() && !path.exists());
        desk.writer.roll().unwrap();
        drop(desk);
        assert_eq!(Desk::open(folder.path()).shown(Durability::Synced), Some(vec![]));
    }
}
