//! Why nothing could be measured. What a server did wrong is not an error: it is a figure of the report.

use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what}: {errno}")]
    System { what: &'static str, errno: Errno },
    #[error(
        "{wanted} connections need more than the {limit} descriptors of this process (ulimit -n): raise the \
         limit or run several generators"
    )]
    Descriptors { wanted: usize, limit: u64 },
    #[error("no connection was held{}", seen(.refusal))]
    NothingHeld { refusal: Option<String> },
    #[error("the server did not take the items: {why}")]
    NotPublished { why: String },
    #[error("no process {pid}: {error}")]
    Process { pid: u32, error: std::io::Error },
    #[error("{path}: {error}")]
    Disk { path: std::path::PathBuf, error: std::io::Error },
}

impl Error {
    /// Names what was being done; for `map_err`.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System { what, errno }
    }
}

fn seen(refusal: &Option<String>) -> String {
    refusal
        .as_ref()
        .map_or_else(|| ": is the server running?".into(), |text| format!("; the first answer: {text}"))
}
