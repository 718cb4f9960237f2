//! The routes grammar (spec 2.2–2.5) and which route a request takes. A table is parsed whole or not
//! at all; a parameter whose feature does not exist is refused by name. Files are read elsewhere.

use std::{collections::HashMap, fmt, sync::Arc};

use crate::{jsonp, slow::Slow};

pub use self::{
    reason::Reason,
    rewrite::Outgoing,
    workers::{Meeting, Protocol, Workers},
};

mod condition;
mod line;
mod reason;
mod rewrite;
mod target;
#[cfg(test)]
mod tests;
mod workers;

/// All routes, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Table {
    routes: Vec<Arc<Route>>,
    /// Positions in `routes`, the best first: what matches first wins.
    by_host: HashMap<String, Vec<usize>>,
    any_host: Vec<usize>,
    by_id: HashMap<String, Id>,
    sockjs: bool,
}

/// One line.
#[derive(Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the grammar, in any combination")]
pub struct Route {
    /// `id=`; a route without one has an empty id and cannot be found by id.
    pub id: String,
    pub host: Host,
    /// `proto=http` is `Some(false)`, `proto=ws` is `Some(true)`.
    pub ws: Option<bool>,
    pub tls: Option<bool>,
    pub path_beg: String,
    /// `as_host=H[:port]`, without the port that the client asked for.
    pub as_host: Option<String>,
    /// Bytes; not used when there is a `replace_beg`.
    pub path_rem: usize,
    pub replace_beg: Option<String>,
    pub sig_iss: Option<String>,
    pub sig_key: Option<String>,
    pub prefix: String,
    pub orig_headers: bool,
    pub debug: bool,
    /// `header=Name:Value`, an empty value deletes.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    pub no_grip: bool,
    /// Its requests may be of sessions that an external server keeps.
    pub session: bool,
    /// Pages of other origins may read what it answers (spec 8.3).
    pub aco: bool,
    /// What JSON-P is like, with `aco` (spec 8.4).
    pub jsonp: jsonp::Rules,
    /// SockJS is spoken below this path, without a slash at its end (spec 8.2).
    pub sockjs: Option<String>,
    /// What the origin sees as the path of a session.
    pub sockjs_as_path: Option<String>,
    /// `log_level=`: what is logged of its requests at most, from 0 (errors) to 4 (all).
    pub log_level: Option<u8>,
    /// `realm=`, our own parameter.
    pub realm: Option<String>,
    /// `slow=`, our own too: of channels that do not say it themselves.
    pub slow: Slow,
    pub targets: Vec<Target>,
    /// Line in its file, from 1.
    pub line: usize,
}

#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub enum Host {
    /// `*`: used when the request's host has no line of its own.
    #[default]
    Any,
    /// Empty: only by id.
    None,
    /// Lower-case; an IPv6 address in its shortest form, without brackets.
    Exact(String),
}

#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the grammar, in any combination")]
pub struct Target {
    pub address: Address,
    pub tls: bool,
    pub untrusted: bool,
    pub trust_connect_host: bool,
    pub insecure: bool,
    /// WebSockets are asked about by POSTs of events (spec 7.2).
    pub over_http: bool,
    /// With `over_http`: a request for each event.
    pub one_event: bool,
    /// `host=H[:port]`
    pub host: Option<String>,
    /// `sub=`, full channel names.
    pub subs: Vec<String>,
    /// A PEM file; present exactly when `client_key` is.
    pub client_cert: Option<String>,
    pub client_key: Option<String>,
    /// Permissions of the sockets that workers connect to.
    pub ipc_file_mode: Option<u32>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Address {
    /// The built-in origin (spec 2.7).
    #[default]
    Test,
    /// Host without brackets, port 1..=65535.
    Tcp(String, u16),
    /// Workers behind ZeroMQ.
    Workers(Workers),
}

/// What of a request decides its route. `host` is lower-case and without port; an IPv6 address may keep
/// its brackets. `path` is percent-encoded, as the client sent it and as the origin will get it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub host: &'a str,
    pub path: &'a str,
    pub tls: bool,
    pub ws: bool,
    /// `Pushpin-Route`, where it is accepted.
    pub id: Option<&'a str>,
}

/// A line that could not be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct LineError {
    pub line: usize,
    pub reason: Reason,
}

/// As in the routes file.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Test => f.write_str("test"),
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Workers(workers) => workers.fmt(f),
        }
    }
}

/// Without its key, and without what headers say.
impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Route");
        shown.field("id", &self.id).field("host", &self.host).field("path_beg", &self.path_beg);
        shown.field("realm", &self.realm).field("targets", &self.targets).finish_non_exhaustive()
    }
}

impl Table {
    /// Every line must be good; all errors are returned at once, in the order of their lines.
    pub fn parse(text: &str) -> Result<Self, Vec<LineError>> {
        let (table, errors) = Self::parse_leniently(text);
        if errors.is_empty() { Ok(table) } else { Err(errors) }
    }

