//! What is found in a folder of logs when it is opened: the entries that prove something, and which files are not whole.
//! Owns the names of files. Of files it changes only the ends: what was not written whole, or does not count.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use fantail_proto::{
    journal::{Entry, Head, Header, Piece, Pieces, Record},
    log::{Durability, Place},
};

/// Why there are no logs on disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    #[error("{path}: {source}")]
    Path { path: PathBuf, source: io::Error },
}

impl OpenError {
    pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Path { path: path.clone(), source }
    }
}

/// The logs of the last run.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) logs: Vec<Logged>,
    /// The highest.
    pub(super) epoch: u64,
    /// By the clock that entries have their times from.
    pub(super) now_ms: u64,
}

/// One channel's.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) realm: String,
    pub(super) channel: String,
    /// Of the first entry.
    pub(super) place: Place,
    pub(super) entries: Vec<(u64, Arc<[u8]>)>,
    /// Of the last entry.
    pub(super) promised: Durability,
    /// Nothing that came behind the last entry can have been lost.
    pub(super) proven: bool,
}

/// The files of a folder.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Their numbers and bytes, in order.
    pub(super) segments: Vec<(u64, u64)>,
    pub(super) damaged: Vec<u64>,
    pub(super) found: Found,
}

pub(super) fn segment(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:012}.{EXTENSION}"))
}

pub(super) fn head(folder: &Path) -> PathBuf {
    folder.join("head")
}

/// A name for a file that is not served.
pub(super) fn aside(folder: &Path, number: u64) -> PathBuf {
    let named = |n: u64| folder.join(format!("{number:012}.damaged-{n}"));
    let now = now_ms() / 1000;
    (now..).map(named).find(|name| !name.exists()).unwrap_or_else(|| named(now))
}

/// In Unix milliseconds.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The machine's run: another after its power was gone. 0 where that cannot be known.
pub(super) fn boot() -> u128 {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or_default()
}

fn header(path: &Path) -> Option<Header> {
    let mut bytes = [0; Header::BYTES];
    fs::File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0)).ok()?;
    Header::parse(&bytes)
}

/// Reads everything, file by file.
pub(super) fn read(folder: &Path, boot: u128) -> Result<Files, OpenError> {
    let failed = OpenError::at(folder);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        let number: Option<u64> =
            name.to_str().and_then(|name| name.strip_suffix(EXTENSION)?.strip_suffix('.')?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    let head = fs::read(head(folder)).ok().and_then(|bytes| Head::parse(&bytes));
    let mut reading = Reading { end: End::of(head, boot), ..Reading::default() };
    let mut files = Files::default();
    let mut expected = head.map(|head| head.first);
    let mut last = None;
    let mut following = numbers.iter().skip(1).copied().collect::<Vec<_>>().into_iter();
    for number in numbers {
        let path = segment(folder, number);
        let next = following.next();
        if head.is_some_and(|head| number < head.first) {
            // All that was of use has been moved on.
            fs::remove_file(&path).map_err(OpenError::at(&path))?;
            continue;
        }
        let bytes = fs::read(&path).map_err(OpenError::at(&path))?;
        if head.is_some_and(|head| number > head.number) && reading.end.never_counted(&bytes) {
            fs::remove_file(&path).map_err(OpenError::at(&path))?;
            continue;
        }
        if expected.is_some_and(|expected| expected != number) {
            reading.lose();
        }
        expected = Some(number + 1);
        // One that was begun and never noted does not count for it.
        let next = next.filter(|next| head.is_some_and(|head| *next <= head.number));
        let cut = next.and_then(|next| header(&segment(folder, next))?.cut);
        let Extent { good, end, sealed } = reading.file(&bytes, number, head, cut);
        if end < bytes.len() && !sealed {
            tracing::info!(file = %path.display(), bytes = bytes.len() - end, "what does not count behind the end of a log is cut off");
            let file = OpenOptions::new().write(true).open(&path).map_err(OpenError::at(&path))?;
            file.set_len(end as u64).and_then(|()| file.sync_all()).map_err(OpenError::at(&path))?;
        }
        if !good {
            files.damaged.push(number);
        }
        last = Header::parse(&bytes).map(|header| (path, header, end as u64));
        files.segments.push((number, end as u64));
    }
    let missing = head.is_some_and(|head| expected.is_none_or(|expected| expected <= head.number));
    if missing || (head.is_none() && !files.segments.is_empty()) {
        reading.lose();
        tracing::error!(folder = %folder.display(), "files of logs are missing");
    }
    // Another file will be the last.
    if let Some((path, header, end)) = last {
        let mut seal = Vec::new();
        Record::Seal.append(header.salt, &mut seal);
        let file = OpenOptions::new().write(true).open(&path).map_err(OpenError::at(&path))?;
        file.write_all_at(&seal, end).and_then(|()| file.sync_all()).map_err(OpenError::at(&path))?;
    }
    files.found = reading.found();
    Ok(files)
}

/// How far a file counts.
struct Extent {
    /// It is whole.
    good: bool,
    end: usize,
    /// It says itself that this is its end: behind it may be what it held when it was another file.
    sealed: bool,
}

/// How the last run ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum End {
    #[default]
    Orderly,
    /// The system had what it was given.
    Process,
    /// The disk had what it was given.
    Machine,
}

