//! The logs on disk: one thread that appends what was published to the last of some files. What waits at the same time
//! is written together, and one fsync serves all who want it. When most of what the oldest file holds is gone, the
//! rest is moved on and the file is removed. It never reads for a subscriber.

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use fantail_proto::{
    journal::{Entry, Head, Header, Piece, Pieces, Record},
    log::{Durability, Place},
};
use parking_lot::{Condvar, Mutex};
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

use super::{
    files::{self, Files, Found, OpenError},
    rings::Rings,
};
use crate::{
    metrics::Process,
    store::{Done, StoreError},
};

/// What the thread is given.
pub(super) struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    /// Of entries that are not written yet.
    bytes: usize,
    failed: Option<StoreError>,
    disk_bytes: u64,
    closing: bool,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

enum Job {
    Entry {
        realm: Arc<str>,
        channel: Arc<str>,
        at: Place,
        promised: Durability,
        at_ms: u64,
        record: Arc<[u8]>,
    },
    Forget {
        realm: Box<str>,
        channel: Box<str>,
        epoch: u64,
    },
    /// Somebody waits for all that came before.
    Wait(Durability, Done),
}

/// Opens or makes the folder's logs and starts their thread. Blocks for as long as reading takes.
pub(super) fn open(
    folder: &Path,
    rings: &Arc<Mutex<Rings>>,
    counts: &Arc<Process>,
) -> Result<(Journal, Found), OpenError> {
    let folder = folder.join("log");
    let failed = OpenError::at(&folder);
    fs::create_dir_all(&folder).map_err(&failed)?;
    let lock = File::create(folder.join("lock")).map_err(&failed)?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(OpenError::InUse(folder));
    }
    let boot = files::boot();
    let Files { segments, damaged, found } = files::read(&folder, boot)?;
    let head = OpenOptions::new().write(true).create(true).truncate(false).open(files::head(&folder));
    let head = head.map_err(&failed)?;
    let shared = Arc::new(Shared::default());
    let number = segments.last().map_or(1, |(number, _)| number + 1);
    let first = segments.first().map_or(number, |(number, _)| *number);
    let (file, header) = begin(&folder, number).map_err(&failed)?;
    let writer = Writer {
        end: Head {
            number,
            first,
            written: Header::BYTES as u64,
            synced: Header::BYTES as u64,
            boot,
            closed: false,
        },
        shared: Arc::clone(&shared),
        rings: Arc::clone(rings),
        counts: Arc::clone(counts),
        _lock: lock,
        folder,
        head,
        file,
        header,
        segments: segments.into(),
        damaged,
        unwritten: Vec::new(),
        buffer: Vec::new(),
        dirty: None,
        broken: false,
        moving: None,
    };
    writer.note_end().map_err(&failed)?;
    writer.head.sync_all().map_err(&failed)?;
    counts.log_damaged.add(writer.damaged.len() as u64);
    let thread = thread::Builder::new().name("log".into()).spawn(move || writer.run()).map_err(&failed)?;
    Ok((Journal { shared, thread: Mutex::new(Some(thread)) }, found))
}

impl Journal {
    /// To be called in the order of the channel. False if too much waits for the disk: then this entry is not kept.
    pub(super) fn append(
        &self,
        (realm, channel): (&Arc<str>, &Arc<str>),
        at: Place,
        promised: Durability,
        record: Arc<[u8]>,
    ) -> bool {
        let mut queue = self.shared.queue.lock();
        if queue.bytes >= QUEUE_BYTES || queue.closing {
            return false;
        }
        queue.bytes += record.len() + ENTRY_COST;
        let (realm, channel) = (Arc::clone(realm), Arc::clone(channel));
        queue.jobs.push(Job::Entry { realm, channel, at, promised, at_ms: files::now_ms(), record });
        true
    }

