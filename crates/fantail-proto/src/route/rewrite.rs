//! What the origin is asked for (spec 1.2): the route's and the target's changes to path and host.
//! The path is cut and joined as raw bytes, never decoded: the origin gets what the route was chosen by.

use std::borrow::Cow;

use super::{Address, Route, Target};

/// A request's URI as one target gets it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outgoing<'a> {
    /// Begins with `/`, or is `*` as it came.
    pub path_and_query: Cow<'a, str>,
    /// The value of `Host`: `host`, or `host:port`.
    pub host: &'a str,
}

impl Route {
    /// `path_and_query` is what the client sent and this route was found for, `host` the client's
    /// `Host`. The query is never changed.
    pub fn outgoing<'a>(
        &'a self,
        target: &'a Target,
        path_and_query: &'a str,
        host: &'a str,
    ) -> Outgoing<'a> {
        let end = path_and_query.bytes().position(|byte| byte == b'?').unwrap_or(path_and_query.len());
        let (path, query) = path_and_query.split_at(end);
        let (head, tail) = self.path(target, path);
        let unchanged = head.is_empty() && tail.len() == path.len();
        let path_and_query = if path == "*" || unchanged && path.starts_with('/') {
            Cow::Borrowed(path_and_query)
        } else {
            let rooted = head.chars().chain(tail.chars()).next() == Some('/');
            Cow::Owned([if rooted { "" } else { "/" }, head, tail, query].concat())
        };
        let host = target.host.as_deref().or(self.as_host.as_deref()).unwrap_or(host);
        Outgoing { path_and_query, host }
    }

    /// What is put in front of the path, and what is left of it.
    fn path<'a>(&'a self, target: &Target, path: &'a str) -> (&'a str, &'a str) {
        let without_beginning = path.strip_prefix(self.path_beg.as_str()).unwrap_or(path);
        match (&target.address, &self.replace_beg) {
            (_, Some(replacement)) => (replacement, without_beginning),
            (Address::Test, None) if self.path_rem == 0 => ("", without_beginning),
            _ => ("", &path[path.ceil_char_boundary(self.path_rem)..]),
        }
    }
}
