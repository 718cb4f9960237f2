//! Lays file, environment and flags over the defaults, value by value, and remembers what set each. Knows
//! nothing of what a value means.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value};

use super::{
    Flag, Parts, Place, Problem, Sources, document,
    file::{File, Invalid},
    keys::{DEFAULTS, KEYS, Key, LISTS, List, Variable, elements, typed, variable},
    pushpin::{self, Notice},
};

/// The merged values, and where each that is not a default was set.
#[derive(Clone)]
pub(super) struct Layers {
    pub(super) file: Option<PathBuf>,
    pub(super) notices: Vec<Notice>,
    values: Table,
    /// By `section.key`; elements of lists by `LIST.N`.
    places: BTreeMap<String, Place>,
}

/// Values may be secrets.
impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layers")
            .field("file", &self.file)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Default for Layers {
    fn default() -> Self {
        Self { file: None, notices: Vec::new(), values: DEFAULTS.clone(), places: BTreeMap::new() }
    }
}

impl Layers {
    /// Reads every layer; what cannot be taken over is a problem, and the rest is merged all the same.
    pub(super) fn read(sources: &Sources) -> (Self, Vec<Problem>) {
        let mut layers = Self::default();
        let (mut problems, pushpin) = layers.read_file(sources);
        if sources.instance.is_some() && !pushpin {
            let reason = "is for several instances with one pushpin.conf, and none was read".into();
            problems.push(Problem { place: Place::Flag("--id"), reason });
        }
        layers.read_variables(&sources.variables, &mut problems);
        layers.overlay(sources.flags.iter().map(Entry::from_flag).collect());
        (layers, problems)
    }

    pub(super) fn place(&self, key: &str) -> Place {
        self.places.get(key).cloned().unwrap_or(Place::Default)
    }

    pub(super) fn value(&self, key: &Key) -> Option<&Value> {
        self.values.get(key.section)?.get(key.name)
    }

    pub(super) fn list(&self, list: &List) -> &[Value] {
        self.values.get(list.name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Tries each value alone on top of the defaults: so each problem has its place, and all are found.
    pub(super) fn check_values(&self, base: &Path) -> Vec<Problem> {
        let mut problems = Vec::new();
        for key in KEYS.iter().filter(|key| self.places.contains_key(&key.full)) {
            let mut alone = DEFAULTS.clone();
            let Some(value) = self.value(key) else { continue };
            set(&mut alone, &key.full, value.clone());
            let Err(why) = build(alone, base) else { continue };
            let default = DEFAULTS.get(key.section).and_then(|section| section.get(key.name));
            let default = default.filter(|_| matches!(why, Refused::Type(_)));
            let hint = default.map(|d| format!("; the default is `{} = {d}`", key.name)).unwrap_or_default();
            let reason = format!("`{}`: {why}{hint}", key.name);
            problems.push(Problem { place: self.place(&key.full), reason });
        }
        for (list, (n, element)) in lists(self) {
            let mut alone = DEFAULTS.clone();
            set(&mut alone, list.name, element.clone());
            if let Err(why) = build(alone, base) {
                let place = self.place(&format!("{}.{n}", list.name));
                problems.push(Problem { place, reason: format!("{}: {why}", list.name) });
            }
        }
        problems
    }

    /// All values together, as the program uses them.
    pub(super) fn build(&self, base: &Path) -> Result<Parts, Problem> {
        build(self.values.clone(), base)
            .map_err(|why| Problem { place: Place::Default, reason: why.to_string() })
    }

    /// The keys whose values differ; a list is one key.
    pub(super) fn differences(&self, other: &Self) -> Vec<&'static str> {
        let keys = KEYS.iter().filter(|key| self.value(key) != other.value(key)).map(|key| &*key.full);
        let lists = LISTS.iter().filter(|list| self.list(list) != other.list(list)).map(|list| list.name);
        keys.chain(lists).collect()
    }

    /// Reads the file of the sources. Also whether it is one of Pushpin's.
    fn read_file(&mut self, sources: &Sources) -> (Vec<Problem>, bool) {
        let named = sources.file.as_deref();
        let path = named.unwrap_or_else(|| Path::new(FILE));
        let whole = |reason| Problem { place: Place::File { path: path.into(), line: 0, column: 0 }, reason };
        let text = match std::fs::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => return (vec![whole("is not UTF-8".into())], false),
            Err(why) if named.is_none() && why.kind() == io::ErrorKind::NotFound => {
                return (Vec::new(), false);
            }
            Err(why) => return (vec![whole(format!("cannot be read: {why}"))], false),
        };
        self.file = Some(path.into());
        if pushpin::is_one(path, &text) {
            self.read_pushpin(pushpin::read(path, &text, sources.instance));
            return (Vec::new(), true);
        }
        let (entries, problems) = document::read(path, &text);
        self.overlay(entries);
        (problems, false)
    }

