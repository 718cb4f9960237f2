//! Content that is a template (spec 6.6, 6.7): `%` begins a directive, `%%` is a percent sign, and a directive is a
//! letter with, between, an argument in parentheses in which `\` takes the next character as it is. What a
//! directive means is the caller's; anything that is not one is an error, never copied.

use std::borrow::Cow;

/// Why a subscriber does not get an item, or a client an answer; told to clients with debug only.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TemplateError {
    #[error("the content becomes longer than {MADE_BYTES} bytes")]
    Long,
    #[error("no sub meta 'id_format'")]
    NoIdFormat,
    #[error("unknown 'id_encoding'")]
    Encoding,
    #[error("'{0}' is not defined")]
    Undefined(String),
    #[error("the content ends within a directive")]
    Cut,
    #[error("the content has a directive that there is not: '%{0}'")]
    Directive(char),
    #[error("the content does not remain UTF-8")]
    NotText,
    #[error("the content was written for other filters")]
    Unsuited,
    #[error("missing url value")]
    NoUrl,
    #[error("invalid url value")]
    Url,
    #[error("the meta cannot be sent: it has more than {0} bytes")]
    Meta(usize),
    #[error("{0}")]
    Unanswered(String),
}

/// A stretch of a template.
#[derive(Debug, Eq, PartialEq)]
enum Piece<'t> {
    Text(&'t [u8]),
    Directive { argument: Option<Cow<'t, [u8]>>, letter: u8 },
}

/// Replaces `%(NAME)s` by what `value` has for it.
///
/// # Errors
/// A name without a value, or what is no directive.
pub fn substitute<'v>(
    content: &[u8],
    value: impl Fn(&str) -> Option<&'v str>,
) -> Result<Vec<u8>, TemplateError> {
    expand(content, |argument, letter, out| {
        let (Some(name), b's') = (argument, letter) else { return Err(unknown(letter)) };
        let name = String::from_utf8_lossy(name);
        let value = value(&name).ok_or_else(|| TemplateError::Undefined(name.into_owned()))?;
        out.extend_from_slice(value.as_bytes());
        Ok(())
    })
}

/// Replaces `%I` by the id and `%(TEXT)I` by the text, both in lower-case hex if `hex`.
///
/// # Errors
/// As [`substitute`]; an id that is not to be had is an error where it is wanted.
pub fn build_ids(
    content: &[u8],
    id: &Result<Vec<u8>, TemplateError>,
    hex: bool,
) -> Result<Vec<u8>, TemplateError> {
    expand(content, |argument, letter, out| {
        if letter != b'I' {
            return Err(unknown(letter));
        }
        let text = match (argument, id) {
            (Some(text), _) => text,
            (None, Ok(id)) => id,
            (None, Err(error)) => return Err(error.clone()),
        };
        if !hex {
            out.extend_from_slice(text);
            return Ok(());
        }
        for byte in text {
            out.extend([byte >> 4, byte & 15].map(|half| b"0123456789abcdef"[usize::from(half)]));
        }
        Ok(())
    })
}

