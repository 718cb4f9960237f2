//! Where links lead (spec 3.10): a reference is resolved against the document that it was in (RFC 3986, section 5), and
//! compared with where the first request went. Follows none.

use std::borrow::Cow;

use http::uri::{Authority, PathAndQuery};

/// An absolute `http` or `https` URI, without a fragment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    tls: bool,
    /// A host, and a port if it was said.
    authority: Box<str>,
    /// Begins with `/`.
    path_and_query: Box<str>,
}

impl Place {
    /// The place of a request; `None` if its parts make none.
    pub fn new(tls: bool, authority: &str, path_and_query: &str) -> Option<Self> {
        let known: Authority = authority.parse().ok()?;
        // Brackets may be empty, too.
        let nowhere = matches!(known.host(), "" | "[]");
        if nowhere || authority.contains('@') || !path_and_query.starts_with('/') {
            return None;
        }
        path_and_query.parse::<PathAndQuery>().ok()?;
        Some(Self { tls, authority: authority.into(), path_and_query: path_and_query.into() })
    }

    /// Where a reference in this document leads. `None`: neither to `http` nor to `https`, or nowhere.
    pub fn resolve(&self, reference: &str) -> Option<Self> {
        let reference = &*escaped(reference.split('#').next().unwrap_or_default());
        let (tls, rest) = match scheme(reference) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => return None,
            None => (self.tls, reference),
        };
        if let Some(rest) = rest.strip_prefix("//") {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at(end);
            let (path, query) = cut(rest);
            return Self::new(tls, authority, &[&without_dots(path), query].concat());
        }
        if rest.len() != reference.len() {
            // A scheme without an authority.
            return None;
        }
        let (base, base_query) = cut(&self.path_and_query);
        let (path, query) = cut(rest);
        let path_and_query = match path {
            "" if query.is_empty() => [base, base_query].concat(),
            "" => [base, query].concat(),
            _ if path.starts_with('/') => [&without_dots(path), query].concat(),
            _ => {
                let folder = base.rfind('/').map_or("/", |end| &base[..=end]);
                [&without_dots(&[folder, path].concat()), query].concat()
            }
        };
        Self::new(tls, &self.authority, &path_and_query)
    }

    /// Scheme, host and port are the same.
    pub fn is_beside(&self, other: &Self) -> bool {
        self.tls == other.tls && self.port() == other.port() && self.host().eq_ignore_ascii_case(other.host())
    }

    pub const fn tls(&self) -> bool {
        self.tls
    }

    /// As it was said: the value of `Host`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Without brackets.
    pub fn host(&self) -> &str {
        match self.authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => self.authority.split(':').next().unwrap_or_default(),
        }
    }

    pub fn port(&self) -> u16 {
        let said = self.authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        said.unwrap_or(if self.tls { 443 } else { 80 })
    }

    pub fn path_and_query(&self) -> &str {
        &self.path_and_query
    }

    pub fn path(&self) -> &str {
        cut(&self.path_and_query).0
    }
}

/// Raw UTF-8, which a URI has only escaped.
fn escaped(reference: &str) -> Cow<'_, str> {
    if reference.is_ascii() {
        return Cow::Borrowed(reference);
    }
    let mut out = String::with_capacity(2 * reference.len());
    for byte in reference.bytes() {
        match byte {
            ..0x80 => out.push(byte.into()),
            _ => out.extend(['%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
    Cow::Owned(out)
}

const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];

/// How long to wait after the attempts so far before a link is asked for again (spec 3.10); the caller adds up to a second
/// of its own. `None`: it is given up.
pub fn retry_ms(attempts: u32) -> Option<u64> {
    (attempts < RETRIES).then(|| 1000 << attempts)
}

const RETRIES: u32 = 5;

/// A scheme and what follows its colon, if the reference has one.
fn scheme(reference: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = reference.split_once(':')?;
    let begins = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    let goes_on = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    (begins && goes_on).then_some((scheme, rest))
}

/// A path, and the query with its question mark.
fn cut(path_and_query: &str) -> (&str, &str) {
    path_and_query.split_at(path_and_query.find('?').unwrap_or(path_and_query.len()))
}

/// RFC 3986, section 5.2.4, for a path that begins with `/` or is empty; the outcome begins with `/`.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    let mut folder = path.is_empty();
    while let Some(segment) = segments.next() {
        folder = segments.peek().is_none() && matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => _ = kept.pop(),
            _ => kept.push(segment),
        }
    }
    let end = if folder && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base() -> Place {
        Place::new(false, "a", "/b/c/d;p?q").unwrap()
    }

    fn resolved(reference: &str) -> Option<String> {
        let place = base().resolve(reference)?;
        let scheme = if place.tls() { "https" } else { "http" };
        Some(format!("{scheme}://{}{}", place.authority(), place.path_and_query()))
    }

    /// The examples of RFC 3986, section 5.4, less their fragments and foreign schemes.
    #[test]
    fn references_are_resolved() {
        for (reference, expected) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            ("g#s", "http://a/b/c/g"),
            (";x", "http://a/b/c/;x"),
            ("g;x?y#s", "http://a/b/c/g;x?y"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("./", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../..", "http://a/"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("/../g", "http://a/g"),
            ("g.", "http://a/b/c/g."),
            ("..g", "http://a/b/c/..g"),
            ("./g/.", "http://a/b/c/g/"),
            ("g/../h", "http://a/b/c/h"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
            ("HTTPS://Other:8443/x?y:z", "https://Other:8443/x?y:z"),
            ("http://other?x", "http://other/?x"),
            ("/g:h", "http://a/g:h"),
            ("é?ß", "http://a/b/c/%C3%A9?%C3%9F"),
        ] {
            assert_eq!(resolved(reference).as_deref(), Some(expected), "{reference}");
        }
        for nowhere in [
            "ftp://a/",
            "mailto:x",
            "http:g",
            "http://",
            "http://a@b/",
            "//[x",
            "http://[]:80/",
            "g h",
            "g:h",
        ] {
            assert_eq!(resolved(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn places_are_compared_by_scheme_host_and_port() {
        let home = Place::new(false, "Example.com", "/").unwrap();
        for (reference, expected) in [
            ("/x", true),
            ("http://example.COM:80/y", true),
            ("https://example.com/", false),
            ("http://example.com:81/", false),
            ("http://www.example.com/", false),
        ] {
            assert_eq!(home.resolve(reference).unwrap().is_beside(&home), expected, "{reference}");
        }
        let six = home.resolve("https://[::1]/").unwrap();
        assert_eq!((six.host(), six.port(), six.authority()), ("::1", 443, "[::1]"));
        assert_eq!(home.resolve("http://[::1]:81/").unwrap().port(), 81);
    }

    #[test]
    fn retries_double_and_end() {
        let waits: Vec<u64> = (0..10).map_while(retry_ms).collect();
        assert_eq!(waits, [1000, 2000, 4000, 8000, 16_000]);
    }

    proptest! {
        #[test]
        fn whatever_is_resolved_is_a_request(reference in r"[a-z:/?#.;%\[\]@ ]{0,20}") {
            if let Some(place) = base().resolve(&reference) {
                prop_assert!(place.path_and_query().starts_with('/'));
                prop_assert!(place.path_and_query().parse::<PathAndQuery>().is_ok());
                prop_assert!(!place.path().split('/').any(|segment| matches!(segment, "." | "..")));
                prop_assert_eq!(place.resolve(""), Some(place));
            }
        }
    }
}
