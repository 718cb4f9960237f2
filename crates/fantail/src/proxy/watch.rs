//! How long heads are as Pushpin estimates it (spec 9.11): what they say, without what separates it. Only for who
//! watches.

use http::{HeaderMap, Method, Response, StatusCode, Uri};

/// Of a request.
pub(super) fn request_head(method: &Method, uri: &Uri, headers: &HeaderMap) -> u64 {
    let path = uri.path_and_query().map_or(1, |path| path.as_str().len());
    (method.as_str().len() + path) as u64 + fields(headers)
}

/// Of a response.
pub(super) fn answer_head<B>(response: &Response<B>) -> u64 {
    response_head(response.status(), response.headers())
}

pub(super) fn response_head(status: StatusCode, headers: &HeaderMap) -> u64 {
    (status.as_str().len() + status.canonical_reason().map_or(0, str::len)) as u64 + fields(headers)
}

fn fields(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}
