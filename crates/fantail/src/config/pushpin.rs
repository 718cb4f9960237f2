//! `pushpin.conf` as a layer of the configuration (spec 9.1–9.6): its values become Fantail's keys, and what has
//! no meaning here is said, never refused: Pushpin starts with whatever it is given, but for ports.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use toml::Value;

use super::{
    Place, Problem,
    keys::{DEFAULTS, KEYS},
    layers::Entry,
};

mod ini;
mod table;
#[cfg(test)]
mod tests;

use ini::Ini;
pub(super) use table::{Form, Meaning, ROWS, Row};

/// A file of Pushpin's, read.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) entries: Vec<Entry>,
    pub(super) notices: Vec<Notice>,
}

/// What the user of a `pushpin.conf` should know; the log says it at start.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Notice {
    /// Keys that do nothing here, for a reason that is a fact of Fantail.
    Meaningless { file: PathBuf, keys: Vec<String>, reason: &'static str },
    /// Something that was probably meant otherwise.
    Doubtful(Problem),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Doubtful(problem) => problem.fmt(f),
            Self::Meaningless { file, keys, reason } => {
                let many = *reason == table::BETWEEN_PROCESSES && keys.len() > MOST_NAMED + 1;
                let named = keys.get(..MOST_NAMED).filter(|_| many);
                let shown = named.unwrap_or(keys).join(", ");
                write!(f, "{}: no meaning here: {shown}", file.display())?;
                match named {
                    Some(named) => write!(f, " and {} more: {reason}", keys.len() - named.len()),
                    None => write!(f, ": {reason}"),
                }
            }
        }
    }
}

/// The names, as in `[proxy] sig_key`, of what becomes this key.
pub(super) fn sources(key: &str) -> String {
    let becomes = |row: &&Row| match row.meaning {
        Meaning::Becomes(own, ..) => own == key,
        Meaning::PartOf(own) => own.contains(&key),
        Meaning::Nothing(_) => false,
    };
    let names = ROWS.iter().filter(becomes).map(|row| format!("[{}] {}", row.section, row.names[0]));
    names.collect::<Vec<_>>().join(", ")
}

/// Whether a file is Pushpin's: by the end of its name, `.conf` or `.toml`, and else by its first section.
pub(super) fn is_one(path: &Path, text: &str) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("conf") => true,
        Some("toml") => false,
        _ => matches!(text.lines().find_map(ini::header), Some("global" | "runner" | "handler")),
    }
}

/// Reads the text of the file `path`, and what it includes. `instance` is `--id`.
pub(super) fn read(path: &Path, text: &str, instance: Option<u32>) -> Layer {
    let mut reading = Reading::new(path, text, instance);
    reading.table();
    reading.listeners();
    reading.control();
    reading.subscribers();
    reading.prometheus();
    reading.log();
    reading.routes();
    reading.report();
    reading.layer
}

/// A value with its variables filled in, and where it was set.
struct Found {
    parts: Vec<String>,
    place: Place,
}

impl Found {
    fn text(&self) -> String {
        self.parts.join(",")
    }

    /// The elements that say something.
    fn list(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty())
    }
}

struct Reading<'a> {
    path: &'a Path,
    main: Ini,
    /// The file that `include` names, if it can be read.
    include: Option<(PathBuf, Ini)>,
    variables: Variables,
    layer: Layer,
}

/// What values may name.
struct Variables {
    libdir: String,
    rundir: String,
    ipc_prefix: String,
    port_offset: u16,
}

impl Variables {
    fn resolve(&self, text: &str) -> String {
        let text = text
            .replace("{libdir}", &self.libdir)
            .replace("{rundir}", &self.rundir)
            .replace("{ipc_prefix}", &self.ipc_prefix);
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(at) = rest.find("tcp://") {
            let (before, after) = rest.split_at(at + "tcp://".len());
            out += before;
            let host = if after.starts_with('[') { after.find(']').unwrap_or(0) } else { 0 };
            let Some(colon) = after.get(host..).and_then(|after| after.find(':')) else {
                rest = after;
                continue;
            };
            let (host, port) = after.split_at(host + colon + 1);
            let digits = port.find(|c: char| !c.is_ascii_digit()).unwrap_or(port.len());
            let (digits, after) = port.split_at(digits);
            out += host;
            out += &self.shifted(digits).unwrap_or_else(|| digits.to_owned());
            rest = after;
        }
        out + rest
    }

    fn shifted(&self, port: &str) -> Option<String> {
        let port: u16 = port.parse().ok()?;
        Some(port.checked_add(self.port_offset)?.to_string())
    }
}

