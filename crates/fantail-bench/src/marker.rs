//! The markers `@NUMBER:NANOSECONDS@` that every message opens with: written, found again in a stream
//! that arrives in pieces, and entered in a subscriber's ledger.

use memchr::memchr;

/// "@", two numbers of at most 20 digits and ":"; what is longer is not a marker.
const LONGEST: usize = 42;

/// Which message, and when it was published, in nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Marker {
    pub(crate) number: u64,
    pub(crate) sent: u64,
}

impl Marker {
    /// The text of a message: this marker, padded to `size` bytes (never cut).
    pub(crate) fn message(self, size: usize) -> String {
        let mut text = format!("@{}:{}@", self.number, self.sent);
        text.extend(std::iter::repeat_n('x', size.saturating_sub(text.len())));
        text
    }
}

/// What of a marker has been read so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scanner {
    part: Vec<u8>,
}

impl Scanner {
    /// Reads on; calls `found` with each marker that `bytes` completes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut found: impl FnMut(Marker)) {
        while !bytes.is_empty() {
            if self.part.is_empty() {
                let Some(at) = memchr(b'@', bytes) else { return };
                bytes = &bytes[at + 1..];
                // Mostly it is whole, and nothing needs to be kept.
                if let Some((marker, length)) = whole(bytes) {
                    found(marker);
                    bytes = &bytes[length..];
                } else {
                    self.part.push(b'@');
                }
                continue;
            }
            let digits = bytes.iter().take_while(|byte| is_within(**byte)).count();
            if self.part.len() + digits > LONGEST {
                self.part.clear();
                bytes = &bytes[digits..];
                continue;
            }
            self.part.extend_from_slice(&bytes[..digits]);
            bytes = &bytes[digits..];
            let Some((end, rest)) = bytes.split_first() else { return };
            bytes = rest;
            let marker = if *end == b'@' { parse(&self.part) } else { None };
            self.part.clear();
            match marker {
                Some(marker) => found(marker),
                None if *end == b'@' => self.part.push(b'@'),
                None => {}
            }
        }
    }
}

/// What one subscriber has got. In order it is a number, without a heap to look into.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// One more than the highest number seen.
    next: u64,
    /// The numbers below `next` that were not seen, in order.
    gaps: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    InOrder,
    /// For the first time, but after a later one.
    Late,
    Again,
}

impl Ledger {
    /// Enters a message. `number` is below the count of published messages, which bounds the ledger.
    pub(crate) fn enter(&mut self, number: u64) -> Entry {
        if number >= self.next {
            self.gaps.extend(self.next..number);
            self.next = number + 1;
            return Entry::InOrder;
        }
        match self.gaps.binary_search(&number) {
            Ok(at) => {
                self.gaps.remove(at);
                Entry::Late
            }
            Err(_) => Entry::Again,
        }
    }
}

/// A marker behind its "@" and its length, if all of it is there.
fn whole(bytes: &[u8]) -> Option<(Marker, usize)> {
    let end = bytes.iter().take(LONGEST).position(|byte| !is_within(*byte))?;
    let (b'@', Some(text)) = (bytes[end], bytes.get(..end)) else { return None };
    numbers(str::from_utf8(text).ok()?).map(|marker| (marker, end + 1))
}

fn is_within(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b':'
}

fn parse(part: &[u8]) -> Option<Marker> {
    numbers(str::from_utf8(part).ok()?.strip_prefix('@')?)
}

fn numbers(text: &str) -> Option<Marker> {
    let (number, sent) = text.split_once(':')?;
    Some(Marker { number: number.parse().ok()?, sent: sent.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(pieces: &[&[u8]]) -> Vec<Marker> {
        let (mut scanner, mut markers) = (Scanner::default(), Vec::new());
        pieces.iter().for_each(|piece| scanner.feed(piece, |marker| markers.push(marker)));
        markers
    }

    #[test]
    fn only_whole_markers_count() {
        let table: [(&str, &[u64]); 8] = [
            ("a@1:0@b", &[1]),
            ("@1:0@@3:0@", &[1, 3]),
            ("me@here.org @7:0@", &[7]),
            ("@12@5:0@", &[5]),
            ("@1:2x@3:0@", &[3]),
            ("@1:0", &[]),
            ("@1:99999999999999999999999@2:0@", &[2]),
            ("@111111111111111111111111111111111111111111111111:2@1:0@", &[1]),
        ];
        for (text, expected) in table {
            let found: Vec<_> = scan(&[text.as_bytes()]).iter().map(|marker| marker.number).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn reads_may_end_anywhere(numbers in prop::collection::vec((any::<u64>(), any::<u64>()), 1..20), cuts in prop::collection::vec(1usize..9, 1..9)) {
            let markers: Vec<_> = numbers.iter().map(|&(number, sent)| Marker { number, sent }).collect();
            let stream: String = markers.iter().map(|marker| format!("40\r\n{}\n\r\n", marker.message(64))).collect();
            let (mut pieces, mut rest) = (Vec::new(), stream.as_bytes());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = tail;
            }
            prop_assert_eq!(scan(&pieces), markers);
        }
    }

    #[test]
    fn a_ledger_tells_late_from_repeated() {
        let mut ledger = Ledger::default();
        let entries: Vec<_> =
            [0, 2, 1, 2, 200, 1, 150, 150].into_iter().map(|number| ledger.enter(number)).collect();
        let expected = [
            Entry::InOrder,
            Entry::InOrder,
            Entry::Late,
            Entry::Again,
            Entry::InOrder,
            Entry::Again,
            Entry::Late,
            Entry::Again,
        ];
        assert_eq!(entries, expected);
    }
}
