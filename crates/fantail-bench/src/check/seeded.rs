//! Histories as an honest server makes them, and the same with one defect: what the judge must pass, and what it must
//! not. Owns both; the self-test and the judge's tests run them.

use std::collections::HashMap;
use std::ops::Range;

use super::dice::Dice;
use super::history::{Class, Event, Fault, Id, Time, Transport, What};
use super::judge::{Limits, judge};
use super::verdict::Kind;

/// A lie, and what it is to be called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Defect {
    Lost,
    /// By everybody, on a channel whose log had it before the crash.
    LostInCrash,
    /// A break is told, but not of this item.
    GapElsewhere,
    GapAtLogged,
    GapWithoutCause,
    ResumeBroken,
    Repeated,
    /// Published again after the crash, where the log should have known it.
    RepeatedAfterCrash,
    Reordered,
    Disagreement,
    Uneven,
    Phantom,
    Early,
    Corrupt,
    Stray,
    Stalled,
    Stale,
    Died,
    Unfinished,
}

impl Defect {
    pub(crate) const ALL: [Self; 19] = [
        Self::Lost,
        Self::LostInCrash,
        Self::GapElsewhere,
        Self::GapAtLogged,
        Self::GapWithoutCause,
        Self::ResumeBroken,
        Self::Repeated,
        Self::RepeatedAfterCrash,
        Self::Reordered,
        Self::Disagreement,
        Self::Uneven,
        Self::Phantom,
        Self::Early,
        Self::Corrupt,
        Self::Stray,
        Self::Stalled,
        Self::Stale,
        Self::Died,
        Self::Unfinished,
    ];

    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Lost | Self::LostInCrash | Self::GapElsewhere => Kind::Lost,
            Self::ResumeBroken => Kind::ResumeBroken,
            Self::GapAtLogged => Kind::ToldLoss,
            Self::GapWithoutCause => Kind::NeedlessGap,
            Self::Repeated | Self::RepeatedAfterCrash => Kind::Duplicate,
            Self::Reordered => Kind::Reordered,
            Self::Disagreement => Kind::Disagreement,
            Self::Uneven => Kind::Uneven,
            Self::Phantom => Kind::Phantom,
            Self::Early => Kind::Early,
            Self::Corrupt => Kind::Corrupt,
            Self::Stray => Kind::Stray,
            Self::Stalled | Self::Unfinished => Kind::Stalled,
            Self::Stale => Kind::Stale,
            Self::Died => Kind::Died,
        }
    }
}

pub(crate) const LIMITS: Limits = Limits { stale: 5 * SECOND, settle: SECOND / 5 };

/// Judges `count` honest histories and each defect in each. Returns what was judged wrongly.
pub(crate) fn self_test(count: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    for seed in 0..count {
        let honest = judge(&honest(seed), LIMITS);
        if !honest.passed() {
            wrong.push(format!("seed {seed}: an honest history was convicted: {honest}"));
        }
        for defect in Defect::ALL {
            let verdict = judge(&with(defect, seed), LIMITS);
            if !verdict.has(defect.kind()) {
                let kinds: Vec<_> = verdict.kinds().collect();
                wrong.push(format!("seed {seed}: {defect:?} was called {kinds:?}"));
            }
        }
    }
    wrong
}

/// An honest history: each class has a channel with two publishers and a subscriber or two of each transport. The
/// server crashes once; some leave and come back.
pub(crate) fn honest(seed: u64) -> Vec<Event> {
    let mut dice = Dice::new(seed);
    let mut events = Vec::new();
    for (ch, class) in (0..).zip(Class::ALL) {
        let mut channel = Channel { ch, class, dice: dice.clone(), events: Vec::new(), order: Vec::new() };
        channel.publish();
        channel.subscribe();
        events.append(&mut channel.events);
        dice.below(2);
    }
    for (t, on) in [(CRASH, true), (BACK, false)] {
        events.push(Event { t, what: What::Fault { fault: Fault::Kill, s: None, on } });
    }
    events.push(Event { t: END, what: What::Quiesce });
    events
}

struct Channel {
    ch: u16,
    class: Class,
    dice: Dice,
    events: Vec<Event>,
    /// The items as the server ordered them, and when they were handed out.
    order: Vec<(Time, Id)>,
}

impl Channel {
    fn push(&mut self, t: Time, what: What) {
        self.events.push(Event { t, what });
    }

