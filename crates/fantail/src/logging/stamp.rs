//! The time of a log line: `2026-11-23 19:44:04.123`, in UTC. Formats a second's date once.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

#[derive(Debug, Default)]
pub(super) struct Stamp {
    /// The second since 1970 that `text` begins with; 0 at first, when `text` is empty.
    second: u64,
    text: String,
}

impl Stamp {
    pub(super) fn at(&mut self, time: SystemTime) -> &str {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() != self.second || self.text.is_empty() {
            self.second = since.as_secs();
            self.text.clear();
            let (year, month, day) = date(self.second / DAY);
            let (hour, minute, second) = (self.second / 3600 % 24, self.second / 60 % 60, self.second % 60);
            // Writing to a String cannot fail.
            write!(self.text, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
                .unwrap_or_default();
        }
        self.text.truncate(SECOND_LEN);
        write!(self.text, ".{:03}", since.subsec_millis()).unwrap_or_default();
        &self.text
    }
}

/// Year, month and day of a day counted from 1970.
fn date(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

const DAY: u64 = 24 * 3600;
const SECOND_LEN: usize = "2026-11-23 19:44:04".len();

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn known_times() {
        let mut stamp = Stamp::default();
        for (ms, expected) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_399_999, "2000-02-28 23:59:59.999"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (1_709_251_199_007, "2024-02-29 23:59:59.007"),
            (1_709_251_200_007, "2024-03-01 00:00:00.007"),
            (1_709_251_200_950, "2024-03-01 00:00:00.950"),
            (1_767_225_599_000, "2025-12-31 23:59:59.000"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(stamp.at(UNIX_EPOCH + Duration::from_millis(ms)), expected);
        }
    }
}
