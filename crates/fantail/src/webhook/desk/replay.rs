//! From the dead letters back into the queue, as far as there is room.

use tokio::sync::oneshot;

use super::{Desk, WRITING, lost};
use crate::webhook::{
    Replayed, Trouble,
    book::{Change, Page},
    endpoint::Id,
};

/// Who is told what was replayed.
pub(super) type Done = oneshot::Sender<Result<Replayed, Trouble>>;

impl Desk {
    /// Puts dead letters back into the queue, as many as there is room for. With room for none, none is read.
    pub(super) fn replay(
        &mut self,
        id: Id,
        one: Option<u64>,
        since: u64,
        done: Done,
    ) -> Result<(), redb::Error> {
        if self.writing >= 2 * WRITING || !self.has_room(id, 0) {
            _ = done.send(Err(Trouble::NoRoom));
            return Ok(());
        }
        let page = Page::open(&self.store).map_err(lost)?;
        let most = if one.is_some() { 1 } else { usize::MAX };
        let dead = page.dead(id, one.unwrap_or(0), most)?;
        let ordered = page.endpoint(id)?.is_some_and(|endpoint| endpoint.ordered);
        let (mut changes, mut to) = (Vec::new(), Vec::new());
        let mut outcome = Replayed::default();
        for (number, death, letter) in dead {
            if one.is_some_and(|one| one != number) || death.at < since {
                continue;
            }
            if !self.has_room(id, letter.bytes) {
                outcome.left += 1;
                continue;
            }
            let seq = self.number();
            self.letters.expect(seq, id.realm());
            self.letters.weigh(seq, letter.bytes);
            self.lines.reserve(id, ordered, letter.bytes);
            changes.push(Change::Replay { id, dead: number, seq, due: self.clock.unix_ms() });
            to.push((seq, vec![id]));
            outcome.replayed += 1;
        }
        // A commit for nothing would delay all others.
        if changes.is_empty() {
            _ = done.send(Ok(outcome));
            return Ok(());
        }
        self.write(changes, (to, None), move |result| {
            drop(done.send(result.map(|()| outcome).map_err(Trouble::from)));
        });
        Ok(())
    }

    fn has_room(&self, id: Id, bytes: usize) -> bool {
        self.lines.endpoint_has_room(id, bytes)
            && self.lines.realm_has_room(id.realm(), 1)
            && self.letters.has_room(id.realm(), bytes)
    }
}
