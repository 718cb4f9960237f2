//! What was published on a channel, in the hub's order, as the judge of everybody else. Knows nothing of logs.

/// An item by its number: its id.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is true of an item, in any combination")]
pub(crate) struct Said {
    pub(crate) id: u64,
    /// Its publisher was told that it is kept as promised.
    pub(crate) acked: bool,
    /// The mark of the disk by which it was written.
    pub(crate) mark: usize,
    /// A subscriber has it.
    pub(crate) shown: bool,
    /// A crash took it, and was allowed to.
    pub(crate) gone: bool,
    /// The log has it, or has had it and let it go for newer ones.
    pub(crate) logged: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Shadow(pub Vec<Said>);

impl Shadow {
    pub(crate) fn push(&mut self, id: u64, acked: bool, mark: usize) {
        self.0.push(Said { id, acked, mark, shown: false, gone: false, logged: true });
    }

    pub(crate) fn end(&self) -> usize {
        self.0.len()
    }

    /// The item of this id that is not gone.
    pub(crate) fn find(&mut self, id: u64) -> Option<&mut Said> {
        self.0.iter_mut().rev().find(|said| said.id == id && !said.gone)
    }

    /// The place behind this item for one who has everything up to `from`.
    ///
    /// # Panics
    /// It is not what must come next.
    pub(crate) fn next(&self, from: usize, id: u64, who: &str) -> usize {
        let found = self.0[from..].iter().position(|said| said.id == id && !said.gone);
        let Some(found) = found.map(|at| at + from) else {
            panic!("{who} got {id}, which does not follow: repeated, too early, or nobody's");
        };
        self.must_be_empty(from, found, who);
        found + 1
    }

    /// As [`Self::next`], but for one who is not to get what came between.
    ///
    /// # Panics
    /// It does not come later.
    pub(crate) fn later(&self, from: usize, id: u64, who: &str) -> usize {
        let found = self.0[from..].iter().position(|said| said.id == id && !said.gone);
        found
            .map(|at| at + from + 1)
            .unwrap_or_else(|| panic!("{who} got {id}, which is older than what it has"))
    }

    /// Between two places there is nothing that a subscriber has to get.
    pub(crate) fn must_be_empty(&self, from: usize, to: usize, who: &str) {
        let missed: Vec<u64> =
            self.0[from..to].iter().filter(|said| !said.gone || said.acked).map(|said| said.id).collect();
        assert!(missed.is_empty(), "{who} was never given {missed:?}, nor told");
    }

    /// Items that are there behind a place: what an origin knows.
    pub(crate) fn behind(&self, from: usize) -> impl Iterator<Item = u64> {
        self.0[from..].iter().filter(|said| !said.gone).map(|said| said.id)
    }
}