    /// Pushpin takes what can be used of a value and starts with the rest: so each value that is refused is
    /// said, and its default used. Without ports, or with bad ones, neither starts.
    fn read_pushpin(&mut self, layer: pushpin::Layer) {
        self.notices = layer.notices;
        let base = Path::new("/");
        let mut entries = Vec::new();
        for entry in layer.entries {
            let mut alone = DEFAULTS.clone();
            set(&mut alone, &entry.key, entry.value.clone());
            match build(alone, base) {
                Err(why) if entry.key != "server.listen" => {
                    let reason = format!("`{}` stays as it is: {why}", entry.key);
                    self.notices.push(Notice::Doubtful(Problem { place: entry.place, reason }));
                }
                _ => entries.push(entry),
            }
        }
        self.overlay(entries);
    }

    fn read_variables(&mut self, variables: &[(String, String)], problems: &mut Vec<Problem>) {
        let mut entries = Vec::new();
        for (name, text) in variables {
            let place = Place::Variable(name.clone());
            let refused = match variable(name) {
                Variable::Foreign => None,
                Variable::Unknown(reason) => Some(reason),
                Variable::Key(key) => match typed(text, key) {
                    Ok(value) => {
                        entries.push(Entry { key: key.full.clone(), value, place: place.clone() });
                        None
                    }
                    Err(why) => Some(why.to_string()),
                },
                Variable::List(list) => match elements(text, list) {
                    Ok(elements) => {
                        entries.extend(elements.into_iter().enumerate().map(|(n, value)| Entry {
                            key: format!("{}.{n}", list.name),
                            value,
                            place: place.clone(),
                        }));
                        None
                    }
                    Err(why) => Some(why.to_string()),
                },
            };
            problems.extend(refused.map(|reason| Problem { place, reason }));
        }
        self.overlay(entries);
    }

    /// Lays one layer on top. Lists replace lists, and routes replace routes, be they a file or lines.
    fn overlay(&mut self, layer: Vec<Entry>) {
        let sets = |name| layer.iter().any(|entry| is_under(&entry.key, name));
        if sets("routes") {
            self.values.extend(DEFAULTS.get_key_value("routes").map(|(k, v)| (k.clone(), v.clone())));
            self.places.retain(|key, _| !is_under(key, "routes"));
        }
        for list in LISTS.iter().filter(|list| sets(list.name)) {
            self.values.remove(list.name);
            self.places.retain(|key, _| !is_under(key, list.name));
        }
        for Entry { key, value, place } in layer {
            set(&mut self.values, List::of(&key).map_or(&*key, |list| list.name), value);
            self.places.insert(key, place);
        }
    }
}

/// A value on its way into the layers.
pub(super) struct Entry {
    /// `section.key`, or `LIST.N`; those come in their order.
    pub(super) key: String,
    pub(super) value: Value,
    pub(super) place: Place,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("key", &self.key).field("place", &self.place).finish_non_exhaustive()
    }
}

impl Entry {
    fn from_flag(flag: &Flag) -> Self {
        Self { key: flag.key.into(), value: flag.value.clone(), place: Place::Flag(flag.name) }
    }
}

/// Whether `key` is `name` or in the section `name`.
pub(super) fn is_under(key: &str, name: &str) -> bool {
    key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Type(String),
    #[error(transparent)]
    Value(#[from] Invalid),
}

fn build(values: Table, base: &Path) -> Result<Parts, Refused> {
    let file =
        File::deserialize(values).map_err(|why| Refused::Type(why.message().trim().replace('\n', ", ")))?;
    Ok(file.build(base)?)
}

fn lists(layers: &Layers) -> impl Iterator<Item = (&'static List, (usize, &Value))> {
    LISTS.iter().flat_map(|list| layers.list(list).iter().enumerate().map(move |element| (list, element)))
}

/// Sets `section.key`, or adds one to a list.
fn set(values: &mut Table, key: &str, value: Value) {
    if let Some(list) = List::named(key) {
        let list = values.entry(list.name).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = list {
            list.push(value);
        }
    } else if let Some((section, name)) = key.split_once('.')
        && let Some(Value::Table(keys)) = values.get_mut(section)
    {
        keys.insert(name.into(), value);
    }
}

/// Read from the current folder when no file is named.
const FILE: &str = "fantail.toml";
