//! A file on disk, a redb database, and the one thread that writes it. Owns the commits: what waits at the same time
//! shares one, because a commit costs an fsync. A file that has failed is closed and opened again. It never looks at what
//! is written.

use std::{
    fs::{DirBuilder, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, TableError, WriteTransaction};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// Cheap to clone. When the last clone is gone, what was submitted is still written, and the thread ends.
#[derive(Clone, Debug)]
pub struct Store {
    file: Arc<File>,
    jobs: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    cache_bytes: usize,
    open: Mutex<Open>,
}

#[derive(Debug)]
enum Open {
    Yes(Arc<Database>),
    /// It has failed: a database that has seen that does nothing any more.
    Failed {
        tried: Instant,
        why: StoreError,
    },
}

/// What is done to the tables. An error undoes everything that shares its commit: to be returned for faults of the
/// file only.
pub type Work = Box<dyn FnOnce(&WriteTransaction) -> Result<(), redb::Error> + Send>;
/// Told on the store's thread when the work is on disk, or that it is not: must not block.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

struct Job {
    work: Work,
    done: Done,
}

/// Why something is not on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// [`JOBS`] wait already.
    #[error("the disk is too slow")]
    Full,
    #[error("the disk has failed: {0}")]
    Disk(Arc<str>),
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        Self::Disk(error.to_string().into())
    }
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    #[error("{path}: {source}")]
    Path { path: PathBuf, source: io::Error },
    /// Whatever it holds is the operator's to give up.
    #[error(
        "{path} is damaged, or was written by a newer version ({reason}): put back a copy, or move it away to begin without \
         what is in it"
    )]
    Damaged { path: PathBuf, reason: DatabaseError },
    #[error("{path}: {reason}")]
    Database { path: PathBuf, reason: DatabaseError },
}

impl Store {
    /// Opens or makes the file. Checks the whole file, so it takes as long as reading it. Blocks.
    ///
    /// # Errors
    /// Another process has the file, or it cannot be opened or made. One that is damaged stays as it is.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Path { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            private_folder(folder).map_err(failed)?;
        }
        let database = match database(path, cache_bytes) {
            // The start that made it was cut off: nothing was ever in it.
            Err(error) if is_damage(&error) && is_blank(path).map_err(failed)? => {
                OpenOptions::new().write(true).truncate(true).open(path).map_err(failed)?;
                database(path, cache_bytes)
            }
            outcome => outcome,
        };
        let database = database.map_err(|reason| match reason {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path.to_owned()),
            reason if is_damage(&reason) => OpenError::Damaged { path: path.to_owned(), reason },
            DatabaseError::Storage(redb::StorageError::Io(source)) => failed(source),
            reason => OpenError::Database { path: path.to_owned(), reason },
        })?;
        let open = Mutex::new(Open::Yes(Arc::new(database)));
        let file = Arc::new(File { path: path.to_owned(), cache_bytes, open });
        let (jobs, waiting) = mpsc::channel(JOBS);
        let written = Arc::clone(&file);
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        thread::Builder::new().name(name).spawn(move || write(&written, waiting)).map_err(failed)?;
        Ok(Self { file, jobs })
    }

    /// What is on disk now. Reading blocks on the disk.
    ///
    /// # Errors
    /// The file has failed.
    pub fn read(&self) -> Result<ReadTransaction, StoreError> {
        let database = self.file.database()?;
        database.begin_read().map_err(|error| redb::Error::from(error).into())
    }

    /// Does the work after all that was submitted before, and says when it is on disk.
    pub fn submit(&self, work: Work, done: Done) {
        if let Err(refused) = self.jobs.try_send(Job { work, done }) {
            (refused.into_inner().done)(Err(StoreError::Full));
        }
    }

    /// Returns when the thread that writes has ended: after a panic, for nothing else ends it while there is a store.
    pub async fn ended(&self) {
        self.jobs.closed().await;
    }

    /// What waits for the thread.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity()
    }

    /// Like [`Self::submit`], but waits for room and for the disk.
    ///
    /// # Errors
    /// The file has failed.
    pub async fn write(&self, work: Work) -> Result<(), StoreError> {
        let (sender, receiver) = oneshot::channel();
        let done: Done = Box::new(move |outcome| drop(sender.send(outcome)));
        let stopped = || StoreError::Disk("its thread has ended".into());
        self.jobs.send(Job { work, done }).await.map_err(|_| stopped())?;
        receiver.await.unwrap_or_else(|_| Err(stopped()))
    }
}

