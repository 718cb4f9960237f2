//! One element of `Sec-WebSocket-Extensions` by the grammar of RFC 6455 section 9.1, strictly.

/// A name and its parameters, each with its value if it has one.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Extension<'v> {
    pub name: &'v [u8],
    pub params: Vec<(&'v [u8], Option<&'v [u8]>)>,
}

impl<'v> Extension<'v> {
    /// `None` if it is malformed. A quoted value must be a token too, so escapes in it are refused.
    pub(super) fn parse(text: &'v [u8]) -> Option<Self> {
        let (name, mut rest) = token(text)?;
        let mut params = Vec::new();
        while !rest.is_empty() {
            let (key, after) = token(rest.strip_prefix(b";")?)?;
            let value;
            (value, rest) = match after.strip_prefix(b"=") {
                Some(after) => value_of(after.trim_ascii_start()).map(|(value, rest)| (Some(value), rest))?,
                None => (None, after),
            };
            params.push((key, value));
        }
        Some(Self { name, params })
    }
}

fn value_of(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else { return token(text) };
    let (value, rest) = quoted.split_at(memchr::memchr(b'"', quoted)?);
    let value = token(value).filter(|(token, _)| *token == value)?.0;
    Some((value, rest[1..].trim_ascii_start()))
}

/// A token and what follows it, white space around it removed.
fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    let len = text.iter().position(|byte| !is_token(*byte)).unwrap_or(text.len());
    let (token, rest) = text.split_at(len);
    (len > 0).then(|| (token, rest.trim_ascii_start()))
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        type Expected = Option<(&'static str, &'static [(&'static str, Option<&'static str>)])>;
        let table: [(&str, Expected); 14] = [
            ("a", Some(("a", &[]))),
            ("a; b; c=1", Some(("a", &[("b", None), ("c", Some("1"))]))),
            ("a ;b = 1 ; c", Some(("a", &[("b", Some("1")), ("c", None)]))),
            ("a; b=\"15\" ;c", Some(("a", &[("b", Some("15")), ("c", None)]))),
            ("", None),
            ("a b", None),
            ("a;", None),
            ("a;;b", None),
            ("a; b=", None),
            ("a; b=\"\"", None),
            ("a; b=\"1", None),
            ("a; b=\"1 2\"", None),
            ("a; b=\"1\" 2", None),
            ("a; b=\"1\\2\"", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(name, params)| Extension {
                name: name.as_bytes(),
                params: params
                    .iter()
                    .map(|(key, value)| (key.as_bytes(), value.map(str::as_bytes)))
                    .collect(),
            });
            assert_eq!(Extension::parse(text.as_bytes()), expected, "{text}");
        }
    }
}
