//! The files that logs on disk are made of: a header, then records that are only ever appended. Each record carries a
//! checksum with its file's salt, so that no content of an item can pass for a record. Reading finds every record that is whole, and says
//! what of the file is none. Knows no disk: bytes in, values out.

use std::ops::Range;

use memchr::memmem;

use crate::log::Durability;

/// The beginning of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// Files are read in the order of their numbers.
    pub number: u64,
    /// Random: nobody who publishes knows it.
    pub salt: u64,
    /// So many bytes of the file before it count, because the disk did not take the rest. `None`: all of them, and it ends
    /// with [`Record::Seal`].
    pub cut: Option<u32>,
}

/// What is known of the end of the last file, kept apart from it: a file that is cut short does not show it itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Head {
    /// Of the last file.
    pub number: u64,
    /// Of the first file.
    pub first: u64,
    /// Bytes that the operating system has taken.
    pub written: u64,
    /// Bytes that the disk has taken.
    pub synced: u64,
    /// The machine's run in which this was written.
    pub boot: u128,
    /// Nothing was on its way.
    pub closed: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Record<'r> {
    Entry(Entry<'r>),
    /// Nothing proves any more what came behind the entries of this log up to this epoch.
    Forget {
        realm: &'r str,
        channel: &'r str,
        epoch: u64,
    },
    /// The last of a file, when there is another.
    Seal,
}

/// An item in the log of its channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry<'r> {
    /// It was moved here from an older file: entries behind it in its log may stand before it.
    pub copied: bool,
    /// What publishers on this channel were promised, at least.
    pub promised: Durability,
    pub realm: &'r str,
    pub channel: &'r str,
    pub epoch: u64,
    pub position: u64,
    /// In Unix milliseconds.
    pub at_ms: u64,
    pub record: &'r [u8],
}

/// A piece of a file, and where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece<'r> {
    Record(Record<'r>, Range<usize>),
    /// No record, but there are records behind it or it is the end.
    Damage(Range<usize>),
}

impl Header {
    pub const BYTES: usize = 32;

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(HEADER_MAGIC);
        out[8..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..24].copy_from_slice(&self.salt.to_le_bytes());
        out[24..28].copy_from_slice(&self.cut.unwrap_or(UNCUT).to_le_bytes());
        let sum = crc32fast::hash(&out[..28]);
        out[28..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Self::BYTES)?;
        let good = bytes.starts_with(HEADER_MAGIC) && u32_at(bytes, 28)? == crc32fast::hash(&bytes[..28]);
        let cut = Some(u32_at(bytes, 24)?).filter(|cut| *cut != UNCUT);
        good.then_some(Self { number: u64_at(bytes, 8)?, salt: u64_at(bytes, 16)?, cut })
    }
}

impl Head {
    pub const BYTES: usize = 64;

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(HEAD_MAGIC);
        out[8..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..24].copy_from_slice(&self.first.to_le_bytes());
        out[24..32].copy_from_slice(&self.written.to_le_bytes());
        out[32..40].copy_from_slice(&self.synced.to_le_bytes());
        out[40..56].copy_from_slice(&self.boot.to_le_bytes());
        out[56] = u8::from(self.closed);
        let sum = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        if !bytes.starts_with(HEAD_MAGIC) || u32_at(bytes, 60)? != crc32fast::hash(&bytes[..60]) {
            return None;
        }
        Some(Self {
            number: u64_at(bytes, 8)?,
            first: u64_at(bytes, 16)?,
            written: u64_at(bytes, 24)?,
            synced: u64_at(bytes, 32)?,
            boot: u128::from_le_bytes(bytes[40..56].try_into().ok()?),
            closed: bytes[56] != 0,
        })
    }
}

impl Record<'_> {
    /// Appends the record to `out`. Names longer than 64 KB are cut, which no configuration allows.
    pub fn append(&self, salt: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(RECORD_MAGIC);
        out.extend_from_slice(&[0; 8]);
        match self {
            Self::Entry(entry) => {
                out.push(if entry.copied { COPIED } else { ENTRY });
                names(entry.realm, entry.channel, out);
                out.push(entry.promised as u8);
                for number in [entry.epoch, entry.position, entry.at_ms] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.extend_from_slice(entry.record);
            }
            Self::Forget { realm, channel, epoch } => {
                out.push(FORGET);
                names(realm, channel, out);
                out.extend_from_slice(&epoch.to_le_bytes());
            }
            Self::Seal => out.push(SEAL),
        }
        let length = u32::try_from(out.len() - start - FRAME).unwrap_or(u32::MAX).to_le_bytes();
        out[start + 4..start + 8].copy_from_slice(&length);
        let sum = sum(salt, length, &out[start + FRAME..]).to_le_bytes();
        out[start + 8..start + FRAME].copy_from_slice(&sum);
    }

    fn parse(payload: &[u8]) -> Option<Record<'_>> {
        let (kind, rest) = payload.split_first()?;
        if *kind == SEAL {
            return rest.is_empty().then_some(Record::Seal);
        }
        let (realm, rest) = name(rest)?;
        let (channel, rest) = name(rest)?;
        match *kind {
            FORGET => (rest.len() == 8).then_some(Record::Forget { realm, channel, epoch: u64_at(rest, 0)? }),
            ENTRY | COPIED => Some(Record::Entry(Entry {
                copied: *kind == COPIED,
                promised: *Durability::ALL.get(usize::from(*rest.first()?))?,
                realm,
                channel,
                epoch: u64_at(rest, 1)?,
                position: u64_at(rest, 9)?,
                at_ms: u64_at(rest, 17)?,
                record: rest.get(25..)?,
            })),
            _ => None,
        }
    }
}

