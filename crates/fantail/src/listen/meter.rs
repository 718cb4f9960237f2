//! How fast a client is, over the time in which it alone is waited for: sleeping origins and full pipes
//! behind us do not count against it. It is given times and totals, and ends nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Pace;

/// Measures one direction of one connection.
#[derive(Debug)]
pub(super) struct Meter {
    pace: Option<Pace>,
    /// Where the total stood when the current measure began, and how long was waited since then, up to
    /// `since`.
    from: u64,
    waited: Duration,
    since: Option<Instant>,
}

impl Meter {
    pub(super) fn new(pace: Option<Pace>) -> Self {
        Self { pace, from: 0, waited: Duration::ZERO, since: None }
    }

    /// The client has been waited for since its last byte, at `since`, which made `total`. Returns when it
    /// is too slow if nothing more comes.
    pub(super) fn waits(&mut self, since: Instant, total: u64) -> Option<Instant> {
        let pace = self.pace?;
        if let Some(before) = self.since.replace(since) {
            self.waited += since.saturating_duration_since(before);
        }
        // A total that has fallen is another message's.
        if total.checked_sub(self.from).is_none_or(|passed| passed >= pace.bytes) {
            self.from = total;
            self.waited = Duration::ZERO;
        }
        Some(since + pace.within.saturating_sub(self.waited))
    }

    /// The client is not waited for any more.
    pub(super) fn rests(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(since) = self.since.take() {
            self.waited += now().saturating_duration_since(since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { bytes: 100, within: Duration::from_secs(10) };

    /// Each step: at which second the client is waited for, or not, with which total, and the second at
    /// which it is then too slow.
    #[test]
    fn a_client_has_its_time_for_each_portion() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut meter = Meter::new(Some(PACE));
        assert_eq!(meter.waits(at(0), 0), Some(at(10)));
        assert_eq!(meter.waits(at(0), 0), Some(at(10)), "asked again, nothing has changed");
        assert_eq!(meter.waits(at(4), 50), Some(at(10)), "half a portion buys no time");
        meter.rests(|| at(5));
        assert_eq!(meter.waits(at(100), 50), Some(at(105)), "others' time is not the client's");
        assert_eq!(meter.waits(at(103), 100), Some(at(113)), "a whole portion");
        assert_eq!(meter.waits(at(104), 1000), Some(at(114)), "what is more is not saved up");
        assert_eq!(meter.waits(at(105), 10), Some(at(115)), "another message");
    }

    #[test]
    fn without_a_pace_no_client_is_too_slow() {
        assert_eq!(Meter::new(None).waits(Instant::now(), 0), None);
    }
}