impl<'a> Reading<'a> {
    fn new(path: &'a Path, text: &str, instance: Option<u32>) -> Self {
        let main = Ini::parse(text);
        let raw = |section, key| main.get(section, key).map(|value| value.parts.join(","));
        let filled = |section, key| raw(section, key).filter(|text| !text.is_empty());
        let rundir = filled("global", "rundir").or_else(|| filled("runner", "rundir")).unwrap_or_default();
        let mut variables = Variables {
            libdir: filled("global", "libdir").unwrap_or_else(|| LIBDIR.into()),
            rundir: absolute(&rundir),
            ipc_prefix: raw("global", "ipc_prefix").unwrap_or_else(|| "pushpin-".into()),
            port_offset: raw("global", "port_offset").and_then(|text| text.parse().ok()).unwrap_or(0),
        };
        if let Some(id) = instance {
            variables.ipc_prefix = format!("p{id}-");
            variables.port_offset = u16::try_from(id.saturating_mul(10)).unwrap_or(u16::MAX);
        }
        let include = filled("global", "include");
        let mut reading = Self { path, main, include: None, variables, layer: Layer::default() };
        if let Some(name) = include {
            reading.include(&name);
        }
        reading
    }

    /// Reads the second file. Pushpin's own may be gone with Pushpin: there is nothing in it for Fantail.
    fn include(&mut self, name: &str) {
        let name = if name == INTERNAL { format!("{{libdir}}/{INTERNAL}") } else { name.to_owned() };
        let path = self.folder().join(self.variables.resolve(&name));
        match std::fs::read_to_string(&path) {
            Ok(text) => self.include = Some((path, Ini::parse(&text))),
            Err(_) if path.ends_with(INTERNAL) => {}
            Err(why) => {
                let reason = format!("include: {} cannot be read: {why}", path.display());
                let place = self.find("global", &["include"]).map(|found| found.place);
                self.doubtful(place, reason);
            }
        }
    }

    fn find(&self, section: &str, names: &[&str]) -> Option<Found> {
        let files = [Some((self.path, &self.main)), self.include.as_ref().map(|(path, ini)| (&**path, ini))];
        let (path, value) = files
            .into_iter()
            .flatten()
            .find_map(|(path, ini)| Some((path, names.iter().find_map(|name| ini.get(section, name))?)))?;
        let parts = value.parts.iter().map(|part| self.variables.resolve(part)).collect();
        Some(Found { parts, place: Place::File { path: path.into(), line: value.line, column: 1 } })
    }

    /// The keys that become one key.
    fn table(&mut self) {
        for row in ROWS {
            let Meaning::Becomes(key, form, absent) = row.meaning else { continue };
            let found = self.find(row.section, row.names);
            let place = found.as_ref().map_or_else(|| self.whole(), |found| found.place.clone());
            let base = self.folder();
            let value = found.as_ref().and_then(|found| form.read(found, base));
            if let Some(found) = &found
                && value.is_none()
            {
                let reason = format!("{}: {:?} is not taken: {}", row.names[0], found.text(), form.wanted());
                self.doubtful(Some(found.place.clone()), reason);
            }
            let absent = || form.read(&Found { parts: vec![absent?.into()], place: self.whole() }, base);
            if let Some(value) = value.or_else(absent) {
                self.set(key, value, place);
            }
        }
    }

    fn listeners(&mut self) {
        let mut listen = Vec::new();
        let mut place = self.whole();
        if let Some(found) = self.find("runner", &["http_port"]) {
            listen.extend(found.list().map(tcp));
            place = found.place;
        }
        if let Some(found) = self.find("runner", &["local_ports"]) {
            listen.extend(found.list().map(unix));
        }
        self.set("server.listen", Value::from(listen), place);
        if let Some(found) = self.find("runner", &["https_ports"]) {
            let certificates = self.folder().join("runner/certs");
            let listen = Value::from(found.list().map(tcp).collect::<Vec<_>>());
            self.set(
                "tls.folder",
                Value::from(absolute(&certificates.to_string_lossy())),
                found.place.clone(),
            );
            self.set("server.tls_listen", listen, found.place);
        }
    }

    /// The list, and the single one that older versions have beside it.
    fn subscribers(&mut self) {
        let found = ["push_in_sub_specs", "push_in_sub_spec"].map(|name| self.find("handler", &[name]));
        let specs: Vec<&str> = found.iter().flatten().flat_map(Found::list).collect();
        if let Some(first) = found.iter().flatten().next().filter(|_| has("zeromq.sub")) {
            let (value, place) = (Value::from(specs), first.place.clone());
            self.set("zeromq.sub", value, place);
        }
    }

    /// That of the handler, which has the numbers of all; else that of the proxy.
    fn prometheus(&mut self) {
        let sections = ["handler", "proxy"].into_iter();
        let Some(found) = sections.filter_map(|section| self.find(section, &["prometheus_port"])).next()
        else {
            return;
        };
        let text = found.text();
        let address = match text.trim().strip_prefix("ipc://") {
            Some(path) => format!("unix:{}", absolute(path)),
            None => tcp(text.trim()),
        };
        self.set("stats.prometheus", Value::from(address), found.place);
    }

