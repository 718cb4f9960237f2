//! The names of all keys, taken from the default file, in its order: which exist, what a variable of the
//! environment means, and which name was probably meant by one that does not exist.

use std::sync::LazyLock;

use toml::{Table, Value};

/// One key of the default file.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    /// `section.name`
    pub(super) full: String,
}

pub(super) const TEXT: &str = include_str!("../../fantail.default.toml");

/// The list of tenants; the only one, so it has no keys of its own here but each element's.
pub(super) const REALM: &str = "realm";
pub(super) const REALM_KEYS: [&str; 4] = ["id", "keys", "webhook_verify", "webhook_endpoints"];

pub(super) static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let mut section = "";
    let mut keys = Vec::new();
    for line in TEXT.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.push(Key { section, name, full: format!("{section}.{name}") });
        }
    }
    keys
});

pub(super) static DEFAULTS: LazyLock<Table> =
    LazyLock::new(|| TEXT.parse().expect("a test parses the default file"));

/// What a variable of the environment sets.
pub(super) enum Variable {
    Key(&'static Key),
    Realm,
    /// Not ours. Without a double underscore a variable may be anybody's: Kubernetes makes
    /// `FANTAIL_PORT` and `FANTAIL_SERVICE_HOST` for a service of that name.
    Foreign,
    Unknown(String),
}

/// Reads the name `FANTAIL_SECTION__KEY`.
pub(super) fn variable(name: &str) -> Variable {
    let Some(rest) = name.strip_prefix("FANTAIL_") else { return Variable::Foreign };
    if rest == "REALM" {
        return Variable::Realm;
    }
    let meant = |key: &&Key| variable_name(key) == name;
    if let Some(key) = KEYS.iter().find(meant) {
        return Variable::Key(key);
    }
    let names: Vec<String> = KEYS.iter().map(variable_name).chain(["FANTAIL_REALM".into()]).collect();
    let (close, distance) = nearest(&name.to_ascii_uppercase(), names.iter().map(String::as_str));
    if rest.contains("__") || distance <= 1 {
        Variable::Unknown(format!("there is no such variable: did you mean {close}?"))
    } else {
        Variable::Foreign
    }
}

/// A variable's text as the type that the key's default has.
pub(super) fn typed(text: &str, key: &Key) -> Result<Value, Untyped> {
    match DEFAULTS.get(key.section).and_then(|section| section.get(key.name)) {
        Some(Value::Integer(_)) => text.parse().map(Value::Integer).map_err(|_| Untyped::Number),
        Some(Value::Boolean(_)) => text.parse().map(Value::Boolean).map_err(|_| Untyped::Boolean),
        Some(Value::Array(_)) => Ok(list(text)),
        _ => Ok(Value::String(text.into())),
    }
}

/// Why a variable's text does not fit its key.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untyped {
    #[error("write a whole number")]
    Number,
    #[error("write true or false")]
    Boolean,
    #[error(r#"write a list: [{{id = "default", keys = ["base64:…"]}}]"#)]
    Realms,
}

/// A list in TOML's notation, or one string as it is (`[::1]:7999` is one too); empty text is no string.
fn list(text: &str) -> Value {
    match inline(text) {
        Some(list @ Value::Array(_)) => list,
        _ if text.is_empty() => Value::Array(Vec::new()),
        _ => Value::Array(vec![Value::from(text)]),
    }
}

/// The text of `FANTAIL_REALM`.
pub(super) fn realms(text: &str) -> Result<Vec<Value>, Untyped> {
    match inline(text) {
        Some(Value::Array(list)) => Ok(list),
        _ => Err(Untyped::Realms),
    }
}

fn inline(text: &str) -> Option<Value> {
    format!("value = {text}").parse::<Table>().ok()?.remove("value")
}

/// Says what to write instead of a section that does not exist.
pub(super) fn unknown_section(name: &str) -> String {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return format!("`{name}` stands in no section: write it under [{}]", key.section);
    }
    let sections = KEYS.iter().map(|key| key.section).chain([REALM]);
    let (close, _) = nearest(name, sections);
    let close = if close == REALM { "[[realm]]".into() } else { format!("[{close}]") };
    format!("there is no section `{name}`: did you mean {close}?")
}

/// Says what to write instead of a key that does not exist in a section that does.
pub(super) fn unknown_key(section: &str, name: &str) -> String {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return format!("there is no `{name}` in [{section}]: it is in [{}]", key.section);
    }
    let known: Vec<&str> = match section {
        REALM => REALM_KEYS.into(),
        _ => KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect(),
    };
    let (close, _) = nearest(name, known.into_iter());
    format!("there is no `{name}` in [{section}]: did you mean `{close}`?")
}

fn variable_name(key: &Key) -> String {
    format!("FANTAIL_{}__{}", key.section, key.name).to_ascii_uppercase()
}

/// The nearest of `names`, and how many characters differ.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> (&'a str, usize) {
    let distances = names.map(|known| (known, strsim::damerau_levenshtein(name, known)));
    distances.min_by_key(|(_, distance)| *distance).unwrap_or(("", usize::MAX))
}
