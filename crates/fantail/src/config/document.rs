//! A configuration file as values, each with its line and column. Sections and keys that do not exist are
//! problems; what the values mean is checked elsewhere.

use std::{ops::Range, path::Path};

use serde::{Deserialize, de::IntoDeserializer as _};
use toml::{
    Spanned, Value,
    de::{DeTable, DeValue},
};

use super::{
    Place, Problem,
    keys::{KEYS, List, unknown_key, unknown_section},
    layers::Entry,
};

/// Reads the text of the file `path`: all values that are under known keys, and all problems.
pub(super) fn read(path: &Path, text: &str) -> (Vec<Entry>, Vec<Problem>) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reading = Reading { path, text, entries: Vec::new(), problems: Vec::new() };
    for error in &errors {
        reading.problem(error.span().unwrap_or(0..0), error.message().replace('\n', ", "));
    }
    if errors.is_empty() {
        for (section, value) in document.into_inner() {
            reading.section(&section, value);
        }
    }
    (reading.entries, reading.problems)
}

struct Reading<'a> {
    path: &'a Path,
    text: &'a str,
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

type Name<'a> = Spanned<std::borrow::Cow<'a, str>>;

impl Reading<'_> {
    fn section(&mut self, section: &Name<'_>, value: Spanned<DeValue<'_>>) {
        let name: &str = section.get_ref();
        if let Some(list) = List::named(name) {
            return self.list(list, value);
        }
        if !KEYS.iter().any(|key| key.section == name) {
            return self.problem(section.span(), unknown_section(name));
        }
        let DeValue::Table(keys) = value.into_inner() else {
            return self.problem(section.span(), format!("`{name}` is a section: write [{name}]"));
        };
        for (key, value) in keys {
            let known = KEYS.iter().find(|known| known.section == name && known.name == key.get_ref());
            match known {
                Some(known) => self.entry(known.full.clone(), key.span(), value),
                None => self.problem(key.span(), unknown_key(name, key.get_ref())),
            }
        }
    }

    fn list(&mut self, list: &List, value: Spanned<DeValue<'_>>) {
        let span = value.span();
        let name = list.name;
        let DeValue::Array(elements) = value.into_inner() else {
            return self.problem(span, format!("`{name}` is a list: write [[{name}]]"));
        };
        for (n, element) in elements.into_iter().enumerate() {
            let names = element.get_ref().as_table().into_iter().flat_map(|keys| keys.keys());
            let unknown = names.filter(|name| !list.keys.contains(&name.get_ref().as_ref()));
            let unknown: Vec<_> = unknown.cloned().collect();
            for key in &unknown {
                self.problem(key.span(), unknown_key(name, key.get_ref()));
            }
            if unknown.is_empty() {
                self.entry(format!("{name}.{n}"), element.span(), element);
            }
        }
    }

    fn entry(&mut self, key: String, span: Range<usize>, value: Spanned<DeValue<'_>>) {
        match Value::deserialize(value.into_deserializer()) {
            Ok(value) => {
                let place = self.place(span);
                self.entries.push(Entry { key, value, place });
            }
            Err(why) => self.problem(span, why.message().to_owned()),
        }
    }

    fn problem(&mut self, span: Range<usize>, reason: String) {
        let place = self.place(span);
        self.problems.push(Problem { place, reason });
    }

    fn place(&self, span: Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::File {
            path: self.path.into(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
        }
    }
}
