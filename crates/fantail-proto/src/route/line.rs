//! How a line falls into sections and parameters (spec 2.2): spaces, commas, quotes, comments. Knows
//! no parameter by name.

use super::Reason;

/// `VALUE[,name[=value]…]`, without quotes and escapes.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Section {
    /// Empty when the section starts with a comma or with a parameter.
    pub(super) value: String,
    /// In their order; a flag has an empty value.
    pub(super) parameters: Vec<(String, String)>,
}

/// The sections of a line; none when it is blank or only a comment.
pub(super) fn sections(line: &str) -> Result<Vec<Section>, Reason> {
    let mut sections = Vec::new();
    let mut open: Option<Open> = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            '#' => break,
            ' ' => sections.extend(open.take().map(Open::close)),
            ',' => open.get_or_insert_default().end_element(),
            '"' => quoted(&mut rest, &mut open.get_or_insert_default().element)?,
            c if c.is_control() => return Err(Reason::Control(c)),
            c => open.get_or_insert_default().element.push(c),
        }
    }
    sections.extend(open.map(Open::close));
    sections.into_iter().map(section).collect()
}

/// A section of which the end has not been seen.
#[derive(Default)]
struct Open {
    elements: Vec<String>,
    element: String,
}

impl Open {
    fn end_element(&mut self) {
        self.elements.push(std::mem::take(&mut self.element));
    }

    fn close(mut self) -> Vec<String> {
        self.end_element();
        self.elements
    }
}

/// Reads what follows an opening quote, the closing one included.
fn quoted(rest: &mut std::str::Chars<'_>, into: &mut String) -> Result<(), Reason> {
    loop {
        match rest.next().ok_or(Reason::OpenQuote)? {
            '"' => return Ok(()),
            '\\' => match rest.next().ok_or(Reason::OpenQuote)? {
                c @ ('\\' | '"') => into.push(c),
                c => return Err(Reason::Escape(c)),
            },
            c if c.is_control() && c != '\t' => return Err(Reason::Control(c)),
            c => into.push(c),
        }
    }
}

fn section(elements: Vec<String>) -> Result<Section, Reason> {
    let mut section = Section::default();
    for (at, element) in elements.into_iter().enumerate() {
        match element.split_once('=') {
            None if at == 0 => section.value = element,
            Some(("", _)) => return Err(Reason::NoName),
            Some((name, value)) => section.parameters.push((name.to_owned(), value.to_owned())),
            None if element.is_empty() => return Err(Reason::NoName),
            None => section.parameters.push((element, String::new())),
        }
    }
    Ok(section)
}