    /// Passes over what Pushpin passes over (spec 2.1, 2.2): unknown parameters, and lines that it could not use.
    /// Returns what was wrong, in the order of the lines.
    pub fn parse_leniently(text: &str) -> (Self, Vec<LineError>) {
        let mut routes = Vec::new();
        let mut errors = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let (route, reasons) = Route::parse(text);
            errors.extend(reasons.into_iter().map(|reason| LineError { line, reason }));
            routes.extend(route.map(|route| Route { line, ..route }));
        }
        let duplicates = duplicates(&routes);
        routes.retain(|route| !duplicates.iter().any(|duplicate| duplicate.line == route.line));
        errors.extend(duplicates);
        errors.sort_by_key(|error| error.line);
        (Self::new(routes.into_iter().map(Arc::new).collect()), errors)
    }

    /// The table without some of its lines.
    pub fn without(&self, lines: &[usize]) -> Self {
        let kept = self.routes.iter().filter(|route| !lines.contains(&route.line));
        Self::new(kept.cloned().collect())
    }

    /// The route of a request (spec 2.5). A host with lines of its own never falls back to `*`; among
    /// the lines that match, one with `proto` wins, then the longest `path_beg`, then one with `ssl`.
    pub fn find(&self, asked: Asked<'_>) -> Option<&Arc<Route>> {
        self.position(asked).and_then(|at| self.routes.get(at))
    }

    /// Like [`Table::find`], as a position in [`Table::routes`].
    pub fn position(&self, asked: Asked<'_>) -> Option<usize> {
        if let Some(id) = asked.id.filter(|id| !id.is_empty()) {
            match self.by_id.get(id) {
                Some(Id::One(at)) => {
                    return asked.path.starts_with(&self.routes[*at].path_beg).then_some(*at);
                }
                Some(Id::Shared) if asked.ws => {}
                Some(Id::Shared) | None => return None,
            }
        }
        let host = asked.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(asked.host);
        let candidates = self.by_host.get(host).unwrap_or(&self.any_host);
        candidates.iter().copied().find(|at| self.routes[*at].matches(asked))
    }

    /// Whether any of them speaks SockJS.
    pub const fn speaks_sockjs(&self) -> bool {
        self.sockjs
    }

    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    fn new(routes: Vec<Arc<Route>>) -> Self {
        let sockjs = routes.iter().any(|route| route.sockjs.is_some());
        let mut table = Self { routes, sockjs, ..Self::default() };
        let mut best_first: Vec<usize> = (0..table.routes.len()).collect();
        best_first.sort_by_key(|at| std::cmp::Reverse(table.routes[*at].weight()));
        for at in best_first {
            match &table.routes[at].host {
                Host::Any => table.any_host.push(at),
                Host::None => {}
                Host::Exact(host) => table.by_host.entry(host.clone()).or_default().push(at),
            }
        }
        for (at, route) in table.routes.iter().enumerate().filter(|(_, route)| !route.id.is_empty()) {
            table.by_id.entry(route.id.clone()).and_modify(|id| *id = Id::Shared).or_insert(Id::One(at));
        }
        table
    }
}

impl Route {
    /// All that is wrong with a line; and the route, if there is one without what is wrong. A line that is blank or
    /// only a comment has neither.
    fn parse(text: &str) -> (Option<Self>, Vec<Reason>) {
        let mut sections = match line::sections(text) {
            Ok(sections) => sections.into_iter(),
            Err(reason) => return (None, vec![reason]),
        };
        let Some(first) = sections.next() else { return (None, Vec::new()) };
        let mut reasons = Vec::new();
        let mut route = condition::read(first, &mut reasons);
        route.targets = sections.map(|section| target::read(section, &mut reasons)).collect();
        if route.targets.is_empty() {
            reasons.push(Reason::NoTarget);
        }
        let usable = reasons.iter().all(Reason::leaves_a_route);
        (usable.then_some(route), reasons)
    }

    fn matches(&self, asked: Asked<'_>) -> bool {
        self.ws.is_none_or(|ws| ws == asked.ws)
            && self.tls.is_none_or(|tls| tls == asked.tls)
            && asked.path.starts_with(&self.path_beg)
    }

    /// Of two routes that match a request, the greater one is taken.
    fn weight(&self) -> (bool, usize, bool) {
        (self.ws.is_some(), self.path_beg.len(), self.tls.is_some())
    }

    /// Two routes for which this is equal are asked for by the same requests. Without a host only the
    /// id asks.
    fn condition(&self) -> (&Host, &str, Option<bool>, Option<bool>, &str) {
        let id = if self.host == Host::None { self.id.as_str() } else { "" };
        (&self.host, id, self.ws, self.tls, &self.path_beg)
    }
}

/// Which routes an id names.
#[derive(Clone, Copy, Debug)]
enum Id {
    One(usize),
    /// Several: such an id chooses nothing.
    Shared,
}

fn duplicates(routes: &[Route]) -> Vec<LineError> {
    let mut seen = HashMap::new();
    let mut errors = Vec::new();
    for route in routes {
        let first = *seen.entry(route.condition()).or_insert(route.line);
        if first != route.line {
            errors.push(LineError { line: route.line, reason: Reason::Duplicate { line: first } });
        }
    }
    errors
}
