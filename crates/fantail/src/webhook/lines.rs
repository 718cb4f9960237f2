//! What waits, in memory: for each endpoint with deliveries a line, and whose turn is next. Ids and numbers only;
//! contents are on disk. Decides which delivery may start; it knows no clock, disk or socket.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use super::endpoint::Id;

/// All lines. Times are milliseconds of one clock that never goes back.
#[derive(Debug)]
pub(super) struct Lines {
    lines: HashMap<Id, Line>,
    /// Deliveries, and lines (without a number), that wait for a time.
    later: BinaryHeap<Reverse<(u64, Id, Option<u64>)>>,
    /// Lines with something to start, by class.
    turns: [VecDeque<Id>; 3],
    flying: [usize; 3],
    realms: HashMap<u32, usize>,
    waiting: usize,
    /// Lines without deliveries.
    idle: usize,
    limits: Limits,
}

/// How many deliveries may wait and fly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) queue: usize,
    pub(super) realm_queue: usize,
    pub(super) endpoint_queue: usize,
    pub(super) concurrency: usize,
    pub(super) endpoint_concurrency: usize,
}

/// What is known of an endpoint. Classes have parts of the concurrency: those who may be dead cannot take all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Class {
    /// The last delivery arrived.
    Proven,
    /// Nothing is known.
    New,
    /// The last try failed.
    Failing,
}

#[derive(Debug)]
struct Line {
    ready: VecDeque<u64>,
    /// Deliveries in all: ready, waiting for a time, and flying.
    all: usize,
    flying: usize,
    ordered: bool,
    /// Of an ordered line: its first delivery waits for its next try, and all others for it.
    held: bool,
    class: Class,
    /// What it asked for with Retry-After.
    paused_until: u64,
    /// It stands in `later` until then.
    napping: bool,
    /// It stands in `turns`, there; what else stands there of it is stale.
    turn: Option<Class>,
}

impl Lines {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            lines: HashMap::new(),
            later: BinaryHeap::new(),
            turns: Default::default(),
            flying: [0; 3],
            realms: HashMap::new(),
            waiting: 0,
            idle: 0,
            limits,
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn flying(&self) -> usize {
        self.flying.iter().sum()
    }

    /// Whether a realm may have `more` deliveries.
    pub(super) fn realm_has_room(&self, realm: u32, more: usize) -> bool {
        let own = self.realms.get(&realm).copied().unwrap_or_default();
        own + more <= self.limits.realm_queue && self.waiting + more <= self.limits.queue
    }

    pub(super) fn endpoint_has_room(&self, id: Id) -> bool {
        self.lines.get(&id).is_none_or(|line| line.all < self.limits.endpoint_queue)
    }

    /// Takes a place for a delivery that is on its way to the disk.
    pub(super) fn reserve(&mut self, id: Id, ordered: bool) {
        let line = self.line(id, ordered);
        let was_idle = line.all == 0 && line.class != Class::New;
        line.all += 1;
        self.idle = self.idle.saturating_sub(usize::from(was_idle));
        *self.realms.entry(id.realm()).or_default() += 1;
        self.waiting += 1;
    }