/// The pieces of a file behind its header, in order.
#[derive(Clone, Debug)]
pub struct Pieces<'r> {
    file: &'r [u8],
    at: usize,
    salt: u64,
    /// Bytes that may still be looked at behind damage: what items say may look like the beginnings of many long records.
    patience: usize,
}

impl<'r> Pieces<'r> {
    /// `file` begins with its header.
    pub fn new(file: &'r [u8], header: Header) -> Self {
        Self::from(file, header, Header::BYTES)
    }

    /// Begins at a piece that was found before.
    pub fn from(file: &'r [u8], header: Header, at: usize) -> Self {
        let patience = file.len().saturating_mul(PATIENCE);
        Self { file, at: at.min(file.len()), salt: header.salt, patience }
    }

    /// Bytes to look at to know whether a record begins here.
    fn claimed(&self, at: usize) -> usize {
        let length = self.file.get(at + 4..at + 8).and_then(|length| u32_at(length, 0)).unwrap_or(0);
        let left = self.file.len().saturating_sub(at + FRAME);
        FRAME + usize::try_from(length).ok().filter(|length| *length <= left).unwrap_or(0)
    }

    /// The record that begins here, and where it ends.
    fn record(&self, at: usize) -> Option<(Record<'r>, usize)> {
        let frame = self.file.get(at..at + FRAME)?;
        if !frame.starts_with(RECORD_MAGIC) {
            return None;
        }
        let length = usize::try_from(u32_at(frame, 4)?).ok()?;
        let end = at.checked_add(FRAME)?.checked_add(length)?;
        let payload = self.file.get(at + FRAME..end)?;
        let good = sum(self.salt, frame[4..8].try_into().ok()?, payload) == u32_at(frame, 8)?;
        Some((Record::parse(payload).filter(|_| good)?, end))
    }
}

impl<'r> Iterator for Pieces<'r> {
    type Item = Piece<'r>;

    fn next(&mut self) -> Option<Piece<'r>> {
        let start = self.at;
        if start >= self.file.len() {
            return None;
        }
        if let Some((record, end)) = self.record(start) {
            self.at = end;
            return Some(Piece::Record(record, start..end));
        }
        let behind = self.file.get(start + 1..).unwrap_or_default();
        self.at = self.file.len();
        for at in memmem::find_iter(behind, RECORD_MAGIC).map(|found| start + 1 + found) {
            self.patience = match self.patience.checked_sub(self.claimed(at)) {
                Some(left) => left,
                None => break,
            };
            if self.record(at).is_some() {
                self.at = at;
                break;
            }
        }
        Some(Piece::Damage(start..self.at))
    }
}

fn names(realm: &str, channel: &str, out: &mut Vec<u8>) {
    for name in [realm, channel] {
        let bytes = name.as_bytes();
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&bytes[..usize::from(length)]);
    }
}

fn name(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let length = usize::from(u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?));
    let (name, rest) = bytes[2..].split_at_checked(length)?;
    Some((str::from_utf8(name).ok()?, rest))
}

