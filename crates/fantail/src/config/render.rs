//! The configuration as TOML: the effective one for people, with keys hidden, and what is not the default as a
//! file; and where each value comes from.

use toml::Value;

use super::{
    keys::{DEFAULTS, KEYS, Key, REALM},
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
    for (n, realm) in layers.realms().iter().enumerate() {
        let keys = realm.get("keys").and_then(Value::as_array).map_or(0, Vec::len);
        let id = realm.get("id").map(Value::to_string).unwrap_or_default();
        let origin = origin(layers, &format!("{REALM}.{n}"));
        let keys = Value::Array(vec![Value::from(HIDDEN); keys]);
        out += &format!("\n[[realm]]{origin}\nid = {id}\nkeys = {keys}\n");
        let rest =
            realm.as_table().into_iter().flatten().filter(|(name, _)| !matches!(&***name, "id" | "keys"));
        rest.for_each(|(name, value)| out += &format!("{name} = {value}\n"));
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
    for realm in layers.realms() {
        out += "\n[[realm]]\n";
        for (name, value) in realm.as_table().into_iter().flatten() {
            out += &format!("{name} = {value}\n");
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
