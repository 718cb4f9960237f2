//! The two bodies of an exchange: what is sent up, and what comes down. The second drives the origin's
//! connection while it is read and gives the connection back when it has ended.

use std::{
    cell::Cell,
    collections::VecDeque,
    error::Error,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use fantail_proto::zhttp::Broken;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};

use super::{InUse, quiet, workers::Answer};

/// A request's body.
#[derive(Default)]
pub enum Upload {
    #[default]
    Empty,
    Whole(Bytes),
    /// In pieces, so that who keeps `taken` learns whether the connection took the last of them: as long as it did not,
    /// nobody can have the body whole.
    Pieces {
        left: Bytes,
        taken: Rc<Cell<bool>>,
    },
    Stream {
        body: Pin<Box<dyn Body<Data = Bytes, Error = UploadError>>>,
        progress: Rc<Cell<Progress>>,
    },
}

/// Whose turn it is while a body is sent up.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// The client's: it has its own time-out.
    Client,
    /// The origin's, since then.
    Origin(Instant),
}

impl Upload {
    pub fn stream(body: impl Body<Data = Bytes, Error = UploadError> + 'static) -> Self {
        Self::Stream { body: Box::pin(body), progress: Rc::new(Cell::new(Progress::Origin(Instant::now()))) }
    }

    /// What was read of a body, and the rest of it.
    pub fn behind(parts: VecDeque<Bytes>, rest: Self) -> Self {
        Self::stream(Behind { parts, rest })
    }

    pub(super) fn progress(&self) -> Option<Rc<Cell<Progress>>> {
        match self {
            Self::Stream { progress, .. } => Some(Rc::clone(progress)),
            Self::Empty | Self::Whole(_) | Self::Pieces { .. } => None,
        }
    }

    /// In pieces if there is more than one.
    pub fn pieces(body: Bytes, taken: &Rc<Cell<bool>>) -> Self {
        match body.len() {
            ..=PIECE_BYTES => {
                taken.set(true);
                if body.is_empty() { Self::Empty } else { Self::Whole(body) }
            }
            _ => Self::Pieces { left: body, taken: Rc::clone(taken) },
        }
    }
}

struct Behind {
    parts: VecDeque<Bytes>,
    rest: Upload,
}

impl Body for Behind {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self.parts.pop_front() {
            Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let parts = self.parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(parts));
        rest.upper().into_iter().for_each(|upper| hint.set_upper(upper.saturating_add(parts)));
        hint
    }
}

/// The client's fault: its body broke off or was not well-formed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the client's body did not arrive whole")]
pub struct UploadError;

impl UploadError {
    /// Whether an upload's error caused a connection's.
    pub(super) fn caused(error: &hyper::Error) -> bool {
        let mut cause = error.source();
        while let Some(error) = cause {
            if error.is::<Self>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Pieces { left, taken } => {
                let piece = left.split_to(left.len().min(PIECE_BYTES));
                taken.set(left.is_empty());
                Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
            }
            Self::Stream { body, progress } => {
                let frame = body.as_mut().poll_frame(cx);
                progress.set(match frame {
                    Poll::Pending => Progress::Client,
                    Poll::Ready(_) => Progress::Origin(Instant::now()),
                });
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(left) | Self::Pieces { left, .. } => left.is_empty(),
            Self::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(left) | Self::Pieces { left, .. } => SizeHint::with_exact(left.len() as u64),
            Self::Stream { body, .. } => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Whole(_) => "Whole",
            Self::Pieces { .. } => "Pieces",
            Self::Stream { .. } => "Stream",
        })
    }
}

/// An answer's body.
#[derive(Debug)]
pub struct Download {
    source: Source,
    idle_timeout: Duration,
    /// Armed while nothing arrives.
    idle: Option<Pin<Box<Sleep>>>,
}

/// Where an answer's body comes from.
#[derive(Debug)]
enum Source {
    Server(Connection),
    /// With its place among the requests that are allowed at a time.
    Worker(Box<Answer>, #[expect(dead_code, reason = "given back on drop")] OwnedSemaphorePermit),
}

#[derive(Debug)]
struct Connection {
    incoming: Incoming,
    /// Taken when the body has ended.
    in_use: Option<InUse>,
    ended: bool,
}

/// The origin's fault: its answer stopped in mid-body.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("the origin's answer broke off: {0}")]
    Broken(hyper::Error),
    #[error("the worker's answer broke off: {0}")]
    Worker(Broken),
    #[error("the origin's answer stalled for {0:?}")]
    Stalled(Duration),
}

impl Download {
    pub(super) fn new(incoming: Incoming, in_use: InUse, idle_timeout: Duration) -> Self {
        let connection = Connection { incoming, in_use: Some(in_use), ended: false };
        Self { source: Source::Server(connection), idle_timeout, idle: None }
    }

    pub(super) fn of_worker(answer: Answer, permit: OwnedSemaphorePermit, idle_timeout: Duration) -> Self {
        Self { source: Source::Worker(Box::new(answer), permit), idle_timeout, idle: None }
    }

    /// Drives the connection without reading the answer, so that the request's body goes on. Ready when the
    /// connection has ended.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.source {
            Source::Server(connection) => connection.poll_upload(cx),
            Source::Worker(answer, _) => answer.poll_upload(cx),
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.idle_timeout;
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(deadline)));
        idle.as_mut().poll(cx)
    }
}

impl Connection {
    /// The body takes part in driving the connection: it must be polled for the exchange to go on.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(in_use) = &mut self.in_use
            && !self.ended
        {
            self.ended = in_use.link.poll_connection(cx).is_ready();
        }
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(cx);
        if self.ended || self.in_use.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Asking the body first tells the connection that more is wanted.
        let mut frame = Pin::new(&mut self.incoming).poll_frame(&mut quiet());
        if frame.is_pending() {
            self.drive(&mut quiet());
            frame = Pin::new(&mut self.incoming).poll_frame(&mut quiet());
        }
        if frame.is_pending() {
            self.drive(cx);
            frame = Pin::new(&mut self.incoming).poll_frame(&mut quiet());
        }
        match &frame {
            Poll::Ready(Some(Err(_))) => self.in_use = None,
            Poll::Ready(None) => self.release(),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        frame
    }

    fn release(&mut self) {
        if let Some(in_use) = self.in_use.take()
            && !self.ended
        {
            in_use.release();
        }
    }
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        match self {
            Self::Server(connection) => connection.poll_frame(cx).map_err(DownloadError::Broken),
            Self::Worker(answer, _) => {
                answer.poll_part(cx).map_ok(Frame::data).map_err(DownloadError::Worker)
            }
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        match self.source.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let deadline = self.idle_timeout;
                if let Some(idle) = &mut self.idle {
                    idle.as_mut().reset(Instant::now() + deadline);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => match self.poll_idle(cx) {
                Poll::Ready(()) => {
                    if let Source::Server(connection) = &mut self.source {
                        connection.in_use = None;
                    }
                    Poll::Ready(Some(Err(DownloadError::Stalled(self.idle_timeout))))
                }
                Poll::Pending => Poll::Pending,
            },
            ended => ended,
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Server(connection) => connection.incoming.is_end_stream(),
            Source::Worker(answer, _) => answer.left() == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Server(connection) => connection.incoming.size_hint(),
            Source::Worker(answer, _) => answer.left().map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Drop for Connection {
    /// A reader that knows the length does not ask for the end.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.release();
        }
    }
}

/// A piece of a body: few copies, and not much that a connection has taken and not sent.
const PIECE_BYTES: usize = 16 << 10;
