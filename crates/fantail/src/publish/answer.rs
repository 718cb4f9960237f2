//! What the control port answers with: short texts, or JSON for who asks for it (spec 5.2). Errors are
//! always text.

use axum::{
    body::Body,
    http::{
        HeaderMap, Method, Response, StatusCode,
        header::{ACCEPT, ALLOW, CONTENT_TYPE},
    },
};
use serde::Serialize;

/// The form of a successful answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    Text,
    Json,
}

impl Format {
    /// The last element of `Accept` that names one of the two, whatever its `q`; text without `Accept`.
    /// `None`: neither is acceptable.
    pub fn accepted(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(ACCEPT).iter().peekable();
        if lines.peek().is_none() {
            return Some(Self::Text);
        }
        lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).filter_map(Self::named).last()
    }

    fn named(element: &[u8]) -> Option<Self> {
        let range = element.split(|byte| *byte == b';').next()?.trim_ascii().to_ascii_lowercase();
        match &*range {
            b"text/plain" | b"text/*" | b"*/*" | b"*" => Some(Self::Text),
            b"application/json" | b"application/*" => Some(Self::Json),
            _ => None,
        }
    }
}

/// A success that needs one word.
pub fn done(format: Format, message: &'static str) -> Response<Body> {
    #[derive(Serialize)]
    struct Done {
        message: &'static str,
    }
    match format {
        Format::Text => text(StatusCode::OK, message),
        Format::Json => json(StatusCode::OK, &Done { message }),
    }
}

/// A line of text; the line feed is added.
pub fn text(status: StatusCode, line: &str) -> Response<Body> {
    page(status, "text/plain", format!("{line}\n"))
}

/// `value` and a line feed.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut line =
        serde_json::to_string(value).expect("no map with keys that are not strings, no failing Serialize");
    line.push('\n');
    page(status, "application/json", line)
}

pub fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type.parse().expect("a constant of this crate"));
    response
}

/// The endpoint exists, but not with this method.
pub fn wrong_method(method: &Method, allowed: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("Method not allowed: {method}."));
    response.headers_mut().insert(ALLOW, allowed.parse().expect("a constant of this crate"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_known_element_of_accept_decides() {
        use Format::{Json, Text};
        for (lines, expected) in [
            (&[][..], Some(Text)),
            (&["application/json"], Some(Json)),
            (&["application/json, */*"], Some(Text)),
            (&["*/*;q=1, application/*;q=0.1"], Some(Json)),
            (&["text/html, APPLICATION/JSON ; charset=utf-8, image/png"], Some(Json)),
            (&["application/json", "text/*"], Some(Text)),
            (&["*"], Some(Text)),
            (&["image/png"], None),
            (&["application/jsonp"], None),
            (&[""], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(ACCEPT, line.parse().unwrap());
            }
            assert_eq!(Format::accepted(&headers), expected, "{lines:?}");
        }
    }
}
