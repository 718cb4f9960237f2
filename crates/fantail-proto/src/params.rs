//! Header lists and their parameters, as `Grip-*` headers have them (spec 3.1): elements are separated
//! by commas outside quotes, parameters follow `;`. Knows no header by name.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

/// One element of a list: the literal first part and what follows it.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Element<'v> {
    /// Up to the first `;`, quotes and all, without surrounding white space.
    pub first: &'v [u8],
    pub params: Vec<Param<'v>>,
}

/// A name and its value, unquoted.
pub(crate) type Param<'v> = (&'v [u8], Cow<'v, [u8]>);

impl<'v> Element<'v> {
    /// `None` when a quoted parameter does not end.
    pub(crate) fn parse(text: &'v [u8]) -> Option<Self> {
        let (first, rest) = cut(text, b';').unwrap_or((text, b""));
        Some(Self { first: first.trim_ascii(), params: parameters(rest)? })
    }

    /// The first parameter of this name, in any case.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.params
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value.as_ref())
    }
}

/// The elements of all values of a header that parse; the others, and empty ones, are left out.
pub(crate) fn elements<'h>(
    values: impl IntoIterator<Item = &'h HeaderValue>,
) -> impl Iterator<Item = Element<'h>> {
    texts(values).filter_map(Element::parse)
}

/// The same without a literal first part: each element is all parameters, at least one.
pub(crate) fn parameter_lists<'h>(
    values: impl IntoIterator<Item = &'h HeaderValue>,
) -> impl Iterator<Item = Vec<Param<'h>>> {
    texts(values).filter_map(parameters).filter(|params| !params.is_empty())
}

/// The texts between the commas of all values of a header.
pub(crate) fn texts<'h>(values: impl IntoIterator<Item = &'h HeaderValue>) -> impl Iterator<Item = &'h [u8]> {
    values.into_iter().flat_map(|value| Split(value.as_bytes())).filter(|text| !text.is_empty())
}

/// The texts between the commas of all headers called `name`.
pub(crate) fn list<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    texts(headers.get_all(name))
}

/// Splits at commas outside quotes; a quote that does not end takes the rest.
struct Split<'v>(&'v [u8]);

impl<'v> Iterator for Split<'v> {
    type Item = &'v [u8];

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let (mut quoted, mut escaped) = (false, false);
        let comma = self.0.iter().position(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = quoted,
                b'"' => quoted = !quoted,
                b',' => return !quoted,
                _ => {}
            }
            false
        });
        let (element, rest) = match comma {
            Some(at) => (&self.0[..at], &self.0[at + 1..]),
            None => (self.0, &b""[..]),
        };
        self.0 = rest;
        Some(element.trim_ascii())
    }
}

/// `name=value` and `name="value"` separated by `;`. A name alone has an empty value.
fn parameters(mut text: &[u8]) -> Option<Vec<Param<'_>>> {
    let mut params = Vec::new();
    while !text.trim_ascii().is_empty() {
        let end = text.iter().position(|byte| matches!(byte, b'=' | b';')).unwrap_or(text.len());
        let name = text[..end].trim_ascii();
        let value;
        (value, text) = match text.get(end) {
            Some(b'=') => parameter_value(text[end + 1..].trim_ascii_start())?,
            _ => (Cow::Borrowed(&b""[..]), text.get(end + 1..).unwrap_or_default()),
        };
        if !name.is_empty() {
            params.push((name, value));
        }
    }
    Some(params)
}

/// A value and what follows its `;`. What stands between a closing quote and the `;` is ignored.
fn parameter_value(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let (value, rest) = cut(text, b';').unwrap_or((text, b""));
        return Some((Cow::Borrowed(value.trim_ascii()), rest));
    };
    let mut value = Vec::new();
    let mut bytes = quoted.iter();
    loop {
        match bytes.next()? {
            b'"' => break,
            b'\\' => value.push(*bytes.next()?),
            byte => value.push(*byte),
        }
    }
    let rest = cut(bytes.as_slice(), b';').map_or(&b""[..], |(_, rest)| rest);
    Some((Cow::Owned(value), rest))
}

