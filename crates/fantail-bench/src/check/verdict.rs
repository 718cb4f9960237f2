//! What a judgement found: counts for each class and transport, and each violation with its kind. Owns the printing.

use std::collections::BTreeMap;
use std::fmt;

use super::history::{Class, Fault, Transport};
use super::webhook;
use crate::latency::Latencies;

/// The ways to break a promise.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    Lost,
    /// With notice, though it was promised that it would survive.
    ToldLoss,
    /// A notice though nothing was lost that could have been kept.
    NeedlessGap,
    /// Missing between a subscriber's position and what it got first after it came back.
    ResumeBroken,
    Duplicate,
    Reordered,
    /// Subscribers got items in different orders.
    Disagreement,
    /// Never acknowledged: some got it and some did not.
    Uneven,
    Phantom,
    Early,
    Corrupt,
    /// Of a channel that the subscriber has not.
    Stray,
    /// Nothing came at the end.
    Stalled,
    Stale,
    /// A webhook that its receiver cannot know by its id.
    Unnamed,
    Died,
}

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) publishes: Publishes,
    pub(crate) faults: BTreeMap<Fault, u64>,
    pub(crate) webhooks: webhook::Counts,
    by_transport: BTreeMap<(Class, Transport), Counts>,
    kinds: BTreeMap<Kind, u64>,
    /// The first of them.
    examples: Vec<(Kind, String)>,
}

#[derive(Debug, Default)]
pub(crate) struct Publishes {
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) refused_but_seen: u64,
    pub(crate) unknown: u64,
    /// Tried more than once with the same id.
    pub(crate) repeated: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) expected: u64,
    pub(crate) received: u64,
    pub(crate) resumes: u64,
    pub(crate) gaps: u64,
    pub(crate) told_losses: u64,
    pub(crate) repeated_after_crash: u64,
    pub(crate) violations: u64,
    /// From acknowledgement to receipt.
    pub(crate) late: Latencies,
    pub(crate) late_in_faults: Latencies,
    /// From the first publish after the last fault.
    pub(crate) alive_after: Latencies,
}

impl Verdict {
    pub(crate) fn passed(&self) -> bool {
        self.kinds.is_empty()
    }

    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.kinds.contains_key(&kind)
    }

    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.kinds.keys().copied()
    }

    pub(crate) fn counts(&mut self, class: Class, transport: Transport) -> &mut Counts {
        self.by_transport.entry((class, transport)).or_default()
    }

    pub(crate) fn convict(&mut self, kind: Kind, what: impl FnOnce() -> String) {
        let count = self.kinds.entry(kind).or_default();
        *count += 1;
        if *count <= EXAMPLES {
            self.examples.push((kind, what()));
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Publishes { acknowledged, refused, refused_but_seen, unknown, repeated } = self.publishes;
        write!(
            f,
            "published: {acknowledged} acknowledged, {refused} refused ({refused_but_seen} of them seen), "
        )?;
        writeln!(f, "{unknown} without an answer; {repeated} were tried again")?;
        let faults: Vec<_> = self.faults.iter().map(|(fault, count)| format!("{count} {fault:?}")).collect();
        writeln!(f, "faults: {}\n", faults.join(", ").to_lowercase())?;
        writeln!(
            f,
            "| channel | transport | due | got | returns | breaks told | lost, told | repeated after a crash | wrong | \
             late, ms: p50 | p99 | most | in faults: p99 | most | first at the end, ms: most |"
        )?;
        writeln!(f, "| --- | --- |{}", " ---: |".repeat(13))?;
        for ((class, transport), counts) in &self.by_transport {
            write!(f, "| {} | {} |", class.name(), transport.name())?;
            let Counts { expected, received, resumes, gaps, told_losses, violations, .. } = counts;
            let figures =
                [expected, received, resumes, gaps, told_losses, &counts.repeated_after_crash, violations];
            figures.into_iter().try_for_each(|figure| write!(f, " {figure} |"))?;
            for (latencies, percent) in [
                (&counts.late, 50.0),
                (&counts.late, 99.0),
                (&counts.late, 100.0),
                (&counts.late_in_faults, 99.0),
                (&counts.late_in_faults, 100.0),
                (&counts.alive_after, 100.0),
            ] {
                match latencies.percentile(percent) / 1e3 {
                    none if none.is_nan() => write!(f, " |")?,
                    value => write!(f, " {value:.1} |")?,
                }
            }
            writeln!(f)?;
        }
        let webhook::Counts { due, requests, turned_away, again } = self.webhooks;
        if due > 0 {
            writeln!(
                f,
                "\nwebhooks: {due} due, {requests} came, {turned_away} of them turned away; {again} were taken again"
            )?;
        }
        for (kind, count) in &self.kinds {
            writeln!(f, "\n{kind:?}: {count}")?;
            let examples = self.examples.iter().filter(|(of, _)| of == kind);
            examples.into_iter().try_for_each(|(_, text)| writeln!(f, "  {text}"))?;
        }
        writeln!(f, "\n{}", if self.passed() { "PASS" } else { "FAIL" })
    }
}

/// So many of each kind are told.
const EXAMPLES: u64 = 5;
