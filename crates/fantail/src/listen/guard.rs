//! Stands between a client's socket and hyper: passes on only strictly well-formed requests, and the
//! next one only when the driver says that the last is answered. Owns what was read and not passed
//! on; never writes a byte of its own, and answers nobody: the driver does, from [`State`].
//!
//! Lives in one task with its connection, so that they share plain cells. An idle connection has no
//! buffer here: reads go through one buffer per thread, and only what cannot be passed on is kept.

mod state;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    mem,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use fantail_proto::request::{Body, Head, Limits, Parser, Refusal};
use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use state::{State, Wait};

/// A client's socket as hyper sees it.
#[derive(Debug)]
pub struct Guard<S> {
    socket: S,
    /// Received and not released, in order.
    held: Vec<u8>,
    stage: Stage,
    limits: Limits,
    eof: bool,
    state: Rc<State>,
}

/// What the next held or received byte belongs to.
///
/// ```text
/// Head ──accepted──▶ Release ──▶ Body ──ended──▶ Between ──message_done──▶ Head
///  └─refused─▶ Shut     └──no body──────────────────▲ └─upgrade─▶ Shut
/// ```
#[derive(Debug)]
enum Stage {
    Head(Parser),
    /// `left` bytes of an accepted head are held, because hyper's buffer was full.
    Release {
        left: usize,
        body: Option<Body>,
    },
    Body(Body),
    Between,
    /// Nothing is released any more, and hyper waits.
    Shut,
    /// Nothing is released any more, and hyper's reads fail.
    Broken(Refusal),
}

impl<S> Guard<S> {
    /// `received` are bytes that were read from the socket before. At most `record_limit` bytes of a
    /// message are kept for [`State::take_record`].
    pub fn new(socket: S, received: Vec<u8>, limits: Limits, record_limit: usize) -> Self {
        Self {
            socket,
            held: received,
            stage: Stage::Head(Parser::default()),
            limits,
            eof: false,
            state: Rc::new(State::new(record_limit)),
        }
    }

    pub fn state(&self) -> Rc<State> {
        Rc::clone(&self.state)
    }

    /// The socket, and everything that was received but never released to hyper, in order.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        (self.socket, self.held)
    }

    /// Releases what may be released of `bytes`, which start where `held` starts, and says how many.
    fn pass(&mut self, bytes: &[u8], out: &mut ReadBufCursor<'_>) -> usize {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            match &mut self.stage {
                Stage::Head(parser) => match parser.push(rest, &self.limits) {
                    Ok(None) => return used,
                    Ok(Some(head)) => self.accept(&head, rest),
                    Err(refusal) => {
                        self.state.refuse(refusal);
                        self.stage = Stage::Shut;
                    }
                },
                Stage::Release { left, body } => {
                    let some = out.remaining().min(*left);
                    out.put_slice(&rest[..some]);
                    used += some;
                    *left -= some;
                    if *left > 0 {
                        return used;
                    }
                    self.stage = body.take().map_or_else(|| self.state.received(), Stage::Body);
                }
                Stage::Body(body) => {
                    let rest = &rest[..out.remaining().min(rest.len())];
                    if rest.is_empty() {
                        return used;
                    }
                    match body.take(rest) {
                        Ok((taken, ended)) => {
                            out.put_slice(&rest[..taken]);
                            self.state.body_came(&rest[..taken]);
                            used += taken;
                            if ended {
                                self.stage = self.state.received();
                            }
                        }
                        Err(refusal) => {
                            self.state.refuse(refusal);
                            self.stage = Stage::Broken(refusal);
                        }
                    }
                }
                Stage::Between if self.state.is_done() => self.stage = Stage::Head(Parser::default()),
                Stage::Between | Stage::Shut | Stage::Broken(_) => return used,
            }
        }
    }

    fn accept(&mut self, head: &Head, bytes: &[u8]) {
        self.state.begin(head, &bytes[..head.len]);
        self.stage = Stage::Release { left: head.len, body: Body::new(head.framing, &self.limits) };
    }

    /// Whether more bytes may be received; if not, nothing that the socket has could change anything.
    fn may_receive(&self) -> bool {
        match self.stage {
            Stage::Head(_) | Stage::Release { .. } | Stage::Body(_) => true,
            // Nothing that comes would be released: only a departure is looked for.
            Stage::Between | Stage::Shut if self.state.watches_later() => false,
            Stage::Between | Stage::Shut => {
                self.state.refused().is_none() && self.held.len() < READ_AHEAD_BYTES
            }
            Stage::Broken(_) => false,
        }
    }

    /// What hyper waits for when its read is pending.
    fn wait(&self, cx: &Context<'_>) {
        match self.stage {
            Stage::Head(_) if self.held.is_empty() => self.state.wait_for(Wait::Request),
            Stage::Head(_) => self.state.wait_for(Wait::Head),
            Stage::Release { .. } | Stage::Body(_) => self.state.wait_for(Wait::Body),
            Stage::Shut if self.state.watches_later() && self.state.refused().is_none() => {
                self.state.wait_for(Wait::Unwatched);
            }
            Stage::Shut | Stage::Broken(_) => self.state.wait_for_nothing(),
            Stage::Between if self.state.watches_later() => {
                self.state.wait_for(Wait::Unwatched);
                self.state.wake_when_done(cx.waker());
            }
            Stage::Between => {
                self.state.wait_for_nothing();
                // An empty guard need not be woken by the driver: it waits for the socket.
                if !self.held.is_empty() {
                    self.state.wake_when_done(cx.waker());
                }
            }
        }
    }
}

