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

/// A list of tables: its keys are those of each element.
#[derive(Debug)]
pub(super) struct List {
    pub(super) name: &'static str,
    pub(super) keys: &'static [&'static str],
    /// How it is written as one value.
    example: &'static str,
}

/// All lists, in the order in which they are shown.
pub(super) static LISTS: [List; 2] = [
    List {
        name: "realm",
        keys: &["id", "keys", "webhook_verify", "webhook_endpoints"],
        example: r#"[{id = "default", keys = ["base64:…"]}]"#,
    },
    List {
        name: "log",
        keys: &["match", "realm", "items", "bytes", "age", "total_bytes", "storage", "durability", "slow"],
        example: r#"[{match = "room-*", items = 1000}]"#,
    },
];

impl List {
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        LISTS.iter().find(|list| list.name == name)
    }

    /// The list that the key of an element, `NAME.N`, belongs to.
    pub(super) fn of(key: &str) -> Option<&'static Self> {
        Self::named(key.split('.').next().unwrap_or_default())
    }
}

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
    List(&'static List),
    /// Not ours. Without a double underscore a variable may be anybody's: Kubernetes makes
    /// `FANTAIL_PORT` and `FANTAIL_SERVICE_HOST` for a service of that name.
    Foreign,
    Unknown(String),
}

/// Reads the name `FANTAIL_SECTION__KEY`.
pub(super) fn variable(name: &str) -> Variable {
    let Some(rest) = name.strip_prefix("FANTAIL_") else { return Variable::Foreign };
    if let Some(list) = LISTS.iter().find(|list| list.name.to_ascii_uppercase() == rest) {
        return Variable::List(list);
    }
    let meant = |key: &&Key| variable_name(key) == name;
    if let Some(key) = KEYS.iter().find(meant) {
        return Variable::Key(key);
    }
    let lists = LISTS.iter().map(|list| format!("FANTAIL_{}", list.name.to_ascii_uppercase()));
    let names: Vec<String> = KEYS.iter().map(variable_name).chain(lists).collect();
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
    #[error("write a list: {0}")]
    List(&'static str),
}

/// A list in TOML's notation, or one string as it is (`[::1]:7999` is one too); empty text is no string.
fn list(text: &str) -> Value {
    match inline(text) {
        Some(list @ Value::Array(_)) => list,
        _ if text.is_empty() => Value::Array(Vec::new()),
        _ => Value::Array(vec![Value::from(text)]),
    }
}

/// A variable's text as the elements of a list.
pub(super) fn elements(text: &str, of: &List) -> Result<Vec<Value>, Untyped> {
    match inline(text) {
        Some(Value::Array(list)) => Ok(list),
        _ => Err(Untyped::List(of.example)),
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
    let sections = KEYS.iter().map(|key| key.section).chain(LISTS.iter().map(|list| list.name));
    let (close, _) = nearest(name, sections);
    let close = if List::named(close).is_some() { format!("[[{close}]]") } else { format!("[{close}]") };
    format!("there is no section `{name}`: did you mean {close}?")
}

/// Says what to write instead of a key that does not exist in a section that does.
pub(super) fn unknown_key(section: &str, name: &str) -> String {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return format!("there is no `{name}` in [{section}]: it is in [{}]", key.section);
    }
    let known: Vec<&str> = match List::named(section) {
        Some(list) => list.keys.into(),
        None => KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect(),
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
