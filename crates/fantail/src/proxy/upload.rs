//! A client's body on its way to the origin.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::Conversation;
use crate::upstream::{Upload, UploadError};

/// The upload of a request with this body.
pub(super) fn upload(conversation: &Rc<Conversation>, body: Incoming) -> Upload {
    if body.is_end_stream() {
        return Upload::Empty;
    }
    Upload::stream(ClientBody { body, conversation: Rc::clone(conversation) })
}

/// Counts what goes through; trailers are discarded (spec 8.7).
struct ClientBody {
    body: Incoming,
    conversation: Rc<Conversation>,
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        loop {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.conversation.upload(data.len());
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a client's body broke off");
                    return Poll::Ready(Some(Err(UploadError)));
                }
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