    /// Rounds of two publishers at the same time: neither is before the other.
    fn publish(&mut self) {
        self.push(0, What::Channel { ch: self.ch, class: self.class });
        for round in 0..ROUNDS {
            let t = START + Time::from(round) * ROUND;
            let down = (CRASH - ROUND..BACK + ROUND).contains(&t);
            let mut pair = [0, 1].map(|publisher| Id { publisher, number: round + 1 });
            if self.dice.below(2) == 0 {
                pair.reverse();
            }
            for (id, n) in pair.into_iter().zip(0..) {
                let request = u32::from(self.ch) << 16 | round << 1 | u32::from(id.publisher);
                let marker = round + 5 > ROUNDS;
                let (ch, at) = (self.ch, 0);
                self.push(t + n, What::PubInvoke { ch, id, request, at, marker });
                if down {
                    if n == 0 {
                        self.push(t + MS, What::PubFail { request });
                    }
                    continue;
                }
                // The answer of one in ten is lost on its way; the item was taken.
                if marker || round % 10 != 3 || n > 0 {
                    self.push(t + 5 * MS + n, What::PubOk { request });
                }
                self.order.push((t + 2 * MS + n, id));
            }
        }
    }

    fn subscribe(&mut self) {
        for (n, tr) in (0..).zip(Transport::ALL.into_iter().chain(Transport::ALL)) {
            self.subscriber(self.ch * 8 + n, tr);
        }
    }

    fn subscriber(&mut self, s: u16, tr: Transport) {
        let ch = self.ch;
        self.push(0, What::Subscriber { s, tr, chs: vec![ch] });
        let cut = START + (17 + self.dice.below(8)) * ROUND;
        let mut last = self.hold(s, 1, None, tr);
        let mut away: Option<Time> = None;
        for (t, id) in self.order.clone() {
            for (leaves, back) in [(cut, cut + 3 * ROUND), (CRASH - ROUND / 2, BACK + ROUND / 2)] {
                if t > leaves && t < back && away.is_none() {
                    self.push(leaves, What::Disc { s });
                    away = Some(back);
                }
            }
            let mut got = t + MS + self.dice.below(5) * MS;
            if let Some(back) = away {
                if t >= back {
                    away = None;
                    last = self.hold(s, back, last, tr);
                } else if self.class.resumes() {
                    // Filled on return, before anything newer.
                    got = back + ROUND;
                } else {
                    continue;
                }
            }
            if got >= CRASH && t < BACK && away.is_none() {
                got = t + MS;
            }
            self.push(got, What::Recv { s, ch, id: Some(id) });
            last = last.max(Some(id)).and(Some(id));
        }
    }

    fn hold(&mut self, s: u16, t: Time, last: Option<Id>, tr: Transport) -> Option<Id> {
        let ch = self.ch;
        let after = last.filter(|_| self.class.resumes());
        if last.is_some() && after.is_none() {
            self.push(t, What::Gap { s, ch });
        }
        self.push(t, What::SubInvoke { s, ch, after });
        if self.class.resumes() || tr != Transport::Poll {
            self.push(t + MS, What::SubOk { s, ch });
        }
        last
    }
}

/// An honest history with one defect.
pub(crate) fn with(defect: Defect, seed: u64) -> Vec<Event> {
    let mut lie = Lie { dice: Dice::new(seed ^ 0x5eed), events: honest(seed) };
    lie.tell(defect);
    lie.events
}

struct Lie {
    dice: Dice,
    events: Vec<Event>,
}

impl Lie {
    fn tell(&mut self, defect: Defect) {
        match defect {
            Defect::Lost
            | Defect::LostInCrash
            | Defect::GapElsewhere
            | Defect::GapAtLogged
            | Defect::GapWithoutCause
            | Defect::ResumeBroken => self.lose(defect),
            Defect::Repeated
            | Defect::RepeatedAfterCrash
            | Defect::Reordered
            | Defect::Disagreement
            | Defect::Uneven => self.disorder(defect),
            _ => self.invent(defect),
        }
    }

    fn lose(&mut self, defect: Defect) {
        let calm = self.recv(&Class::ALL, &(10..15));
        let (s, ch, _) = self.receipt(calm);
        match defect {
            Defect::Lost => self.remove(calm),
            Defect::LostInCrash => {
                let at = self.recv(&[Class::Logged, Class::Synced], &(CRASH_ROUND - 3..CRASH_ROUND - 2));
                let (_, lost, id) = self.receipt(at);
                // The last thing that happened: all that was shown behind it is gone with it.
                let down = CRASH_ROUND - 2..BACK_ROUND + 2;
                self.events.retain(|event| {
                    !matches!(event.what, What::Recv { ch, id: Some(other), .. }
                        if ch == lost && (other == id || down.contains(&(other.number - 1))))
                });
            }
            Defect::GapElsewhere => {
                self.remove(calm);
                let at = self.events.iter().rposition(|event| is_recv_of(event, s)).unwrap_or_default();
                self.events.insert(at, Event { t: END - 1, what: What::Gap { s, ch } });
            }
            Defect::GapAtLogged | Defect::GapWithoutCause => {
                let at = self.recv(&[Class::Logged, Class::Synced], &(10..15));
                let (s, ch, _) = self.receipt(at);
                let t = self.events[at].t;
                if defect == Defect::GapAtLogged {
                    self.remove(at);
                }
                let gap = [What::Gap { s, ch }, What::SubOk { s, ch }].map(|what| Event { t, what });
                self.events.splice(at..at, gap);
            }
            Defect::ResumeBroken => {
                let resumed = self.find(|what| matches!(what, What::SubInvoke { after: Some(_), .. }));
                let What::SubInvoke { s, .. } = self.events[resumed].what else { unreachable!("as found") };
                // Two rounds: in the first, neither is concurrent with the position or with what comes next.
                for _ in 0..4 {
                    let next = self.events[resumed..].iter().position(|event| is_recv_of(event, s));
                    self.remove(resumed + next.unwrap_or_default());
                }
            }
            _ => {}
        }
    }