impl End {
    fn of(head: Option<Head>, boot: u128) -> Self {
        match head {
            None => Self::Orderly,
            Some(head) if head.closed => Self::Orderly,
            Some(head) if head.boot == boot && boot != 0 => Self::Process,
            Some(_) => Self::Machine,
        }
    }

    /// Whether a file behind the last one that was noted holds nothing that anybody was told of: it was begun, and then the
    /// disk was full, say. Only a machine that ends may lose the note of one that counts, and that of one with a cut is on
    /// the disk before it counts.
    fn never_counted(self, bytes: &[u8]) -> bool {
        // There may be what it held when it was another file.
        let empty = |header| !matches!(Pieces::new(bytes, header).next(), Some(Piece::Record(..)));
        let begun = |header: Header| header.cut.is_some() || empty(header);
        self != Self::Machine || bytes.len() < Header::BYTES || Header::parse(bytes).is_some_and(begun)
    }

    /// Whether publishers were told of nothing that is not there.
    fn keeps(self, promised: Durability) -> bool {
        promised
            >= match self {
                Self::Orderly => Durability::Accepted,
                Self::Process => Durability::Logged,
                Self::Machine => Durability::Synced,
            }
    }
}

#[derive(Debug, Default)]
struct Reading {
    channels: HashMap<(String, String), Channel>,
    end: End,
    epoch: u64,
    /// Counts pieces.
    order: u64,
    /// The last piece that was none.
    lost: u64,
}

#[derive(Debug, Default)]
struct Channel {
    epoch: u64,
    /// Everything up to this epoch proves nothing.
    forgotten: u64,
    /// When and what, by position.
    entries: BTreeMap<u64, (u64, Arc<[u8]>, Durability)>,
    /// The last piece that was written when its item was published: all that was published before stands before it.
    appended: u64,
}

impl Reading {
    fn lose(&mut self) {
        self.order += 1;
        self.lost = self.order;
    }

    /// `cut`: the next one says how far it counts.
    fn file(&mut self, bytes: &[u8], number: u64, head: Option<Head>, cut: Option<u32>) -> Extent {
        let cut = cut.map(|cut| usize::try_from(cut).unwrap_or(usize::MAX));
        let bytes = &bytes[..cut.unwrap_or(usize::MAX).min(bytes.len())];
        let Some(header) = Header::parse(bytes).filter(|header| header.number == number) else {
            self.lose();
            return Extent { good: false, end: bytes.len(), sealed: false };
        };
        let last = head.is_none_or(|head| number >= head.number);
        let certain = match head {
            Some(head) if number == head.number => {
                usize::try_from(if self.end == End::Machine { head.synced } else { head.written })
                    .unwrap_or(usize::MAX)
            }
            Some(head) if number > head.number => Header::BYTES,
            _ => cut.unwrap_or(bytes.len()),
        };
        let mut found = Extent { good: true, end: bytes.len(), sealed: false };
        for piece in Pieces::new(bytes, header) {
            self.order += 1;
            match piece {
                Piece::Record(Record::Entry(entry), _) => self.entry(&entry),
                Piece::Record(Record::Forget { realm, channel, epoch }, _) => {
                    self.forget(realm, channel, epoch);
                }
                Piece::Record(Record::Seal, range) => {
                    (found.end, found.sealed) = (range.end, true);
                    break;
                }
                // Nobody was told that this is kept, or it is of the file that this one was.
                Piece::Damage(range) if range.start >= certain => {
                    found.end = range.start;
                    return found;
                }
                Piece::Damage(_) => {
                    self.lost = self.order;
                    found.good = false;
                }
            }
        }
        if bytes.len() < certain || !(last || cut.is_some() || found.sealed) {
            self.lose();
            found.good = false;
        }
        found
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        self.epoch = self.epoch.max(entry.epoch);
        let channel = self.channels.entry((entry.realm.into(), entry.channel.into())).or_default();
        if entry.epoch < channel.epoch || entry.epoch <= channel.forgotten {
            return;
        }
        if entry.epoch > channel.epoch {
            channel.epoch = entry.epoch;
            channel.entries.clear();
        }
        channel.entries.insert(entry.position, (entry.at_ms, entry.record.into(), entry.promised));
        if !entry.copied {
            channel.appended = self.order;
        }
    }

