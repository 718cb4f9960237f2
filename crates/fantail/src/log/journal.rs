//! The logs on disk: one thread that appends what was published to the last of some files. What waits at the same time
//! is written together, and one fsync serves all who want it. When most of what the oldest file holds is gone, the
//! rest is moved on and the file is used again or removed. It never reads for a subscriber.
//!
//! What a log promises to keep is shown to nobody before it is kept; what the disk refuses is taken back. After an fsync
//! that failed nothing is known of what was written since the last: all of that is written again, into another file.

mod job;
mod moving;

use std::{
    collections::VecDeque,
    fmt,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use fantail_proto::{
    journal::{Head, Header, Record},
    log::{Durability, Place},
};
use job::Job;
pub(super) use job::Promise;
use moving::Moves;
use parking_lot::{Condvar, Mutex};
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

use super::{
    files::{self, Files, Found, OpenError},
    rings::Rings,
};
use crate::{
    metrics::Process,
    store::{Done, StoreError, private_folder},
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
    ended: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    /// Of what is not written yet.
    bytes: usize,
    /// Nothing can be promised. It changes only while the rings are locked: who appends then knows.
    failed: Option<StoreError>,
    disk_bytes: u64,
    closing: bool,
    /// The thread is at its end.
    ended: bool,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

/// Whether a folder has logs.
pub(super) fn has_files(folder: &Path) -> bool {
    files::head(&folder.join("log")).exists()
}

/// Opens or makes the folder's logs and starts their thread. Blocks for as long as reading takes.
pub(super) fn open(
    folder: &Path,
    rings: &Arc<Mutex<Rings>>,
    counts: &Arc<Process>,
) -> Result<(Journal, Found), OpenError> {
    let (writer, found) = Writer::open(folder.join("log"), rings, counts)?;
    let (shared, failed) = (Arc::clone(&writer.shared), OpenError::at(&writer.folder));
    let thread = thread::Builder::new().name("log".into()).spawn(move || writer.run()).map_err(&failed)?;
    Ok((Journal { shared, thread: Mutex::new(Some(thread)) }, found))
}

impl Journal {
    /// To be called in the order of the channel. False: this entry will not be kept, because too much waits for the disk.
    /// What is promised is only refused when the disk takes nothing, or the process ends.
    pub(super) fn append(
        &self,
        (realm, channel, slot): (&Arc<str>, &Arc<str>, u32),
        at: Place,
        promise: Promise,
        record: Arc<[u8]>,
    ) -> bool {
        let mut queue = self.shared.queue.lock();
        let refused =
            if promise.kept > Durability::Accepted { queue.failed.is_some() } else { queue.is_full() };
        if refused || queue.closing {
            return false;
        }
        let (realm, channel, at_ms) = (Arc::clone(realm), Arc::clone(channel), files::now_ms());
        queue.push(Job::Entry { realm, channel, slot, at, promise, at_ms, record });
        true
    }

    /// Is never refused: how many there may be is the rings' to say.
    pub(super) fn forget(&self, realm: &str, channel: &str, epoch: u64) {
        let job = Job::Forget { realm: realm.into(), channel: channel.into(), epoch };
        self.shared.queue.lock().push(job);
    }

    /// Says when all that was appended so far is kept like this, or that it is not. While nothing is kept that is said at
    /// once: what is to be waited for may have been refused, and the next that is written would say that all is well.
    pub(super) fn wait(&self, durability: Durability, done: Done) {
        let mut queue = self.shared.queue.lock();
        if let Some(why) = queue.failed.clone().or_else(|| queue.closing.then(stopping)) {
            drop(queue);
            return done(Err(why));
        }
        queue.jobs.push(Job::Wait(durability, done));
        drop(queue);
        self.wake();
    }

    pub(super) fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Why nothing can be promised at the moment.
    pub(super) fn refusal(&self) -> Option<StoreError> {
        let queue = self.shared.queue.lock();
        let full = || queue.is_full().then_some(StoreError::Full);
        queue.failed.clone().or_else(full).or_else(|| queue.closing.then(stopping))
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.shared.queue.lock().jobs.len()
    }

    pub(super) fn disk_bytes(&self) -> usize {
        usize::try_from(self.shared.queue.lock().disk_bytes).unwrap_or(usize::MAX)
    }

    /// From now on nothing is taken. To be called while the rings are locked.
    pub(super) fn refuse(&self) {
        self.shared.queue.lock().closing = true;
    }

    /// Writes what waits and says that this is all. Blocks, but not for ever: a disk that hangs does not keep the process.
    pub(super) fn close(&self) {
        self.close_within(CLOSE_WITHIN);
    }

    fn close_within(&self, limit: Duration) {
        self.refuse();
        self.wake();
        let Some(thread) = self.thread.lock().take() else { return };
        let mut queue = self.shared.queue.lock();
        self.shared.ended.wait_while_for(&mut queue, |queue| !queue.ended, limit);
        let ended = queue.ended;
        drop(queue);
        if ended {
            drop(thread.join());
        } else {
            tracing::error!(?limit, "logs are not closed in order: the disk does not answer");
        }
    }
}

impl Queue {
    fn push(&mut self, job: Job) {
        self.bytes += job.weight();
        self.jobs.push(job);
    }

    const fn is_full(&self) -> bool {
        self.bytes >= QUEUE_BYTES
    }
}

fn stopping() -> StoreError {
    StoreError::Disk("the server is stopping".into())
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

/// However the thread ends.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.lock().ended = true;
        self.shared.ended.notify_all();
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
    /// The next file, before it is needed. It counts when the head says so.
    ahead: Option<(File, Header)>,
    /// Those before the last, which are complete, with their bytes.
    segments: VecDeque<(u64, u64)>,
    /// Of these, those that are to be set aside.
    damaged: Vec<u64>,
    /// What the disk has not taken.
    unwritten: Vec<Job>,
    /// What was written since the last fsync: if the next one fails, it is written again.
    unsynced: Vec<Job>,
    buffer: Vec<u8>,
    /// Since when there is something that was written and not synced.
    dirty: Option<Instant>,
    /// Behind what was synced, the file cannot be trusted: another one is to be begun.
    broken: bool,
    /// When the disk took nothing, the last time.
    refused: Option<Instant>,
    /// The log of the process says so.
    complained: bool,
    /// Bytes that were given to files so far.
    written: u64,
    moves: Moves,
}

type Waiting = Vec<(Durability, Done)>;

impl Writer {
    fn open(
        folder: PathBuf,
        rings: &Arc<Mutex<Rings>>,
        counts: &Arc<Process>,
    ) -> Result<(Self, Found), OpenError> {
        let failed = OpenError::at(&folder);
        private_folder(&folder).map_err(&failed)?;
        let lock = File::create(folder.join("lock")).map_err(&failed)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(OpenError::InUse(folder));
        }
        let boot = files::boot();
        let Files { segments, damaged, found } = files::read(&folder, boot)?;
        let head = OpenOptions::new().write(true).create(true).truncate(false).open(files::head(&folder));
        let head = head.map_err(&failed)?;
        let number = segments.last().map_or(1, |(number, _)| number + 1);
        let first = segments.first().map_or(number, |(number, _)| *number);
        let (file, header) = begin(&folder, number, None).map_err(&failed)?;
        let bytes = Header::BYTES as u64;
        let writer = Self {
            end: Head { number, first, written: bytes, synced: bytes, boot, closed: false },
            shared: Arc::default(),
            rings: Arc::clone(rings),
            counts: Arc::clone(counts),
            _lock: lock,
            folder,
            head,
            file,
            header,
            ahead: None,
            segments: segments.into(),
            damaged,
            unwritten: Vec::new(),
            unsynced: Vec::new(),
            buffer: Vec::new(),
            dirty: None,
            broken: false,
            refused: None,
            complained: false,
            written: 0,
            moves: Moves::default(),
        };
        writer.note_end().map_err(&failed)?;
        writer.head.sync_all().map_err(&failed)?;
        counts.log_damaged.add(writer.damaged.len() as u64);
        Ok((writer, found))
    }

    fn run(mut self) {
        loop {
            let (jobs, closing) = self.next_jobs();
            let before = self.written;
            let outcome = self.write(jobs);
            if closing {
                if outcome.is_ok() && self.unwritten.is_empty() {
                    self.finish();
                }
                return;
            }
            self.move_on(self.written - before);
        }
    }

    fn next_jobs(&self) -> (Vec<Job>, bool) {
        let mut queue = self.shared.queue.lock();
        queue.disk_bytes = self.end.written + self.segments.iter().map(|(_, bytes)| bytes).sum::<u64>();
        if queue.jobs.is_empty() && !queue.closing {
            let wait = match (self.refused, self.moves.are_due(), self.dirty) {
                (Some(since), ..) => RETRY_EVERY.saturating_sub(since.elapsed()),
                (None, true, _) => Duration::ZERO,
                (None, false, Some(since)) => SYNC_WITHIN.saturating_sub(since.elapsed()),
                (None, false, None) => LOOK_EVERY,
            };
            if !wait.is_zero() {
                self.shared.wake.wait_for(&mut queue, wait);
            }
        }
        (std::mem::take(&mut queue.jobs), queue.closing)
    }

    /// Writes what is given, behind what could not be written before, and answers who waits, in their order.
    fn write(&mut self, jobs: Vec<Job>) -> Result<(), StoreError> {
        let mut waiting = Vec::new();
        for job in jobs {
            match job {
                Job::Wait(durability, done) => waiting.push((durability, done)),
                job => self.unwritten.push(job),
            }
        }
        let synced: Vec<_> = self.unwritten.iter().filter_map(Job::to_sync).collect();
        if let Err(error) = self.write_unwritten() {
            return self.refuse(&error, waiting, false);
        }
        // Those that stand behind one who waits for the fsync wait, too: so each channel keeps its order.
        let ready = waiting.iter().position(|(durability, _)| *durability == Durability::Synced);
        let wanted = ready.is_some() || !synced.is_empty();
        let rest = waiting.split_off(ready.unwrap_or(waiting.len()));
        waiting.into_iter().for_each(|(_, done)| done(Ok(())));
        let overdue = self.dirty.is_some_and(|since| since.elapsed() >= SYNC_WITHIN);
        if (wanted || overdue)
            && let Err(error) = self.sync()
        {
            tracing::error!(%error, "an fsync of logs has failed: another file is begun");
            if let Err(error) = self.begin_another() {
                return self.refuse(&error, rest, true);
            }
        }
        if !synced.is_empty() {
            let mut rings = self.rings.lock();
            synced.into_iter().for_each(|(slot, at)| rings.keep(slot, at));
        }
        rest.into_iter().for_each(|(_, done)| done(Ok(())));
        self.accept();
        Ok(())
    }

    /// The disk takes nothing. What it was to keep, and does not, never was there, and its publishers are told; the rest is
    /// tried again. `written`: all was written, and only the fsync has failed.
    fn refuse(&mut self, error: &io::Error, waiting: Waiting, written: bool) -> Result<(), StoreError> {
        self.counts.log_failures.add(1);
        let error = StoreError::Disk(error.to_string().into());
        if !std::mem::replace(&mut self.complained, true) {
            tracing::error!(%error, folder = %self.folder.display(), "logs cannot be written");
        }
        self.refused = Some(Instant::now());
        let behind = {
            let mut rings = self.rings.lock();
            let mut queue = self.shared.queue.lock();
            queue.failed = Some(error.clone());
            rings.drop_pending();
            let mut behind = Vec::new();
            for job in std::mem::take(&mut queue.jobs) {
                match job {
                    Job::Wait(_, done) => behind.push(done),
                    job => self.unwritten.push(job),
                }
            }
            let dropped = self.unwritten.extract_if(.., |job| job.is_promised());
            queue.bytes -= dropped.map(|job| job.weight()).sum::<usize>();
            behind
        };
        self.unsynced.retain(|job| job.to_sync().is_none());
        for (durability, done) in waiting {
            let kept = written && durability < Durability::Synced;
            done(if kept { Ok(()) } else { Err(error.clone()) });
        }
        behind.into_iter().for_each(|done| done(Err(error.clone())));
        Err(error)
    }

    /// The disk takes what it is given, or it is time to try.
    fn accept(&mut self) {
        if self.refused.take().is_some() {
            let _rings = self.rings.lock();
            self.shared.queue.lock().failed = None;
        }
    }

    fn write_unwritten(&mut self) -> io::Result<()> {
        if self.broken {
            let early = self.refused.is_some_and(|since| since.elapsed() < RETRY_EVERY);
            if early {
                return Err(io::Error::other("an fsync has failed, and no other file can be written"));
            }
            self.begin_another()?;
        }
        if self.unwritten.is_empty() {
            return Ok(());
        }
        if self.end.written >= SEGMENT_BYTES {
            self.roll()?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        self.unwritten.iter().for_each(|job| job.write(self.header.salt, &mut buffer));
        let outcome = self.put(&buffer);
        buffer.clear();
        buffer.shrink_to(BUFFER_KEPT);
        self.buffer = buffer;
        outcome?;
        self.counts.log_writes.add(1);
        if std::mem::take(&mut self.complained) {
            tracing::info!("logs are written again");
        }
        let weight: usize = self.unwritten.iter().map(Job::weight).sum();
        let mut logged = self.unwritten.iter().filter_map(Job::to_write).peekable();
        if logged.peek().is_some() {
            let mut rings = self.rings.lock();
            logged.for_each(|(slot, at)| rings.keep(slot, at));
        }
        self.shared.queue.lock().bytes -= weight;
        self.unsynced.append(&mut self.unwritten);
        Ok(())
    }

    /// Puts bytes behind the last, all of them or none.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let before = self.end.written;
        let outcome = self.file.write_all_at(bytes, before).and_then(|()| {
            self.end.written += bytes.len() as u64;
            self.note_end()
        });
        self.written += bytes.len() as u64;
        match outcome {
            Ok(()) => _ = self.dirty.get_or_insert_with(Instant::now),
            Err(_) => {
                self.end.written = before;
                self.broken |= self.file.set_len(before).is_err();
            }
        }
        outcome
    }

    fn sync(&mut self) -> io::Result<()> {
        let before = self.end.synced;
        if before == self.end.written {
            return Ok(());
        }
        let outcome = self.file.sync_data().and_then(|()| {
            self.end.synced = self.end.written;
            self.note_end()
        });
        if outcome.is_err() {
            self.end.synced = before;
            self.broken = true;
            return outcome;
        }
        self.counts.log_syncs.add(1);
        self.dirty = None;
        self.unsynced.clear();
        Ok(())
    }

    /// Goes on in another file with all that was written since the last fsync, when nothing is known of it any more: a
    /// second fsync would not say whether it is there.
    fn begin_another(&mut self) -> io::Result<()> {
        self.broken = true;
        // It will be another, of the same name.
        self.ahead = None;
        let number = self.end.number + 1;
        let cut = u32::try_from(self.end.synced).map_err(io::Error::other)?;
        let (file, header) = begin(&self.folder, number, Some(cut))?;
        let mut bytes = Vec::new();
        self.unsynced.iter().for_each(|job| job.write(header.salt, &mut bytes));
        file.write_all_at(&bytes, Header::BYTES as u64)?;
        file.sync_all()?;
        let length = (Header::BYTES + bytes.len()) as u64;
        let before = self.end;
        self.end = Head { number, written: length, synced: length, ..before };
        // From here on the file counts.
        if let Err(error) = self.note_end().and_then(|()| self.head.sync_all()) {
            self.end = before;
            return Err(error);
        }
        self.segments.push_back((before.number, before.synced));
        (self.file, self.header) = (file, header);
        (self.broken, self.dirty) = (false, None);
        self.counts.log_syncs.add(1);
        self.unsynced.clear();
        // What was copied may be gone, too.
        self.moves.moving = None;
        Ok(())
    }

    fn note_end(&self) -> io::Result<()> {
        self.head.write_all_at(&self.end.to_bytes(), 0)
    }

    /// Goes on in another file.
    fn roll(&mut self) -> io::Result<()> {
        let number = self.end.number + 1;
        let next = self.ahead.take().map_or_else(|| begin(&self.folder, number, None), Ok)?;
        let mut seal = Vec::new();
        Record::Seal.append(self.header.salt, &mut seal);
        if let Err(error) = self.put(&seal).and_then(|()| self.sync()) {
            self.ahead = Some(next);
            return Err(error);
        }
        let (file, header) = next;
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
}

/// Makes a file that is there whatever happens.
fn begin(folder: &Path, number: u64, cut: Option<u32>) -> io::Result<(File, Header)> {
    let header = fresh(number, cut)?;
    let path = files::segment(folder, number);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all_at(&header.to_bytes(), 0)?;
    file.sync_all()?;
    sync_names(folder)?;
    Ok((file, header))
}

/// With a salt by which nothing that is in a file already can pass for a record.
fn fresh(number: u64, cut: Option<u32>) -> io::Result<Header> {
    let mut salt = [0; 8];
    aws_lc_rs::rand::fill(&mut salt).map_err(io::Error::other)?;
    Ok(Header { number, salt: u64::from_le_bytes(salt), cut })
}

/// The names of a folder's files are on the disk.
fn sync_names(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What may wait for the disk. Then publishers who were promised more than acceptance are refused.
const QUEUE_BYTES: usize = 64 << 20;
/// One file; so much is read at once when it is looked through.
const SEGMENT_BYTES: u64 = 16 << 20;
const BUFFER_KEPT: usize = 4 << 20;
/// What nobody waits for is on disk so soon.
const SYNC_WITHIN: Duration = Duration::from_secs(1);
/// A disk that is full may have room again.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// What a disk that hangs may delay the end of the process.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// Entries grow old by themselves.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
