use std::{
    path::Path,
    sync::mpsc::{self, Receiver},
};

use bytes::Bytes;
use fantail_proto::{
    item::{HttpStream, Item},
    log::{Limits, Pattern, Start},
};

use super::*;
use crate::{
    channel::RealmId,
    log::{Appended, Rule},
};

const R: RealmId = RealmId(0);

/// A writer without its thread.
struct Desk {
    writer: Writer,
    journal: Journal,
    rings: Arc<Mutex<Rings>>,
    rules: Vec<Arc<Rule>>,
}

impl Desk {
    fn open(folder: &Path) -> Self {
        let rule = |(place, durability): (usize, Durability)| {
            Arc::new(Rule {
                place,
                realm: R,
                realm_name: "default".into(),
                pattern: Pattern::new(durability.name()),
                limits: Limits { items: 1000, bytes: 1 << 20, age_s: 600 },
                total_bytes: 1 << 24,
                on_disk: true,
                durability,
                slow: None,
            })
        };
        let rules: Vec<_> = Durability::ALL.into_iter().enumerate().map(rule).collect();
        let rings = Arc::new(Mutex::new(Rings::default()));
        let (writer, found) = Writer::open(folder.into(), &rings, &Arc::default()).unwrap();
        let journal = Journal { shared: Arc::clone(&writer.shared), thread: Mutex::default() };
        rings.lock().configure(rules.clone(), None);
        rings.lock().restore(found, 0, &journal);
        Self { writer, journal, rings, rules }
    }

    /// Appends an item to the log of this name; what its publisher hears.
    fn append(&self, durability: Durability, id: u32) -> Receiver<Result<(), StoreError>> {
        let content = Some(HttpStream::Send(Bytes::from_static(b"content")));
        let item = Item { id: Some(id.to_string()), stream: content, ..Item::default() };
        let (rule, channel) = (&self.rules[durability as usize], (R, durability.name()));
        let record = item.to_record().into();
        let appended = self.rings.lock().append(rule, channel, record, 0, Some(&self.journal));
        assert_ne!(appended, Appended::Never);
        let (sender, receiver) = mpsc::channel();
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
