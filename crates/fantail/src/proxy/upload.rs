//! A client's body on its way to the origin.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::Conversation;
use crate::{
    error::Fault,
    upstream::{Upload, UploadError},
};

/// The upload of a request with this body.
pub(super) fn upload(conversation: &Rc<Conversation>, body: Incoming) -> Upload {
    if body.is_end_stream() {
        return Upload::Empty;
    }
    Upload::stream(ClientBody { body: Some(body), conversation: Rc::clone(conversation) })
}

/// Reads what is left of a body that its origin did not wait for, at most until `limit` bytes of it have
/// arrived since its beginning.
pub(super) async fn drain(conversation: &Conversation, limit: u64) -> Result<(), Fault> {
    let Some(mut body) = conversation.take_unread() else { return Ok(()) };
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|_| Fault::BodyLost)?.into_data() {
            conversation.upload(data.len());
        }
        if conversation.uploaded() > limit {
            return Err(Fault::RequestTooLarge);
        }
    }
    Ok(())
}

/// Counts what goes through; trailers are discarded (spec 8.7). What the origin does not read is left to
/// the conversation.
struct ClientBody {
    /// Until it has ended.
    body: Option<Incoming>,
    conversation: Rc<Conversation>,
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        while let Some(body) = &mut self.body {
            match std::task::ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.conversation.upload(data.len());
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => {
                    self.body = None;
                    tracing::debug!(%error, "a client's body broke off");
                    return Poll::Ready(Some(Err(UploadError)));
                }
                None => self.body = None,
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            self.conversation.leave_unread(body);
        }
    }
}
