//! Watches the files that a reload reads, and never reads them itself. Whatever becomes of a file while it is read is
//! told afterwards: it is watched first.

use std::path::PathBuf;

use tokio::sync::mpsc;

use crate::{config::Config, route::Watch};

/// The files of one configuration, watched until this is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    files: Vec<PathBuf>,
    changes: mpsc::Receiver<()>,
    _watches: Vec<Watch>,
}

impl Watching {
    /// To be begun before the files are read.
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        let (tell, changes) = mpsc::channel(1);
        let watch = |file: &PathBuf| {
            let tell = tell.clone();
            // A full channel says already that something has changed.
            let watch = Watch::new(file, move || _ = tell.try_send(()));
            watch.inspect_err(|error| tracing::warn!(%error, file = %file.display(), "not watched")).ok()
        };
        Self { _watches: files.iter().filter_map(watch).collect(), files, changes }
    }

    /// Resolves when a file has changed. Never, if none is watched.
    pub(super) async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending().await
        }
    }

    /// Has the files read by `read`, which says which files count from then on.
    pub(super) fn read_again(&mut self, mut read: impl FnMut() -> Vec<PathBuf>) {
        let next = Self::new(self.files.clone());
        let files = read();
        *self = next;
        if files != self.files {
            // They were not watched when they were read. Should it be others yet again, the file that says so was
            // watched, and has changed.
            *self = Self::new(files);
            read();
        }
    }
}

/// The files that a reload of this configuration reads.
pub(super) fn files(config: &Config) -> Vec<PathBuf> {
    [&config.file, &config.routes.file].into_iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_changes_behind_the_reading_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("routes");
        fs::write(&file, "read").unwrap();
        let mut watching = Watching::new(vec![file.clone()]);
        watching.read_again(|| {
            assert_eq!(fs::read(&file).unwrap(), b"read");
            fs::write(&file, "written behind it").unwrap();
            vec![file.clone()]
        });
        timeout(PATIENCE, watching.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn other_files_are_read_again_under_watch() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        [&old, &new].into_iter().for_each(|file| fs::write(file, "before").unwrap());
        let mut watching = Watching::new(vec![old]);
        let reads = Cell::new(0);
        watching.read_again(|| {
            reads.set(reads.get() + 1);
            fs::write(&new, format!("behind reading {}", reads.get())).unwrap();
            vec![new.clone()]
        });
        assert_eq!(reads.get(), 2);
        timeout(PATIENCE, watching.changed()).await.unwrap();
    }
}