    pub(super) fn forget(&self, realm: &str, channel: &str, epoch: u64) {
        let job = Job::Forget { realm: realm.into(), channel: channel.into(), epoch };
        self.shared.queue.lock().jobs.push(job);
    }

    /// Says when all that was appended so far is kept like this, or that it is not.
    pub(super) fn wait(&self, durability: Durability, done: Done) {
        self.shared.queue.lock().jobs.push(Job::Wait(durability, done));
        self.wake();
    }

    pub(super) fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Why nothing can be promised at the moment.
    pub(super) fn refusal(&self) -> Option<StoreError> {
        let queue = self.shared.queue.lock();
        queue.failed.clone().or_else(|| (queue.bytes >= QUEUE_BYTES).then_some(StoreError::Full))
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.shared.queue.lock().jobs.len()
    }

    pub(super) fn disk_bytes(&self) -> usize {
        usize::try_from(self.shared.queue.lock().disk_bytes).unwrap_or(usize::MAX)
    }

    /// Writes what waits and says that this is all. Blocks.
    pub(super) fn close(&self) {
        self.shared.queue.lock().closing = true;
        self.wake();
        if let Some(thread) = self.thread.lock().take() {
            drop(thread.join());
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writer {
    shared: Arc<Shared>,
    rings: Arc<Mutex<Rings>>,
    counts: Arc<Process>,
    /// Held as long as the thread runs.
    _lock: File,
    folder: PathBuf,
    head: File,
    end: Head,
    file: File,
    header: Header,
    /// Those before the last, which are complete, with their bytes.
    segments: VecDeque<(u64, u64)>,
    /// Of these, those that are to be set aside.
    damaged: Vec<u64>,
    /// What the disk has not taken.
    unwritten: Vec<Job>,
    buffer: Vec<u8>,
    /// Since when there is something that was written and not synced.
    dirty: Option<Instant>,
    /// An fsync has failed: what is on disk cannot be known any more.
    broken: bool,
    moving: Option<Moving>,
}

/// The oldest file while what is of use in it is moved on.
struct Moving {
    number: u64,
    file: Vec<u8>,
    header: Option<Header>,
    at: usize,
}

impl Writer {
    fn run(mut self) {
        loop {
            let (jobs, closing) = self.next_jobs();
            let outcome = self.write(jobs);
            if closing {
                if outcome.is_ok() && self.unwritten.is_empty() {
                    self.finish();
                }
                return;
            }
            if !self.broken
                && let Err(error) = self.move_on()
            {
                tracing::error!(%error, "a file of logs cannot be removed");
                self.moving = None;
                self.damaged.clear();
            }
        }
    }

    fn next_jobs(&mut self) -> (Vec<Job>, bool) {
        let mut queue = self.shared.queue.lock();
        queue.disk_bytes = self.end.written + self.segments.iter().map(|(_, bytes)| bytes).sum::<u64>();
        if queue.jobs.is_empty() && !queue.closing {
            let wait = match (&self.moving, self.dirty) {
                (Some(_), _) => Duration::ZERO,
                _ if !self.unwritten.is_empty() => RETRY_EVERY,
                (None, Some(since)) => SYNC_WITHIN.saturating_sub(since.elapsed()),
                (None, None) => LOOK_EVERY,
            };
            if !wait.is_zero() {
                self.shared.wake.wait_for(&mut queue, wait);
            }
        }
        (std::mem::take(&mut queue.jobs), queue.closing)
    }

    /// Writes what is given, behind what could not be written before, and answers who waits.
    fn write(&mut self, jobs: Vec<Job>) -> Result<(), StoreError> {
        let mut waiting = Vec::new();
        for job in jobs {
            match job {
                Job::Wait(durability, done) => waiting.push((durability, done)),
                job => self.unwritten.push(job),
            }
        }
        let written = self.write_unwritten();
        let wanted = waiting.iter().any(|(durability, _)| *durability == Durability::Synced);
        let overdue = self.dirty.is_some_and(|since| since.elapsed() >= SYNC_WITHIN);
        let outcome = match written {
            Ok(()) if wanted || overdue => self.sync(),
            written => written,
        };
        let outcome = outcome.map_err(|error| StoreError::Disk(error.to_string().into()));
        self.say(&outcome);
        waiting.into_iter().for_each(|(_, done)| done(outcome.clone()));
        outcome
    }

    /// Publishers are refused as long as this fails, and the log says so once.
    fn say(&self, outcome: &Result<(), StoreError>) {
        let mut queue = self.shared.queue.lock();
        match outcome {
            Ok(()) if queue.failed.take().is_some() => tracing::info!("logs are written again"),
            Ok(()) => {}
            Err(error) => {
                self.counts.log_failures.add(1);
                if queue.failed.is_none() {
                    tracing::error!(%error, folder = %self.folder.display(), "logs cannot be written");
                }
                queue.failed = Some(error.clone());
            }
        }
    }

    fn write_unwritten(&mut self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an fsync has failed, and only a restart tells what is there"));
        }
        if self.unwritten.is_empty() {
            return Ok(());
        }
        if self.end.written >= SEGMENT_BYTES {
            self.roll()?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut bytes = 0;
        for job in &self.unwritten {
            match job {
                Job::Entry { realm, channel, at, promised, at_ms, record } => {
                    bytes += record.len() + ENTRY_COST;
                    let (copied, promised, at_ms) = (false, *promised, *at_ms);
                    let Place { epoch, position } = *at;
                    let entry = Entry { copied, promised, realm, channel, epoch, position, at_ms, record };
                    Record::Entry(entry).append(self.header.salt, &mut buffer);
                }
                Job::Forget { realm, channel, epoch } => {
                    Record::Forget { realm, channel, epoch: *epoch }.append(self.header.salt, &mut buffer);
                }
                Job::Wait(..) => {}
            }
        }
        let outcome = self.put(&buffer);
        buffer.clear();
        buffer.shrink_to(BUFFER_KEPT);
        self.buffer = buffer;
        outcome?;
        self.counts.log_writes.add(1);
        self.unwritten.clear();
        let mut queue = self.shared.queue.lock();
        queue.bytes = queue.bytes.saturating_sub(bytes);
        Ok(())
    }

    /// Puts bytes behind the last; what was half written before is written over.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end.written)?;
        self.end.written += bytes.len() as u64;
        self.dirty.get_or_insert_with(Instant::now);
        self.note_end()
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.end.synced == self.end.written {
            return Ok(());
        }
        if let Err(error) = self.file.sync_data() {
            self.broken = true;
            return Err(error);
        }
        self.counts.log_syncs.add(1);
        self.end.synced = self.end.written;
        self.dirty = None;
        self.note_end()
    }

    fn note_end(&self) -> io::Result<()> {
        self.head.write_all_at(&self.end.to_bytes(), 0)
    }

    /// Goes on in another file.
    fn roll(&mut self) -> io::Result<()> {
        let mut seal = Vec::new();
        Record::Seal.append(self.header.salt, &mut seal);
        self.put(&seal)?;
        self.sync()?;
        let number = self.end.number + 1;
        let (file, header) = begin(&self.folder, number)?;
        self.segments.push_back((self.end.number, self.end.written));
        (self.file, self.header) = (file, header);
        let bytes = Header::BYTES as u64;
        self.end = Head { number, written: bytes, synced: bytes, ..self.end };
        self.note_end()
    }

    fn finish(&mut self) {
        let closed = self.sync().and_then(|()| {
            self.end.closed = true;
            self.note_end()?;
            self.head.sync_all()
        });
        if let Err(error) = closed {
            tracing::error!(%error, "logs are not closed in order");
        }
    }

    /// Does a bit of moving what is of use out of the oldest file, if it is time for that.
    fn move_on(&mut self) -> io::Result<()> {
        let Some(mut moving) = self.moving.take().map_or_else(|| self.next_moving(), |m| Ok(Some(m)))? else {
            return Ok(());
        };
        let done = self.copy_some(&mut moving)?;
        if !done {
            self.moving = Some(moving);
            return Ok(());
        }
        self.sync()?;
        self.segments.pop_front();
        self.end.first = self.segments.front().map_or(self.end.number, |(number, _)| *number);
        self.note_end()?;
        self.head.sync_all()?;
        let path = files::segment(&self.folder, moving.number);
        if self.damaged.contains(&moving.number) {
            let aside = files::aside(&self.folder, moving.number);
            fs::rename(&path, &aside)?;
            tracing::error!(file = %aside.display(), "a damaged file of logs was set aside");
            self.damaged.retain(|number| *number != moving.number);
        } else {
            fs::remove_file(&path)?;
        }
        Ok(())
    }

    fn next_moving(&self) -> io::Result<Option<Moving>> {
        let Some((number, _)) = self.segments.front() else { return Ok(None) };
        let used = self.end.written + self.segments.iter().map(|(_, bytes)| bytes).sum::<u64>();
        // Copying what is of use costs as much writing as it frees, at most.
        let due =
            used > 4 * SEGMENT_BYTES && used > 2 * self.rings.lock().bytes_on_disk() + 2 * SEGMENT_BYTES;
        if !due && self.damaged.is_empty() {
            return Ok(None);
        }
        let file = fs::read(files::segment(&self.folder, *number))?;
        let header = Header::parse(&file);
        Ok(Some(Moving { number: *number, file, header, at: Header::BYTES }))
    }

    /// True when the file is done.
    fn copy_some(&mut self, moving: &mut Moving) -> io::Result<bool> {
        let Some(header) = moving.header else { return Ok(true) };
        if self.end.written >= SEGMENT_BYTES {
            self.roll()?;
        }
        let mut copies = Vec::new();
        let upto = moving.at.saturating_add(MOVED_AT_ONCE);
        let mut pieces = Pieces::from(&moving.file, header, moving.at);
        let done = loop {
            match pieces.next() {
                Some(Piece::Record(Record::Entry(entry), range)) => {
                    moving.at = range.end;
                    let at = Place { epoch: entry.epoch, position: entry.position };
                    if self.rings.lock().has(entry.realm, entry.channel, at) {
                        Record::Entry(Entry { copied: true, ..entry }).append(self.header.salt, &mut copies);
                    }
                }
                Some(Piece::Record(_, range) | Piece::Damage(range)) => moving.at = range.end,
                None => break true,
            }
            if moving.at >= upto {
                break false;
            }
        };
        if !copies.is_empty() {
            self.put(&copies)?;
        }
        Ok(done)
    }
}

/// Makes a file that is there whatever happens.
fn begin(folder: &Path, number: u64) -> io::Result<(File, Header)> {
    let mut salt = [0; 8];
    aws_lc_rs::rand::fill(&mut salt).map_err(io::Error::other)?;
    let header = Header { number, salt: u64::from_le_bytes(salt) };
    let path = files::segment(folder, number);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all_at(&header.to_bytes(), 0)?;
    file.sync_all()?;
    File::open(folder)?.sync_all()?;
    Ok((file, header))
}

/// What may wait for the disk. Then publishers who were promised more than acceptance are refused.
const QUEUE_BYTES: usize = 64 << 20;
/// A waiting entry beside its record.
const ENTRY_COST: usize = 128;
/// One file; so much is read at once when it is looked through.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Of a file that is moved on, between two looks at what is published: a millisecond.
const MOVED_AT_ONCE: usize = 256 << 10;
const BUFFER_KEPT: usize = 4 << 20;
/// What nobody waits for is on disk so soon.
const SYNC_WITHIN: Duration = Duration::from_secs(1);
/// A disk that is full may have room again.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// Entries grow old by themselves.
const LOOK_EVERY: Duration = Duration::from_secs(5);
