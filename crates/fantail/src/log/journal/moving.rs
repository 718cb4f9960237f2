//! Moving what is of use out of the oldest file, and making the next one of that or removing it, a bit at a time. Never has
//! more of it in memory than a bit, and keeps what is published waiting for longer than some of them take only where files
//! would grow without end.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
};

use fantail_proto::{
    journal::{Entry, Header, Piece, Pieces, Record},
    log::Place,
};

use tokio::time::Instant;

use super::{LOOK_EVERY, SEGMENT_BYTES, Writer, begin, fresh, sync_names};
use crate::log::files;

/// What there is to do.
#[derive(Default)]
pub(super) struct Moves {
    pub(super) moving: Option<Moving>,
    pub(super) leaving: Option<Leaving>,
    /// So much is to be looked at and freed, so that files do not grow faster than they go.
    pub(super) owed: u64,
    /// When something of it has failed, the last time. It is tried again from where it was.
    pub(super) failed: Option<Instant>,
}

impl Moves {
    /// Whether something is to be done as soon as nobody waits.
    pub(super) fn are_due(&self) -> bool {
        (self.moving.is_some() || self.leaving.is_some() || self.owed > 0) && !self.are_paused()
    }

    fn are_paused(&self) -> bool {
        self.failed.is_some_and(|since| since.elapsed() < LOOK_EVERY)
    }
}

/// The oldest file while what is of use in it is moved on.
pub(super) struct Moving {
    number: u64,
    file: File,
    /// What is behind that does not count.
    length: u64,
    header: Header,
    /// Bytes of the file from this place on.
    at: u64,
    window: Vec<u8>,
    /// So many bytes are looked at together: [`Self::step`], or more while a record is longer.
    width: usize,
    step: usize,
}

impl Moving {
    fn open(number: u64, file: File, length: u64, step: usize) -> io::Result<Self> {
        let mut bytes = [0; Header::BYTES];
        let read = file.read_at(&mut bytes, 0)?;
        // Without a header there is nothing to move.
        let (header, at) = match Header::parse(&bytes[..read]) {
            Some(header) => (header, Header::BYTES as u64),
            None => (Header { number, salt: 0, cut: None }, length),
        };
        Ok(Self { number, file, length, header, at, window: Vec::new(), width: step, step })
    }

