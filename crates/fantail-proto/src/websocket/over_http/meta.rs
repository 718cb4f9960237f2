//! Sticky meta of a session: what the origin set with `Set-Meta-NAME` and gets back as `Meta-NAME`
//! (spec 7.2.3). Has nothing to do with the meta that filters read.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Names and values as lines of `name:value`: neither can hold an end of line, names no colon. One
/// allocation of the exact size, none when there is no meta.
#[derive(Debug, Default)]
pub(super) struct Meta(Box<[u8]>);

/// Names that an origin may set.
pub const MAX_META: usize = 32;

/// Bytes of all names and values: they stay with an idle connection and go out with each request.
pub const MAX_META_BYTES: usize = 4096;

/// The origin set more meta than a session may keep.
#[derive(Debug)]
pub(super) struct Full;

impl Meta {
    /// Takes over what an answer sets; an empty value removes, and the last of repeated headers counts.
    pub(super) fn adopt(&mut self, headers: &HeaderMap) -> Result<(), Full> {
        let set = |name: &HeaderName| name.as_str().starts_with(SET) && name.as_str().len() > SET.len();
        if !headers.keys().any(set) {
            return Ok(());
        }
        let mut kept: Vec<(&[u8], &[u8])> = self.lines().collect();
        for (name, value) in headers.iter().filter(|(name, _)| set(name)) {
            let name = &name.as_str().as_bytes()[SET.len()..];
            kept.retain(|(other, _)| *other != name);
            if !value.is_empty() {
                kept.push((name, value.as_bytes()));
            }
        }
        let bytes: usize = kept.iter().map(|(name, value)| name.len() + value.len()).sum();
        if kept.len() > MAX_META || bytes > MAX_META_BYTES {
            return Err(Full);
        }
        let lines = kept.iter().flat_map(|(name, value)| [name, &b":"[..], value, b"\n"]);
        self.0 = lines.collect::<Vec<_>>().concat().into();
        Ok(())
    }

    /// Replaces whatever `Meta-*` there is.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let foreign = headers.keys().filter(|name| name.as_str().starts_with(META)).cloned();
        for name in foreign.collect::<Vec<_>>() {
            headers.remove(name);
        }
        for (name, value) in self.lines() {
            let name = HeaderName::from_bytes(&[META.as_bytes(), name].concat());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
                headers.insert(name, value);
            }
        }
    }

    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.split(|byte| *byte == b'\n').filter_map(|line| {
            let colon = memchr::memchr(b':', line)?;
            Some((&line[..colon], &line[colon + 1..]))
        })
    }
}

/// True for headers that concern the session and not the client.
pub(super) fn sets(name: &HeaderName) -> bool {
    name.as_str().starts_with(SET)
}

const SET: &str = "set-meta-";
const META: &str = "meta-";

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn written(meta: &Meta) -> Vec<String> {
        let mut out = headers(&[("meta-user", "forged"), ("metal", "kept")]);
        meta.write(&mut out);
        let mut lines: Vec<String> =
            out.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn meta_is_set_replaced_and_removed() {
        let mut meta = Meta::default();
        assert_eq!(written(&meta), ["metal=kept"]);
        meta.adopt(&headers(&[("set-meta-user", "a:b"), ("set-meta-x", "1"), ("set-meta-", "y")])).unwrap();
        assert_eq!(written(&meta), ["meta-user=a:b", "meta-x=1", "metal=kept"]);
        meta.adopt(&headers(&[("content-type", "x")])).unwrap();
        meta.adopt(&headers(&[("Set-Meta-USER", "bob"), ("set-meta-user", "eve"), ("set-meta-x", "")]))
            .unwrap();
        assert_eq!(written(&meta), ["meta-user=eve", "metal=kept"]);
        meta.adopt(&headers(&[("set-meta-user", "")])).unwrap();
        assert!(meta.0.is_empty());
    }

    #[test]
    fn meta_is_limited_in_number_and_bytes() {
        let mut meta = Meta::default();
        for n in 0..=MAX_META {
            let mut one = HeaderMap::new();
            one.insert(HeaderName::try_from(format!("set-meta-{n}")).unwrap(), HeaderValue::from_static("v"));
            assert_eq!(meta.adopt(&one).is_ok(), n < MAX_META);
        }
        let long = |length: usize| {
            let mut one = HeaderMap::new();
            one.insert("set-meta-n", HeaderValue::try_from("v".repeat(length)).unwrap());
            one
        };
        let mut meta = Meta::default();
        assert!(meta.adopt(&long(MAX_META_BYTES)).is_err());
        assert!(meta.0.is_empty());
        assert!(meta.adopt(&long(MAX_META_BYTES - 1)).is_ok());
    }
}
