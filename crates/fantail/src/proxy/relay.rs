//! The body of a response to a client: what came whole, what streams from the origin, or the beginning
//! of a held stream. Tells the conversation when it is over, and writes the request's access line.

use std::{
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};

use super::{Conversation, access::Entry};
use crate::{
    logging::Outcome,
    upstream::{Download, DownloadError},
};

#[derive(Debug)]
pub struct Relay {
    /// What is sent first.
    ready: VecDeque<Bytes>,
    /// What follows.
    download: Option<Download>,
    /// What is sent last, if all came.
    last: Bytes,
    /// At the end the request is held, and the body never ends.
    parks: bool,
    conversation: Rc<Conversation>,
    entry: Option<Box<Entry>>,
    /// For the access line.
    code: u16,
    sent: u64,
    /// Why the body breaks off, told when what came before has been written.
    broken: Option<DownloadError>,
    failed: bool,
}

impl Relay {
    pub(super) fn new(
        conversation: Rc<Conversation>,
        ready: VecDeque<Bytes>,
        download: Option<Download>,
        entry: Option<Box<Entry>>,
    ) -> Self {
        conversation.respond();
        Self {
            ready,
            download,
            last: Bytes::new(),
            parks: false,
            conversation,
            entry,
            code: 0,
            sent: 0,
            broken: None,
            failed: false,
        }
    }

    pub(super) fn parking(mut self) -> Self {
        self.parks = true;
        self
    }

    /// Adds something behind what comes from the origin.
    pub(super) fn ending(mut self, last: Bytes) -> Self {
        self.last = last;
        self
    }

    pub(super) fn note(&mut self, status: StatusCode) {
        self.code = status.as_u16();
    }

    fn poll_download(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, DownloadError>>> {
        while let Some(download) = &mut self.download {
            match std::task::ready!(Pin::new(download).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Trailers are not relayed (spec 8.7).
                    if let Ok(data) = frame.into_data() {
                        let bytes = data.len() as u64;
                        self.conversation.tally(|traffic| traffic.server.content_received.add(bytes));
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Some(Err(error)) => {
                    self.download = None;
                    self.failed = true;
                    self.conversation.shard().counters.origin_errors.add(1);
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.download = None,
            }
        }
        let last = std::mem::take(&mut self.last);
        Poll::Ready(Some(last).filter(|last| !last.is_empty()).map(Ok))
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let data = match self.ready.pop_front() {
            Some(data) => Some(Ok(data)),
            None => std::task::ready!(self.poll_download(cx)),
        };
        match data {
            Some(Ok(data)) => {
                self.sent += data.len() as u64;
                self.conversation.tally(|traffic| traffic.client.content_sent.add(data.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => {
                // An error drops what hyper has not written yet; after a pause it has.
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None if self.parks => {
                self.conversation.park();
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.parks
            && self.ready.is_empty()
            && self.last.is_empty()
            && self.download.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        if self.parks {
            return SizeHint::default();
        }
        let ready = self.ready.iter().chain([&self.last]).map(|data| data.len() as u64).sum::<u64>();
        let mut hint = SizeHint::new();
        let rest = self.download.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        hint.set_lower(rest.lower().saturating_add(ready));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(ready));
        }
        hint
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            let outcome = if self.parks {
                Outcome::Accept
            } else if self.failed {
                Outcome::Error
            } else {
                Outcome::Code(self.code, self.sent)
            };
            entry.write(self.conversation.shard(), outcome);
        }
        if !self.conversation.is_parked() {
            self.conversation.end();
        }
    }
}