/// Makes a folder, and those above it, for its owner alone. One that is there stays as it is.
pub fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a file for its owner alone, or makes one that is there so: secrets of endpoints and contents are in it.
fn private_file(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}

impl File {
    /// The database, opened again if it has failed a while ago.
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut open = self.open.lock();
        let why = match &*open {
            Open::Yes(database) => return Ok(Arc::clone(database)),
            Open::Failed { tried, why } if tried.elapsed() < REOPEN_EVERY => return Err(why.clone()),
            Open::Failed { why, .. } => why.clone(),
        };
        // It was whole when it was opened, and what a commit has left half written is undone.
        match Database::builder().set_cache_size(self.cache_bytes).create(&self.path) {
            Ok(database) => {
                tracing::info!(file = %self.path.display(), "opened again");
                let database = Arc::new(database);
                *open = Open::Yes(Arc::clone(&database));
                Ok(database)
            }
            // Somebody may still be reading what was open.
            Err(_) => {
                *open = Open::Failed { tried: Instant::now(), why: why.clone() };
                Err(why)
            }
        }
    }

    fn fail(&self, why: &StoreError) {
        *self.open.lock() = Open::Failed { tried: Instant::now(), why: why.clone() };
    }
}

fn database(path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
    private_file(path).map_err(|error| DatabaseError::Storage(redb::StorageError::Io(error)))?;
    Database::builder().set_cache_size(cache_bytes).set_check_integrity_on_open(true).create(path)
}

/// A table to read; none if nothing was ever written there.
pub fn made<T>(table: Result<T, TableError>) -> Result<Option<T>, TableError> {
    match table {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        table => table.map(Some),
    }
}

/// Whether a file has not even got the mark by which its kind is known, which is written last.
fn is_blank(path: &Path) -> io::Result<bool> {
    let mut mark = [1; 9];
    let whole = OpenOptions::new().read(true).open(path)?.read_exact(&mut mark);
    Ok(whole.is_ok() && mark == [0; 9])
}

fn is_damage(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::Storage(redb::StorageError::Io(error)) => error.kind() == io::ErrorKind::InvalidData,
        DatabaseError::Storage(redb::StorageError::Corrupted(_)) | DatabaseError::UpgradeRequired(_) => true,
        _ => false,
    }
}

fn write(file: &File, mut waiting: mpsc::Receiver<Job>) {
    let mut jobs = Vec::new();
    while waiting.blocking_recv_many(&mut jobs, TOGETHER) > 0 {
        let (works, dones): (Vec<_>, Vec<_>) = jobs.drain(..).map(|job| (job.work, job.done)).unzip();
        let outcome = file.database().and_then(|database| {
            let outcome = commit(&database, works);
            drop(database);
            outcome.map_err(|error| {
                let failed = matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo);
                let error = StoreError::from(error);
                if failed {
                    file.fail(&error);
                }
                error
            })
        });
        dones.into_iter().for_each(|done| done(outcome.clone()));
    }
}

fn commit(database: &Database, works: Vec<Work>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for work in works {
        work(&transaction)?;
    }
    Ok(transaction.commit()?)
}

/// What may wait for the disk.
const JOBS: usize = 65_536;
/// A file that has failed is opened again so soon: a full disk may have room by then.
const REOPEN_EVERY: Duration = Duration::from_millis(500);
/// What may share one commit: some ten milliseconds of writing.
const TOGETHER: usize = 4096;

#[cfg(test)]
mod tests {
    use std::fs;

