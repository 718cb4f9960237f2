//! What entities are told: complete stanzas that wait for the XMPP server, in order. Owns the limits, in all, of a domain
//! and of an address, so that who asks for much takes nobody else's answers. Writes nothing.

use std::collections::VecDeque;

use fantail_proto::xmpp::jid;
use hashbrown::{HashMap, hash_map::Entry};
use tokio::sync::watch;

#[derive(Debug)]
pub(super) struct Answers {
    waiting: VecDeque<Answer>,
    bytes: usize,
    /// Of those, by address without a resource, and by domain, before which there is an `@`.
    shares: HashMap<Box<str>, usize>,
    /// Of one address.
    most: usize,
    came: u64,
    taken: watch::Sender<u64>,
}

#[derive(Debug)]
struct Answer {
    stanza: Vec<u8>,
    shares: [Box<str>; 2],
}

impl Answers {
    pub(super) fn new(most: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            shares: HashMap::new(),
            most,
            came: 0,
            taken: watch::Sender::new(0),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A stanza that is complete. False if there is no room for it.
    pub(super) fn add(&mut self, to: &str, stanza: Vec<u8>) -> bool {
        let bare = jid::bare(to);
        let domain = bare.rsplit_once('@').map_or(bare, |(_, domain)| domain);
        let shares: [Box<str>; 2] = [bare.into(), format!("@{domain}").into()];
        let more = stanza.len();
        let mine = shares.each_ref().map(|name| self.shares.get(name).copied().unwrap_or(0));
        // Whoever has nothing there may be told something large.
        let is_over = |share: usize, most: usize| share > 0 && share + more > most;
        if self.bytes + more > BYTES || is_over(mine[0], self.most) || is_over(mine[1], BYTES - BYTES / 4) {
            return false;
        }
        for name in &shares {
            *self.shares.entry(name.clone()).or_default() += more;
        }
        self.bytes += more;
        self.came += 1;
        self.waiting.push_back(Answer { stanza, shares });
        true
    }

    /// Appends the next to what is written, until that has so many bytes. How many there were.
    pub(super) fn take(&mut self, wire: &mut Vec<u8>, until: usize) -> u64 {
        let mut count = 0;
        while wire.len() < until
            && let Some(Answer { stanza, shares }) = self.waiting.pop_front()
        {
            for name in shares {
                if let Entry::Occupied(mut share) = self.shares.entry(name) {
                    *share.get_mut() -= stanza.len();
                    if *share.get() == 0 {
                        share.remove();
                    }
                }
            }
            self.bytes -= stanza.len();
            wire.extend_from_slice(&stanza);
            count += 1;
        }
        if count > 0 {
            self.taken.send_modify(|taken| *taken += count);
        }
        count
    }

    /// How many have come, and how many of them were taken by now.
    pub(super) fn progress(&self) -> (u64, watch::Receiver<u64>) {
        (self.came, self.taken.subscribe())
    }
}

/// Some thousands. One domain has three quarters at most.
const BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_much_takes_nobody_elses_answers() {
        let mut answers = Answers::new(1 << 20);
        let large = || vec![b'x'; 128 << 10];
        let fill = |answers: &mut Answers, to: &str| (0..200).filter(|_| answers.add(to, large())).count();
        assert_eq!(fill(&mut answers, "a@one.test/1"), 8);
        assert_eq!(fill(&mut answers, "a@one.test/2"), 0, "an address is one, whatever its resource");
        let all: usize = (0..20).map(|n| fill(&mut answers, &format!("u{n}@one.test"))).sum();
        assert_eq!(all, 96 - 8, "three quarters are one domain's");
        assert_eq!(fill(&mut answers, "one.test"), 0);
        assert_eq!(fill(&mut answers, "a@two.test"), 8);
        let (came, taken) = answers.progress();
        let mut wire = Vec::new();
        assert_eq!((answers.take(&mut wire, 1), *taken.borrow(), came), (1, 1, 104));
        assert!(answers.add("a@one.test/2", large()));
        answers.take(&mut wire, usize::MAX);
        assert!(answers.is_empty() && answers.bytes == 0 && answers.shares.is_empty());
    }

    /// Limits are for those who have something there.
    #[test]
    fn one_answer_may_be_larger_than_the_share() {
        let mut answers = Answers::new(1);
        assert!(answers.add("a@b", vec![b'x'; 1000]) && !answers.add("a@b/1", vec![b'x']));
    }
}
