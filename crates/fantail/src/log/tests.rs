use std::{fs, path::Path};

use bytes::Bytes;
use fantail_proto::{
    item::HttpStream,
    journal::{Head, Header, Pieces},
};

use super::*;

const R: RealmId = RealmId(0);

fn rule(text: &str, storage: Storage, durability: Durability) -> config::Log {
    config::Log {
        text: text.into(),
        pattern: Pattern::new(text),
        realm: "default".into(),
        limits: Limits { items: 1000, bytes: 1 << 20, age_s: 600 },
        total_bytes: 1 << 24,
        storage,
        durability,
        slow: None,
    }
}

fn open(folder: &Path, logs: &[config::Log]) -> Log {
    let log = Log::new(Some(folder.into()), Arc::default());
    log.configure(logs, |realm| (realm == "default").then_some(R)).unwrap();
    log
}

fn memory() -> Log {
    open(Path::new("/nowhere"), &[rule("*", Storage::Memory, Durability::Accepted)])
}

fn item(channel: &str, id: u64) -> Item {
    let content = Bytes::from(vec![b'x'; 40]);
    Item {
        channel: channel.into(),
        id: Some(id.to_string()),
        stream: Some(HttpStream::Send(content)),
        ..Item::default()
    }
}

/// Appends an item; what there is to wait for.
fn append(log: &Log, channel: &str, id: u64) -> (Option<Place>, Option<Kept>) {
    let items = [item(channel, id)];
    let mut batch = log.prepare(R, &items, Durability::Accepted).unwrap();
    let mut logs = log.open();
    let place = batch.take(0).and_then(|record| match logs.append(R, channel, record) {
        Appended::Now(place) => place,
        Appended::When(place, _) => Some(place),
        Appended::Never => None,
    });
    (place, logs.finish(batch.strongest()))
}

fn keep(log: &Log, channel: &str, ids: std::ops::Range<u64>) {
    for id in ids {
        let (place, kept) = append(log, channel, id);
        assert!(place.is_some());
        if let Some(kept) = kept {
            kept.0.blocking_recv().unwrap().unwrap();
        }
    }
}

/// Items of a megabyte.
fn keep_big(log: &Log, channel: &str, ids: std::ops::Range<u64>) {
    let big = Bytes::from(vec![b'x'; 1 << 20]);
    for id in ids {
        let items = [Item { stream: Some(HttpStream::Send(big.clone())), ..item(channel, id) }];
        let mut batch = log.prepare(R, &items, Durability::Accepted).unwrap();
        let mut logs = log.open();
        let appended = logs.append(R, channel, batch.take(0).unwrap());
        assert!(matches!(appended, Appended::When(..)));
        logs.finish(batch.strongest()).unwrap().0.blocking_recv().unwrap().unwrap();
    }
}

fn behind(log: &Log, channel: &str, from: &Start) -> Option<Vec<u64>> {
    let span = log.span(R, channel, from, usize::MAX, usize::MAX)?;
    assert!(span.whole);
    Some(log.entries(R, channel, span).iter().map(|entry| entry.id().unwrap().parse().unwrap()).collect())
}

fn after(log: &Log, channel: &str, id: u64) -> Option<Vec<u64>> {
    behind(log, channel, &Start::Id(id.to_string().into()))
}

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::yield_now();
    }
}