    use redb::{ReadableTableMetadata, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<'_, u64, &str> = TableDefinition::new("t");

    fn insert(key: u64) -> Work {
        Box::new(move |transaction| {
            transaction.open_table(TABLE)?.insert(key, "value")?;
            Ok(())
        })
    }

    fn count(store: &Store) -> u64 {
        store.read().unwrap().open_table(TABLE).unwrap().len().unwrap()
    }

    #[test]
    fn a_file_is_its_owners_alone() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/t.redb");
        drop(Store::open(&path, 1 << 20).unwrap());
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
        let old = folder.path().join("old.redb");
        fs::write(&old, b"").unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o644)).unwrap();
        drop(Store::open(&old, 1 << 20).unwrap());
        assert_eq!(mode(&old), 0o600);
    }

    #[tokio::test]
    async fn what_is_written_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/t.redb");
        let store = Store::open(&path, 1 << 20).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (sender, done) = std::sync::mpsc::channel();
        for key in 0..100 {
            let sender = sender.clone();
            store.submit(insert(key), Box::new(move |outcome| sender.send(outcome.is_ok()).unwrap()));
        }
        store.write(insert(100)).await.unwrap();
        drop(sender);
        assert_eq!(done.iter().filter(|ok| *ok).count(), 100);
        assert_eq!(count(&store), 101);
        assert!(matches!(Store::open(&path, 1 << 20), Err(OpenError::InUse(_))));
        drop(store);
        let store = loop {
            // The thread ends in its own time.
            match Store::open(&path, 1 << 20) {
                Err(OpenError::InUse(_)) => thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        assert_eq!(count(&store), 101);
    }

    /// Nobody begins anew without being told to: neither when a bit has flipped, nor when there was a newer version.
    #[tokio::test]
    async fn a_damaged_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.redb");
        let store = Store::open(&path, 1 << 20).unwrap();
        store.write(insert(1)).await.unwrap();
        let jobs = store.jobs.clone();
        drop(store);
        drop(jobs);
        let good = loop {
            let bytes = fs::read(&path).unwrap();
            match Store::open(&path, 1 << 20) {
                Err(OpenError::InUse(_)) => thread::yield_now(),
                opened => break opened.map(|_| bytes).unwrap(),
            }
        };
        let value = good.windows(5).position(|five| five == b"value").unwrap();
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        // The format's version is in front of the first slot of the header.
        for (bad, what) in [
            (vec![7; 100_000], "InvalidData"),
            (changed(value, b'V'), "orrupt"),
            (changed(64, 200), "found 200"),
        ] {
            let path = folder.path().join("bad.redb");
            fs::write(&path, &bad).unwrap();
            let error = Store::open(&path, 1 << 20).unwrap_err();
            assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
            assert!(format!("{error:?} {error}").contains(what), "{error:?}");
            let left = fs::read(&path).unwrap();
            assert!(left.len() == bad.len() && left.contains(&bad[value]), "it is still there");
        }
    }

    /// The very first start was cut off before its file got the mark by which its kind is known.
    #[test]
    fn a_file_that_was_never_used_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.redb");
        fs::write(&path, vec![0; 100_000]).unwrap();
        Store::open(&path, 1 << 20).unwrap();
    }

    /// A disk that was full for a while.
    #[tokio::test]
    async fn a_file_that_has_failed_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=4m", "tmpfs"];
        let mounted = std::process::Command::new("mount").args(mount).arg(folder.path()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: a tmpfs cannot be mounted here");
            return;
        }
        let store = Store::open(&folder.path().join("t.redb"), 1 << 20).unwrap();
        store.write(insert(1)).await.unwrap();
        let ballast = folder.path().join("ballast");
        let full = (0..8).map_while(|_| {
            use io::Write;
            let mut file = OpenOptions::new().append(true).create(true).open(&ballast).ok()?;
            file.write_all(&[0; 1 << 20]).ok()
        });
        assert!(full.count() < 8);
        let much: Work = Box::new(|transaction| {
            transaction.open_table(TABLE)?.insert(2, &*"x".repeat(2 << 20))?;
            Ok(())
        });
        assert!(matches!(store.write(much).await, Err(StoreError::Disk(_))));
        fs::remove_file(&ballast).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = store.write(insert(3)).await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::task::yield_now().await;
        }
        assert_eq!(count(&store), 2);
        drop(store);
        drop(std::process::Command::new("umount").arg("-l").arg(folder.path()).status());
    }

    /// Who lives on what it writes must not live on without it.
    #[tokio::test]
    async fn a_panic_ends_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("t.redb"), 1 << 20).unwrap();
        let panic: Work = Box::new(|_| panic!("on purpose"));
        assert!(matches!(store.write(panic).await, Err(StoreError::Disk(_))));
        store.ended().await;
        assert!(matches!(store.write(insert(1)).await, Err(StoreError::Disk(_))));
    }

    #[tokio::test]
    async fn work_that_fails_is_not_said_to_be_done() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("t.redb"), 1 << 20).unwrap();
        let fail: Work = Box::new(|_| Err(redb::Error::Corrupted("on purpose".into())));
        assert!(matches!(store.write(fail).await, Err(StoreError::Disk(_))));
        store.write(insert(1)).await.unwrap();
        assert_eq!(count(&store), 1);
    }
}
