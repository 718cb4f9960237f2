//! Latencies as a histogram of fixed size: 128 steps to each power of two, so a percentile is at most
//! 0.8 % below the true value, however many were recorded.

const STEP_BITS: u32 = 7;
const STEPS: usize = 1 << STEP_BITS;
/// Values below `STEPS` have a bucket each; every power of two above has `STEPS`.
const BUCKETS: usize = STEPS * (64 - STEP_BITS as usize + 1);

/// Nanoseconds, counted.
#[derive(Debug)]
pub(crate) struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }

    pub(crate) fn record(&mut self, nanoseconds: u64) {
        if let Some(bucket) = self.buckets.get_mut(bucket_of(nanoseconds)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(nanoseconds);
    }

    /// Adds what another has recorded.
    pub(crate) fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(bucket, other)| *bucket += other);
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The value, in microseconds, that `percent` of the recorded ones do not exceed; 100 is the maximum
    /// itself. NaN if nothing was recorded.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        if self.count == 0 {
            return f64::NAN;
        }
        if percent >= 100.0 {
            return self.max as f64 / 1e3;
        }
        let rank = ((percent / 100.0 * self.count as f64).ceil() as u64).max(1);
        let mut below = 0;
        let bucket = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        });
        bucket.map_or(self.max, lower_bound) as f64 / 1e3
    }
}

fn bucket_of(value: u64) -> usize {
    let shift = (63 - (value | 1).leading_zeros()).saturating_sub(STEP_BITS);
    shift as usize * STEPS + (value >> shift) as usize
}

fn lower_bound(bucket: usize) -> u64 {
    let shift = (bucket / STEPS).saturating_sub(1);
    ((bucket - shift * STEPS) as u64) << shift
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_is_close_to_its_values(value: u64) {
            let bucket = bucket_of(value);
            prop_assert!(bucket < BUCKETS);
            let bound = lower_bound(bucket);
            prop_assert!(bound <= value && value - bound <= value / STEPS as u64);
        }

        #[test]
        fn percentiles_agree_with_sorting(mut values in prop::collection::vec(0u64..10_000_000_000, 1..300), percent in 0.0..100.0f64) {
            let mut latencies = Latencies::new();
            values.iter().for_each(|value| latencies.record(*value));
            values.sort_unstable();
            let rank = ((percent / 100.0 * values.len() as f64).ceil() as usize).max(1);
            let exact = values[rank - 1] as f64 / 1e3;
            let found = latencies.percentile(percent);
            prop_assert!(found <= exact && exact - found <= exact * 0.008 + 0.001, "{found} of {exact}");
            prop_assert_eq!(latencies.percentile(100.0), values[values.len() - 1] as f64 / 1e3);
        }
    }

    #[test]
    fn nothing_has_no_percentile() {
        assert!(Latencies::new().percentile(50.0).is_nan());
    }
}