/// The names that [`substitute`] would ask for, as far as the content is a template.
pub fn names(content: &[u8]) -> Vec<String> {
    let mut names: Vec<String> = Pieces(content)
        .map_while(Result::ok)
        .filter_map(|piece| match piece {
            Piece::Directive { argument: Some(name), letter: b's' } => {
                Some(String::from_utf8_lossy(&name).into_owned())
            }
            _ => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn expand(
    content: &[u8],
    mut directive: impl FnMut(Option<&[u8]>, u8, &mut Vec<u8>) -> Result<(), TemplateError>,
) -> Result<Vec<u8>, TemplateError> {
    let mut out = Vec::with_capacity(content.len());
    for piece in Pieces(content) {
        match piece? {
            Piece::Text(text) => out.extend_from_slice(text),
            Piece::Directive { argument: None, letter: b'%' } => out.push(b'%'),
            Piece::Directive { argument, letter } => directive(argument.as_deref(), letter, &mut out)?,
        }
        if out.len() > MADE_BYTES {
            return Err(TemplateError::Long);
        }
    }
    Ok(out)
}

/// What may be made of one content: more than a publish may hold, and little for memory.
const MADE_BYTES: usize = 4 << 20;

fn unknown(letter: u8) -> TemplateError {
    TemplateError::Directive(char::from(letter))
}

struct Pieces<'t>(&'t [u8]);

impl<'t> Iterator for Pieces<'t> {
    type Item = Result<Piece<'t>, TemplateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.0.iter().position(|byte| *byte == b'%').unwrap_or(self.0.len());
        if end > 0 {
            let (text, rest) = self.0.split_at(end);
            self.0 = rest;
            return Some(Ok(Piece::Text(text)));
        }
        let (_, rest) = self.0.split_first()?;
        let piece = directive(rest);
        self.0 = match &piece {
            Some((_, rest)) => rest,
            None => &[],
        };
        Some(piece.map(|(piece, _)| piece).ok_or(TemplateError::Cut))
    }
}

/// What stands behind a `%`, and what follows it.
fn directive(rest: &[u8]) -> Option<(Piece<'_>, &[u8])> {
    let (first, after) = rest.split_first()?;
    if *first != b'(' {
        return Some((Piece::Directive { argument: None, letter: *first }, after));
    }
    let mut end = 0;
    let mut escapes = false;
    loop {
        match after.get(end)? {
            b')' => break,
            b'\\' => {
                escapes = true;
                end += 2;
            }
            _ => end += 1,
        }
    }
    let (argument, rest) = (&after[..end], &after[end + 1..]);
    let argument = if escapes { Cow::Owned(unescaped(argument)) } else { Cow::Borrowed(argument) };
    let (letter, rest) = rest.split_first()?;
    Some((Piece::Directive { argument: Some(argument), letter: *letter }, rest))
}

fn unescaped(argument: &[u8]) -> Vec<u8> {
    let mut bytes = argument.iter();
    std::iter::from_fn(|| match bytes.next()? {
        b'\\' => bytes.next().copied(),
        byte => Some(*byte),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn substitutions() {
        let value = |name: &str| match name {
            "user" => Some("ann"),
            "a)b" => Some("odd"),
            "empty" => Some(""),
            _ => None,
        };
        let undefined = |name: &str| Err(TemplateError::Undefined(name.into()));
        let table: [(&str, Result<&str, TemplateError>); 13] = [
            ("", Ok("")),
            ("plain", Ok("plain")),
            ("%(user)s", Ok("ann")),
            ("a %(user)s, 100%%\n", Ok("a ann, 100%\n")),
            ("%(user)s%(user)s%(empty)s", Ok("annann")),
            (r"%(a\)b)s", Ok("odd")),
            ("%(none)s", undefined("none")),
            ("%()s", undefined("")),
            ("50%", Err(TemplateError::Cut)),
            ("%(user)", Err(TemplateError::Cut)),
            (r"%(user\)s", Err(TemplateError::Cut)),
            ("%s", Err(TemplateError::Directive('s'))),
            ("%(user)d", Err(TemplateError::Directive('d'))),
        ];
        for (content, expected) in table {
            let found = substitute(content.as_bytes(), value);
            assert_eq!(found, expected.map(|text| text.as_bytes().to_vec()), "{content}");
        }
    }

    #[test]
    fn ids() {
        let known = Ok(b"1:x".to_vec());
        let missing = Err(TemplateError::Undefined("c".into()));
        let cases = [
            ("id: %I\n", &known, Ok("id: 313a78\n")),
            ("id: %(az)I\n", &missing, Ok("id: 617a\n")),
            ("%()I", &known, Ok("")),
            ("100%%", &missing, Ok("100%")),
            ("%I", &missing, Err(TemplateError::Undefined("c".into()))),
            ("%(x)s", &known, Err(TemplateError::Directive('s'))),
            ("%", &known, Err(TemplateError::Cut)),
        ];
        for (content, id, expected) in cases {
            let found = build_ids(content.as_bytes(), id, true);
            assert_eq!(found, expected.map(|text| text.as_bytes().to_vec()), "{content}");
        }
        assert_eq!(build_ids(b"%I %(az)I %%", &known, false).as_deref(), Ok(&b"1:x az %"[..]));
    }

    #[test]
    fn names_that_are_asked_for() {
        assert_eq!(names(b"%(b)s %(a)s %(b)s %% %(c)I"), ["a", "b"]);
        assert_eq!(names(b"%(a)s %"), ["a"]);
    }

    proptest! {
        #[test]
        fn what_was_escaped_comes_back(content in proptest::collection::vec(any::<u8>(), 0..80)) {
            let escaped: Vec<u8> =
                content.iter().flat_map(|byte| vec![*byte; if *byte == b'%' { 2 } else { 1 }]).collect();
            prop_assert_eq!(substitute(&escaped, |_| None), Ok(content));
        }

        #[test]
        fn any_content_has_one_outcome(content in "[%()\\\\sIx]{0,24}") {
            let named = names(content.as_bytes());
            let substituted = substitute(content.as_bytes(), |name| named.iter().any(|n| n == name).then_some("v"));
            prop_assert!(!matches!(substituted, Err(TemplateError::Undefined(_))), "{:?}", substituted);
        }
    }
}