    /// Gives the place back.
    pub(super) fn release(&mut self, id: Id) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.all -= 1;
        self.waiting -= 1;
        if let Some(own) = self.realms.get_mut(&id.realm()) {
            *own -= 1;
            if *own == 0 {
                self.realms.remove(&id.realm());
            }
        }
        self.tidy(id);
    }

    /// A delivery that has a place is on disk and may start.
    pub(super) fn ready(&mut self, id: Id, seq: u64) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.ready.push_back(seq);
            self.queue_up(id);
        }
    }

    /// One that has a place waits until `at`.
    pub(super) fn wait(&mut self, id: Id, seq: u64, at: u64) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.held = line.ordered;
            self.later.push(Reverse((at, id, Some(seq))));
        }
    }

    /// When the next one that waits for a time is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.later.peek().map(|Reverse((at, _, _))| *at)
    }

    /// The next delivery to start, if one may.
    pub(super) fn start(&mut self, now: u64) -> Option<(Id, u64)> {
        while let Some(Reverse((at, id, seq))) = self.later.peek().copied()
            && at <= now
        {
            self.later.pop();
            match (self.lines.get_mut(&id), seq) {
                (Some(line), Some(seq)) => {
                    line.held = false;
                    line.ready.push_front(seq);
                }
                (Some(line), None) => line.napping = false,
                (None, _) => {}
            }
            self.queue_up(id);
        }
        let (flying, all) = (self.flying, self.limits.concurrency);
        let total: usize = flying.iter().sum();
        let doubtful = flying[Class::New as usize] + flying[Class::Failing as usize];
        let open = [
            total < all,
            total < all && doubtful < all / 4 * 3,
            total < all && doubtful < all / 4 * 3 && flying[Class::Failing as usize] < all / 4,
        ];
        for class in [Class::Proven, Class::New, Class::Failing] {
            if !open[class as usize] {
                continue;
            }
            while let Some(id) = self.turns[class as usize].pop_front() {
                if let Some(seq) = self.take(id, class, now) {
                    return Some((id, seq));
                }
            }
        }
        None
    }

    /// A try has ended; its delivery is where [`Self::release`], [`Self::ready`] or [`Self::wait`] puts it next.
    pub(super) fn landed(&mut self, id: Id, started_as: Class, class: Class, paused_until: u64) {
        self.flying[started_as as usize] -= 1;
        if let Some(line) = self.lines.get_mut(&id) {
            line.flying -= 1;
            line.change(class);
            line.paused_until = line.paused_until.max(paused_until);
            self.queue_up(id);
        }
    }

    pub(super) fn class(&self, id: Id) -> Class {
        self.lines.get(&id).map_or(Class::New, |line| line.class)
    }

    /// What is known from before a restart, or is no longer true.
    pub(super) fn set_class(&mut self, id: Id, class: Class) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.change(class);
            line.paused_until = 0;
            line.napping = false;
            self.queue_up(id);
        }
    }

    /// Takes all that does not fly out of a line: what waits for a time, too. Their places stay theirs.
    pub(super) fn drain(&mut self, id: Id) -> Vec<u64> {
        let Some(line) = self.lines.get_mut(&id) else { return Vec::new() };
        let mut all: Vec<u64> = line.ready.drain(..).collect();
        line.held = false;
        // Rare, and the heap has a limit.
        self.later.retain(|Reverse((_, other, seq))| match seq {
            Some(seq) if *other == id => {
                all.push(*seq);
                false
            }
            _ => true,
        });
        all.sort_unstable();
        all
    }

    fn line(&mut self, id: Id, ordered: bool) -> &mut Line {
        let line = self.lines.entry(id).or_insert_with(|| Line {
            ready: VecDeque::new(),
            all: 0,
            flying: 0,
            ordered,
            held: false,
            class: Class::New,
            paused_until: 0,
            napping: false,
            turn: None,
        });
        line.ordered = ordered;
        line.held &= ordered;
        line
    }

    /// The next delivery of a line, if it is its turn in this class.
    fn take(&mut self, id: Id, turn: Class, now: u64) -> Option<u64> {
        let line = self.lines.get_mut(&id).filter(|line| line.turn == Some(turn))?;
        line.turn = None;
        if line.paused_until > now {
            line.napping = true;
            self.later.push(Reverse((line.paused_until, id, None)));
            return None;
        }
        if !line.may_start(self.limits.endpoint_concurrency) {
            return None;
        }
        let seq = line.ready.pop_front()?;
        line.flying += 1;
        self.flying[turn as usize] += 1;
        self.queue_up(id);
        Some(seq)
    }

    fn queue_up(&mut self, id: Id) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        if line.turn.is_none() && line.may_start(self.limits.endpoint_concurrency) {
            line.turn = Some(line.class);
            self.turns[line.class as usize].push_back(id);
        }
    }

    /// A line has no delivery left: it is forgotten, or remembered for what is known of it while there are few such.
    fn tidy(&mut self, id: Id) {
        let Some(line) = self.lines.get(&id).filter(|line| line.all == 0) else { return };
        if line.class == Class::New {
            self.lines.remove(&id);
            return;
        }
        self.idle += 1;
        if self.idle > REMEMBERED {
            self.lines.retain(|_, line| line.all > 0);
            self.idle = 0;
        }
    }
}

