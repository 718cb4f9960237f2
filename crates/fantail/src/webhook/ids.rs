//! Ids of items whose webhooks are on disk: who repeats one after the end of a process is answered, and nobody is sent it
//! again. Owns those of the last process, as long as they count, and how many of this one's are on disk; which these are, the
//! hub knows.

use std::collections::VecDeque;

use aws_lc_rs::digest::{SHA256, digest};
use hashbrown::HashMap;

use super::book::{Change, Salt};
use crate::hub::INEXACT_MS;

/// How many digests are in one row, and until when it counts, in milliseconds since the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    number: u64,
    until: u64,
    digests: usize,
}

#[derive(Debug)]
pub(super) struct Ids {
    salt: Salt,
    /// `hub.id_ttl`: a publisher's id is not another item's for so long. And what the hub may know one from a log for after
    /// that.
    window: u64,
    /// `hub.ids`: so many are remembered.
    most: usize,
    /// Of the last process: until when each counts.
    before: HashMap<u128, u64>,
    /// On disk, oldest first.
    rows: VecDeque<Row>,
    /// Digests in them.
    all: usize,
    /// Rows before that are over. Others than those in `rows` may be on their way to the disk.
    first: u64,
}

impl Ids {
    pub(super) fn new(salt: Salt, ttl: u64, most: usize) -> Self {
        let window = if ttl > 0 { ttl.saturating_add(INEXACT_MS) } else { 0 };
        Self { salt, window, most, before: HashMap::new(), rows: VecDeque::new(), all: 0, first: 0 }
    }

    /// The rows of the last process, the oldest first, with their ages in milliseconds.
    pub(super) fn restore(&mut self, rows: Vec<(u64, u64, Vec<u128>)>) {
        for (number, age, digests) in &rows {
            let until = self.window.saturating_sub(*age);
            self.push(Row { number: *number, until, digests: digests.len() });
        }
        let first = self.rows.front().map_or(u64::MAX, |row| row.number);
        for (_, age, digests) in rows.into_iter().filter(|(number, ..)| *number >= first) {
            let until = self.window.saturating_sub(age);
            self.before.extend(digests.into_iter().filter(|_| until > 0).map(|digest| (digest, until)));
        }
    }

    /// `None`: it is not remembered.
    pub(super) fn digest(&self, realm: u32, channel: &str, id: Option<&str>) -> Option<u128> {
        let id = id.filter(|_| self.window > 0 && self.most > 0)?;
        let length = u64::try_from(channel.len()).unwrap_or(u64::MAX);
        let head = [&self.salt.0.to_be_bytes()[..], &realm.to_be_bytes(), &length.to_be_bytes()].concat();
        let bytes = digest(&SHA256, &[&head, channel.as_bytes(), id.as_bytes()].concat());
        bytes.as_ref().first_chunk().copied().map(u128::from_be_bytes)
    }

    /// Whether the last process has written the webhooks of the item. `inherited`: the hub knows its id from a log, and would
    /// call it a repeat for a moment longer than its time is.
    pub(super) fn had(&self, digest: u128, inherited: bool, now: u64) -> bool {
        let now = if inherited { now } else { now.saturating_add(INEXACT_MS) };
        !self.before.is_empty() && self.before.get(&digest).is_some_and(|until| now < *until)
    }

    /// What is to be written with the webhooks of these, and what is to be counted when that is on disk. `unix_ms` and `now`
    /// are the same moment.
    pub(super) fn note(
        &mut self,
        number: u64,
        digests: Vec<u128>,
        (unix_ms, now): (u64, u64),
    ) -> Option<(Change, Row)> {
        if digests.is_empty() {
            return None;
        }
        while self.rows.front().is_some_and(|row| row.until <= now) {
            self.pop();
        }
        let first = self.first;
        let row = Row { number, until: now.saturating_add(self.window), digests: digests.len() };
        Some((Change::Ids { number, at: unix_ms, digests, first }, row))
    }

    /// Memory is given back when nothing of the last process counts any more.
    pub(super) fn expire(&mut self, now: u64) {
        if !self.before.is_empty() && now >= self.window {
            self.before = HashMap::new();
        }
    }

