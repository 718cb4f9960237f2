//! When a delivery is tried again, and what an answer means for it. Arithmetic only: the time and the dice are the
//! caller's.

use std::time::Duration;

/// How a delivery that fails is repeated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Schedule {
    /// Between one try and the next; when they are used up the delivery has failed for good.
    delays: Vec<Duration>,
}

/// What an endpoint's answer means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Delivered,
    /// Never again: 410.
    Gone,
    /// To go elsewhere.
    Redirect,
    /// Too much, or not now: 429, 503.
    Busy,
    Refused,
}

impl Verdict {
    pub const fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Delivered,
            410 => Self::Gone,
            301 | 302 | 303 | 307 | 308 => Self::Redirect,
            429 | 503 => Self::Busy,
            _ => Self::Refused,
        }
    }
}

impl Schedule {
    /// Delays are cut to [`MAX_DELAY`].
    pub fn new(delays: impl IntoIterator<Item = Duration>) -> Self {
        Self { delays: delays.into_iter().map(|delay| delay.min(MAX_DELAY)).collect() }
    }

    /// How long to wait after `failed` tries, at least as long as `retry_after` (cut to [`MAX_DELAY`]), give or take
    /// a tenth, which `dice` decides. `None`: no more.
    pub fn delay(&self, failed: u32, retry_after: Option<Duration>, dice: u32) -> Option<Duration> {
        let at = usize::try_from(failed.checked_sub(1)?).ok()?;
        let delay = *self.delays.get(at)?;
        let jittered = delay.mul_f64(0.9 + 0.2 * f64::from(dice) / f64::from(u32::MAX));
        Some(jittered.max(retry_after.unwrap_or_default().min(MAX_DELAY)))
    }

    /// How long an endpoint is left alone after so many failures in a row, of whichever deliveries: from the third on as
    /// long as one delivery waits, from the first, but no longer than [`MAX_REST`].
    pub fn rest(&self, failures: u32, dice: u32) -> Option<Duration> {
        let at = failures.checked_sub(FEW_FAILURES)?;
        let last = u32::try_from(self.delays.len()).unwrap_or(u32::MAX).checked_sub(1)?;
        self.delay(at.min(last) + 1, None, dice).map(|delay| delay.min(MAX_REST))
    }

    /// What is left, after a restart, of a wait that was to end at `due` when the clock says `now`, both in
    /// milliseconds of Unix. If the clock was put back it is not longer than it can have been.
    pub fn left(&self, due: u64, now: u64) -> Duration {
        Duration::from_millis(due.saturating_sub(now)).min(MAX_DELAY)
    }

    /// Tries in all.
    pub fn tries(&self) -> u32 {
        u32::try_from(self.delays.len()).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// No wait is longer, whatever an endpoint asks for.
pub const MAX_DELAY: Duration = Duration::from_secs(24 * 3600);
/// No rest is longer: who is mended is found out so soon.
pub const MAX_REST: Duration = Duration::from_secs(300);
/// Fewer failures in a row say little of an endpoint that answers.
pub const FEW_FAILURES: u32 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule() -> Schedule {
        Schedule::new([5, 300, 1800, 7200, 18_000, 36_000, 36_000].map(Duration::from_secs))
    }

    #[test]
    fn a_delivery_is_tried_eight_times() {
        let seconds = |failed, dice| schedule().delay(failed, None, dice).map(|delay| delay.as_secs_f64());
        assert_eq!(schedule().tries(), 8);
        assert_eq!(seconds(1, 0), Some(4.5));
        assert_eq!(seconds(1, u32::MAX), Some(5.5));
        assert_eq!(seconds(7, 0), Some(32_400.0));
        assert_eq!((seconds(0, 0), seconds(8, 0), seconds(u32::MAX, 0)), (None, None, None));
    }

    #[test]
    fn an_endpoint_may_ask_for_more_time_but_not_for_any() {
        let delay = |asked| schedule().delay(1, Some(Duration::from_secs(asked)), 0);
        assert_eq!(delay(60), Some(Duration::from_secs(60)));
        assert_eq!(delay(1), Some(Duration::from_millis(4500)));
        assert_eq!(delay(u64::MAX), Some(MAX_DELAY));
    }

    #[test]
    fn an_endpoint_rests_longer_and_longer_but_not_for_long() {
        let rest = |failures| schedule().rest(failures, 0).map(|rest| rest.as_secs_f64());
        assert_eq!([0, 1, 2].map(rest), [None; 3]);
        assert_eq!([3, 4, 5, 9, 10, u32::MAX].map(rest), [4.5, 270.0, 300.0, 300.0, 300.0, 300.0].map(Some));
        assert_eq!(Schedule::new([]).rest(9, 0), None, "without retries there is no rest");
    }

    #[test]
    fn what_statuses_mean() {
        use Verdict::*;
        for (status, verdict) in [
            (200, Delivered),
            (204, Delivered),
            (299, Delivered),
            (304, Refused),
            (301, Redirect),
            (308, Redirect),
            (400, Refused),
            (410, Gone),
            (429, Busy),
            (500, Refused),
            (503, Busy),
            (999, Refused),
        ] {
            assert_eq!(Verdict::of(status), verdict, "{status}");
        }
    }

    proptest! {
        #[test]
        fn a_delay_is_within_a_tenth(failed in 1u32..=7, dice: u32, asked in proptest::option::of(0u64..200_000)) {
            let base = [5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 36_000.0][failed as usize - 1];
            let delay = schedule().delay(failed, asked.map(Duration::from_secs), dice).unwrap();
            let asked = asked.unwrap_or_default().min(MAX_DELAY.as_secs()) as f64;
            let seconds = delay.as_secs_f64();
            prop_assert!(seconds >= base * 0.899 && seconds >= asked && seconds <= (base * 1.101).max(asked));
        }

        #[test]
        fn no_clock_makes_a_wait_longer_than_the_longest(due: u64, now: u64) {
            let left = schedule().left(due, now);
            prop_assert!(left <= MAX_DELAY && (due > now || left.is_zero()));
        }
    }
}
