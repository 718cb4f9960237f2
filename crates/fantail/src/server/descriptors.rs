//! How many connections of clients the limit of open files allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections that the limit of open files allows, which is raised as far as it goes, when origins may have
/// `origins` of them.
pub(super) fn connection_limit(configured: usize, origins: usize) -> usize {
    let files = getrlimit(Resource::Nofile);
    if let Some(most) = files.maximum
        && files.current != files.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..files })
    {
        tracing::warn!(%error, "the limit of open files stays at {:?}", files.current);
    }
    let files = getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let own = (files / 8).clamp(RESERVED_FILES_MIN, RESERVED_FILES_MAX);
    // A client's request needs one connection to an origin: more than half would be of no use.
    let reserve = own.saturating_add(origins).min(files / 2);
    let allowed = files.saturating_sub(reserve).max(1);
    if configured == 0 {
        return allowed;
    }
    if configured > allowed {
        tracing::warn!("client.connections is {configured}, but {files} open files allow {allowed}");
    }
    configured.min(allowed)
}

/// Files that clients leave to the control port, the log and whatever the process needs.
const RESERVED_FILES_MIN: usize = 100;
const RESERVED_FILES_MAX: usize = 1024;
