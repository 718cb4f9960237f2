//! Moving what is of use out of the oldest file, a bit at a time, so that the file can go.

use std::{fs, io};

use fantail_proto::{
    journal::{Entry, Header, Piece, Pieces, Record},
    log::Place,
};

use super::{SEGMENT_BYTES, Writer};
use crate::log::files;

/// The oldest file while what is of use in it is moved on.
pub(super) struct Moving {
    number: u64,
    file: Vec<u8>,
    header: Option<Header>,
    at: usize,
}

impl Writer {
    /// Does a bit of moving what is of use out of the oldest file, if it is time for that.
    pub(super) fn move_on(&mut self) -> io::Result<()> {
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
        let Some((number, bytes)) = self.segments.front() else { return Ok(None) };
        let used = self.end.written + self.segments.iter().map(|(_, bytes)| bytes).sum::<u64>();
        // Copying what is of use costs as much writing as it frees, at most.
        let due =
            used > 4 * SEGMENT_BYTES && used > 2 * self.rings.lock().bytes_on_disk() + 2 * SEGMENT_BYTES;
        if !due && self.damaged.is_empty() {
            return Ok(None);
        }
        let mut file = fs::read(files::segment(&self.folder, *number))?;
        // What is behind that does not count.
        file.truncate(usize::try_from(*bytes).unwrap_or(usize::MAX));
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

/// Of a file that is moved on, between two looks at what is published: a millisecond.
const MOVED_AT_ONCE: usize = 256 << 10;
