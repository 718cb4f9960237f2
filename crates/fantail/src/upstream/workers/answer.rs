//! The body of a worker's answer: whole, or as its packets come. It minds the announced length and knows nothing of
//! packets.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use fantail_proto::zhttp::Broken;
use tokio::sync::mpsc;

/// What is left to be read.
#[derive(Debug)]
pub(in crate::upstream) struct Answer {
    ready: Bytes,
    /// `None` when nothing follows.
    parts: Option<mpsc::Receiver<Result<Bytes, Broken>>>,
    /// Bytes, if the length was announced.
    left: Option<u64>,
    upload: Rc<UploadNews>,
}

/// Wakes who waits for a request's body to be read by its worker.
#[derive(Debug, Default)]
pub(super) struct UploadNews(RefCell<Option<Waker>>);

impl UploadNews {
    pub(super) fn tell(&self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

impl Answer {
    pub(super) fn whole(body: Bytes) -> Self {
        let left = Some(body.len() as u64);
        Self { ready: body, parts: None, left, upload: Rc::default() }
    }

    /// `length`: bytes, if the answer's head says so.
    pub(super) fn streamed(
        parts: mpsc::Receiver<Result<Bytes, Broken>>,
        length: Option<u64>,
        upload: Rc<UploadNews>,
    ) -> Self {
        Self { ready: Bytes::new(), parts: Some(parts), left: length, upload }
    }

    pub(in crate::upstream) fn poll_part(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        let part = if !self.ready.is_empty() {
            Some(Ok(std::mem::take(&mut self.ready)))
        } else if let Some(parts) = &mut self.parts {
            std::task::ready!(parts.poll_recv(cx))
        } else {
            None
        };
        Poll::Ready(match (part, &mut self.left) {
            (Some(Ok(part)), Some(left)) => match left.checked_sub(part.len() as u64) {
                Some(rest) => {
                    *left = rest;
                    Some(Ok(part))
                }
                None => Some(Err(self.end("is longer than it says"))),
            },
            (None, Some(1..)) => Some(Err(self.end("is shorter than it says"))),
            (part, _) => part,
        })
    }

    fn end(&mut self, why: &'static str) -> Broken {
        self.parts = None;
        self.left = Some(0);
        Broken::Answer(why)
    }

    /// Ready when no more of the request's body will be read.
    pub(in crate::upstream) fn poll_upload(&self, cx: &Context<'_>) -> Poll<()> {
        if self.parts.as_ref().is_none_or(mpsc::Receiver::is_closed) {
            return Poll::Ready(());
        }
        self.upload.0.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    pub(in crate::upstream) fn left(&self) -> Option<u64> {
        self.left
    }
}
