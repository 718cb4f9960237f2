//! What an origin is asked about an item for one subscriber, and what its answer means (spec 6.8). Values only: who asks
//! is not here.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Filter, Meta, find, template::TemplateError};
use crate::link::Place;

/// What an origin says about an item.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Word {
    /// The item goes on as it is.
    Keep,
    Skip,
    /// The item says this instead.
    Replace(Bytes),
}

impl Word {
    /// Reads an answer. Its body counts for `http-modify` alone.
    ///
    /// # Errors
    /// Any status but 200 and 204.
    pub fn read(
        filter: Filter,
        status: StatusCode,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Self, TemplateError> {
        if !matches!(status, StatusCode::OK | StatusCode::NO_CONTENT) {
            let code = status.as_u16();
            return Err(TemplateError::Unanswered(format!("unexpected network request status: code={code}")));
        }
        Ok(match (filter, status) {
            _ if headers.get(ACTION).is_some_and(|action| action == "drop") => Self::Skip,
            (Filter::HttpModify, StatusCode::OK) => Self::Replace(body),
            _ => Self::Keep,
        })
    }
}

/// Where an origin is asked for a subscriber whose request went there.
///
/// # Errors
/// The subscriber's meta does not say.
pub fn place(home: &Place, sub_meta: &Meta) -> Result<Place, TemplateError> {
    let url = find(sub_meta, "url").filter(|url| !url.is_empty()).ok_or(TemplateError::NoUrl)?;
    let url = match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ws") => format!("http://{rest}"),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("wss") => format!("https://{rest}"),
        _ => url.to_owned(),
    };
    home.resolve(&url).ok_or(TemplateError::Url)
}

/// Meta as the value of a header: a JSON object, its members in the order of their names.
///
/// # Errors
/// It is more than a header is to hold.
pub fn header(meta: &Meta) -> Result<HeaderValue, TemplateError> {
    let members = meta.iter().map(|(name, value)| (name.clone(), serde_json::Value::from(value.as_str())));
    let object = serde_json::Value::Object(members.collect());
    // The one byte that JSON may have and a header may not.
    let text = object.to_string().replace('\x7f', "\\u007f");
    if text.len() > META_BYTES {
        return Err(TemplateError::Meta(META_BYTES));
    }
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| TemplateError::Meta(META_BYTES))
}

pub const SUB_META: HeaderName = HeaderName::from_static("sub-meta");
pub const PUB_META: HeaderName = HeaderName::from_static("pub-meta");
/// Of an answer that replaces content.
pub const MOST_BYTES: usize = 100_000;
const ACTION: HeaderName = HeaderName::from_static("action");
/// Of one header. Most servers take 16 KiB of all.
const META_BYTES: usize = 6144;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn answers_mean() {
        let read = |filter, status: u16, action: Option<&'static str>| {
            let fields = action.map(|action| (ACTION, HeaderValue::from_static(action)));
            let headers = HeaderMap::from_iter(fields);
            Word::read(filter, StatusCode::from_u16(status).unwrap(), &headers, "new".into())
        };
        use Filter::{HttpCheck, HttpModify};
        for (filter, status, action, expected) in [
            (HttpCheck, 200, None, Word::Keep),
            (HttpCheck, 204, None, Word::Keep),
            (HttpCheck, 200, Some("drop"), Word::Skip),
            (HttpCheck, 200, Some("Drop"), Word::Keep),
            (HttpCheck, 200, Some("accept"), Word::Keep),
            (HttpModify, 200, None, Word::Replace("new".into())),
            (HttpModify, 204, None, Word::Keep),
            (HttpModify, 204, Some("drop"), Word::Skip),
            (HttpModify, 200, Some("drop"), Word::Skip),
        ] {
            assert_eq!(read(filter, status, action), Ok(expected), "{filter:?} {status} {action:?}");
        }
        for status in [201, 302, 404, 500] {
            let error = read(HttpCheck, status, None).unwrap_err().to_string();
            assert_eq!(error, format!("unexpected network request status: code={status}"));
        }
    }

    #[test]
    fn urls_lead() {
        let home = Place::new(true, "a.example:8443", "/ws/x?q").unwrap();
        let at = |url: &str| place(&home, &meta(&[("url", url)]));
        for (url, tls, authority, path) in [
            ("/check", true, "a.example:8443", "/check"),
            ("check?a", true, "a.example:8443", "/ws/check?a"),
            ("ws://b/c", false, "b", "/c"),
            ("WSS://b:1/c", true, "b:1", "/c"),
            ("http://b/", false, "b", "/"),
        ] {
            let place = at(url).unwrap();
            assert_eq!((place.tls(), place.authority(), place.path_and_query()), (tls, authority, path));
        }
        assert_eq!(at("ftp://b/"), Err(TemplateError::Url));
        assert_eq!(at(""), Err(TemplateError::NoUrl));
        assert_eq!(place(&home, &meta(&[])), Err(TemplateError::NoUrl));
    }

    #[test]
    fn meta_is_a_header() {
        let text = |pairs: &[(&str, &str)]| header(&meta(pairs)).map(|value| value.as_bytes().to_vec());
        let expected = r#"{"a":"é\"\u0000\u007f","b":"3"}"#;
        assert_eq!(
            text(&[("b", "1"), ("a", "é\"\0\x7f"), ("b", "3")]).map(|text| String::from_utf8(text).unwrap()),
            Ok(expected.to_owned())
        );
        assert_eq!(text(&[]), Ok(b"{}".to_vec()));
        assert_eq!(text(&[("a", &"x".repeat(META_BYTES))]), Err(TemplateError::Meta(META_BYTES)));
    }

    proptest! {
        #[test]
        fn whatever_meta_says_comes_back(pairs in prop::collection::btree_map(".{0,8}", ".{0,20}", 0..5)) {
            let meta: Vec<(String, String)> = pairs.clone().into_iter().collect();
            let header = header(&meta).unwrap();
            let back: std::collections::BTreeMap<String, String> =
                serde_json::from_slice(header.as_bytes()).unwrap();
            prop_assert_eq!(back, pairs);
        }
    }
}
