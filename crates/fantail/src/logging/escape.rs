//! Text of strangers as part of a log line: it can neither end the line, nor move a terminal's cursor, nor
//! look like another field.

use std::fmt::{self, Write as _};

/// Displays text with everything that is no printable character escaped as in a Rust string.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub(super) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if is_printable(c) {
                f.write_char(c)?;
            } else {
                write!(f, "{}", c.escape_default())?;
            }
        }
        Ok(())
    }
}

/// One value of a text line: as it is if it is plainly one word, else in quotes.
pub(super) fn word(out: &mut String, text: &str) {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
    if !text.is_empty() && text.bytes().all(plain) {
        return out.push_str(text);
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => out.extend(c.escape_default()),
        }
    }
    out.push('"');
}

/// A JSON string (RFC 8259) of which every character is printable.
pub(super) fn json(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if is_printable(c) => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    write!(out, "\\u{unit:04x}").unwrap_or_default();
                }
            }
        }
    }
    out.push('"');
}

/// Not control characters, line separators, or what changes the direction of text.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return c == ' ' || c.is_ascii_graphic();
    }
    let direction =
        matches!(c, '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    !c.is_control()
        && !direction
        && !matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn json_says_what_was_meant_in_printable_characters(text in any::<String>()) {
            let mut out = String::new();
            json(&mut out, &text);
            prop_assert_eq!(&serde_json::from_str::<String>(&out).unwrap(), &text);
            prop_assert!(out.chars().all(is_printable));
        }

        #[test]
        fn words_are_printable_and_one_value(text in any::<String>()) {
            let mut out = String::new();
            word(&mut out, &text);
            prop_assert!(out.chars().all(is_printable));
            let quotes = out.replace("\\\\", "").replace("\\\"", "").matches('"').count();
            prop_assert!(quotes == 2 || (quotes == 0 && !out.contains(' ') && !out.is_empty()));
        }
    }

    #[test]
    fn terminals_are_left_alone() {
        for (text, expected) in [
            ("\x1b[2J", "\\u{1b}[2J"),
            ("a\r\nb", "a\\r\\nb"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}gpj", "\\u{202e}gpj"),
            ("naïve 日本", "naïve 日本"),
        ] {
            assert_eq!(Printable(text).to_string(), expected);
        }
    }
}