/// What a kill leaves: the files as they are now.
fn killed(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let (from, to) = (folder.join("log"), copy.path().join("log"));
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn head(folder: &Path) -> Head {
    Head::parse(&fs::read(folder.join("log/head")).unwrap()).unwrap()
}

/// As if the machine had been started again.
fn power_lost(folder: &Path) {
    let other = Head { boot: 1, ..head(folder) };
    fs::write(folder.join("log/head"), other.to_bytes()).unwrap();
}

#[test]
fn channels_without_a_rule_have_no_log() {
    let log = open(Path::new("/nowhere"), &[rule("room-*", Storage::Memory, Durability::Accepted)]);
    assert!(append(&log, "hall", 1).0.is_none());
    keep(&log, "room-1", 1..4);
    assert_eq!(after(&log, "room-1", 1), Some(vec![2, 3]));
    assert_eq!(after(&log, "hall", 1), None);
    assert!(log.keeps(R, "room-2") && !log.keeps(RealmId(1), "room-2"));
    let asked = log.prepare(R, &[item("room-1", 9)], Durability::Synced);
    assert!(matches!(asked, Err(Refused::NoDisk(channel)) if *channel == *"room-1"));
}

#[test]
fn all_channels_of_a_rule_share_its_bytes() {
    let record = item("a", 1).to_record().len();
    let total_bytes = 10 * record + 2 * rings::channel_cost("a");
    let one = config::Log { total_bytes, ..rule("*", Storage::Memory, Durability::Accepted) };
    let log = open(Path::new("/nowhere"), &[one]);
    keep(&log, "a", 1..6);
    keep(&log, "b", 1..9);
    assert_eq!(behind(&log, "a", &Start::Last(99)), Some(vec![4, 5]), "the oldest went first");
    keep(&log, "c", 1..10);
    assert_eq!(behind(&log, "a", &Start::Last(99)), Some(vec![]));
    assert_eq!(behind(&log, "b", &Start::Last(99)), Some(vec![8]));
    assert_eq!(log.rings.lock().totals(), (10, 10 * record, 2));
    keep(&log, "a", 6..7);
    assert_eq!(after(&log, "a", 5), None, "it is another log");
}

#[test]
fn channels_are_not_free() {
    let rule = rule("*", Storage::Memory, Durability::Accepted);
    let log = open(Path::new("/nowhere"), &[config::Log { total_bytes: 100_000, ..rule }]);
    for n in 0..500 {
        keep(&log, &format!("{n:01000}"), 1..2);
    }
    let (items, _, channels) = log.rings.lock().totals();
    assert_eq!(items, channels);
    assert!((30..50).contains(&channels), "{channels} with 2.3 kB each");
}

/// A file that a full disk, or an end of the process, left when it had only been begun.
#[test]
fn a_file_that_was_only_begun_costs_nothing() {
    let rules = [rule("*", Storage::Disk, Durability::Synced)];
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), &rules);
    keep(&log, "c", 1..5);
    let number = head(folder.path()).number + 1;
    let cut = u32::try_from(Header::BYTES).ok();
    let whole = Header { number, salt: 7, cut: None }.to_bytes().to_vec();
    let another = [&Header { number, salt: 7, cut }.to_bytes()[..], b"torn"].concat();
    for begun in [Vec::new(), whole[..Header::BYTES / 2].to_vec(), whole, another] {
        for power in [false, true] {
            let copy = killed(folder.path());
            if power {
                power_lost(copy.path());
            }
            fs::write(files::segment(&copy.path().join("log"), number), &begun).unwrap();
            for _ in 0..2 {
                let log = open(copy.path(), &rules);
                assert_eq!(after(&log, "c", 1), Some(vec![2, 3, 4]), "{begun:?} {power}");
            }
        }
    }
}

#[test]
fn what_is_kept_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), &[rule("*", Storage::Disk, Durability::Logged)]));
    let mode = fs::metadata(folder.path().join("log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// What is of use on disk is not thought to be less than it is: else files would be moved for ever.
#[test]
fn names_count_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), &[rule("*", Storage::Disk, Durability::Logged)]);
    for n in 0..20 {
        keep(&log, &format!("{n:01000}"), 1..3);
    }
    let reckoned = log.rings.lock().bytes_on_disk();
    let file = fs::metadata(folder.path().join(format!("log/{:012}.journal", 1))).unwrap().len();
    assert!(reckoned + 1000 >= file && reckoned < 2 * file, "{reckoned}, {file}");
}