    /// Reads on, until the window is full or the file is over.
    fn fill(&mut self) -> io::Result<()> {
        let left = self.length.saturating_sub(self.at);
        let width = self.width.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut filled = self.window.len();
        self.window.resize(width.max(filled), 0);
        while filled < self.window.len() {
            match self.file.read_at(&mut self.window[filled..], self.at + filled as u64) {
                Ok(0) => {
                    self.window.truncate(filled);
                    self.length = self.at + filled as u64;
                }
                Ok(read) => filled += read,
                Err(error) => {
                    self.window.truncate(filled);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The entries of the window, and how long their records and what lies between them are: 0 if the first is longer
    /// than the window.
    fn entries(&self) -> (Vec<Entry<'_>>, usize) {
        let (mut entries, mut looked_at) = (Vec::new(), 0);
        let last = self.at + self.window.len() as u64 >= self.length;
        for piece in Pieces::from(&self.window, self.header, 0) {
            match piece {
                // It may be a record that goes on behind the window.
                Piece::Damage(range) if range.end == self.window.len() && !last => break,
                Piece::Record(Record::Entry(entry), range) => {
                    entries.push(entry);
                    looked_at = range.end;
                }
                Piece::Record(_, range) | Piece::Damage(range) => looked_at = range.end,
            }
        }
        (entries, looked_at)
    }

    fn go_on(&mut self, looked_at: usize) {
        self.width = if looked_at == 0 { self.width * 2 } else { self.step };
        self.window.drain(..looked_at);
        self.window.shrink_to(self.width);
        self.at += looked_at as u64;
    }

    const fn is_done(&self) -> bool {
        self.at >= self.length
    }
}

/// A file of which nothing counts any more. It goes a bit at a time, too: a file system may take a millisecond for each
/// megabyte that it frees.
pub(super) struct Leaving {
    pub(super) number: u64,
    pub(super) file: File,
    pub(super) length: u64,
}

impl Writer {
    /// Does some of moving what is of use out of the oldest files, and of removing them, if it is time for that: a bit, and more
    /// while more was written than that. What is left of it is done when nobody waits, unless it becomes too much.
    pub(super) fn move_on(&mut self, written: u64) {
        if self.moves.are_paused() {
            return;
        }
        self.moves.failed = None;
        // Nothing can be copied then, but what goes makes room.
        let refused = self.broken || self.refused.is_some();
        if !refused {
            // Each byte is read once and freed once.
            self.moves.owed = self.moves.owed.saturating_add(written.saturating_mul(3));
        }
        for steps in 1.. {
            match if refused { self.leave() } else { self.step() } {
                Ok(Some(done)) => self.moves.owed = self.moves.owed.saturating_sub(done),
                Ok(None) if refused => break,
                Ok(None) => {
                    self.moves.owed = 0;
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "a file of logs cannot be removed");
                    self.moves.failed = Some(Instant::now());
                    break;
                }
            }
            let enough = self.moves.owed == 0 || (steps >= STEPS && self.moves.owed <= MOST_OWED);
            if enough && !refused {
                break;
            }
        }
    }

    /// Does a bit, and says how much was looked at or freed. `None`: there is nothing to do.
    fn step(&mut self) -> io::Result<Option<u64>> {
        if let Some(freed) = self.leave()? {
            return Ok(Some(freed));
        }
        if self.ahead.is_none() && self.end.written > SEGMENT_BYTES / 2 {
            self.ahead = Some(begin(&self.folder, self.end.number + 1, None)?);
        }
        let moving = self.moves.moving.take().map_or_else(|| self.next_moving(), |moving| Ok(Some(moving)));
        let Some(mut moving) = moving? else { return Ok(None) };
        let looked_at = self.copy_some(&mut moving);
        let done = moving.is_done();
        self.moves.moving = Some(moving);
        let looked_at = looked_at?;
        if done {
            self.let_go()?;
            self.leave()?;
        }
        Ok(Some(looked_at))
    }

    /// Frees a bit of what is to go, and says how much. `None`: nothing is to go.
    fn leave(&mut self) -> io::Result<Option<u64>> {
        let Some(leaving) = &mut self.moves.leaving else { return Ok(None) };
        let path = files::segment(&self.folder, leaving.number);
        let length = leaving.length.saturating_sub(MOVED_AT_ONCE as u64);
        if self.damaged.contains(&leaving.number) {
            let aside = files::aside(&self.folder, leaving.number);
            unless_gone(fs::rename(&path, &aside))?;
            tracing::error!(file = %aside.display(), "a damaged file of logs was set aside");
            self.damaged.retain(|damaged| *damaged != leaving.number);
            self.moves.leaving = None;
        } else if length == 0 {
            unless_gone(fs::remove_file(&path))?;
            self.moves.leaving = None;
        } else {
            leaving.file.set_len(length)?;
            leaving.length = length;
        }
        Ok(Some(MOVED_AT_ONCE as u64))
    }

    /// The oldest file, if enough of all is of no use any more.
    fn next_moving(&mut self) -> io::Result<Option<Moving>> {
        let Some((number, bytes)) = self.segments.front().copied() else { return Ok(None) };
        let used = self.end.written + self.segments.iter().map(|(_, bytes)| bytes).sum::<u64>();
        // Copying what is of use costs as much writing as it frees, at most.
        let due = used > 2 * self.rings.lock().bytes_on_disk() + 2 * SEGMENT_BYTES;
        if !due && self.damaged.is_empty() {
            return Ok(None);
        }
        let file = OpenOptions::new().read(true).write(true).open(files::segment(&self.folder, number))?;
        Moving::open(number, file, bytes, MOVED_AT_ONCE).map(Some)
    }

    /// Returns how much was looked at. What has failed can be done again: nothing is copied twice.
    fn copy_some(&mut self, moving: &mut Moving) -> io::Result<u64> {
        if self.end.written >= SEGMENT_BYTES {
            self.roll()?;
        }
        moving.fill()?;
        let (mut entries, looked_at) = moving.entries();
        {
            let rings = self.rings.lock();
            entries.retain(|entry| {
                let at = Place { epoch: entry.epoch, position: entry.position };
                rings.has(entry.realm, entry.channel, at)
            });
        }
        if !entries.is_empty() {
            let mut copies = Vec::new();
            for entry in entries {
                Record::Entry(Entry { copied: true, ..entry }).append(self.header.salt, &mut copies);
            }
            self.put(&copies)?;
        }
        moving.go_on(looked_at);
        Ok(looked_at as u64)
    }

    /// The oldest file goes, or becomes the next: what was of use in it is elsewhere.
    fn let_go(&mut self) -> io::Result<()> {
        self.sync()?;
        let first = self.segments.get(1).map_or(self.end.number, |(number, _)| *number);
        let before = std::mem::replace(&mut self.end.first, first);
        if let Err(error) = self.note_end().and_then(|()| self.head.sync_data()) {
            self.end.first = before;
            return Err(error);
        }
        self.segments.pop_front();
        // Its number is below the first that counts: wherever this ends, the next start removes it.
        let Some(Moving { number, file, length, .. }) = self.moves.moving.take() else { return Ok(()) };
        // What it was made of may have been longer.
        let length = file.metadata().map_or(length, |found| found.len());
        self.moves.leaving = Some(Leaving { number, file, length });
        self.reuse()
    }

    /// Makes the next file of the one that goes, instead of the one that was begun: what is written over bytes that are on the
    /// disk already has its fsync without a word to the file system's own journal, and nothing is to be freed.
    fn reuse(&mut self) -> io::Result<()> {
        let Some(leaving) = self.moves.leaving.take() else { return Ok(()) };
        let begun = |(file, _): &(File, Header)| {
            file.metadata().is_ok_and(|found| found.len() <= Header::BYTES as u64)
        };
        let wanted = self.ahead.as_ref().is_none_or(begun) && leaving.length <= REUSED_BYTES;
        if !wanted || self.damaged.contains(&leaving.number) {
            self.moves.leaving = Some(leaving);
            return Ok(());
        }
        let number = self.end.number + 1;
        let next = fresh(number, None).and_then(|header| {
            // Before it has its name, or it would be a file that is not what its name says.
            leaving.file.write_all_at(&header.to_bytes(), 0)?;
            leaving.file.sync_all()?;
            fs::rename(files::segment(&self.folder, leaving.number), files::segment(&self.folder, number))?;
            Ok(header)
        });
        self.ahead = None;
        match next {
            Ok(header) => {
                // From here on it is no file that is freed: the next one that is begun has the same name, and so the same
                // bytes.
                sync_names(&self.folder)?;
                self.ahead = Some((leaving.file, header));
                Ok(())
            }
            Err(error) => {
                self.moves.leaving = Some(leaving);
                Err(error)
            }
        }
    }
}

/// Somebody else may have removed it.
fn unless_gone(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Of a file that is moved on or removed, between two looks at what is published: less than a millisecond.
pub(super) const MOVED_AT_ONCE: usize = 256 << 10;
/// A longer file is not used again: a batch may have made it so, once.
const REUSED_BYTES: u64 = 2 * SEGMENT_BYTES;
/// So often between two looks, at most.
pub(super) const STEPS: u64 = 4;
/// What is owed beyond is done at once, whoever waits.
pub(super) const MOST_OWED: u64 = 2 * SEGMENT_BYTES;

#[cfg(test)]
mod tests {
    use fantail_proto::log::Durability;
    use proptest::prelude::*;

    use super::*;

    const HEADER: Header = Header { number: 1, salt: 99, cut: None };

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Bit by bit the same entries are found as in the whole file, whatever is damaged.
        #[test]
        fn a_bit_at_a_time_is_all(
            lengths in prop::collection::vec(0..700_usize, 0..30),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            behind in 0..100_usize,
        ) {
            let records: Vec<Vec<u8>> = lengths.iter().map(|length| vec![b'x'; *length]).collect();
            let mut bytes = HEADER.to_bytes().to_vec();
            for (position, record) in (1..).zip(&records) {
                let (realm, channel, promised) = ("default", "c", Durability::Synced);
                let entry = Entry { copied: false, promised, realm, channel, epoch: 1, position, at_ms: 0, record };
                Record::Entry(entry).append(HEADER.salt, &mut bytes);
            }
            for (at, by) in damage {
                let at = at.index(bytes.len());
                bytes[at] ^= if at < Header::BYTES { 0 } else { by };
            }
            let length = bytes.len();
            let whole: Vec<u64> = Pieces::new(&bytes, HEADER)
                .filter_map(|piece| match piece {
                    Piece::Record(Record::Entry(entry), _) => Some(entry.position),
                    _ => None,
                })
                .collect();
            bytes.resize(length + behind, b'x');
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            let mut moving = Moving::open(1, file, length as u64, 64).unwrap();
            let mut found = Vec::new();
            while !moving.is_done() {
                moving.fill().unwrap();
                let (entries, looked_at) = moving.entries();
                found.extend(entries.iter().map(|entry| entry.position));
                moving.go_on(looked_at);
            }
            prop_assert_eq!(found, whole);
        }
    }

    #[test]
    fn a_long_file_is_never_in_memory() {
        let mut bytes = HEADER.to_bytes().to_vec();
        for position in 0..1000 {
            let (realm, channel, promised, record) = ("default", "c", Durability::Synced, &[b'x'; 400]);
            let entry =
                Entry { copied: false, promised, realm, channel, epoch: 1, position, at_ms: 0, record };
            Record::Entry(entry).append(HEADER.salt, &mut bytes);
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let mut moving = Moving::open(1, file, bytes.len() as u64, 4096).unwrap();
        let mut steps = 0;
        while !moving.is_done() {
            moving.fill().unwrap();
            assert!(moving.window.len() <= 4096);
            let (_, looked_at) = moving.entries();
            moving.go_on(looked_at);
            steps += 1;
        }
        assert!(steps > bytes.len() / 4096);
    }
}
