//! What waits, in memory: for each endpoint with deliveries a line, and whose turn is next. Ids and numbers only;
//! contents are on disk. Decides which delivery may start; it knows no clock, disk or socket.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
};

use fantail_proto::webhook::retry::FEW_FAILURES;

use super::endpoint::Id;

/// All lines. Times are milliseconds of one clock that never goes back.
#[derive(Debug)]
pub(super) struct Lines {
    lines: HashMap<Id, Line>,
    /// Deliveries, and lines (without a number), that wait for a time.
    later: BinaryHeap<Later>,
    /// Lines with something to start, by class.
    turns: [Turns; 3],
    flying: [usize; 3],
    realms: HashMap<u32, Realm>,
    waiting: usize,
    /// What waits for endpoints that fail.
    failing: Load,
    /// Lines without deliveries.
    idle: usize,
    limits: Limits,
}

/// A time, and what waits for it.
type Later = Reverse<(u64, Id, Option<u64>)>;

/// Deliveries that wait, and what they say: each counts for itself, although those of one item share it on disk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Load {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

impl Load {
    /// Whether there is room for one more within a limit; a first one may be as long as it is.
    fn has_room(self, bytes: usize, limit: Self) -> bool {
        self.items < limit.items && (self.items == 0 || self.bytes.saturating_add(bytes) <= limit.bytes)
    }

    /// Of a limit, what those that fail may have of it.
    fn half(self) -> Self {
        Self { items: self.items.div_ceil(2), bytes: self.bytes / 2 }
    }

    fn add(&mut self, more: Self) {
        self.items += more.items;
        self.bytes += more.bytes;
    }

    fn subtract(&mut self, less: Self) {
        self.items -= less.items;
        self.bytes -= less.bytes;
    }
}

/// How many deliveries may wait and fly. Bytes in all and of a realm are those of endpoints that fail; [`Letters`] has
/// them of all.
///
/// [`Letters`]: super::letters::Letters
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) queue: Load,
    pub(super) realm_queue: Load,
    pub(super) endpoint_queue: Load,
    pub(super) concurrency: usize,
    pub(super) realm_concurrency: usize,
    pub(super) endpoint_concurrency: usize,
}

/// How many of each class may start before the desk looks at something else.
pub(super) type Slice = [usize; 3];

/// Lines that wait for their turn in one class: realms in turn, and the lines of each.
#[derive(Debug, Default)]
struct Turns {
    realms: VecDeque<u32>,
    lines: HashMap<u32, VecDeque<Id>>,
}

impl Turns {
    fn push(&mut self, id: Id, first: bool) {
        let lines = self.lines.entry(id.realm()).or_default();
        if lines.is_empty() {
            self.realms.push_back(id.realm());
        }
        if first { lines.push_front(id) } else { lines.push_back(id) }
    }

    /// The next line of the realm whose turn it is, if the realm may have one more.
    fn pop(&mut self, may: impl Fn(u32) -> bool) -> Option<Id> {
        for _ in 0..self.realms.len() {
            let realm = self.realms.pop_front()?;
            let Some(lines) = self.lines.get_mut(&realm) else { continue };
            let id = if may(realm) { lines.pop_front() } else { None };
            if lines.is_empty() {
                self.lines.remove(&realm);
            } else {
                self.realms.push_back(realm);
            }
            if id.is_some() {
                return id;
            }
        }
        None
    }
}

/// Of one realm.
#[derive(Clone, Copy, Debug, Default)]
struct Realm {
    waiting: usize,
    /// Of these, what waits for endpoints that fail.
    failing: Load,
    flying: [usize; 3],
}

/// What is known of an endpoint. Classes have parts of the concurrency: those who may be dead cannot take all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Class {
    /// The last delivery arrived.
    Proven,
    /// Nothing is known, or it has answered, but has not taken the last few.
    New,
    /// It does not answer, or has taken none of the last [`FEW_FAILURES`].
    Failing,
}

/// What came of a delivery that was started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Landed {
    Delivered,
    /// The endpoint has answered, and has not taken it.
    Refused,
    /// There was no answer.
    Unheard,
    /// It was not sent: nothing is known of the endpoint.
    Unsent,
}

