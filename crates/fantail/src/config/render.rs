//! The configuration as TOML: the effective one for people, with keys hidden, and what is not the default as a
//! file; and where each value comes from.

use toml::Value;

use super::{
    keys::{DEFAULTS, KEYS, Key, LISTS},
    layers::Layers,
};

/// In the order of the default file. What is hidden reads `***`.
pub(super) fn render(layers: &Layers) -> String {
    let mut out = String::new();
    let mut section = "";
    for key in KEYS.iter() {
        let Some(value) = layers.value(key) else { continue };
        if key.section != section {
            section = key.section;
            out += if out.is_empty() { "" } else { "\n" };
            out += &format!("[{section}]\n");
        }
        out += &format!("{} = {}{}\n", key.name, shown(key, value), origin(layers, &key.full));
    }
    for list in &LISTS {
        for (n, element) in layers.list(list).iter().enumerate() {
            let origin = origin(layers, &format!("{}.{n}", list.name));
            out += &format!("\n[[{}]]{origin}\n", list.name);
            for (name, value) in list.keys.iter().filter_map(|name| Some((name, element.get(name)?))) {
                let shown = match (list.name, *name, value) {
                    ("realm", "keys", Value::Array(keys)) => {
                        Value::Array(vec![Value::from(HIDDEN); keys.len()])
                    }
                    _ => value.clone(),
                };
                out += &format!("{name} = {shown}\n");
            }
        }
    }
    out
}

/// What is not the default, as a file that says the same; secrets are in it.
pub(super) fn differences(layers: &Layers) -> String {
    let mut out = String::new();
    let mut section = "";
    for key in KEYS.iter() {
        let Some(value) = layers.value(key) else { continue };
        if DEFAULTS.get(key.section).and_then(|section| section.get(key.name)) == Some(value) {
            continue;
        }
        if key.section != section {
            section = key.section;
            out += &format!("\n[{section}]\n");
        }
        let sources = super::pushpin::sources(&key.full);
        let comment = if sources.is_empty() { sources } else { format!("  # {sources}") };
        out += &format!("{} = {value}{comment}\n", key.name);
    }
    for list in &LISTS {
        for element in layers.list(list) {
            out += &format!("\n[[{}]]\n", list.name);
            for (name, value) in element.as_table().into_iter().flatten() {
                out += &format!("{name} = {value}\n");
            }
        }
    }
    out
}

/// A routes line without what `sig_key=` in it says.
fn mask_keys(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    let mut quoted = false;
    while let Some(c) = rest.chars().next() {
        if let Some(value) = rest.strip_prefix("sig_key=") {
            out += "sig_key=***";
            rest = value.get(value_end(value, quoted)..).unwrap_or_default();
            continue;
        }
        let escaped = if c == '\\' { rest.chars().nth(1) } else { None };
        quoted ^= c == '"';
        out.push(c);
        out.extend(escaped);
        rest = rest.get(c.len_utf8() + escaped.map_or(0, char::len_utf8)..).unwrap_or_default();
    }
    out
}

/// Where a value of the routes grammar ends (spec 2.2): at a space or comma, or at the quote that encloses it.
fn value_end(value: &str, enclosed: bool) -> usize {
    let mut quoted = enclosed;
    let mut escaped = false;
    for (at, c) in value.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' if enclosed => return at,
            '"' => quoted = !quoted,
            ' ' | ',' if !quoted => return at,
            _ => {}
        }
    }
    value.len()
}

fn shown(key: &Key, value: &Value) -> String {
    match (key.full.as_str(), value) {
        ("proxy.sig_key" | "proxy.upstream_key" | "xmpp.secret", Value::String(text)) if !text.is_empty() => {
            Value::from(HIDDEN).to_string()
        }
        ("routes.lines", Value::Array(lines)) => {
            let masked = lines.iter().filter_map(Value::as_str).map(|line| Value::from(mask_keys(line)));
            Value::Array(masked.collect()).to_string()
        }
        _ => value.to_string(),
    }
}

fn origin(layers: &Layers, key: &str) -> String {
    match layers.place(key) {
        super::Place::Default => String::new(),
        place => format!("  # {place}"),
    }
}

const HIDDEN: &str = "***";