    fn forget(&mut self, realm: &str, channel: &str, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
        let channel = self.channels.entry((realm.into(), channel.into())).or_default();
        channel.forgotten = channel.forgotten.max(epoch);
        if channel.epoch <= channel.forgotten {
            channel.entries.clear();
        }
    }

    fn found(self) -> Found {
        let (end, lost) = (self.end, self.lost);
        let logs = self.channels.into_iter().filter_map(|((realm, channel), log)| {
            let (newest, (.., promised)) = log.entries.last_key_value()?;
            let (newest, promised) = (*newest, *promised);
            // Older entries than a hole prove nothing of what comes behind it.
            let whole = log.entries.into_iter().rev().zip((0..=newest).rev());
            let mut entries: Vec<_> = whole
                .map_while(|((position, entry), wanted)| (position == wanted).then_some(entry))
                .collect();
            entries.reverse();
            let first = newest + 1 - entries.len() as u64;
            Some(Logged {
                realm,
                channel,
                place: Place { epoch: log.epoch, position: first },
                entries: entries.into_iter().map(|(at_ms, record, _)| (at_ms, record)).collect(),
                promised,
                proven: end.keeps(promised) && (lost == 0 || log.appended > lost),
            })
        });
        Found { logs: logs.collect(), epoch: self.epoch, now_ms: now_ms() }
    }
}

const EXTENSION: &str = "journal";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: Header = Header { number: 7, salt: 99, cut: None };
    const BEFORE: Header = Header { number: 3, salt: 98, cut: None };

    /// A file, and where each of its pieces ends.
    fn file(header: Header, channel: &str, lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (header.to_bytes().to_vec(), vec![Header::BYTES]);
        for (position, length) in (1..).zip(lengths) {
            let (realm, promised, record) = ("default", Durability::Synced, &*vec![b'x'; *length]);
            let entry =
                Entry { copied: false, promised, realm, channel, epoch: 1, position, at_ms: 0, record };
            Record::Entry(entry).append(header.salt, &mut bytes);
            ends.push(bytes.len());
        }
        Record::Seal.append(header.salt, &mut bytes);
        ends.push(bytes.len());
        (bytes, ends)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        /// Wherever its writing ends: what is whole counts, what it held before does not, and nothing is taken for damage.
        #[test]
        fn a_file_that_is_used_again_is_as_good_as_new(
            before in prop::collection::vec(0..200_usize, 0..20),
            lengths in prop::collection::vec(0..200_usize, 0..20),
            known in any::<prop::sample::Index>(),
            torn in any::<prop::sample::Index>(),
        ) {
            let (mut bytes, _) = file(BEFORE, "before", &before);
            let (new, ends) = file(HEADER, "c", &lengths);
            let torn = torn.index(new.len() + 1).max(Header::BYTES);
            let known = known.index(ends.iter().filter(|end| **end <= torn).count());
            let known = ends[known] as u64;
            let behind = bytes.split_off(torn.min(bytes.len()));
            bytes = [&new[..torn], &behind].concat();
            // What was there may happen to be what was to come.
            let whole = ends.iter().filter(|end| bytes.get(..**end) == new.get(..**end)).count() - 1;
            for (end, number) in [(End::Process, 7), (End::Machine, 7), (End::Machine, 6)] {
                let head = Head { number, first: 1, written: known, synced: known, boot: 1, closed: false };
                let mut reading = Reading { end, ..Reading::default() };
                let extent = reading.file(&bytes, 7, Some(head), None);
                prop_assert!(extent.good && reading.lost == 0);
                prop_assert_eq!((extent.end, extent.sealed), (ends[whole], whole > lengths.len()));
                let found: Vec<_> = reading.channels.iter().flat_map(|((_, name), log)| {
                    log.entries.keys().map(move |position| (name.as_str(), *position))
                }).collect();
                let expected: Vec<_> = (1..=whole.min(lengths.len()) as u64).map(|at| ("c", at)).collect();
                prop_assert_eq!(found, expected);
                prop_assert_eq!(End::Machine.never_counted(&bytes), whole == 0);
            }
        }
    }
}