/// While nothing can be written, publishes leave nothing behind but that what was there is forgotten, once.
#[test]
fn what_cannot_be_kept_does_not_gather() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), &[rule("*", Storage::Disk, Durability::Accepted)]);
    let publish = |channel, id| append(&log, channel, id).0;
    assert!(publish("known", 1).is_some());
    log.close();
    for id in 2..1000 {
        assert!(publish("known", id).is_none() && publish("new", id).is_none());
    }
    let waiting = log.journal.get().unwrap().waiting();
    assert!(waiting <= 2, "{waiting}");
}

/// Names are free to choose: so many of them are noted, and then publishers are told.
#[test]
fn what_is_forgotten_while_nothing_is_written_has_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let disk = rule("disk-*", Storage::Disk, Durability::Accepted);
    let log = open(folder.path(), &[disk, rule("*", Storage::Memory, Durability::Accepted)]);
    log.close();
    let admitted = |channel: &str| {
        let batch = log.prepare(R, &[item(channel, 1)], Durability::Accepted).unwrap();
        log.open().admit(&batch).is_ok()
    };
    for n in 0..rings::MAX_REFUSED {
        let name = format!("disk-{n}");
        assert!(n % 10_000 != 0 || admitted(&name));
        assert!(append(&log, &name, 1).0.is_none());
    }
    assert!(!admitted("disk-new") && !admitted("disk-1"));
    assert!(admitted("memory"), "it does not need the disk");
    assert_eq!(log.journal.get().unwrap().waiting(), rings::MAX_REFUSED);
}

/// Who publishes hears when the item is kept as its log needs it, though its rule does not promise that any more.
#[test]
fn publishers_wait_for_what_their_items_wait_for() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), &[rule("c", Storage::Disk, Durability::Synced)]);
    keep(&log, "c", 1..2);
    log.configure(&[rule("c", Storage::Disk, Durability::Accepted)], |_| Some(R)).unwrap();
    let (_, kept) = append(&log, "c", 2);
    kept.expect("an fsync").0.blocking_recv().unwrap().unwrap();
    assert!(append(&log, "c", 3).1.is_none());
}

/// One who repeats an item hears no sooner than who published it first.
#[test]
fn who_repeats_waits_as_long() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), &[rule("c", Storage::Disk, Durability::Synced)]);
    let mut batch = log.prepare(R, &[item("c", 1)], Durability::Accepted).unwrap();
    let mut logs = log.open();
    // The log is locked: nothing is kept meanwhile.
    logs.append(R, "c", batch.take(0).unwrap());
    let mut repeated = Appending { log: &log, rings: logs.rings.take(), strongest: Durability::Accepted };
    repeated.repeat(R, "c");
    assert_eq!(repeated.strongest, Durability::Synced);
    repeated.repeat(R, "d");
    assert!(repeated.finish(Durability::Accepted).is_some());
}

/// What is there together is counted without looking at all of it.
#[test]
fn counts_are_those_of_all_logs() {
    let folder = tempfile::tempdir().unwrap();
    let few = Limits { items: 3, bytes: 400, age_s: 600 };
    let disk = config::Log { limits: few, ..rule("disk*", Storage::Disk, Durability::Logged) };
    let memory = config::Log { total_bytes: 3000, ..rule("*", Storage::Memory, Durability::Accepted) };
    let log = open(folder.path(), &[disk, memory.clone()]);
    for id in 1..30 {
        ["disk", "disk-2", "memory", "m"].into_iter().for_each(|channel| keep(&log, channel, id..id + 1));
        let rings = log.rings.lock();
        let counted = (rings.totals(), rings.bytes_on_disk());
        drop(rings);
        // Rules that are the same are counted anew.
        let one = config::Log { limits: few, ..rule("disk*", Storage::Disk, Durability::Logged) };
        log.configure(&[one, memory.clone()], |_| Some(R)).unwrap();
        let rings = log.rings.lock();
        assert_eq!((rings.totals(), rings.bytes_on_disk()), counted);
    }
}

