//! What a disk has when a process or a machine ends: the files, cut behind what was promised, and sometimes torn there.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use fantail_proto::{journal::Head, log::Durability};
use tempfile::TempDir;

use super::world::Dice;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Crash {
    /// The process closes its logs.
    Orderly,
    Killed,
    /// What no fsync has reached may be gone, or be something else.
    PowerLost,
}

/// The file that is written at a moment: its bytes, and what was noted of them apart.
#[derive(Clone, Debug)]
struct Mark {
    bytes: u64,
    head: Vec<u8>,
}

impl Mark {
    /// By the files' own word, which is noted after the fsync.
    fn synced(&self) -> u64 {
        Head::parse(&self.head).map_or(0, |head| head.synced)
    }

    fn number(&self) -> u64 {
        Head::parse(&self.head).map_or(0, |head| head.number)
    }
}

#[derive(Debug)]
pub(crate) struct Disk {
    folder: TempDir,
    /// After each write since the files were opened.
    marks: Vec<Mark>,
    /// The last mark that a publisher was told is written.
    promised: usize,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self::of(folder())
    }

    fn of(folder: TempDir) -> Self {
        Self { folder, marks: Vec::new(), promised: 0 }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The files were opened.
    pub(crate) fn opened(&mut self) {
        self.marks.clear();
        self.promised = 0;
        self.note();
    }

    /// Everything that was given to the files so far has been written.
    pub(crate) fn note(&mut self) {
        let Some(head) = self.head() else { return };
        // Not the file's length: one that is used again is longer.
        let Some(bytes) = Head::parse(&head).map(|head| head.written) else { return };
        self.marks.push(Mark { bytes, head });
    }

    /// The last mark.
    pub(crate) fn mark(&self) -> usize {
        self.marks.len().saturating_sub(1)
    }

    /// What had been written by this mark has been seen: the process has it behind itself.
    pub(crate) fn show(&mut self, mark: usize) {
        self.promised = self.promised.max(mark);
    }

    /// What has been written by now was promised to be this durable.
    pub(crate) fn promise(&mut self, durability: Durability) {
        self.note();
        match durability {
            Durability::Synced => self.promise_synced(),
            Durability::Logged => self.promise_written(),
            Durability::Accepted => {}
        }
    }

    /// What has been written by now was promised to survive the process.
    fn promise_written(&mut self) {
        self.promised = self.marks.len().saturating_sub(1);
    }

    /// What has been written by now was promised to survive the machine.
    fn promise_synced(&mut self) {
        self.promise_written();
        let Some(mark) = self.marks.last() else { return };
        assert!(mark.synced() >= mark.bytes, "acknowledged as synced, and it was not");
    }

    /// What is found afterwards, in another folder.
    pub(crate) fn crash(&self, crash: Crash, dice: &mut Dice) -> Self {
        let copy = folder();
        let to = copy.path().join("log");
        fs::create_dir_all(&to).unwrap();
        let Some(last) = self.last().filter(|_| !self.marks.is_empty()) else { return Self::of(copy) };
        for file in self.files() {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
        if crash == Crash::Orderly {
            return Self::of(copy);
        }
        let (synced, number) = self.marks.last().map_or((0, 0), |mark| (mark.synced(), mark.number()));
        // Those of files before are whole.
        let first = self.marks.iter().position(|mark| mark.number() == number).unwrap_or(0);
        let certain = match crash {
            Crash::PowerLost => self.marks.iter().rposition(|mark| mark.bytes <= synced).unwrap_or(0),
            _ => self.promised,
        };
        let certain = certain.max(first);
        // In the middle of the write behind this mark.
        let at = certain + dice.below((self.marks.len() - certain) as u64) as usize;
        let from = self.marks[at].bytes;
        let upto = self.marks.get(at + 1).map_or(from, |mark| mark.bytes);
        let length = from + dice.below(upto - from + 1);
        let length = if crash == Crash::PowerLost { length.max(synced) } else { length };
        let path = to.join(last.file_name().unwrap());
        let mut bytes = fs::read(&path).unwrap();
        let (length, written) = (usize::try_from(length).unwrap(), self.written());
        if bytes.len() > written {
            // It is used again: behind what was written is what it held before.
            let (all, before) = (bytes.len(), bytes.split_off(written));
            bytes.truncate(length);
            bytes.extend_from_slice(&before);
            bytes.resize(all, 0);
        } else {
            bytes.truncate(length);
        }
        if crash == Crash::PowerLost && dice.below(2) == 0 {
            // Blocks that were never written are something else, or nothing.
            let start = usize::try_from(synced).unwrap().min(bytes.len());
            let torn = start + dice.below((bytes.len() - start + 1) as u64) as usize;
            let filling = dice.below(2) as u8 * 0xa5;
            bytes[torn..].fill(filling);
        }
        fs::write(path, bytes).unwrap();
        // What is noted apart is noted after each write; after a loss of power it is as old as it likes.
        let noted = if crash == Crash::PowerLost { dice.below(at as u64 + 1) as usize } else { at };
        let mut head = Head::parse(&self.marks[noted].head).unwrap();
        if crash == Crash::PowerLost {
            // Another run of the machine.
            head.boot ^= 1;
        }
        fs::write(to.join("head"), head.to_bytes()).unwrap();
        Self::of(copy)
    }

    /// Changes a byte of what was promised.
    pub(crate) fn damage(&self, dice: &mut Dice) -> bool {
        let files: Vec<_> = self.files().into_iter().filter(|path| path.extension().is_some()).collect();
        let Some(path) = files.get(dice.below(files.len().max(1) as u64) as usize) else { return false };
        let mut bytes = fs::read(path).unwrap();
        let at = dice.below(bytes.len().max(1) as u64) as usize;
        let Some(byte) = bytes.get_mut(at) else { return false };
        *byte ^= 1 << dice.below(8);
        fs::write(path, bytes).unwrap();
        true
    }

    fn head(&self) -> Option<Vec<u8>> {
        fs::read(self.path().join("log/head")).ok().filter(|bytes| Head::parse(bytes).is_some())
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.path().join("log")) else { return Vec::new() };
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// For eyes.
    pub(crate) fn listing(&self) -> String {
        let size = |path: &PathBuf| {
            format!("{} {}", path.file_name().unwrap().display(), fs::metadata(path).unwrap().len())
        };
        let files: Vec<_> = self.files().iter().map(size).collect();
        format!("{files:?} {:?}", self.head().and_then(|bytes| Head::parse(&bytes)))
    }

    /// That which is written: another may have been made ready.
    fn last(&self) -> Option<PathBuf> {
        let number = Head::parse(&self.head()?)?.number;
        Some(self.path().join(format!("log/{number:012}.journal"))).filter(|path| path.exists())
    }

    fn written(&self) -> usize {
        let head = self.head().and_then(|head| Head::parse(&head));
        head.map_or(0, |head| usize::try_from(head.written).unwrap())
    }
}

/// In memory, where there is such a place: an fsync costs nothing there. Where it may be mounted, it is a small one.
fn folder() -> TempDir {
    let small = SMALL.with(|small| small.as_ref().map(|small| tempfile::tempdir_in(small.0.path()).unwrap()));
    small.unwrap_or_else(|| tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
}

/// A file system of four megabytes, unmounted when it is dropped.
struct Small(TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(folder.path()).status();
        status.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

thread_local! {
    static SMALL: Option<Small> = Small::mount();
}

/// Takes all the room that there is, until it is dropped.
pub(crate) struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// `None` where no file system of our own may be filled.
pub(crate) fn fill() -> Option<Ballast> {
    let ballast = SMALL.with(|small| small.as_ref().map(|small| Ballast(small.0.path().join("ballast"))))?;
    let mut file = File::create(&ballast.0).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    Some(ballast)
}
