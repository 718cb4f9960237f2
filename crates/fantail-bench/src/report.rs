//! The figures of one run, printed as lines or as one JSON object. Names carry their unit.

use std::fmt;

use crate::latency::Latencies;

#[derive(Debug)]
pub(crate) struct Report {
    figures: Vec<(String, Figure)>,
    json: bool,
    /// Everything arrived once and in order; nothing was refused or cut.
    pub(crate) passed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Figure {
    Count(u64),
    Real(f64),
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { figures: Vec::new(), json, passed: true }
    }

    pub(crate) fn count(&mut self, name: &str, value: u64) {
        self.figures.push((name.into(), Figure::Count(value)));
    }

    /// A quotient of nothing by nothing is printed as `null`.
    pub(crate) fn real(&mut self, name: &str, value: f64) {
        self.figures.push((name.into(), Figure::Real(value)));
    }

    /// Microseconds.
    pub(crate) fn latencies(&mut self, latencies: &Latencies) {
        for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)]
        {
            self.real(&format!("latency_us_{name}"), latencies.percentile(percent));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.json {
            let width = self.figures.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            return self
                .figures
                .iter()
                .try_for_each(|(name, figure)| writeln!(f, "{name:<width$}  {figure}"));
        }
        for (index, (name, figure)) in self.figures.iter().enumerate() {
            write!(f, "{}\"{name}\":{figure}", if index == 0 { "{" } else { "," })?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Count(value) => write!(f, "{value}"),
            Self::Real(value) if value.is_finite() => write!(f, "{value:.3}"),
            Self::Real(_) => f.write_str("null"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_lines_or_one_object() {
        for (json, text) in [(true, "{\"open\":3,\"mean\":null}\n"), (false, "open  3\nmean  null\n")] {
            let mut report = Report::new(json);
            report.count("open", 3);
            report.real("mean", f64::NAN);
            assert_eq!(report.to_string(), text);
        }
    }
}
