//! Why a line of routes is refused: what is wrong and, where it is not plain, what to write instead.

/// One fault of one line. Texts from the line are printed escaped, so that they cannot break a log.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Reason {
    #[error("a quote is opened and never closed")]
    OpenQuote,
    #[error("inside quotes only \\\\ and \\\" are escapes, not a backslash before {0:?}")]
    Escape(char),
    #[error("the control character {0:?} cannot stand here; sections are separated by spaces")]
    Control(char),
    #[error("a parameter has no name: an empty place between commas, or a comma at the end")]
    NoName,
    #[error("no target: a line is a condition, a space, and one or more targets")]
    NoTarget,
    #[error("the same condition as line {line}, so no request could reach this one")]
    Duplicate { line: usize },
    #[error("neither a host nor an id, so no request could reach this line")]
    Unreachable,
    #[error("unknown parameter {name:?}{}", nearest.map(|known| format!("; did you mean {known}?")).unwrap_or_default())]
    Unknown { name: String, nearest: Option<&'static str> },
    #[error("{name} is a parameter of {place}")]
    Misplaced { name: String, place: &'static str },
    #[error("{name}={value:?}: {wanted}")]
    Value { name: &'static str, value: String, wanted: &'static str },
    #[error("{value:?} is not a host: {wanted}")]
    Host { value: String, wanted: &'static str },
    #[error("{value:?} is not a target: {wanted}")]
    Target { value: String, wanted: &'static str },
    #[error("the target test has no connection that {0} could apply to")]
    TestTakes(&'static str),
    #[error("workers connect to us: there is no connection of ours that {0} could apply to")]
    WorkersTake(&'static str),
    #[error("{0} is for zhttp and zhttpreq targets")]
    OnlyWorkersTake(&'static str),
    #[error("client_cert and client_key only work together")]
    HalfIdentity,
}

impl Reason {
    /// Whether the line means something without what is wrong: parameters that Pushpin does not look at.
    pub(super) fn leaves_a_route(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::Misplaced { .. } | Self::TestTakes(_))
    }

    /// For a name that `place` does not know: it belongs to the other place, or is misspelt.
    pub(super) fn unknown(
        name: String,
        here: &[&'static str],
        there: &[&str],
        there_is: &'static str,
    ) -> Self {
        if there.contains(&name.as_str()) {
            return Self::Misplaced { name, place: there_is };
        }
        let nearest = here.iter().map(|known| (distance(&name, known), *known)).min();
        let nearest = nearest.filter(|(far, known)| *far <= known.len() / 3 + 1).map(|(_, known)| known);
        Self::Unknown { name, nearest }
    }
}

/// Levenshtein distance of two short names, in bytes; a longer name is farther than anything known.
fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    if a.len() > LONGEST {
        return LONGEST;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