impl Line {
    /// Its turn is among its new equals, and at once: those that it has left may have no turn for long.
    fn change(&mut self, class: Class) {
        if self.class != class {
            self.class = class;
            self.turn = None;
        }
    }

    fn may_start(&self, most: usize) -> bool {
        let most = if self.ordered || self.class != Class::Proven { 1 } else { most };
        !self.ready.is_empty() && self.flying < most && !self.held && !self.napping
    }
}

/// Lines that are kept although nothing waits in them, some 100 bytes each.
const REMEMBERED: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    const A: Id = Id(1 << 96 | 1);
    const B: Id = Id(2 << 96 | 2);

    fn lines() -> Lines {
        let limits =
            Limits { queue: 10, realm_queue: 6, endpoint_queue: 5, concurrency: 8, endpoint_concurrency: 3 };
        Lines::new(limits)
    }

    fn put(lines: &mut Lines, id: Id, seqs: impl IntoIterator<Item = u64>, ordered: bool) {
        for seq in seqs {
            lines.reserve(id, ordered);
            lines.ready(id, seq);
        }
    }

    fn started(lines: &mut Lines, now: u64) -> Vec<u64> {
        std::iter::from_fn(|| lines.start(now)).map(|(_, seq)| seq).collect()
    }

    #[test]
    fn who_has_proven_itself_gets_more_at_once() {
        let mut lines = lines();
        put(&mut lines, A, 1..=5, false);
        assert_eq!(started(&mut lines, 0), [1]);
        lines.landed(A, Class::New, Class::Proven, 0);
        lines.release(A);
        assert_eq!(started(&mut lines, 0), [2, 3, 4]);
        lines.landed(A, Class::Proven, Class::Failing, 0);
        lines.wait(A, 2, 100);
        assert_eq!(started(&mut lines, 99), [0; 0]);
        for seq in [3, 4] {
            lines.landed(A, Class::Proven, Class::Failing, 0);
            lines.wait(A, seq, 200);
        }
        assert_eq!(started(&mut lines, 99), [5]);
        assert_eq!((lines.next_due(), lines.waiting(), lines.flying()), (Some(100), 4, 1));
        lines.landed(A, Class::Failing, Class::Proven, 0);
        lines.release(A);
        assert_eq!(started(&mut lines, 150), [2]);
    }

    #[test]
    fn order_waits_for_its_first() {
        let mut lines = lines();
        put(&mut lines, A, 1..=3, true);
        assert_eq!(started(&mut lines, 0), [1]);
        lines.landed(A, Class::New, Class::Failing, 0);
        lines.wait(A, 1, 50);
        assert_eq!(started(&mut lines, 49), [0; 0]);
        assert_eq!(started(&mut lines, 50), [1]);
        lines.landed(A, Class::Failing, Class::Proven, 0);
        lines.release(A);
        assert_eq!(started(&mut lines, 50), [2]);
    }

    #[test]
    fn the_dead_have_a_part_and_no_more() {
        let mut lines = Lines::new(Limits {
            queue: 1000,
            realm_queue: 1000,
            endpoint_queue: 10,
            concurrency: 8,
            endpoint_concurrency: 8,
        });
        for n in 0..20 {
            put(&mut lines, Id(n), [n as u64], false);
            lines.set_class(Id(n), Class::Failing);
        }
        assert_eq!(started(&mut lines, 0).len(), 2);
        for n in 100..120 {
            put(&mut lines, Id(n), [n as u64], false);
        }
        assert_eq!(started(&mut lines, 0).len(), 4);
        put(&mut lines, A, 200..210, false);
        lines.set_class(A, Class::Proven);
        assert_eq!(started(&mut lines, 0), [200, 201]);
    }

    /// Who has proven itself waits no more among those who have not.
    #[test]
    fn a_class_is_changed_at_once() {
        let mut lines = lines();
        for n in 0..6 {
            put(&mut lines, Id(n), [n as u64], false);
        }
        assert_eq!(started(&mut lines, 0).len(), 6);
        put(&mut lines, A, [7, 8], false);
        assert_eq!(started(&mut lines, 0), [0; 0]);
        for class in [Class::Proven, Class::Failing, Class::Proven] {
            lines.set_class(A, class);
        }
        assert_eq!(started(&mut lines, 0), [7, 8]);
    }

    #[test]
    fn queues_have_limits() {
        let mut lines = lines();
        put(&mut lines, A, 1..=5, false);
        assert!(!lines.endpoint_has_room(A) && lines.endpoint_has_room(B));
        assert!(lines.realm_has_room(1, 1) && !lines.realm_has_room(1, 2));
        put(&mut lines, B, 6..=9, false);
        assert!(lines.realm_has_room(2, 1) && !lines.realm_has_room(2, 2));
        for _ in 0..5 {
            lines.release(A);
        }
        assert!(lines.realm_has_room(1, 6) && lines.endpoint_has_room(A));
    }

    #[test]
    fn a_pause_is_kept_and_a_line_can_be_emptied() {
        let mut lines = lines();
        put(&mut lines, A, 1..=3, false);
        assert_eq!(started(&mut lines, 0), [1]);
        lines.landed(A, Class::New, Class::Failing, 70);
        lines.wait(A, 1, 30);
        assert_eq!(started(&mut lines, 69), [0; 0]);
        assert_eq!(lines.next_due(), Some(70));
        assert_eq!(started(&mut lines, 70), [1]);
        assert_eq!(lines.drain(A), [2, 3]);
        lines.landed(A, Class::Failing, Class::Failing, 0);
        for _ in 0..3 {
            lines.release(A);
        }
        assert_eq!((lines.waiting(), started(&mut lines, 1000)), (0, vec![]));
    }

    /// What a delivery that waits takes in memory: for its turn, or for a time.
    #[test]
    fn a_delivery_takes_some_bytes() {
        const COUNT: u64 = 100_000;
        let limits = Limits {
            queue: usize::MAX,
            realm_queue: usize::MAX,
            endpoint_queue: usize::MAX,
            concurrency: 0,
            endpoint_concurrency: 1,
        };
        let (mut ready, mut waiting) = (Lines::new(limits), Lines::new(limits));
        for seq in 0..COUNT {
            put(&mut ready, Id(u128::from(seq % 100)), [seq], false);
            waiting.reserve(Id(u128::from(seq % 100)), false);
            waiting.wait(Id(u128::from(seq % 100)), seq, seq);
        }
        let turn: usize = ready.lines.values().map(|line| line.ready.capacity() * size_of::<u64>()).sum();
        let time = waiting.later.capacity() * size_of::<Reverse<(u64, Id, Option<u64>)>>();
        let each = |bytes: usize| bytes as u64 / COUNT;
        assert!(each(turn) <= 16 && each(time) <= 96, "{} and {} bytes", each(turn), each(time));
        assert_eq!(size_of::<Reverse<(u64, Id, Option<u64>)>>(), 48);
        assert!(size_of::<(Id, Line)>() <= 128, "a line: {} bytes", size_of::<(Id, Line)>());
    }
}