#[test]
fn a_quiet_channel_does_not_keep_what_is_gone_of_a_busy_one() {
    let few = Limits { items: 3, bytes: 1 << 20, age_s: 600 };
    let log = open(
        Path::new("/nowhere"),
        &[config::Log { limits: few, ..rule("*", Storage::Memory, Durability::Accepted) }],
    );
    keep(&log, "quiet", 1..2);
    keep(&log, "busy", 1..2000);
    let rings = log.rings.lock();
    assert!(rings.tickets() < 100, "{}", rings.tickets());
}

#[test]
fn other_rules() {
    let log = memory();
    keep(&log, "a", 1..3);
    keep(&log, "b", 1..3);
    let configure = |logs: &[config::Log]| log.configure(logs, |_| Some(R)).unwrap();
    configure(&[rule("b*", Storage::Memory, Durability::Accepted)]);
    assert_eq!((after(&log, "a", 1), after(&log, "b", 1)), (None, Some(vec![2])));
    assert!(append(&log, "a", 3).0.is_none());
    configure(&[rule("*", Storage::Memory, Durability::Accepted)]);
    keep(&log, "a", 4..5);
    assert_eq!(after(&log, "a", 1), None, "3 is not known");
}

#[test]
fn an_orderly_end_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let rules = Durability::ALL.map(|durability| rule(durability.name(), Storage::Disk, durability));
    let log = open(folder.path(), &rules);
    rules.iter().for_each(|rule| keep(&log, &rule.text, 1..6));
    let place = append(&log, "synced", 6).0.unwrap();
    assert!(matches!(
        Log::new(Some(folder.path().into()), Arc::default()).configure(&rules, |_| Some(R)),
        Err(OpenError::InUse(_))
    ));
    log.close();
    let log = open(folder.path(), &rules);
    for rule in &rules[..2] {
        assert_eq!(after(&log, &rule.text, 2), Some(vec![3, 4, 5]), "{}", rule.text);
    }
    assert_eq!(behind(&log, "synced", &Start::Place(place)), Some(vec![]));
    let (next, kept) = append(&log, "synced", 7);
    kept.unwrap().0.blocking_recv().unwrap().unwrap();
    let next = next.unwrap();
    assert_eq!((next.epoch, next.position), (place.epoch, place.position + 1));
    let mut ids = Vec::new();
    log.ids(|_, channel, id, _| ids.push(format!("{channel}{id}")));
    assert!(ids.contains(&"logged5".into()) && ids.len() == 17, "{ids:?}");
}

/// What a log on disk proves is not gone on with in memory, and proven again by the next start.
/// What was published while no rule was for the disk is in no log: those of before it would have a hole.
#[test]
fn a_run_without_a_rule_ends_a_log() {
    let folder = tempfile::tempdir().unwrap();
    let disk = [rule("*", Storage::Disk, Durability::Accepted)];
    let log = open(folder.path(), &disk);
    keep(&log, "c", 1..3);
    log.close();
    for other in [Vec::new(), vec![rule("*", Storage::Memory, Durability::Accepted)]] {
        let log = open(folder.path(), &other);
        append(&log, "c", 3);
        log.close();
        drop(log);
        let log = open(folder.path(), &disk);
        assert_eq!(behind(&log, "c", &Start::Last(9)), Some(vec![]));
        keep(&log, "c", 4..6);
        assert_eq!((after(&log, "c", 2), after(&log, "c", 4)), (None, Some(vec![5])));
        log.close();
    }
}

