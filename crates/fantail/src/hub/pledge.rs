//! What must have happened to the items of a publish before its publisher is answered: everybody who keeps them on
//! disk has done so. Owns the count of those who have not, and the first failure.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::AcqRel},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The hub's side, in every delivery of a publish that is kept by somebody.
#[derive(Debug)]
pub(super) struct Pledge {
    /// Keepers that have not said anything yet, and the hub itself while it counts them.
    open: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Open {
        answer: oneshot::Sender<Result<(), Broken>>,
        /// Of publishers who have repeated an item of it meanwhile.
        others: Vec<Promise>,
    },
    Kept,
    Broken,
}

/// The publisher's side.
#[derive(Debug)]
pub struct Kept(pub(super) oneshot::Receiver<Result<(), Broken>>);

/// An item could not be kept as its publisher was promised; it may have been delivered all the same.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub Arc<str>);

impl Pledge {
    pub(super) fn new() -> (Arc<Self>, Kept) {
        let (sender, receiver) = oneshot::channel();
        let state = State::Open { answer: sender, others: Vec::new() };
        (Arc::new(Self { open: AtomicUsize::new(1), state: Mutex::new(state) }), Kept(receiver))
    }

    /// One more will keep an item.
    pub(super) fn expect(&self) {
        self.open.fetch_add(1, AcqRel);
    }

    /// One of them has, or cannot: the first failure is the answer.
    pub(super) fn settle(&self, outcome: Result<(), Broken>) {
        let last = self.open.fetch_sub(1, AcqRel) == 1;
        if outcome.is_ok() && !last {
            return;
        }
        let before = {
            let mut state = self.state.lock();
            if !matches!(*state, State::Open { .. }) {
                return;
            }
            std::mem::replace(&mut *state, if outcome.is_ok() { State::Kept } else { State::Broken })
        };
        if let State::Open { answer, others } = before {
            others.into_iter().for_each(|other| other.settle(outcome.clone()));
            // The publisher may have gone.
            _ = answer.send(outcome);
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        matches!(*self.state.lock(), State::Kept)
    }

    /// Another publisher's promise ends as this pledge does. It comes back if this one is broken already.
    pub(super) fn include(&self, promise: Promise) -> Option<Promise> {
        match &mut *self.state.lock() {
            State::Broken => return Some(promise),
            State::Kept => {}
            State::Open { others, .. } if others.len() < MAX_OTHERS => {
                others.push(promise);
                return None;
            }
            State::Open { .. } => {
                promise.settle(Err(Broken("too many wait for this item".into())));
                return None;
            }
        }
        None
    }
}

/// For an item that its keepers get later: its publisher waits for them, or until it is known that there are none.
#[derive(Debug)]
pub(super) struct Promise(Arc<Pledge>);

impl Promise {
    pub(super) fn of(pledge: &Arc<Pledge>) -> Self {
        pledge.expect();
        Self(Arc::clone(pledge))
    }

    /// So many keepers get the item now.
    pub(super) fn pass_on(&self, keepers: usize) -> Option<Arc<Pledge>> {
        (0..keepers).for_each(|_| self.0.expect());
        (keepers > 0).then(|| Arc::clone(&self.0))
    }

    /// Another one for the same publisher.
    pub(super) fn again(&self) -> Self {
        Self::of(&self.0)
    }

    /// It was kept by the log, or could not be.
    pub(super) fn settle(self, outcome: Result<(), Broken>) {
        if outcome.is_err() {
            self.0.expect();
            self.0.settle(outcome);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.settle(Ok(()));
    }
}

impl Kept {
    /// Of what it is known at once that it is not kept.
    pub(super) fn broken(why: &str) -> Self {
        let (answer, kept) = oneshot::channel();
        _ = answer.send(Err(Broken(why.into())));
        Self(kept)
    }

    /// Resolves when everybody has kept everything.
    ///
    /// # Errors
    /// Somebody could not, or the process stops.
    pub async fn wait(self) -> Result<(), Broken> {
        self.0.await.unwrap_or_else(|_| Err(Broken("The server is stopping.".into())))
    }
}

/// Publishers that wait for one pledge besides its own.
const MAX_OTHERS: usize = 64;