fn sum(salt: u64, length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

const HEADER_MAGIC: &[u8; 8] = b"fantailJ";
const HEAD_MAGIC: &[u8; 8] = b"fantailH";
const UNCUT: u32 = u32::MAX;
const RECORD_MAGIC: &[u8; 4] = b"\xf4\x1b\x91\xe5";
/// Magic, length, checksum.
const FRAME: usize = 12;
/// Times that as much as a file has is looked at behind its damages together: then the rest of it counts as damaged.
const PATIENCE: usize = 64;
const ENTRY: u8 = 1;
const COPIED: u8 = 2;
const FORGET: u8 = 3;
const SEAL: u8 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: Header = Header { number: 3, salt: 0x0123_4567_89ab_cdef, cut: Some(99) };

    fn entry(position: u64, record: &[u8]) -> Record<'_> {
        let (realm, channel) = ("default", "c");
        let promised = Durability::Synced;
        Record::Entry(Entry { copied: false, promised, realm, channel, epoch: 9, position, at_ms: 5, record })
    }

    fn file(records: &[Record<'_>]) -> Vec<u8> {
        let mut file = HEADER.to_bytes().to_vec();
        records.iter().for_each(|record| record.append(HEADER.salt, &mut file));
        file
    }

    fn read(file: &[u8]) -> Vec<Piece<'_>> {
        Pieces::new(file, HEADER).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let forget = Record::Forget { realm: "r", channel: "", epoch: u64::MAX };
        let written = [entry(1, b"one"), forget, entry(2, b""), Record::Seal];
        let file = file(&written);
        assert_eq!(Header::parse(&file), Some(HEADER));
        let uncut = Header { cut: None, ..HEADER };
        assert_eq!(Header::parse(&uncut.to_bytes()), Some(uncut));
        let read: Vec<_> = read(&file)
            .into_iter()
            .map(|piece| match piece {
                Piece::Record(record, _) => record,
                Piece::Damage(range) => panic!("{range:?}"),
            })
            .collect();
        assert_eq!(read, written);
        let head = Head { number: 3, first: 2, written: 9, synced: 7, boot: 11, closed: true };
        assert_eq!(Head::parse(&head.to_bytes()), Some(head));
    }

    /// An item that says the beginnings of long records, and is damaged, is searched for so long and no longer.
    #[test]
    fn a_search_behind_damage_ends() {
        for (beginnings, found) in [(10, true), (20_000, false)] {
            let length = u32::try_from(beginnings * FRAME / 2).unwrap();
            let beginning = [&RECORD_MAGIC[..], &length.to_le_bytes(), &[0; 4]].concat();
            let mut file = file(&[entry(1, &beginning.repeat(beginnings)), entry(2, b"good")]);
            file[Header::BYTES + FRAME + 1] ^= 1;
            let pieces = read(&file);
            let good =
                matches!(pieces.last(), Some(Piece::Record(Record::Entry(last), _)) if last.position == 2);
            assert_eq!(good, found, "{beginnings}");
            assert!(matches!(pieces.first(), Some(Piece::Damage(_))));
        }
    }

    /// A publisher that writes records into its items does not get them read when the item around them is damaged.
    #[test]
    fn a_record_inside_an_item_is_none() {
        let mut inner = Vec::new();
        entry(7, b"forged").append(HEADER.salt ^ 1, &mut inner);
        let mut file = file(&[entry(1, &inner), entry(2, b"x")]);
        file[Header::BYTES + FRAME + 1] ^= 1;
        let pieces = read(&file);
        assert!(
            matches!(&pieces[..], [Piece::Damage(_), Piece::Record(Record::Entry(e), _)] if e.position == 2)
        );
    }

    fn records(contents: &[Vec<u8>]) -> Vec<Record<'_>> {
        contents.iter().enumerate().map(|(n, content)| entry(n as u64, content)).collect()
    }

    proptest! {
        /// A flipped bit costs the record that it is in, and nothing that is read was not written.
        #[test]
        fn a_flipped_bit_costs_one_record(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..12),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let written = records(&contents);
            let mut file = file(&written);
            let place = Header::BYTES + at.index(file.len() - Header::BYTES);
            file[place] ^= 1 << bit;
            let pieces = read(&file);
            let good = pieces.iter().filter_map(|piece| match piece {
                Piece::Record(record, _) => Some(*record),
                Piece::Damage(_) => None,
            });
            let good: Vec<_> = good.collect();
            prop_assert_eq!(good.len(), written.len() - 1);
            prop_assert!(good.iter().all(|record| written.contains(record)));
            prop_assert!(pieces.iter().any(|piece| matches!(piece, Piece::Damage(range) if range.contains(&place))));
        }

        /// A file that was cut has the records that are whole, and damage only where one is not.
        #[test]
        fn a_cut_file_has_what_is_whole(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..12),
            at in any::<prop::sample::Index>(),
        ) {
            let written = records(&contents);
            let mut file = file(&written);
            file.truncate(Header::BYTES + at.index(file.len() - Header::BYTES));
            let pieces = read(&file);
            for (piece, written) in pieces.iter().zip(&written) {
                match piece {
                    Piece::Record(record, _) => prop_assert_eq!(record, written),
                    Piece::Damage(range) => prop_assert_eq!(range.end, file.len()),
                }
            }
        }

        #[test]
        fn garbage_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(read(&bytes));
            let _ = (Header::parse(&bytes), Head::parse(&bytes));
        }

        #[test]
        fn no_bit_of_header_and_head_may_change(at in 0..8 * Head::BYTES) {
            let mut head = Head { number: 3, first: 2, written: 9, synced: 7, boot: 11, closed: true }.to_bytes();
            head[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(Head::parse(&head), None);
            let mut header = HEADER.to_bytes();
            let at = at % (8 * Header::BYTES);
            header[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(Header::parse(&header), None);
        }
    }
}