#[test]
fn a_rule_put_in_front_ends_a_log() {
    let folder = tempfile::tempdir().unwrap();
    let rules = ["a", "*"].map(|text| rule(text, Storage::Disk, Durability::Synced));
    let log = open(folder.path(), &rules);
    ["a", "b"].iter().for_each(|channel| keep(&log, channel, 1..4));
    log.close();
    let in_memory = rule("a", Storage::Memory, Durability::Accepted);
    let log = open(folder.path(), &[in_memory, rules[0].clone(), rules[1].clone()]);
    assert_eq!((after(&log, "a", 1), after(&log, "b", 1)), (None, Some(vec![2, 3])));
    keep(&log, "a", 4..6);
    keep(&log, "b", 4..6);
    assert_eq!(after(&log, "a", 4), Some(vec![5]));
    log.close();
    let log = open(folder.path(), &rules);
    keep(&log, "a", 6..7);
    assert_eq!([1, 3, 4, 5].map(|id| after(&log, "a", id)), [None, None, None, None]);
    assert_eq!(after(&log, "b", 1), Some(vec![2, 3, 4, 5]));
}

/// The clock was set back between any two of them.
#[test]
fn what_came_at_odd_times_goes_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let record: Arc<[u8]> = item("c", 1).to_record().into();
    let total_bytes = 3 * record.len() + rings::channel_cost("c");
    let rules = [config::Log { total_bytes, ..rule("*", Storage::Disk, Durability::Logged) }];
    let log = open(folder.path(), &rules);
    let mut rings = log.rings.lock();
    let logged = files::Logged {
        realm: "default".into(),
        channel: "c".into(),
        place: Place { epoch: 1, position: 1 },
        entries: (0..6).map(|n| (10_000 - 1000 * n, Arc::clone(&record))).collect(),
        promised: Durability::Logged,
        proven: true,
    };
    let found = files::Found { logs: vec![logged], epoch: 1, now_ms: 10_000 };
    rings.restore(found, log.now_s(), log.journal.get().unwrap());
    assert_eq!(rings.totals(), (3, 3 * record.len(), 1));
}

/// Nobody is told that an item is on disk that has no log there any more, or that the disk did not take.
#[test]
fn what_is_promised_is_kept_or_refused() {
    let disk = || vec![rule("c", Storage::Disk, Durability::Accepted)];
    let changes: [&dyn Fn(&Log); 3] = [
        &|log| log.configure(&[], |_| Some(R)).unwrap(),
        &|log| log.configure(&[rule("c", Storage::Memory, Durability::Accepted)], |_| Some(R)).unwrap(),
        &|log| log.close(),
    ];
    for (asked, refused) in [(Durability::Accepted, false), (Durability::Synced, true)] {
        for change in changes {
            let folder = tempfile::tempdir().unwrap();
            let log = open(folder.path(), &disk());
            keep(&log, "c", 1..2);
            let mut batch = log.prepare(R, &[item("c", 2)], asked).unwrap();
            change(&log);
            let appended = log.open().append(R, "c", batch.take(0).unwrap());
            assert_eq!(appended == Appended::Never, refused, "{appended:?}");
        }
    }
}

#[test]
fn what_survives_which_end() {
    let folder = tempfile::tempdir().unwrap();
    let rules = Durability::ALL.map(|durability| rule(durability.name(), Storage::Disk, durability));
    let log = open(folder.path(), &rules);
    // The last has waited for all.
    rules.iter().for_each(|rule| keep(&log, &rule.text, 1..6));
    let proven = |folder: &Path| {
        let log = open(folder, &rules);
        Durability::ALL.map(|durability| after(&log, durability.name(), 1) == Some(vec![2, 3, 4, 5]))
    };
    assert_eq!(proven(killed(folder.path()).path()), [false, true, true]);
    let unplugged = killed(folder.path());
    power_lost(unplugged.path());
    assert_eq!(proven(unplugged.path()), [false, false, true]);
    assert_eq!(
        proven(unplugged.path()),
        [false, false, true],
        "what proved nothing once does not do so later"
    );
}

