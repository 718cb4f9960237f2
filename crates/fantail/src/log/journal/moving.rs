//! Moving what is of use out of the oldest file, and removing that, a bit at a time. Never has more of it in memory than
//! a bit, and never keeps what is published waiting for longer than one takes.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use fantail_proto::{
    journal::{Entry, Header, Piece, Pieces, Record},
    log::Place,
};

use super::{SEGMENT_BYTES, Writer};
use crate::log::files;

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
            match self.file.read_at(&mut self.window[filled..], self.at + filled as u64)? {
                0 => {
                    self.window.truncate(filled);
                    self.length = self.at + filled as u64;
                }
                read => filled += read,
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
    path: PathBuf,
    file: File,
    length: u64,
}

impl Leaving {
    /// `None`: it is gone.
    fn shrink(mut self) -> io::Result<Option<Self>> {
        self.length = self.length.saturating_sub(MOVED_AT_ONCE as u64);
        if self.length == 0 {
            fs::remove_file(&self.path)?;
            return Ok(None);
        }
        self.file.set_len(self.length)?;
        Ok(Some(self))
    }
}

impl Writer {
    /// Does some of moving what is of use out of the oldest files, and of removing them, if it is time for that: more than was
    /// written just now, so that files do not grow faster than they go, and a bit.
    pub(super) fn move_on(&mut self, written: u64) -> io::Result<()> {
        // Each byte is read once and freed once.
        let mut owed = written.saturating_mul(3);
        loop {
            let done = if let Some(leaving) = self.leaving.take() {
                self.leaving = leaving.shrink()?;
                MOVED_AT_ONCE as u64
            } else if let Some(moving) =
                self.moving.take().map_or_else(|| self.next_moving(), |m| Ok(Some(m)))?
            {
                self.copy_some(moving)?
            } else {
                break;
            };
            if done >= owed {
                break;
            }
            owed -= done;
        }
        Ok(())
    }

    /// The oldest file, if enough of all is of no use any more.
    fn next_moving(&mut self) -> io::Result<Option<Moving>> {
        let Some((number, bytes)) = self.segments.front().copied() else { return Ok(None) };
        let used = self.end.written + self.segments.iter().map(|(_, bytes)| bytes).sum::<u64>();
        // Copying what is of use costs as much writing as it frees, at most.
        let due =
            used > 4 * SEGMENT_BYTES && used > 2 * self.rings.lock().bytes_on_disk() + 2 * SEGMENT_BYTES;
        if !due && self.damaged.is_empty() {
            return Ok(None);
        }
        let file = OpenOptions::new().read(true).write(true).open(files::segment(&self.folder, number))?;
        Moving::open(number, file, bytes, MOVED_AT_ONCE).map(Some)
    }

    /// Returns how much was looked at.
    fn copy_some(&mut self, mut moving: Moving) -> io::Result<u64> {
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
        if moving.is_done() {
            self.let_go(moving)?;
        } else {
            self.moving = Some(moving);
        }
        Ok(looked_at as u64)
    }

    /// The oldest file goes: what was of use in it is elsewhere.
    fn let_go(&mut self, moving: Moving) -> io::Result<()> {
        let Moving { number, file, length, .. } = moving;
        self.sync()?;
        self.segments.pop_front();
        self.end.first = self.segments.front().map_or(self.end.number, |(number, _)| *number);
        self.note_end()?;
        self.head.sync_data()?;
        let path = files::segment(&self.folder, number);
        if self.damaged.contains(&number) {
            let aside = files::aside(&self.folder, number);
            fs::rename(&path, &aside)?;
            tracing::error!(file = %aside.display(), "a damaged file of logs was set aside");
            self.damaged.retain(|damaged| *damaged != number);
        } else {
            // Its number is below the first that counts: wherever this ends, the next start removes it.
            self.leaving = Leaving { path, file, length }.shrink()?;
        }
        Ok(())
    }
}

/// Of a file that is moved on or removed, between two looks at what is published: less than a millisecond.
const MOVED_AT_ONCE: usize = 256 << 10;

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