    fn disorder(&mut self, defect: Defect) {
        let calm = self.recv(&Class::ALL, &(10..15));
        match defect {
            Defect::Repeated => self.again(calm),
            Defect::RepeatedAfterCrash => {
                let at = self.recv(&[Class::Logged, Class::Synced], &(CRASH_ROUND - 3..CRASH_ROUND - 2));
                let (_, ch, id) = self.receipt(at);
                self.again(at);
                let request = u32::MAX;
                self.events.retain(|event| {
                    !matches!(event.what, What::PubOk { request: r } if
                    r == u32::from(ch) << 16 | (id.number - 1) << 1 | u32::from(id.publisher))
                });
                let again = What::PubInvoke { ch, id, request, at: 0, marker: false };
                self.events.push(Event { t: BACK + 1, what: again });
                self.events.push(Event { t: BACK + 2, what: What::PubOk { request } });
            }
            Defect::Reordered => {
                let other = self.neighbour(calm, |a, b| a.number < b.number);
                self.swap(calm, other);
            }
            Defect::Disagreement => {
                let at = self.recv(&Class::ALL, &(15..16));
                let other = self.neighbour(at, |a, b| a.number == b.number && a != b);
                self.swap(at, other);
            }
            Defect::Uneven => {
                let acknowledged: Vec<u32> = self.all(|what| match what {
                    What::PubOk { request } => Some(*request),
                    _ => None,
                });
                let unknown = self.all(|what| match what {
                    What::PubInvoke { ch, id, request, .. } if !acknowledged.contains(request) => {
                        Some((*ch, *id))
                    }
                    _ => None,
                });
                let got = self.places(|s, ch, id| {
                    // A subscriber of a plain channel that polls is promised nothing.
                    unknown.contains(&(ch, id)) && s % 3 != 1 && id.number == 14
                });
                let at = self.dice.one_of(&got).unwrap_or_default();
                self.remove(at);
            }
            _ => {}
        }
    }

    fn invent(&mut self, defect: Defect) {
        let calm = self.recv(&Class::ALL, &(10..15));
        let (s, ch, id) = self.receipt(calm);
        let t = self.events[calm].t;
        match defect {
            Defect::Phantom => {
                let id = Id { publisher: 7, ..id };
                self.events.insert(calm, Event { t, what: What::Recv { s, ch, id: Some(id) } });
            }
            Defect::Early => self.events[calm].t = 2,
            Defect::Corrupt => self.events.insert(calm, Event { t, what: What::Recv { s, ch, id: None } }),
            Defect::Stray => {
                let ch = (ch + 1) % 5;
                self.events.insert(calm, Event { t, what: What::Recv { s, ch, id: Some(id) } });
            }
            Defect::Stalled => self.events.retain(|event| {
                !matches!(event.what, What::Recv { s: other, id: Some(id), .. }
                    if other == s && id.number + 4 > ROUNDS)
            }),
            Defect::Stale => {
                let late = self.places(|s, _, id| s % 8 % 3 != 1 && id.number == ROUNDS - 1);
                let late = self.dice.one_of(&late).unwrap_or_default();
                self.events[late].t += 60 * SECOND;
            }
            Defect::Died => self.events.push(Event { t, what: What::Died }),
            Defect::Unfinished => self.events.retain(|event| event.what != What::Quiesce),
            _ => {}
        }
    }

    fn receipt(&self, at: usize) -> (u16, u16, Id) {
        match self.events[at].what {
            What::Recv { s, ch, id: Some(id) } => (s, ch, id),
            _ => unreachable!("what was chosen is a receipt"),
        }
    }

