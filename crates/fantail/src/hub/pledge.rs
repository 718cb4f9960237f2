//! What must have happened to the items of a publish before its publisher is answered: everybody who keeps them on
//! disk has done so. Owns the count of those who have not, and the first failure: of a publish, and of each of its items
//! that may come again.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::AcqRel},
};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;

/// The hub's side: of a publish, or of one item, in every delivery of it that is kept by somebody.
#[derive(Debug)]
pub(super) struct Pledge {
    /// Keepers that have not said anything yet, and the hub itself while it counts them.
    open: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Open(SmallVec<[Waiting; 1]>),
    Kept,
    Broken,
}

/// Who is told how it ends.
#[derive(Debug)]
enum Waiting {
    Publisher(oneshot::Sender<Result<(), Broken>>),
    /// A publish that an item is of: where it came first, or where it was repeated meanwhile.
    Publish(Promise),
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
        (Self::told_to(Waiting::Publisher(sender)), Kept(receiver))
    }

    fn told_to(first: Waiting) -> Arc<Self> {
        let state = Mutex::new(State::Open(SmallVec::from_iter([first])));
        Arc::new(Self { open: AtomicUsize::new(1), state })
    }

    /// One more will keep an item.
    pub(super) fn expect(&self) {
        self.open.fetch_add(1, AcqRel);
    }

    /// One of them has, or cannot: the first failure is the answer.
    pub(super) fn settle(&self, outcome: &Result<(), Broken>) {
        let last = self.open.fetch_sub(1, AcqRel) == 1;
        if outcome.is_ok() && !last {
            return;
        }
        let before = {
            let mut state = self.state.lock();
            if !matches!(*state, State::Open(_)) {
                return;
            }
            std::mem::replace(&mut *state, if outcome.is_ok() { State::Kept } else { State::Broken })
        };
        before.tell(outcome);
    }

    pub(super) fn is_kept(&self) -> bool {
        matches!(*self.state.lock(), State::Kept)
    }

    /// Another publisher's promise ends as this pledge does. It comes back if this one is broken already.
    pub(super) fn include(&self, promise: Promise) -> Option<Promise> {
        match &mut *self.state.lock() {
            State::Broken => return Some(promise),
            State::Kept => {}
            State::Open(waiting) if waiting.len() < MAX_WAITING => {
                waiting.push(Waiting::Publish(promise));
                return None;
            }
            State::Open(_) => {
                promise.settle(&Err(Broken("too many wait for this item".into())));
                return None;
            }
        }
        None
    }
}

impl State {
    fn tell(self, outcome: &Result<(), Broken>) {
        let Self::Open(waiting) = self else { return };
        for one in waiting {
            match one {
                // The publisher may have gone.
                Waiting::Publisher(answer) => _ = answer.send(outcome.clone()),
                Waiting::Publish(promise) => promise.settle(outcome),
            }
        }
    }
}

/// Nobody is left to keep it.
impl Drop for Pledge {
    fn drop(&mut self) {
        std::mem::replace(self.state.get_mut(), State::Broken).tell(&Err(Broken(STOPPING.into())));
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

    /// The same for one item alone, with a pledge of its own: whoever repeats it asks that one, whatever becomes of the
    /// rest of the publish.
    pub(super) fn of_item(self) -> (Self, Arc<Pledge>) {
        let own = Pledge::told_to(Waiting::Publish(self));
        (Self(Arc::clone(&own)), own)
    }

    /// So many keepers get the item now.
    pub(super) fn pass_on(&self, keepers: usize) -> Option<Arc<Pledge>> {
        (0..keepers).for_each(|_| self.0.expect());
        (keepers > 0).then(|| Arc::clone(&self.0))
    }

    /// It was kept by the log, or could not be.
    pub(super) fn settle(self, outcome: &Result<(), Broken>) {
        if outcome.is_err() {
            self.0.expect();
            self.0.settle(outcome);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.settle(&Ok(()));
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
        self.0.await.unwrap_or_else(|_| Err(Broken(STOPPING.into())))
    }
}

const STOPPING: &str = "The server is stopping.";
/// Publishers that wait for one item.
const MAX_WAITING: usize = 64;
