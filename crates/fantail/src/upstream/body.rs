//! The two bodies of an exchange: what is sent up, and what comes down. The second drives the origin's
//! connection while it is read and gives the connection back when it has ended.

use std::{
    cell::Cell,
    error::Error,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{InUse, quiet};

/// A request's body.
#[derive(Default)]
pub enum Upload {
    #[default]
    Empty,
    Whole(Bytes),
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

    pub(super) fn progress(&self) -> Option<Rc<Cell<Progress>>> {
        match self {
            Self::Stream { progress, .. } => Some(Rc::clone(progress)),
            Self::Empty | Self::Whole(_) => None,
        }
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
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream { body, .. } => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Whole(_) => "Whole",
            Self::Stream { .. } => "Stream",
        })
    }
}

/// An answer's body.
#[derive(Debug)]
pub struct Download {
    incoming: Incoming,
    /// Taken when the body has ended.
    in_use: Option<InUse>,
    ended: bool,
    idle_timeout: Duration,
    /// Armed while nothing arrives.
    idle: Option<Pin<Box<Sleep>>>,
}

/// The origin's fault: its answer stopped in mid-body.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("the origin's answer broke off: {0}")]
    Broken(hyper::Error),
    #[error("the origin's answer stalled for {0:?}")]
    Stalled(Duration),
}

impl Download {
    pub(super) fn new(incoming: Incoming, in_use: InUse, idle_timeout: Duration) -> Self {
        Self { incoming, in_use: Some(in_use), ended: false, idle_timeout, idle: None }
    }

    /// The body takes part in driving the connection: it must be polled for the exchange to go on.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(in_use) = &mut self.in_use
            && !self.ended
        {
            self.ended = in_use.link.poll_connection(cx).is_ready();
        }
    }

    /// Drives the connection without reading the answer, so that the request's body goes on. Ready when the
    /// connection has ended.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(cx);
        if self.ended || self.in_use.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn release(&mut self) {
        if let Some(in_use) = self.in_use.take()
            && !self.ended
        {
            in_use.release();
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.idle_timeout;
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(deadline)));
        idle.as_mut().poll(cx)
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
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
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                let deadline = self.idle_timeout;
                if let Some(idle) = &mut self.idle {
                    idle.as_mut().reset(Instant::now() + deadline);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.in_use = None;
                Poll::Ready(Some(Err(DownloadError::Broken(error))))
            }
            Poll::Ready(None) => {
                self.release();
                Poll::Ready(None)
            }
            Poll::Pending => match self.poll_idle(cx) {
                Poll::Ready(()) => {
                    self.in_use = None;
                    let stalled = DownloadError::Stalled(self.idle_timeout);
                    Poll::Ready(Some(Err(stalled)))
                }
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Download {
    /// A reader that knows the length does not ask for the end.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.release();
        }
    }
}
