//! The query of a URI, or a form: names and values, percent-encoded. Nothing is looked up twice, and nothing is decoded
//! that nobody asks for.

/// Pairs between `&`.
#[derive(Clone, Copy, Debug)]
pub struct Query<'q>(&'q str);

impl<'q> Query<'q> {
    pub const fn new(text: &'q str) -> Self {
        Self(text)
    }

    /// Each pair as it stands there, with its name and its value apart.
    pub fn pairs(self) -> impl Iterator<Item = (&'q str, &'q str, &'q str)> {
        self.0.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (pair, name, value)
        })
    }

    /// The first value of that name; within it `None` if it cannot be decoded.
    pub fn value(self, name: &str) -> Option<Option<String>> {
        self.pairs().find(|(_, known, _)| *known == name).map(|(.., value)| decode(value))
    }
}

/// Percent-decoding (RFC 3986 2.1) of UTF-8, as forms have it: `+` is a space.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let query = Query::new("a=1&b=%C3%a9+x&&c&a=2&d=%ff&e=%4");
        for (name, value) in [
            ("a", Some(Some("1"))),
            ("b", Some(Some("é x"))),
            ("c", Some(Some(""))),
            ("d", Some(None)),
            ("e", Some(None)),
            ("f", None),
        ] {
            assert_eq!(query.value(name).as_ref().map(|value| value.as_deref()), value, "{name}");
        }
        assert_eq!(query.pairs().count(), 6);
    }
}