/// A bit flipped or a file cut anywhere: what is read is all that there was behind an id, or nothing is said.
#[test]
fn no_damage_makes_a_hole() {
    let folder = tempfile::tempdir().unwrap();
    let rules = [rule("*", Storage::Disk, Durability::Synced)];
    let log = open(folder.path(), &rules);
    for id in 1..8 {
        ["a", "b", "c"].iter().for_each(|channel| keep(&log, channel, id..id + 1));
    }
    keep(&log, "a", 8..10);
    log.close();
    let last = |channel: &str| if channel == "a" { 9 } else { 7 };
    let file = format!("log/{:012}.journal", head(folder.path()).number);
    let length = fs::read(folder.path().join(&file)).unwrap().len();
    let (mut served, mut refused) = (0, 0);
    let spoil = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let copy = killed(folder.path());
        let path = copy.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        copy
    };
    let mut spoilt = Vec::new();
    for at in (0..length).step_by(41) {
        spoilt.push(spoil(&file, &|bytes| bytes[at] ^= 1 << (at % 8)));
        spoilt.push(spoil(&file, &|bytes| bytes.truncate(at)));
    }
    for at in (0..Head::BYTES).step_by(9) {
        spoilt.push(spoil("log/head", &|bytes| bytes[at] ^= 4));
    }
    spoilt.push(spoil("log/head", &Vec::clear));
    for copy in spoilt {
        let log = open(copy.path(), &rules);
        for channel in ["a", "b", "c"] {
            // Something more comes, and the log is read again after another start.
            let check = |log: &Log, newest: u64| {
                let mut served = 0;
                for id in 1..=last(channel) {
                    if let Some(behind) = after(log, channel, id) {
                        let expected: Vec<u64> = (id + 1..=last(channel)).chain(100..=newest).collect();
                        assert_eq!(behind, expected, "{channel} {id}");
                        served += 1;
                    }
                }
                served
            };
            let before = check(&log, 0);
            keep(&log, channel, 100..101);
            assert_eq!(check(&log, 100), before);
            served += before;
            refused += last(channel) - before;
        }
        log.close();
        let log = open(copy.path(), &rules);
        for channel in ["a", "b", "c"] {
            for id in 1..=last(channel) {
                let expected: Vec<u64> = (id + 1..=last(channel)).chain(100..=100).collect();
                assert!(after(&log, channel, id).is_none_or(|behind| behind == expected));
            }
            assert_eq!(after(&log, channel, 100), Some(vec![]));
        }
    }
    assert!(served > 100 && refused > 100, "{served} {refused}");
}

#[test]
fn a_damaged_file_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let rules = [rule("*", Storage::Disk, Durability::Synced)];
    let log = open(folder.path(), &rules);
    keep(&log, "a", 1..4);
    keep(&log, "b", 1..4);
    log.close();
    let path = folder.path().join(format!("log/{:012}.journal", head(folder.path()).number));
    let mut bytes = fs::read(&path).unwrap();
    bytes[Header::BYTES + 30] ^= 1;
    fs::write(&path, bytes).unwrap();
    let log = open(folder.path(), &rules);
    assert_eq!(log.counts.log_damaged.get(), 1);
    assert_eq!(after(&log, "a", 1), None, "nothing of it came after the damage that is known to be the last");
    assert_eq!(after(&log, "b", 1), Some(vec![2, 3]));
    // It is done when the thread has ended.
    until("it is elsewhere", || !path.exists());
    log.close();
    let names: Vec<_> =
        fs::read_dir(folder.path().join("log")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().any(|name| name.to_string_lossy().contains("damaged")), "{names:?}");
    assert_eq!(after(&open(folder.path(), &rules), "b", 1), Some(vec![2, 3]));
}

