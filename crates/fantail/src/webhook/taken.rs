//! Items whose webhooks are on disk, by their ids: who repeats one after the end of a process is answered, and nobody is sent
//! it again. Owns what the last process has taken, as long as it counts, and how much of this one's is on disk; what this
//! process has taken, the hub knows.

use std::collections::VecDeque;

use aws_lc_rs::digest::{SHA256, digest};
use hashbrown::HashMap;

use super::book::{Change, Salt};

/// Digests of one row, and until when it counts, in milliseconds since the start.
#[derive(Clone, Copy, Debug)]
struct Row {
    number: u64,
    until: u64,
    digests: usize,
}

#[derive(Debug)]
pub(super) struct Taken {
    salt: Salt,
    /// `hub.id_ttl`: a publisher's id is not another item's for so long.
    window: u64,
    /// `hub.ids`: so many are remembered.
    most: usize,
    /// Of the last process: until when each counts.
    before: HashMap<u128, u64>,
    /// On disk, oldest first.
    rows: VecDeque<Row>,
    /// Digests in them.
    all: usize,
}

impl Taken {
    pub(super) fn new(salt: Salt, window: u64, most: usize) -> Self {
        Self { salt, window, most, before: HashMap::new(), rows: VecDeque::new(), all: 0 }
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

    /// Whether the last process has taken it.
    pub(super) fn had(&self, digest: u128, now: u64) -> bool {
        !self.before.is_empty() && self.before.get(&digest).is_some_and(|until| now < *until)
    }

    /// What is to be written with the webhooks of these. `unix_ms` and `now` are the same moment.
    pub(super) fn note(
        &mut self,
        number: u64,
        digests: Vec<u128>,
        (unix_ms, now): (u64, u64),
    ) -> Option<Change> {
        if digests.is_empty() {
            return None;
        }
        self.push(Row { number, until: now.saturating_add(self.window), digests: digests.len() });
        while self.rows.front().is_some_and(|row| row.until <= now) {
            self.pop();
        }
        let first = self.rows.front().map_or(number, |row| row.number);
        Some(Change::Taken { number, at: unix_ms, digests, first })
    }

    /// Memory is given back when nothing of the last process counts any more.
    pub(super) fn expire(&mut self, now: u64) {
        if !self.before.is_empty() && now >= self.window {
            self.before = HashMap::new();
        }
    }

    /// The newest stays, whatever it holds.
    fn push(&mut self, row: Row) {
        self.all += row.digests;
        self.rows.push_back(row);
        while self.all > self.most && self.rows.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) {
        self.all -= self.rows.pop_front().map_or(0, |row| row.digests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(window: u64, most: usize) -> Taken {
        Taken::new(Salt(7), window, most)
    }

    #[test]
    fn the_last_process_is_remembered_as_long_as_ids_are() {
        let mut taken = taken(1000, 10);
        taken.restore(vec![(1, 1000, vec![1]), (2, 400, vec![2, 3]), (5, 0, vec![4])]);
        let had = |taken: &Taken, now| [1, 2, 3, 4].map(|digest| taken.had(digest, now));
        assert_eq!(had(&taken, 0), [false, true, true, true]);
        assert_eq!(had(&taken, 599), [false, true, true, true]);
        assert_eq!(had(&taken, 600), [false, false, false, true]);
        taken.expire(999);
        assert!(taken.had(4, 999) && !taken.had(4, 1000));
        taken.expire(1000);
        assert!(taken.before.is_empty());
    }

    #[test]
    fn rows_go_when_they_are_old_or_too_many() {
        let mut taken = taken(1000, 5);
        taken.restore(vec![(1, 0, vec![1, 2]), (2, 0, vec![3, 4]), (3, 0, vec![5, 6])]);
        assert_eq!([1, 3, 5].map(|digest| taken.had(digest, 0)), [false, true, true], "the newest");
        let first = |change: Option<Change>| match change {
            Some(Change::Taken { first, number, .. }) => (number, first),
            other => panic!("{other:?}"),
        };
        assert_eq!(first(taken.note(4, vec![7], (0, 10))), (4, 2));
        assert_eq!(first(taken.note(5, vec![8], (0, 10))), (5, 3));
        assert_eq!(first(taken.note(6, vec![9], (0, 1005))), (6, 4));
        assert_eq!(first(taken.note(7, vec![0; 9], (0, 1005))), (7, 7), "one row is always there");
        assert!(taken.note(8, Vec::new(), (0, 1005)).is_none());
        assert_eq!((taken.all, taken.rows.len()), (9, 1));
    }

    #[test]
    fn digests_tell_all_apart() {
        let one = taken(1, 1);
        let digest = |realm, channel, id| one.digest(realm, channel, Some(id));
        let all = [digest(0, "ab", "c"), digest(0, "a", "bc"), digest(1, "ab", "c"), digest(0, "ab", "d")];
        let different: std::collections::HashSet<_> = all.into_iter().flatten().collect();
        assert_eq!((different.len(), digest(0, "ab", "c")), (4, all[0]));
        assert_eq!(one.digest(0, "c", None), None);
        assert!([taken(0, 9), taken(9, 0)].iter().all(|taken| taken.digest(0, "c", Some("1")).is_none()));
    }
}
