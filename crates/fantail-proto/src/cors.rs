//! Automatic cross-origin headers (the route parameter `aco`, spec 8.3): what a response says, so that a page of
//! another origin may read it. What the origin says itself stands.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::hop;

/// What of a request its response's headers repeat. Shares no memory with the request, because holds keep it.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    /// `None`: no page, or one that has no name of its own (`null`).
    origin: Option<HeaderValue>,
    method: Option<HeaderValue>,
    headers: Option<HeaderValue>,
}

impl Cors {
    pub fn of(request: &HeaderMap) -> Self {
        let copy = |name| HeaderValue::from_bytes(HeaderMap::get(request, name)?.as_bytes()).ok();
        // Two are no browser's.
        let one = request.get_all(header::ORIGIN).iter().nth(1).is_none();
        Self {
            origin: copy(header::ORIGIN).filter(|origin| one && !origin.is_empty() && origin != "null"),
            method: copy(header::ACCESS_CONTROL_REQUEST_METHOD),
            headers: copy(header::ACCESS_CONTROL_REQUEST_HEADERS),
        }
    }

    /// Adds what is not there.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let exposed = exposed(headers);
        // The origin decides alone who may read an answer if it decides at all: it may not mean visitors' own ones.
        if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            match &self.origin {
                // Only a page that is named may be told what its visitor alone may see.
                Some(origin) => {
                    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                    add(headers, header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
                }
                None => {
                    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
                }
            }
            vary(headers);
        }
        add(headers, header::ACCESS_CONTROL_ALLOW_METHODS, self.method.clone().unwrap_or(METHODS));
        if let Some(asked) = &self.headers {
            add(headers, header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        if let Some(exposed) = exposed {
            add(headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        add(headers, header::ACCESS_CONTROL_MAX_AGE, AN_HOUR);
    }
}

fn add(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    headers.entry(name).or_insert(value);
}

/// Says to caches that the response depends on the page (Fetch standard, CORS protocol and HTTP caches).
fn vary(headers: &mut HeaderMap) {
    let said = headers.get_all(header::VARY).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let mut names = said.map(<[u8]>::trim_ascii);
    if !names.any(|name| name == b"*" || name.eq_ignore_ascii_case(b"origin")) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
}

/// The names that a page may not see without being told so, in the order of the response.
fn exposed(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut list = Vec::new();
    for name in headers.keys().filter(|name| !is_open(name)) {
        if !list.is_empty() {
            list.extend_from_slice(b", ");
        }
        crate::reply::write_name(&mut list, name);
    }
    HeaderValue::from_bytes(&list).ok().filter(|list| !list.is_empty())
}

fn is_open(name: &HeaderName) -> bool {
    OPEN.contains(name)
        || name.as_str().starts_with("access-control-")
        || name.as_str().starts_with("grip-")
        || hop::is_framing(name)
}

/// The CORS-safelisted response-header names (Fetch standard), which every page sees.
const OPEN: [HeaderName; 6] = [
    header::CACHE_CONTROL,
    header::CONTENT_LANGUAGE,
    header::CONTENT_TYPE,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::PRAGMA,
];

const ANY: HeaderValue = HeaderValue::from_static("*");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const METHODS: HeaderValue = HeaderValue::from_static("OPTIONS, HEAD, GET, POST, PUT, DELETE");
/// In seconds.
const AN_HOUR: HeaderValue = HeaderValue::from_static("3600");

#[cfg(test)]
mod tests {
    use super::*;

    type Lines = &'static [(&'static str, &'static str)];

    fn headers(lines: Lines) -> HeaderMap {
        let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().copied().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn what_is_added() {
        const USUAL: (&str, &str) = ("access-control-allow-methods", "OPTIONS, HEAD, GET, POST, PUT, DELETE");
        const AGE: (&str, &str) = ("access-control-max-age", "3600");
        const ANYONE: (&str, &str) = ("access-control-allow-origin", "*");
        const VARY: (&str, &str) = ("vary", "Origin");
        let table: [(Lines, Lines, Lines); 8] = [
            (&[], &[], &[USUAL, AGE, ANYONE, VARY]),
            (&[("origin", "null")], &[], &[USUAL, AGE, ANYONE, VARY]),
            (&[("origin", "https://a"), ("origin", "https://b")], &[], &[USUAL, AGE, ANYONE, VARY]),
            (
                &[("origin", "https://a")],
                &[],
                &[
                    USUAL,
                    AGE,
                    VARY,
                    ("access-control-allow-origin", "https://a"),
                    ("access-control-allow-credentials", "true"),
                ],
            ),
            (
                &[("access-control-request-method", "PATCH"), ("access-control-request-headers", "x-a, x-b")],
                &[],
                &[
                    AGE,
                    ANYONE,
                    VARY,
                    ("access-control-allow-methods", "PATCH"),
                    ("access-control-allow-headers", "x-a, x-b"),
                ],
            ),
            (
                &[],
                &[("content-type", "a/b"), ("x-request-id", "1"), ("grip-link", "x"), ("etag", "2")],
                &[
                    USUAL,
                    AGE,
                    ANYONE,
                    VARY,
                    ("content-type", "a/b"),
                    ("x-request-id", "1"),
                    ("grip-link", "x"),
                    ("etag", "2"),
                    ("access-control-expose-headers", "X-Request-Id, Etag"),
                ],
            ),
            (
                &[("origin", "https://a")],
                &[("access-control-allow-origin", "https://b"), ("access-control-max-age", "5")],
                &[USUAL, ("access-control-allow-origin", "https://b"), ("access-control-max-age", "5")],
            ),
            (
                &[],
                &[("vary", "Accept, origin")],
                &[USUAL, AGE, ANYONE, ("vary", "Accept, origin"), ("access-control-expose-headers", "Vary")],
            ),
        ];
        for (request, response, expected) in table {
            let mut got = headers(response);
            Cors::of(&headers(request)).apply(&mut got);
            assert_eq!(got, headers(expected), "{request:?} {response:?}");
        }
    }
}