    fn control(&mut self) {
        let address = self.find("handler", &["push_in_http_addr"]);
        let port = self.find("handler", &["push_in_http_port"]);
        let place = [&address, &port].into_iter().flatten().next().map(|found| found.place.clone());
        let ip = match address.map(|found| found.text()).filter(|text| !text.is_empty()) {
            None => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            Some(text) => text.trim_matches(['[', ']']).parse().map_err(|_| text),
        };
        let ip = ip.unwrap_or_else(|text| {
            let reason = format!("push_in_http_addr: {text:?} is no IP address: 127.0.0.1 is taken");
            self.doubtful(place.clone(), reason);
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        });
        let text = port.map(|found| found.text());
        let shifted =
            text.as_deref().filter(|text| *text != "0").and_then(|text| self.variables.shifted(text));
        let port = shifted.unwrap_or_else(|| {
            let why = text.map_or_else(|| "is not set".into(), |text| format!("{text:?} is no port"));
            let port = self.variables.shifted(CONTROL_PORT).unwrap_or_else(|| CONTROL_PORT.into());
            let reason = format!("push_in_http_port: {why}: {port} is taken, there is always a control port");
            self.doubtful(place.clone(), reason);
            port
        });
        let place = place.unwrap_or_else(|| self.whole());
        let listen = if ip.is_ipv6() { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
        if !ip.to_canonical().is_loopback() {
            let reason = format!("anyone who can reach {listen} may publish, as with Pushpin");
            self.doubtful(Some(place.clone()), reason);
            self.set("control.open", Value::from(true), place.clone());
        }
        self.set("control.listen", Value::from(listen), place);
    }

    fn log(&mut self) {
        self.set("logging.format", Value::from("pushpin"), self.whole());
        self.set("logging.channels", Value::from(true), self.whole());
        let Some(found) = self.find("runner", &["log_level"]) else { return };
        match level(&found.text()) {
            Ok((level, apart)) => {
                if !apart.is_empty() {
                    let reason =
                        format!("log_level: the parts of Fantail have one level: {apart} is not used");
                    self.doubtful(Some(found.place.clone()), reason);
                }
                self.set("logging.level", Value::from(level), found.place);
            }
            Err(why) => self.doubtful(Some(found.place), format!("log_level: {why}")),
        }
    }

    fn routes(&mut self) {
        let found = self.find("proxy", &["routesfile"]);
        let place = found.as_ref().map_or_else(|| self.whole(), |found| found.place.clone());
        let name = found.map(|found| found.text()).filter(|text| !text.is_empty());
        let file = self.folder().join(name.as_deref().unwrap_or("routes"));
        let file = absolute(&file.to_string_lossy());
        self.set("routes.file", Value::from(file), place.clone());
        self.set("routes.lenient", Value::from(true), place);
    }

    /// Says which keys do nothing: those of the table that have no meaning, and those that nobody knows.
    fn report(&mut self) {
        let mut notices: Vec<Notice> = Vec::new();
        let include = self.include.as_ref().map(|(path, ini)| (&**path, ini));
        for (path, ini) in [Some((self.path, &self.main)), include].into_iter().flatten() {
            for setting in ini.settings() {
                let (section, key) = (setting.section.as_str(), setting.key.as_str());
                let row = ROWS.iter().find(|row| row.section == section && row.names.contains(&key));
                let reason = match row.map(|row| row.meaning) {
                    Some(Meaning::Nothing(reason)) => reason,
                    Some(_) => continue,
                    None if table::is_plumbing(section, key) => table::BETWEEN_PROCESSES,
                    None => {
                        let place = Place::File { path: path.into(), line: setting.value.line, column: 1 };
                        let reason =
                            format!("there is no key {key} in [{section}] of Pushpin: it is not used");
                        notices.push(Notice::Doubtful(Problem { place, reason }));
                        continue;
                    }
                };
                let same = notices.iter_mut().find_map(|notice| match notice {
                    Notice::Meaningless { file, keys, reason: known } => {
                        (file == path && *known == reason).then_some(keys)
                    }
                    Notice::Doubtful(_) => None,
                });
                match same {
                    Some(keys) => keys.push(key.to_owned()),
                    None => notices.push(Notice::Meaningless {
                        file: path.into(),
                        keys: vec![key.to_owned()],
                        reason,
                    }),
                }
            }
        }
        self.layer.notices.append(&mut notices);
    }

    fn set(&mut self, key: &str, value: Value, place: Place) {
        let value = fitted(key, value);
        self.layer.entries.push(Entry { key: key.into(), value, place });
    }

    fn doubtful(&mut self, place: Option<Place>, reason: String) {
        let place = place.unwrap_or_else(|| self.whole());
        self.layer.notices.push(Notice::Doubtful(Problem { place, reason }));
    }

    /// Where the file is.
    fn folder(&self) -> &'a Path {
        self.path.parent().unwrap_or_else(|| Path::new("."))
    }