    /// A receipt of an acknowledged item by one who must miss nothing.
    fn recv(&mut self, classes: &[Class], rounds: &Range<u32>) -> usize {
        let classes: HashMap<u16, Class> = self
            .all(|what| match what {
                What::Channel { ch, class } => Some((*ch, *class)),
                _ => None,
            })
            .into_iter()
            .collect::<HashMap<_, _>>()
            .into_iter()
            .filter(|(_, class)| classes.contains(class))
            .collect();
        let found = self.places(|s, ch, id| {
            let whole = classes.get(&ch).is_some_and(|class| *class != Class::Plain || s % 3 != 1);
            whole && rounds.contains(&(id.number - 1)) && (id.number - 1) % 10 != 3
        });
        self.dice.one_of(&found).unwrap_or_default()
    }

    fn places(&self, wanted: impl Fn(u16, u16, Id) -> bool) -> Vec<usize> {
        let places = self.events.iter().enumerate().filter(|(_, event)| match event.what {
            What::Recv { s, ch, id: Some(id) } => wanted(s, ch, id),
            _ => false,
        });
        places.map(|(at, _)| at).collect()
    }

    fn all<T>(&self, wanted: impl Fn(&What) -> Option<T>) -> Vec<T> {
        self.events.iter().filter_map(|event| wanted(&event.what)).collect()
    }

    fn find(&self, wanted: impl Fn(&What) -> bool) -> usize {
        self.events.iter().position(|event| wanted(&event.what)).unwrap_or_default()
    }

    fn remove(&mut self, at: usize) {
        self.events.remove(at);
    }

    fn again(&mut self, at: usize) {
        let mut again = self.events[at].clone();
        again.t = END - 1;
        self.events.push(again);
    }

    /// The next receipt of the same subscriber whose item is so to this one's.
    fn neighbour(&self, at: usize, wanted: impl Fn(Id, Id) -> bool) -> usize {
        let What::Recv { s, id: Some(id), .. } = self.events[at].what else { return at };
        let found = self.places(|other, _, next| other == s && wanted(id, next));
        found.into_iter().min_by_key(|place| place.abs_diff(at)).unwrap_or(at)
    }

    fn swap(&mut self, a: usize, b: usize) {
        let (first, second) = (self.events[a].t, self.events[b].t);
        self.events.swap(a, b);
        self.events[a].t = first.max(second);
        self.events[b].t = first.max(second);
    }
}

fn is_recv_of(event: &Event, wanted: u16) -> bool {
    matches!(event.what, What::Recv { s, id: Some(_), .. } if s == wanted)
}

const MS: Time = 1_000_000;
const SECOND: Time = 1000 * MS;
const START: Time = SECOND;
const ROUND: Time = 20 * MS;
const ROUNDS: u32 = 60;
const CRASH_ROUND: u32 = 30;
const BACK_ROUND: u32 = 36;
const CRASH: Time = START + CRASH_ROUND as Time * ROUND;
const BACK: Time = START + BACK_ROUND as Time * ROUND;
const END: Time = START + ROUNDS as Time * ROUND + 10 * SECOND;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 0, ..ProptestConfig::default() })]
        #[test]
        fn the_honest_pass_and_lies_are_caught(seed: u64, defect in prop::sample::select(Defect::ALL.to_vec())) {
            let honest = judge(&honest(seed), LIMITS);
            prop_assert!(honest.passed(), "{honest}");
            let verdict = judge(&with(defect, seed), LIMITS);
            prop_assert!(verdict.has(defect.kind()), "{defect:?}: {verdict}");
        }

        #[test]
        fn no_loss_of_what_was_logged_passes(seed: u64, which in prop::collection::vec(any::<prop::sample::Index>(), 1..5)) {
            let mut lie = Lie { dice: Dice::new(seed), events: honest(seed) };
            let logged: Vec<u16> = (0..).zip(Class::ALL).filter(|(_, class)| *class > Class::Accepted).map(|(ch, _)| ch).collect();
            let acknowledged: Vec<u32> = lie.all(|what| if let What::PubOk { request } = what { Some(*request) } else { None });
            let items: Vec<(u16, Id)> = lie.all(|what| match what {
                What::PubInvoke { ch, id, request, .. } if acknowledged.contains(request) && logged.contains(ch) => Some((*ch, *id)),
                _ => None,
            });
            for index in which {
                let (ch, id) = *index.get(&items);
                let places = lie.places(|_, other, got| (other, got) == (ch, id));
                if !places.is_empty() {
                    let at = *index.get(&places);
                    lie.remove(at);
                }
            }
            prop_assert!(!judge(&lie.events, LIMITS).passed());
        }
    }

    #[test]
    fn a_repeat_after_a_crash_is_forgiven_where_memory_was_all() {
        let lie = with(Defect::RepeatedAfterCrash, 1);
        let forgiven: Vec<Event> = lie
            .into_iter()
            .map(|event| match event.what {
                What::Channel { ch, .. } => {
                    Event { what: What::Channel { ch, class: Class::Accepted }, ..event }
                }
                _ => event,
            })
            .collect();
        assert!(!judge(&forgiven, LIMITS).has(Kind::Duplicate));
    }
}