impl<S> Guard<S> {
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => self.state.watch(),
            Poll::Ready(Ok(written)) => self.state.wrote(*written),
            Poll::Ready(Err(_)) => {}
        }
        written
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// One read of the socket, passed on as far as possible.
    fn receive(&mut self, cx: &mut Context<'_>, out: &mut ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            // No more than hyper takes, so that nothing of a body is left over.
            let room = out.remaining().min(scratch.len());
            let mut buf = ReadBuf::new(&mut scratch[..room]);
            let read = Pin::new(&mut self.socket).poll_read(cx, &mut buf);
            if read.is_pending() {
                self.state.watch();
            }
            ready!(read)?;
            let received = buf.filled();
            self.eof = received.is_empty();
            if self.held.is_empty() {
                let used = self.pass(received, out);
                self.held.extend_from_slice(&received[used..]);
            } else {
                self.held.extend_from_slice(received);
                self.pass_held(out);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// While a message is answered, keeps what comes behind it, and fails when its client is gone: hyper, which does not
    /// look, would with a new buffer for each request.
    fn look_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !matches!(self.stage, Stage::Between | Stage::Shut) || self.state.is_done() {
            return Ok(());
        }
        while self.may_receive() {
            let received = SCRATCH.with_borrow_mut(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf))?;
                self.held.extend_from_slice(buf.filled());
                Poll::Ready(io::Result::Ok(buf.filled().len()))
            });
            match received {
                Poll::Pending => {
                    self.state.watch();
                    break;
                }
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(received) => _ = received?,
            }
        }
        self.wait(cx);
        Ok(())
    }

    fn pass_held(&mut self, out: &mut ReadBufCursor<'_>) {
        let mut held = mem::take(&mut self.held);
        let used = self.pass(&held, out);
        if used < held.len() {
            held.drain(..used);
            self.held = held;
        }
    }
}

impl<S: AsyncRead + Unpin> hyper::rt::Read for Guard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        let room = out.remaining();
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        guard.pass_held(&mut out);
        loop {
            if out.remaining() < room {
                guard.state.wait_for_nothing();
                return Poll::Ready(Ok(()));
            }
            if let Stage::Broken(refusal) = guard.stage {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal)));
            }
            if guard.eof {
                return Poll::Ready(Ok(()));
            }
            if !guard.may_receive() || guard.receive(cx, &mut out)?.is_pending() {
                guard.wait(cx);
                return Poll::Pending;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> hyper::rt::Write for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        guard.state.write_begins();
        let written = Pin::new(&mut guard.socket).poll_write(cx, buf);
        guard.wrote(written)
    }

    /// hyper flushes in each of its turns: so a departure is looked for, too.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        ready!(Pin::new(&mut guard.socket).poll_flush(cx))?;
        guard.state.write_ends();
        Poll::Ready(guard.look_ahead(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        guard.state.write_begins();
        let socket = Pin::new(&mut guard.socket);
        let len = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        let written = if len <= GATHERED_BYTES {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut gathered = ReadBuf::new(scratch);
                bufs.iter().for_each(|buf| gathered.put_slice(buf));
                socket.poll_write(cx, gathered.filled())
            })
        } else {
            socket.poll_write_vectored(cx, bufs)
        };
        guard.wrote(written)
    }
}

/// What of later requests is received while one is answered: more than this stays in the kernel, and
/// then a client's departure is noticed only when something is written to it.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// Up to here a copy and one plain send are cheaper than a gathering write: a head and a small body.
const GATHERED_BYTES: usize = 4 * 1024;

/// Twice hyper's first read, so that a growing one still fits.
const SCRATCH_BYTES: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}
