//! What a request is made of that may be sent twice, on another connection: a safe method (RFC 9110, 9.2.1) without a
//! body. Owns that rule; never sends anything.

use http::{HeaderName, HeaderValue, Method, Request, Uri};

use super::{Upload, is_safe};

/// Hardly one is sent twice, so this is less than a copy.
pub(super) struct Repeat {
    method: Method,
    uri: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Repeat {
    /// `None`: it may not be.
    pub(super) fn of(request: &Request<Upload>) -> Option<Self> {
        if !is_safe(request.method()) || !matches!(request.body(), Upload::Empty) {
            return None;
        }
        let mut headers = Vec::with_capacity(request.headers().len());
        headers.extend(request.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
        Some(Self { method: request.method().clone(), uri: request.uri().clone(), headers })
    }

    pub(super) fn into_request(self) -> Box<Request<Upload>> {
        let mut request = Box::new(Request::new(Upload::Empty));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        for (name, value) in self.headers {
            request.headers_mut().append(name, value);
        }
        request
    }
}
