//! What a connection's driver reads of its guard, and the one thing it tells it: that a message is
//! answered. Plain cells: both live in one task.

use std::{
    cell::{Cell, RefCell},
    task::Waker,
};

use fantail_proto::request::{Head, Refusal};
use tokio::time::Instant;

use super::Stage;

/// Shared by a guard and the driver of its connection, who looks at it after each poll of hyper.
#[derive(Debug)]
pub struct State {
    refused: Cell<Option<Refusal>>,
    wait: Cell<Wait>,
    /// Nobody waits for the socket yet, nor need anybody while its request is answered.
    later: Cell<bool>,
    message: Cell<Message>,
    upgrade: Cell<bool>,
    keep_alive: Cell<bool>,
    forwarded_for: Cell<bool>,
    /// `None` when too large or taken.
    record: RefCell<Option<Vec<u8>>>,
    record_limit: usize,
    flushed: Cell<bool>,
    written: Cell<u64>,
    body: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

/// What hyper waits for from the client, since when: what the driver's time-outs are about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wait {
    Nothing,
    /// The first byte of a request.
    Request(Instant),
    /// The rest of a head, since its first byte.
    Head(Instant),
    /// Bytes of a body, since hyper wanted more and there were none. A body that nobody reads is not
    /// waited for.
    Body(Instant),
    /// Nothing: it is being answered, and its socket not even watched, so that its departure would go unnoticed.
    /// See [`State::watch`].
    Unwatched(Instant),
}

/// How far the newest released message is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Message {
    /// Bytes are missing; the flag: it is answered all the same.
    Arriving {
        done: bool,
    },
    Received,
    Done,
}

impl State {
    pub(super) fn new(record_limit: usize) -> Self {
        Self {
            refused: Cell::default(),
            wait: Cell::new(Wait::Request(Instant::now())),
            later: Cell::default(),
            message: Cell::new(Message::Done),
            upgrade: Cell::default(),
            keep_alive: Cell::default(),
            forwarded_for: Cell::default(),
            record: RefCell::default(),
            record_limit,
            flushed: Cell::new(true),
            written: Cell::default(),
            body: Cell::default(),
            waker: RefCell::default(),
        }
    }

    /// Set when the client sent what must not be passed on: answer with its status, then close. A
    /// refused head never reaches hyper, whose read stays pending; a refused body fails there.
    pub fn refused(&self) -> Option<Refusal> {
        self.refused.get()
    }

    pub fn wait(&self) -> Wait {
        self.wait.get()
    }

    /// The socket is one whose readiness nobody is told of before a read or a write has found it not to be ready: it
    /// need not be read while its request is answered, until [`Self::watch`].
    pub fn watch_later(&self) {
        self.later.set(true);
    }

    /// From the next poll of hyper on the socket is read whatever is to be done, and so watched.
    pub fn watch(&self) {
        self.later.set(false);
    }

    pub(super) fn watches_later(&self) -> bool {
        self.later.get()
    }

    /// The current message has arrived whole, or there is none.
    pub fn is_complete(&self) -> bool {
        !matches!(self.message.get(), Message::Arriving { .. })
    }

    /// The current message asks for an upgrade: nothing after it will be released, so answer with
    /// 101 or close.
    pub fn upgrade(&self) -> bool {
        self.upgrade.get()
    }

    /// The client means to use its connection again after the current message (RFC 9112, 9.3).
    pub fn keeps_alive(&self) -> bool {
        self.keep_alive.get()
    }

    /// The current message has an `X-Forwarded-For`.
    pub fn is_forwarded_for(&self) -> bool {
        self.forwarded_for.get()
    }

    /// Call once per message, when its response is complete: the next head may be released. The
    /// record is dropped.
    pub fn message_done(&self) {
        match self.message.get() {
            Message::Arriving { .. } => self.message.set(Message::Arriving { done: true }),
            Message::Received => {
                self.message.set(Message::Done);
                self.wait.set(Wait::Request(Instant::now()));
            }
            Message::Done => {}
        }
        self.record.take();
        let waker = self.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The current message as received, less `Expect` fields: what to send to ask the same again.
    /// `None` when it is larger than the limit, has not arrived whole, or was taken.
    pub fn take_record(&self) -> Option<Vec<u8>> {
        if self.is_complete() { self.record.take() } else { None }
    }

    /// Whether [`Self::take_record`] has it.
    pub fn has_record(&self) -> bool {
        self.is_complete() && self.record.borrow().is_some()
    }

    /// False from the first attempt to write until a flush succeeded. hyper flushes its socket only
    /// when its own buffer is empty: so after a poll of hyper, true means that it holds no byte.
    pub fn flushed(&self) -> bool {
        self.flushed.get()
    }

    /// Bytes that the socket has taken.
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// Bytes of the current message's body that have come, framing included.
    pub fn body(&self) -> u64 {
        self.body.get()
    }

    pub(super) fn refuse(&self, refusal: Refusal) {
        self.refused.set(Some(refusal));
    }

    pub(super) fn begin(&self, head: &Head, bytes: &[u8]) {
        self.message.set(Message::Arriving { done: false });
        self.upgrade.set(head.upgrade);
        self.keep_alive.set(head.keep_alive);
        self.forwarded_for.set(head.forwarded_for);
        self.body.set(0);
        self.record.replace(Some(Vec::new()));
        if head.expect {
            without_expect(bytes).for_each(|line| self.record(line));
        } else {
            self.record(bytes);
        }
    }

    pub(super) fn body_came(&self, bytes: &[u8]) {
        self.body.set(self.body.get() + bytes.len() as u64);
        self.record(bytes);
    }

    fn record(&self, bytes: &[u8]) {
        let mut record = self.record.borrow_mut();
        match record.as_mut() {
            Some(record) if record.len() + bytes.len() <= self.record_limit => {
                record.extend_from_slice(bytes);
            }
            _ => *record = None,
        }
    }

    /// The message has arrived whole; what its connection does next.
    pub(super) fn received(&self) -> Stage {
        let done = self.message.get() == Message::Arriving { done: true };
        self.message.set(if done { Message::Done } else { Message::Received });
        if self.upgrade.get() { Stage::Shut } else { Stage::Between }
    }

    pub(super) fn is_done(&self) -> bool {
        self.message.get() == Message::Done
    }

    /// Keeps the time when the same is waited for already.
    pub(super) fn wait_for(&self, what: fn(Instant) -> Wait) {
        let wait = self.wait.get();
        let since = match wait {
            Wait::Nothing => None,
            Wait::Request(since) | Wait::Head(since) | Wait::Body(since) | Wait::Unwatched(since) => {
                Some(since)
            }
        };
        if since.map(what) != Some(wait) {
            self.wait.set(what(Instant::now()));
        }
    }

    pub(super) fn wait_for_nothing(&self) {
        self.wait.set(Wait::Nothing);
    }

    pub(super) fn wake_when_done(&self, waker: &Waker) {
        self.waker.borrow_mut().get_or_insert_with(|| waker.clone()).clone_from(waker);
    }

    pub(super) fn write_begins(&self) {
        self.flushed.set(false);
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.written.set(self.written.get() + bytes as u64);
    }

    pub(super) fn write_ends(&self) {
        self.flushed.set(true);
    }
}

fn without_expect(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    const NAME: &[u8] = b"expect:";
    head.split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))
}