    fn whole(&self) -> Place {
        Place::File { path: self.path.into(), line: 0, column: 0 }
    }
}

impl Form {
    /// `None`: the text is not one of this form.
    fn read(self, found: &Found, base: &Path) -> Option<Value> {
        let text = found.text();
        let text = text.trim();
        let number = || text.parse::<u32>().ok();
        match self {
            Self::Key => Some(Value::from(match text.strip_prefix("file:") {
                Some(file) => format!("file:{}", absolute(&base.join(file).to_string_lossy())),
                None => found.text(),
            })),
            Self::Text => Some(Value::from(found.text())),
            Self::Joined => Some(Value::from(found.list().collect::<Vec<_>>().join(","))),
            Self::List => Some(Value::from(found.list().collect::<Vec<_>>())),
            Self::Truth => Some(Value::from(!matches!(&*text.to_ascii_lowercase(), "" | "0" | "false"))),
            Self::Number => number().map(|number| Value::from(i64::from(number))),
            Self::Seconds => number().map(|seconds| Value::from(format!("{seconds}s"))),
            Self::Milliseconds => number().map(|milliseconds| Value::from(format!("{milliseconds}ms"))),
            Self::Protocol => {
                Some(Value::from(if matches!(text, "true" | "proto-only") { text } else { "false" }))
            }
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Number => "it is no whole number",
            Self::Seconds => "it is no whole number of seconds",
            Self::Milliseconds => "it is no whole number of milliseconds",
            Self::Text | Self::Key | Self::Joined | Self::List | Self::Truth | Self::Protocol => {
                "it is no text"
            }
        }
    }
}

/// Whether Fantail has this key.
fn has(key: &str) -> bool {
    KEYS.iter().any(|known| known.full == key)
}

/// One text for a key that has a list is its only element, or none.
fn fitted(key: &str, value: Value) -> Value {
    let (section, name) = key.split_once('.').unwrap_or((key, ""));
    let default = DEFAULTS.get(section).and_then(|section| section.get(name));
    match (default, value) {
        (Some(Value::Array(_)), Value::String(text)) if text.is_empty() => Value::Array(Vec::new()),
        (Some(Value::Array(_)), Value::String(text)) => Value::Array(vec![Value::from(text)]),
        (_, value) => value,
    }
}

/// `log_level` and `--loglevel`: `N` or `N,SERVICE:N,…`, from 0 (errors) to 4 (all). The level, and what is said of
/// single services, which are no processes of their own here.
pub fn level(text: &str) -> Result<(&'static str, String), LevelError> {
    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| LevelError(text.to_owned()));
    let mut level = DEFAULT_LEVEL;
    let mut apart = Vec::new();
    for part in text.split(',').map(str::trim) {
        match part.split_once(':') {
            Some((name, own)) if !name.is_empty() => {
                number(own)?;
                apart.push(part);
            }
            Some(_) => return Err(LevelError(part.to_owned())),
            None => level = number(part)?,
        }
    }
    let last = LEVELS.len() - 1;
    let at = usize::try_from(level).unwrap_or(last).min(last);
    Ok((LEVELS[at], apart.join(",")))
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no level: write a number from 0 (errors) to 4 (all), or N,SERVICE:N")]
pub struct LevelError(String);

/// An address of `http_port` or `--port`: a port alone is one of all IPv4 addresses.
pub fn tcp(text: &str) -> String {
    if text.contains(':') { text.to_owned() } else { format!("0.0.0.0:{text}") }
}

/// One of `local_ports`: a path, with `mode`, `user` and `group` in its query.
fn unix(text: &str) -> String {
    let text = text.strip_prefix("unix:").unwrap_or(text);
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let known = |item: &&str| ["mode=", "user=", "group="].iter().any(|name| item.starts_with(name));
    let query = query.split('&').filter(known).collect::<Vec<_>>().join("&");
    let mark = if query.is_empty() { "" } else { "?" };
    format!("unix:{}{mark}{query}", absolute(path))
}

/// Pushpin's relative paths, but for those of routes and included files, start from the current folder.
fn absolute(path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    std::path::absolute(path).map_or_else(|_| path.to_owned(), |path| path.to_string_lossy().into_owned())
}

/// Where packages put what they do not expect to be changed.
const LIBDIR: &str = "/usr/lib/pushpin";
const INTERNAL: &str = "internal.conf";
const CONTROL_PORT: &str = "5561";
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
const DEFAULT_LEVEL: u32 = 2;
/// Sockets between processes that a notice names before it counts.
const MOST_NAMED: usize = 3;