    /// A row is on disk. The newest stays, whatever it holds; what has to go is removed with the next that is written.
    pub(super) fn push(&mut self, row: Row) {
        self.all += row.digests;
        self.rows.push_back(row);
        while self.all > self.most && self.rows.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) {
        let Some(row) = self.rows.pop_front() else { return };
        self.all -= row.digests;
        self.first = self.rows.front().map_or(row.number + 1, |next| next.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ttl: u64, most: usize) -> Ids {
        Ids::new(Salt(7), ttl, most)
    }

    #[test]
    fn the_last_process_is_remembered_as_long_as_ids_are() {
        let mut ids = ids(1000, 10);
        let much = 1000 + INEXACT_MS;
        ids.restore(vec![(1, much, vec![1]), (2, 400, vec![2, 3]), (5, 0, vec![4])]);
        let had = |ids: &Ids, now| [1, 2, 3, 4].map(|digest| ids.had(digest, false, now));
        assert_eq!(had(&ids, 0), [false, true, true, true]);
        assert_eq!(had(&ids, 599), [false, true, true, true]);
        assert_eq!(had(&ids, 600), [false, false, false, true]);
        assert!(ids.had(4, false, 999) && !ids.had(4, false, 1000));
        ids.expire(much - 1);
        assert!(ids.had(4, true, much - 1) && !ids.had(4, true, much), "the hub may still know it");
        ids.expire(much);
        assert!(ids.before.is_empty());
    }

    #[test]
    fn rows_go_when_they_are_old_or_too_many() {
        let mut ids = ids(1000, 5);
        ids.restore(vec![(1, 0, vec![1, 2]), (2, 0, vec![3, 4]), (3, 0, vec![5, 6])]);
        assert_eq!([1, 3, 5].map(|digest| ids.had(digest, false, 0)), [false, true, true], "the newest");
        let mut write = |number, digests, now, good| {
            let (change, row) = ids.note(number, digests, (0, now))?;
            if good {
                ids.push(row);
            }
            let Change::Ids { first, number, .. } = change else { panic!("{change:?}") };
            Some((number, first, ids.all, ids.rows.len()))
        };
        assert_eq!(write(4, vec![7; 5], 10, false), Some((4, 2, 4, 2)), "what is not on disk takes no room");
        assert_eq!(write(5, vec![7], 10, true), Some((5, 2, 5, 3)));
        assert_eq!(write(6, vec![8], 10, true), Some((6, 2, 4, 3)), "one row had to go,");
        assert_eq!(write(7, vec![9], 1005 + INEXACT_MS, true), Some((7, 5, 3, 3)), "and others are old");
        assert_eq!(write(8, vec![0; 9], 1005 + INEXACT_MS, true), Some((8, 5, 9, 1)), "one is always there");
        assert_eq!(write(9, Vec::new(), 1005 + INEXACT_MS, true), None);
        assert_eq!(write(10, vec![1], 1005 + INEXACT_MS, true), Some((10, 8, 1, 1)));
    }

    /// They are written together, or one after the other.
    #[test]
    fn what_is_on_its_way_to_the_disk_stays() {
        let mut ids = ids(1000, 5);
        let first = |ids: &mut Ids, number, now| match ids.note(number, vec![1], (0, now)) {
            Some((Change::Ids { first, .. }, row)) => (first, row),
            other => panic!("{other:?}"),
        };
        let rows = [1, 2].map(|number| first(&mut ids, number, 0));
        assert!(rows.iter().all(|(first, _)| *first <= 1));
        rows.into_iter().for_each(|(_, row)| ids.push(row));
        let later = 1000 + INEXACT_MS;
        let (over, row) = first(&mut ids, 3, later);
        assert_eq!((over, first(&mut ids, 4, later).0), (3, 3));
        ids.push(row);
        assert_eq!(first(&mut ids, 5, later).0, 3);
    }

    #[test]
    fn digests_tell_all_apart() {
        let one = ids(1, 1);
        let digest = |realm, channel, id| one.digest(realm, channel, Some(id));
        let all = [digest(0, "ab", "c"), digest(0, "a", "bc"), digest(1, "ab", "c"), digest(0, "ab", "d")];
        let different: std::collections::HashSet<_> = all.into_iter().flatten().collect();
        assert_eq!((different.len(), digest(0, "ab", "c")), (4, all[0]));
        assert_eq!(one.digest(0, "c", None), None);
        assert!([ids(0, 9), ids(9, 0)].iter().all(|ids| ids.digest(0, "c", Some("1")).is_none()));
    }
}
