//! The grammar of `pushpin.conf` (spec 9.1): sections, keys, comments, quotes and lists, each value with its
//! line. It reads what Pushpin reads and passes over what Pushpin passes over; it knows no key by name.

/// All values, in their order; of a key that is set twice the last one counts.
#[derive(Debug, Default)]
pub(super) struct Ini(Vec<Setting>);

#[derive(Debug)]
pub(super) struct Setting {
    pub(super) section: String,
    pub(super) key: String,
    pub(super) value: Value,
}

/// What stands behind `=`: the elements of a list, one if there is no comma outside quotes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Value {
    pub(super) parts: Vec<String>,
    /// From 1.
    pub(super) line: usize,
}

impl Ini {
    pub(super) fn parse(text: &str) -> Self {
        let mut settings: Vec<Setting> = Vec::new();
        let mut section = String::new();
        for (line, text) in (1..).zip(text.trim_start_matches('\u{feff}').lines().map(str::trim)) {
            if text.starts_with([';', '#']) {
                continue;
            }
            if let Some(name) = header(text) {
                name.clone_into(&mut section);
            } else if let Some((key, value)) = text.split_once('=') {
                let value = Value { parts: parts(value), line };
                settings.push(Setting { section: section.clone(), key: key.trim().to_owned(), value });
            }
        }
        Self(settings)
    }

    pub(super) fn get(&self, section: &str, key: &str) -> Option<&Value> {
        let named = |setting: &&Setting| setting.section == section && setting.key == key;
        self.0.iter().rev().find(named).map(|setting| &setting.value)
    }

    pub(super) fn settings(&self) -> &[Setting] {
        &self.0
    }
}

/// The name in `[name]`.
pub(super) fn header(line: &str) -> Option<&str> {
    let (name, _) = line.trim().strip_prefix('[')?.split_once(']')?;
    Some(name.trim())
}

/// Splits at commas that are not in quotes, up to a comment.
fn parts(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = Part::default();
    let mut quoted = false;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' => {
                quoted = !quoted;
                part.hold();
            }
            '\\' => part.push_escaped(rest.next()),
            ',' if !quoted => parts.push(std::mem::take(&mut part).end()),
            ';' if !quoted => break,
            c if quoted => part.push_held(c),
            c => part.text.push(c),
        }
    }
    parts.push(part.end());
    parts
}

/// One element; white space around it is no part of it, unless it is quoted.
#[derive(Default)]
struct Part {
    text: String,
    /// Up to here, in bytes, nothing may be trimmed.
    held: usize,
    starts_held: bool,
}

impl Part {
    fn hold(&mut self) {
        if self.text.trim().is_empty() && self.held == 0 {
            self.text.clear();
            self.starts_held = true;
        }
        self.held = self.text.len();
    }

    fn push_held(&mut self, c: char) {
        self.text.push(c);
        self.held = self.text.len();
    }

    fn push_escaped(&mut self, escaped: Option<char>) {
        let c = match escaped {
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some(c) => c,
            None => return,
        };
        self.hold();
        self.push_held(c);
    }

    fn end(mut self) -> String {
        let end = self.text.trim_end().len().max(self.held);
        self.text.truncate(end);
        if self.starts_held { self.text } else { self.text.trim_start().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts_of(value: &str) -> Vec<String> {
        Ini::parse(&format!("[s]\nk={value}\n")).get("s", "k").unwrap().parts.clone()
    }

    #[test]
    fn values() {
        for (value, expected) in [
            ("", &[""][..]),
            (" a ", &["a"]),
            ("a b", &["a b"]),
            ("a, b ,c", &["a", "b", "c"]),
            (r#""a, b",c"#, &["a, b", "c"]),
            (r#"" a ""#, &[" a "]),
            (r#""" "#, &[""]),
            ("a ; comment", &["a"]),
            (r#""a;b""#, &["a;b"]),
            ("a#b", &["a#b"]),
            ("base64:YQ==", &["base64:YQ=="]),
            (r#"a\"b\\c\n"#, &["a\"b\\c\n"]),
            (r#""open, "#, &["open,"]),
            ("\\", &[""]),
            ("truncate:0,append", &["truncate:0", "append"]),
        ] {
            assert_eq!(parts_of(value), expected, "{value}");
        }
    }

    #[test]
    fn sections_and_comments() {
        let text = "\u{feff}a=0\n[one]\n# a=1\n;a=2\n a = 3 \r\nno value\n[two] ; x\na=4\na=5\n[one]\nb=6\n";
        let ini = Ini::parse(text);
        let value = |section, key| ini.get(section, key).map(|value| (value.parts.concat(), value.line));
        assert_eq!(value("", "a"), Some(("0".into(), 1)));
        assert_eq!(value("one", "a"), Some(("3".into(), 5)));
        assert_eq!(value("two", "a"), Some(("5".into(), 9)));
        assert_eq!(value("one", "b"), Some(("6".into(), 11)));
        assert_eq!((value("one", "c"), value("two", "b")), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,60}") {
            Ini::parse(&text.replace('|', "\n"));
        }

        #[test]
        fn a_quoted_text_is_read_back(text in "[^\\n\\r]{0,20}") {
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
            prop_assert_eq!(parts_of(&format!("\"{quoted}\"")), [text]);
        }
    }
}