#[test]
fn old_files_go_and_what_is_of_use_stays() {
    let folder = tempfile::tempdir().unwrap();
    let few = Limits { items: 2, bytes: 1 << 30, age_s: 600 };
    let rules =
        [config::Log { limits: few, total_bytes: 1 << 30, ..rule("*", Storage::Disk, Durability::Logged) }];
    let log = open(folder.path(), &rules);
    keep(&log, "quiet", 1..4);
    keep_big(&log, "busy", 0..200);
    let journal = log.journal.get().unwrap();
    let leaving = || {
        fs::read_dir(folder.path().join("log")).unwrap().any(|entry| {
            let name = entry.unwrap().file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".journal")?.parse::<u64>().ok());
            // While it is written it may be read half: then we look again.
            let head = Head::parse(&fs::read(folder.path().join("log/head")).unwrap());
            number.is_some_and(|number| head.is_none_or(|head| number < head.first))
        })
    };
    until("old files are gone", || {
        journal.wake();
        // Two files and twice two items: then it is at rest.
        journal.disk_bytes() <= 36 << 20 && !leaving()
    });
    assert!(!folder.path().join(format!("log/{:012}.journal", 1)).exists());
    let copy = killed(folder.path());
    for folder in [copy.path(), folder.path()] {
        log.close();
        let log = open(folder, &rules);
        assert_eq!(after(&log, "quiet", 2), Some(vec![3]));
        assert_eq!(after(&log, "busy", 198), Some(vec![199]));
    }
}

/// It is there before anything needs it, and whatever ends then, it is none of the files that count.
#[test]
fn the_next_file_is_begun_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let most = Limits { items: 1000, bytes: 1 << 30, age_s: 600 };
    let rules =
        [config::Log { limits: most, total_bytes: 1 << 30, ..rule("*", Storage::Disk, Durability::Synced) }];
    let log = open(folder.path(), &rules);
    keep_big(&log, "c", 0..10);
    until("the next file is begun", || {
        let next = folder.path().join(format!("log/{:012}.journal", 2));
        fs::metadata(next).is_ok_and(|next| next.len() == Header::BYTES as u64)
    });
    assert_eq!(head(folder.path()).number, 1);
    let copies = [killed(folder.path()), killed(folder.path())];
    power_lost(copies[1].path());
    log.close();
    for folder in copies.iter().chain([&folder]) {
        let log = open(folder.path(), &rules);
        assert_eq!(log.counts.log_damaged.get(), 0);
        assert_eq!(after(&log, "c", 0), Some((1..10).collect()));
        assert_eq!(head(folder.path()).number, 2);
        keep_big(&log, "c", 10..20);
        log.close();
        let log = open(folder.path(), &rules);
        assert_eq!(after(&log, "c", 0), Some((1..20).collect()));
    }
}

#[test]
fn a_publisher_cannot_forge_entries() {
    let folder = tempfile::tempdir().unwrap();
    let rules = [rule("*", Storage::Disk, Durability::Logged)];
    let log = open(folder.path(), &rules);
    keep(&log, "a", 1..2);
    let file = fs::read(folder.path().join(format!("log/{:012}.journal", 1))).unwrap();
    let header = Header::parse(&file).unwrap();
    assert!(header.salt != 0 && Pieces::new(&file, header).count() == 1);
}

#[test]
fn a_stretch_has_all_that_it_says() {
    let mut three = rule("c", Storage::Memory, Durability::Accepted);
    three.limits.items = 3;
    let log = open(Path::new("/nowhere"), &[three]);
    keep(&log, "c", 1..4);
    let found = |span: Span| log.entries(R, "c", span).len() as u64 == span.through.position - span.after;
    let span = log.span(R, "c", &Start::Last(3), usize::MAX, usize::MAX).unwrap();
    assert!(found(span));
    keep(&log, "c", 4..5);
    assert!(!found(span), "what is found by two questions may be gone");
    let (span, entries) = log.stretch(R, "c", &Start::Last(3), (usize::MAX, usize::MAX)).unwrap();
    assert_eq!(entries.len() as u64, span.through.position - span.after);
}