fn cut(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(at, text)?;
    Some((&text[..at], &text[at + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// First part and parameters of each element, as text.
    fn read(lines: &[&'static str]) -> Vec<(String, Vec<(String, String)>)> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("grip-channel", HeaderValue::from_static(line));
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        elements(headers.get_all("grip-channel"))
            .map(|element| {
                let params = element.params.iter().map(|(name, value)| (text(name), text(value))).collect();
                (text(element.first), params)
            })
            .collect()
    }

    #[test]
    fn elements_and_parameters() {
        type Expected = &'static [(&'static str, &'static [(&'static str, &'static str)])];
        let table: [(&[&str], Expected); 16] = [
            (&["a"], &[("a", &[])]),
            (&["a, b", "c"], &[("a", &[]), ("b", &[]), ("c", &[])]),
            (&["a;x=1;y=2, b"], &[("a", &[("x", "1"), ("y", "2")]), ("b", &[])]),
            (&[" a ; x = 1 "], &[("a", &[("x", "1")])]),
            (&[r#""a,b"; x=1"#], &[(r#""a,b""#, &[("x", "1")])]),
            (&[r#"a; x="1,2;3", b"#], &[("a", &[("x", "1,2;3")]), ("b", &[])]),
            (&[r#"a; x="q\"\\z""#], &[("a", &[("x", r#"q"\z"#)])]),
            (&[r#"a; x="open, b"#], &[]),
            (&[r#"b, a; x="open"#], &[("b", &[])]),
            (&[r#"a; x="end\"#], &[]),
            (&[r#"a; x="1" junk; y=2"#], &[("a", &[("x", "1"), ("y", "2")])]),
            (&["a; flag; x=1"], &[("a", &[("flag", ""), ("x", "1")])]),
            (&["a;;x=1;"], &[("a", &[("x", "1")])]),
            (&["a; x=1=2"], &[("a", &[("x", "1=2")])]),
            (&["", " , ,"], &[]),
            (&[r#"it"s, b"#], &[(r#"it"s, b"#, &[])]),
        ];
        for (lines, expected) in table {
            let expected: Vec<_> = expected
                .iter()
                .map(|(first, params)| {
                    let params = params.iter().map(|(name, value)| (name.to_string(), value.to_string()));
                    (first.to_string(), params.collect())
                })
                .collect();
            assert_eq!(read(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn names_of_parameters_have_no_case() {
        let element = Element::parse(b"a; Prev-ID=1; prev-id=2").unwrap();
        assert_eq!(element.get("prev-id"), Some(&b"1"[..]));
        assert_eq!(element.get("id"), None);
    }

    proptest! {
        #[test]
        fn quoted_values_come_back(elements_in in vec(("[a-z]{1,5}", vec(("[a-z]{1,5}", "[ -~]{0,12}"), 0..4)), 1..5)) {
            let quote = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
            let line: Vec<String> = elements_in
                .iter()
                .map(|(first, params)| {
                    let params = params.iter().map(|(name, value)| format!(";{name}=\"{}\"", quote(value)));
                    params.fold(first.clone(), |line, param| line + &param)
                })
                .collect();
            let mut headers = HeaderMap::new();
            headers.append("x", HeaderValue::from_str(&line.join(", ")).unwrap());
            let read: Vec<Element<'_>> = elements(headers.get_all("x")).collect();
            prop_assert_eq!(read.len(), elements_in.len());
            for (element, (first, params)) in read.iter().zip(&elements_in) {
                prop_assert_eq!(element.first, first.as_bytes());
                let expected: Vec<Param<'_>> =
                    params.iter().map(|(name, value)| (name.as_bytes(), Cow::Borrowed(value.as_bytes()))).collect();
                prop_assert_eq!(&element.params, &expected);
            }
        }
    }
}