#[derive(Debug)]
struct Line {
    ready: VecDeque<u64>,
    /// Deliveries in all: ready, waiting for a time, and flying.
    load: Load,
    flying: usize,
    /// In a row. Those that were started together while it was proven are one.
    failures: u32,
    ordered: bool,
    /// Of an ordered line: its first delivery waits for its next try, and all others for it.
    held: bool,
    class: Class,
    /// It has asked for that with Retry-After, or rests.
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
            failing: Load::default(),
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
        own.waiting + more <= self.limits.realm_queue.items && self.waiting + more <= self.limits.queue.items
    }

    /// Whether an endpoint may have one more, of so many bytes. Those that fail have half of a realm's room together, and
    /// half of all: what is dead takes no room from what lives.
    pub(super) fn endpoint_has_room(&self, id: Id, bytes: usize) -> bool {
        let Some(line) = self.lines.get(&id) else { return true };
        let own = self.realms.get(&id.realm()).copied().unwrap_or_default().failing;
        line.load.has_room(bytes, self.limits.endpoint_queue)
            && (line.class != Class::Failing
                || own.has_room(bytes, self.limits.realm_queue.half())
                    && self.failing.has_room(bytes, self.limits.queue.half()))
    }

    /// Takes a place for a delivery that is on its way to the disk.
    pub(super) fn reserve(&mut self, id: Id, ordered: bool, bytes: usize) {
        let one = Load { items: 1, bytes };
        let line = self.line(id, ordered);
        let was_idle = line.load.items == 0 && line.is_known();
        line.load.add(one);
        let fails = line.class == Class::Failing;
        self.idle = self.idle.saturating_sub(usize::from(was_idle));
        let own = self.realms.entry(id.realm()).or_default();
        own.waiting += 1;
        self.waiting += 1;
        if fails {
            own.failing.add(one);
            self.failing.add(one);
        }
    }

    /// Gives the place back.
    pub(super) fn release(&mut self, id: Id, bytes: usize) {
        let one = Load { items: 1, bytes };
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.load.subtract(one);
        let fails = line.class == Class::Failing;
        self.waiting -= 1;
        if fails {
            self.failing.subtract(one);
        }
        if let Some(own) = self.realms.get_mut(&id.realm()) {
            own.waiting -= 1;
            if fails {
                own.failing.subtract(one);
            }
            if own.waiting == 0 {
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

    /// The next delivery to start, if one may: proven lines first, and within a class the realms in turn.
    pub(super) fn start(&mut self, now: u64, slice: &mut Slice) -> Option<(Id, u64)> {
        self.wake(now);
        let open = open(self.flying, self.limits.concurrency);
        for class in [Class::Proven, Class::New, Class::Failing] {
            if !open[class as usize] || slice[class as usize] == 0 {
                continue;
            }
            let (realms, most) = (&self.realms, self.limits.realm_concurrency);
            let flying = |realm| realms.get(&realm).map_or([0; 3], |realm: &Realm| realm.flying);
            while let Some(id) =
                self.turns[class as usize].pop(|realm| self::open(flying(realm), most)[class as usize])
            {
                let line = self.lines.get_mut(&id).filter(|line| line.turn == Some(class));
                let Some(seq) = line.and_then(|line| line.take(id, now, self.limits, &mut self.later)) else {
                    continue;
                };
                self.flying[class as usize] += 1;
                if let Some(realm) = self.realms.get_mut(&id.realm()) {
                    realm.flying[class as usize] += 1;
                }
                slice[class as usize] -= 1;
                self.queue_up(id);
                return Some((id, seq));
            }
        }
        None
    }

    /// Whether there may be more to start when there is another slice.
    pub(super) fn is_cut(&self, slice: &Slice) -> bool {
        slice.iter().zip(&self.turns).any(|(left, turns)| *left == 0 && !turns.realms.is_empty())
    }

    /// What has waited for a time that has come is ready.
    fn wake(&mut self, now: u64) {
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
    }

    /// A try has ended; its delivery is where [`Self::release`], [`Self::ready`] or [`Self::wait`] puts it next.
    /// Returns how often the endpoint has failed in a row.
    pub(super) fn landed(&mut self, id: Id, started_as: Class, landed: Landed) -> u32 {
        self.flying[started_as as usize] -= 1;
        if let Some(realm) = self.realms.get_mut(&id.realm()) {
            realm.flying[started_as as usize] -= 1;
        }
        let Some(line) = self.lines.get_mut(&id) else { return 0 };
        line.flying -= 1;
        let (mut class, before) = (line.class, line.failures);
        match landed {
            Landed::Delivered => (class, line.failures) = (Class::Proven, 0),
            Landed::Refused | Landed::Unheard => {
                let counts = started_as != Class::Proven || before == 0;
                line.failures = before.saturating_add(u32::from(counts));
                let fails = landed == Landed::Unheard || line.failures >= FEW_FAILURES;
                class = if fails { Class::Failing } else { Class::New };
            }
            Landed::Unsent => {}
        }
        let failures = line.failures;
        self.change(id, class);
        self.queue_up(id);
        failures
    }

    /// One that was to start does not: it is the first of its line again.
    pub(super) fn put_back(&mut self, id: Id, started_as: Class, seq: u64) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.ready.push_front(seq);
        }
        self.landed(id, started_as, Landed::Unsent);
    }

    /// When something of an endpoint is started again, that has asked for a pause or rests; 0: it does neither.
    pub(super) fn paused_until(&self, id: Id) -> u64 {
        self.lines.get(&id).map_or(0, |line| line.paused_until)
    }

    /// Nothing of an endpoint is started before that.
    pub(super) fn pause(&mut self, id: Id, until: u64) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.paused_until = line.paused_until.max(until);
        }
    }

    pub(super) fn set_ordered(&mut self, id: Id, ordered: bool) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.ordered = ordered;
            line.held &= ordered;
            self.queue_up(id);
        }
    }

    /// What waits for a time waits for its turn alone, and no pause counts.
    pub(super) fn hurry(&mut self, id: Id) {
        let waiting = self.drain(id);
        if let Some(line) = self.lines.get_mut(&id) {
            line.ready.extend(waiting);
            line.paused_until = 0;
            line.napping = false;
            self.queue_up(id);
        }
    }

    pub(super) fn class(&self, id: Id) -> Class {
        self.lines.get(&id).map_or(Class::New, |line| line.class)
    }

    /// So often it had failed before a restart.
    pub(super) fn recall(&mut self, id: Id, failures: u32) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.failures = failures;
        self.change(id, if failures < FEW_FAILURES { Class::New } else { Class::Failing });
    }

    /// What was known of an endpoint is no longer true.
    pub(super) fn forgive(&mut self, id: Id) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        if line.load.items == 0 {
            self.idle = self.idle.saturating_sub(usize::from(line.is_known()));
            self.lines.remove(&id);
            return;
        }
        (line.failures, line.paused_until, line.napping) = (0, 0, false);
        self.change(id, Class::New);
        self.queue_up(id);
    }

    /// A line's turn is among its new equals, and at once: those that it has left may have no turn for long.
    fn change(&mut self, id: Id, class: Class) {
        let Some(line) = self.lines.get_mut(&id).filter(|line| line.class != class) else { return };
        let before = std::mem::replace(&mut line.class, class);
        line.turn = None;
        let load = line.load;
        let own = self.realms.get_mut(&id.realm()).map(|own| &mut own.failing);
        for failing in own.into_iter().chain([&mut self.failing]) {
            if class == Class::Failing {
                failing.add(load);
            } else if before == Class::Failing {
                failing.subtract(load);
            }
        }
        self.queue_up(id);
    }

    /// Takes all that does not fly out of a line: what waits for a time, too. Their places stay theirs.
    pub(super) fn drain(&mut self, id: Id) -> Vec<u64> {
        self.drain_all(&HashSet::from([id])).into_iter().map(|(_, seq)| seq).collect()
    }

    /// As [`Self::drain`] for several lines, with one look at what waits for a time.
    pub(super) fn drain_all(&mut self, ids: &HashSet<Id>) -> Vec<(Id, u64)> {
        let (mut all, mut some_wait) = (Vec::new(), false);
        for id in ids {
            let Some(line) = self.lines.get_mut(id) else { continue };
            some_wait |= line.load.items > line.ready.len() + line.flying;
            all.extend(line.ready.drain(..).map(|seq| (*id, seq)));
            line.held = false;
        }
        if some_wait {
            self.later.retain(|Reverse((_, id, seq))| match seq {
                Some(seq) if ids.contains(id) => {
                    all.push((*id, *seq));
                    false
                }
                _ => true,
            });
        }
        all.sort_unstable();
        all
    }

    /// Takes those out of a line, of the ones that do not fly, that are `gone`. Their places stay theirs.
    pub(super) fn sieve(&mut self, id: Id, gone: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut all = Vec::new();
        let Some(line) = self.lines.get_mut(&id) else { return all };
        let some_wait = line.load.items > line.ready.len() + line.flying;
        line.ready.retain(|seq| {
            let gone = gone(*seq);
            all.extend(Some(*seq).filter(|_| gone));
            !gone
        });
        if some_wait {
            let waiting = all.len();
            self.later.retain(|Reverse((_, of, seq))| match seq {
                Some(seq) if *of == id && gone(*seq) => {
                    all.push(*seq);
                    false
                }
                _ => true,
            });
            line.held &= all.len() == waiting;
            self.queue_up(id);
        }
        all
    }

    fn line(&mut self, id: Id, ordered: bool) -> &mut Line {
        let line = self.lines.entry(id).or_insert_with(|| Line {
            ready: VecDeque::new(),
            load: Load::default(),
            flying: 0,
            failures: 0,
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

    fn queue_up(&mut self, id: Id) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        if line.turn.is_none() && line.may_start(self.limits.endpoint_concurrency) {
            line.turn = Some(line.class);
            // Who has just begun to fail is more likely to be mended than the long dead, of whom there may be many.
            let first = line.class == Class::Failing && line.failures < FEW_FAILURES;
            self.turns[line.class as usize].push(id, first);
        }
    }

    /// A line has no delivery left: it is forgotten, or remembered for what is known of it while there are few such.
    fn tidy(&mut self, id: Id) {
        let Some(line) = self.lines.get(&id).filter(|line| line.load.items == 0) else { return };
        if !line.is_known() {
            self.lines.remove(&id);
            return;
        }
        self.idle += 1;
        if self.idle > REMEMBERED {
            self.lines.retain(|_, line| line.load.items > 0);
            self.idle = 0;
        }
    }
}

/// Which classes may start one more, of so many at once: those who may be dead cannot take all.
fn open(flying: [usize; 3], all: usize) -> [bool; 3] {
    let doubtful = flying[Class::New as usize] + flying[Class::Failing as usize];
    let proven = flying.iter().sum::<usize>() < all;
    let new = proven && doubtful < all / 4 * 3;
    [proven, new, new && flying[Class::Failing as usize] < all / 4]
}

impl Line {
    /// Its next delivery, now that it is its turn.
    fn take(&mut self, id: Id, now: u64, limits: Limits, later: &mut BinaryHeap<Later>) -> Option<u64> {
        self.turn = None;
        if self.paused_until > now {
            self.napping = true;
            later.push(Reverse((self.paused_until, id, None)));
            return None;
        }
        if !self.may_start(limits.endpoint_concurrency) {
            return None;
        }
        let seq = self.ready.pop_front()?;
        self.flying += 1;
        Some(seq)
    }

    /// Whether there is something of the endpoint to remember.
    fn is_known(&self) -> bool {
        self.class != Class::New || self.failures > 0
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

    fn items(items: usize) -> Load {
        Load { items, bytes: usize::MAX }
    }

    /// As if that had been found out.
    fn set_class(lines: &mut Lines, id: Id, class: Class) {
        match class {
            Class::Failing => lines.recall(id, 9),
            class => lines.change(id, class),
        }
    }

    fn lines() -> Lines {
        Lines::new(Limits {
            queue: items(10),
            realm_queue: items(6),
            endpoint_queue: items(5),
            concurrency: 8,
            realm_concurrency: 8,
            endpoint_concurrency: 3,
        })
    }

    fn put(lines: &mut Lines, id: Id, seqs: impl IntoIterator<Item = u64>, ordered: bool) {
        for seq in seqs {
            lines.reserve(id, ordered, 1);
            lines.ready(id, seq);
        }
    }

    fn started(lines: &mut Lines, now: u64) -> Vec<u64> {
        let mut slice = [usize::MAX; 3];
        std::iter::from_fn(|| lines.start(now, &mut slice)).map(|(_, seq)| seq).collect()
    }

    #[test]
    fn who_has_proven_itself_gets_more_at_once() {
        let mut lines = lines();
        put(&mut lines, A, 1..=5, false);
        assert_eq!(started(&mut lines, 0), [1]);
        lines.landed(A, Class::New, Landed::Delivered);
        lines.release(A, 1);
        assert_eq!(started(&mut lines, 0), [2, 3, 4]);
        lines.landed(A, Class::Proven, Landed::Unheard);
        lines.wait(A, 2, 100);
        assert_eq!(started(&mut lines, 99), [0; 0]);
        for seq in [3, 4] {
            lines.landed(A, Class::Proven, Landed::Unheard);
            lines.wait(A, seq, 200);
        }
        assert_eq!(started(&mut lines, 99), [5]);
        assert_eq!((lines.next_due(), lines.waiting(), lines.flying()), (Some(100), 4, 1));
        lines.landed(A, Class::Failing, Landed::Delivered);
        lines.release(A, 1);
        assert_eq!(started(&mut lines, 150), [2]);
    }

    /// Whoever has mended an endpoint need not wait for hours.
    #[test]
    fn what_waits_can_be_hurried() {
        for ordered in [false, true] {
            let mut lines = lines();
            put(&mut lines, A, 1..=3, ordered);
            assert_eq!(started(&mut lines, 0), [1]);
            lines.landed(A, Class::New, Landed::Unheard);
            lines.pause(A, 1000);
            lines.wait(A, 1, 500);
            assert_eq!((started(&mut lines, 10), lines.paused_until(A)), (vec![], 1000));
            lines.hurry(A);
            assert_eq!((started(&mut lines, 10), lines.paused_until(A)), (vec![1], 0));
            lines.landed(A, Class::Failing, Landed::Delivered);
            lines.release(A, 1);
            let next = started(&mut lines, 2000);
            assert_eq!(next, if ordered { vec![2] } else { vec![2, 3] });
        }
        let mut lines = lines();
        lines.hurry(A);
        put(&mut lines, A, [1], false);
        lines.pause(A, 50);
        assert_eq!(started(&mut lines, 49), [0; 0]);
        assert_eq!(started(&mut lines, 50), [1]);
    }

    #[test]
    fn order_can_be_given_up() {
        let mut lines = lines();
        put(&mut lines, A, 1..=3, true);
        assert_eq!(started(&mut lines, 0), [1]);
        lines.landed(A, Class::New, Landed::Unheard);
        lines.wait(A, 1, 500);
        assert_eq!(started(&mut lines, 1), [0; 0]);
        lines.set_ordered(A, false);
        assert_eq!(started(&mut lines, 1), [2]);
    }

    #[test]
    fn order_waits_for_its_first() {
        let mut lines = lines();
        put(&mut lines, A, 1..=3, true);
        assert_eq!(started(&mut lines, 0), [1]);
        lines.landed(A, Class::New, Landed::Unheard);
        lines.wait(A, 1, 50);
        assert_eq!(started(&mut lines, 49), [0; 0]);
        assert_eq!(started(&mut lines, 50), [1]);
        lines.landed(A, Class::Failing, Landed::Delivered);
        lines.release(A, 1);
        assert_eq!(started(&mut lines, 50), [2]);
    }

    #[test]
    fn the_dead_have_a_part_and_no_more() {
        let mut lines = Lines::new(Limits {
            queue: items(1000),
            realm_queue: items(1000),
            endpoint_queue: items(10),
            concurrency: 8,
            realm_concurrency: 8,
            endpoint_concurrency: 8,
        });
        for n in 0..20 {
            put(&mut lines, Id(n), [n as u64], false);
            set_class(&mut lines, Id(n), Class::Failing);
        }
        assert_eq!(started(&mut lines, 0).len(), 2);
        for n in 100..120 {
            put(&mut lines, Id(n), [n as u64], false);
        }
        assert_eq!(started(&mut lines, 0).len(), 4);
        put(&mut lines, A, 200..210, false);
        set_class(&mut lines, A, Class::Proven);
        assert_eq!(started(&mut lines, 0), [200, 201]);
    }

    /// A realm with many endpoints, dead or alive, has its part of each class, and takes turns with the others.
    #[test]
    fn realms_have_parts_and_turns() {
        let mut lines = Lines::new(Limits {
            queue: items(1000),
            realm_queue: items(1000),
            endpoint_queue: items(10),
            concurrency: 32,
            realm_concurrency: 24,
            endpoint_concurrency: 8,
        });
        let id = |realm: u128, n: u64| Id(realm << 96 | u128::from(n));
        for n in 0..40 {
            put(&mut lines, id(1, n), [n], false);
            set_class(&mut lines, id(1, n), Class::Failing);
        }
        assert_eq!(started(&mut lines, 0).len(), 6, "a quarter of its own part");
        put(&mut lines, id(2, 100), [100], false);
        set_class(&mut lines, id(2, 100), Class::Failing);
        assert_eq!(started(&mut lines, 0), [100]);
        lines.landed(id(1, 0), Class::Failing, Landed::Unheard);
        lines.release(id(1, 0), 1);
        assert_eq!(started(&mut lines, 0), [6]);
        for n in 200..240 {
            put(&mut lines, id(3, n), [n], false);
        }
        for n in 300..303 {
            put(&mut lines, id(4, n), [n], false);
        }
        assert_eq!(started(&mut lines, 0)[..6], [200, 300, 201, 301, 202, 302]);
    }

    /// Others have their turn before all of the dead have had theirs.
    #[test]
    fn a_slice_has_an_end() {
        let mut lines = lines();
        put(&mut lines, A, 1..=3, false);
        set_class(&mut lines, A, Class::Proven);
        for n in 10..12 {
            put(&mut lines, Id(n), [n as u64], false);
        }
        let mut slice = [2, 1, 0];
        let mut start = |slice: &mut Slice| lines.start(0, slice).map(|(_, seq)| seq);
        assert_eq!([start(&mut slice), start(&mut slice), start(&mut slice)], [Some(1), Some(2), Some(10)]);
        assert_eq!((start(&mut slice), lines.is_cut(&slice)), (None, true));
        assert_eq!(lines.start(0, &mut [2, 1, 0]), Some((A, 3)));
        let mut slice = [2, 2, 2];
        assert!(lines.start(0, &mut slice).is_some() && lines.start(0, &mut slice).is_none());
        assert!(!lines.is_cut(&slice));
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
            set_class(&mut lines, A, class);
        }
        assert_eq!(started(&mut lines, 0), [7, 8]);
    }

    #[test]
    fn queues_have_limits() {
        let mut lines = lines();
        put(&mut lines, A, 1..=5, false);
        assert!(!lines.endpoint_has_room(A, 1) && lines.endpoint_has_room(B, 1));
        assert!(lines.realm_has_room(1, 1) && !lines.realm_has_room(1, 2));
        put(&mut lines, B, 6..=9, false);
        assert!(lines.realm_has_room(2, 1) && !lines.realm_has_room(2, 2));
        for _ in 0..5 {
            lines.release(A, 1);
        }
        assert!(lines.realm_has_room(1, 6) && lines.endpoint_has_room(A, 1));
    }

    #[test]
    fn a_pause_is_kept_and_a_line_can_be_emptied() {
        let mut lines = lines();
        put(&mut lines, A, 1..=3, false);
        assert_eq!(started(&mut lines, 0), [1]);
        lines.landed(A, Class::New, Landed::Unheard);
        lines.pause(A, 70);
        lines.wait(A, 1, 30);
        assert_eq!(started(&mut lines, 69), [0; 0]);
        assert_eq!(lines.next_due(), Some(70));
        assert_eq!(started(&mut lines, 70), [1]);
        put(&mut lines, B, [4], false);
        assert_eq!(lines.drain_all(&HashSet::from([A, B])), [(A, 2), (A, 3), (B, 4)]);
        lines.release(B, 1);
        lines.landed(A, Class::Failing, Landed::Unheard);
        for _ in 0..3 {
            lines.release(A, 1);
        }
        assert_eq!((lines.waiting(), started(&mut lines, 1000)), (0, vec![]));
    }

    #[test]
    fn what_is_put_back_is_the_first() {
        let mut lines = lines();
        put(&mut lines, A, 1..=2, true);
        let mut slice = [usize::MAX; 3];
        assert_eq!(lines.start(0, &mut slice), Some((A, 1)));
        lines.put_back(A, Class::New, 1);
        assert_eq!((lines.flying(), lines.waiting(), started(&mut lines, 0)), (0, 2, vec![1]));
    }

    /// One bad answer is no reason to wait behind the dead, nor is one that did not come, behind those dead for long.
    #[test]
    fn who_fails_once_does_not_wait_behind_the_dead() {
        let mut lines = lines();
        let dead = |n: u64| Id(A.0 + 10 + u128::from(n));
        for n in 0..9 {
            put(&mut lines, dead(n), [n], false);
            set_class(&mut lines, dead(n), Class::Failing);
        }
        assert_eq!(started(&mut lines, 0).len(), 2, "a quarter");
        put(&mut lines, A, 20..=22, false);
        set_class(&mut lines, A, Class::Proven);
        assert_eq!(started(&mut lines, 0), [20, 21, 22]);
        put(&mut lines, A, 23..=24, false);
        // Together they are one failure.
        let failures = [20, 21, 22].map(|_| lines.landed(A, Class::Proven, Landed::Refused));
        assert_eq!((failures, lines.class(A)), ([1; 3], Class::New));
        assert_eq!(started(&mut lines, 0), [23]);
        assert_eq!((lines.landed(A, Class::New, Landed::Unheard), lines.class(A)), (2, Class::Failing));
        assert_eq!(started(&mut lines, 0), [0; 0]);
        lines.landed(dead(0), Class::Failing, Landed::Unheard);
        assert_eq!(started(&mut lines, 0), [24]);
        assert_eq!((lines.landed(A, Class::Failing, Landed::Delivered), lines.class(A)), (0, Class::Proven));
        assert_eq!(started(&mut lines, 0), [2], "one that is dead has the place");
        put(&mut lines, B, [30], false);
        for failures in 1..=3 {
            assert_eq!(started(&mut lines, 0), [30]);
            assert_eq!(lines.landed(B, Class::New, Landed::Refused), failures);
            lines.ready(B, 30);
        }
        assert_eq!(lines.class(B), Class::Failing, "not one of three was taken");
        lines.forgive(B);
        assert_eq!((lines.class(B), started(&mut lines, 0)), (Class::New, vec![30]));
        assert_eq!(lines.landed(B, Class::New, Landed::Unsent), 0);
    }

    /// Those that fail share half of a realm, and half of all; in bytes, too. Whatever they have, others have the rest.
    #[test]
    fn the_dead_take_half_of_the_room_and_no_more() {
        let (queue, realm_queue) = (Load { items: 16, bytes: 120 }, Load { items: 8, bytes: 80 });
        let endpoint_queue = Load { items: 9, bytes: 70 };
        let mut lines = Lines::new(Limits { queue, realm_queue, endpoint_queue, ..lines().limits });
        let id = |realm: u128, n: u128| Id(realm << 96 | n);
        for n in 0..4 {
            lines.reserve(id(1, n), false, 10);
            lines.change(id(1, n), Class::Failing);
        }
        assert!(!lines.endpoint_has_room(id(1, 0), 0), "half of the realm's items");
        assert!(lines.endpoint_has_room(id(1, 9), 10) && lines.realm_has_room(1, 4));
        lines.release(id(1, 0), 10);
        assert!(lines.endpoint_has_room(id(1, 1), 10) && !lines.endpoint_has_room(id(1, 1), 11));
        lines.change(id(1, 1), Class::Proven);
        assert!(lines.endpoint_has_room(id(1, 2), 20) && !lines.endpoint_has_room(id(1, 2), 21));
        assert!(lines.endpoint_has_room(id(1, 1), 60) && !lines.endpoint_has_room(id(1, 1), 61), "its own");
        lines.reserve(id(2, 0), false, 35);
        lines.change(id(2, 0), Class::Failing);
        assert!(lines.endpoint_has_room(id(2, 0), 5) && !lines.endpoint_has_room(id(2, 0), 6));
        assert!(lines.endpoint_has_room(id(1, 2), 5) && !lines.endpoint_has_room(id(1, 2), 6), "half of all");
        lines.reserve(id(3, 0), false, 1000);
        assert!(!lines.endpoint_has_room(id(3, 0), 1) && lines.endpoint_has_room(id(3, 1), 1000));
        for (id, bytes) in [(id(1, 1), 10), (id(1, 2), 10), (id(1, 3), 10), (id(2, 0), 35), (id(3, 0), 1000)]
        {
            lines.release(id, bytes);
        }
        assert_eq!((lines.failing, lines.waiting, lines.realms.len()), (Load::default(), 0, 0));
    }

    /// What a delivery that waits takes in memory: for its turn, or for a time.
    #[test]
    fn a_delivery_takes_some_bytes() {
        const COUNT: u64 = 100_000;
        let limits = Limits {
            queue: items(usize::MAX),
            realm_queue: items(usize::MAX),
            endpoint_queue: items(usize::MAX),
            concurrency: 0,
            realm_concurrency: 0,
            endpoint_concurrency: 1,
        };
        let (mut ready, mut waiting) = (Lines::new(limits), Lines::new(limits));
        for seq in 0..COUNT {
            put(&mut ready, Id(u128::from(seq % 100)), [seq], false);
            waiting.reserve(Id(u128::from(seq % 100)), false, 1);
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
