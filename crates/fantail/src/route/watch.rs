//! Tells that a file has new content, however it came: written in place, renamed over, or swapped by a
//! link. Watches folders, because a watched file is lost when it is replaced. Reads, never interprets.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, sync_channel},
    thread::JoinHandle,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

/// Watches until it is dropped.
pub struct Watch {
    watcher: Option<RecommendedWatcher>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Calls `changed`, on a thread of its own, each time that the file has another content than before
    /// and has been still for [`SETTLE`]. Begin it before you read the file yourself, then nothing is
    /// missed between.
    pub fn new(file: &Path, mut changed: impl FnMut() + Send + 'static) -> notify::Result<Self> {
        let (tell, told) = sync_channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| changes(event.kind)) {
                // A full channel already says that something happened.
                tell.try_send(()).ok();
            }
        })?;
        for folder in folders(file) {
            watcher.watch(&folder, RecursiveMode::NonRecursive)?;
        }
        let file = file.to_owned();
        let mut content = std::fs::read(&file).ok();
        let run = move || {
            while settled(&told) {
                let now = std::fs::read(&file).ok();
                if now != content {
                    content = now;
                    changed();
                }
            }
        };
        let thread = std::thread::Builder::new().name("routes-watch".into()).spawn(run)?;
        Ok(Self { watcher: Some(watcher), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread ends when the watcher, which holds the other side of its channel, is gone.
        drop(self.watcher.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            drop(thread.join());
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// Waits for an event, and then until there are no more; false when the watch is over.
fn settled(told: &Receiver<()>) -> bool {
    if told.recv().is_err() {
        return false;
    }
    for _ in 0..PATIENCE {
        if told.recv_timeout(SETTLE).is_err() {
            break;
        }
    }
    true
}

/// Reading is no change: it would make our own reading an event.
fn changes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// The folder of the file and, if the file is a link, of what it points to.
fn folders(file: &Path) -> Vec<PathBuf> {
    let folder = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut folders = vec![folder(file)];
    folders.extend(std::fs::canonicalize(file).ok().map(|real| folder(&real)));
    folders.dedup();
    folders
}

/// An editor's save is several events.
const SETTLE: Duration = Duration::from_millis(300);

/// Events after which a folder that is never still is looked at anyway.
const PATIENCE: usize = 10;
