use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::log::{Entry, Limits, Place, Ring, Start};

#[test]
fn what_is_done_with_an_item() {
    use Slow::{Close, Newest, Repair};
    let all = [
        // waits, room, logged
        (false, false, false, [Step::Write, Step::Write, Step::Write]),
        (false, true, true, [Step::Write, Step::Write, Step::Write]),
        (true, true, false, [Step::Write, Step::Write, Step::Keep]),
        (true, true, true, [Step::Write, Step::Write, Step::Keep]),
        (true, false, false, [Step::Close, Step::Close, Step::Close]),
        (true, false, true, [Step::Close, Step::Repair, Step::Close]),
    ];
    for (waits, room, logged, expected) in all {
        let steps = [Close, Repair, Newest].map(|slow| slow.step(Subscriber { waits, room, logged }));
        assert_eq!(steps, expected, "waits {waits}, room {room}, logged {logged}");
    }
}

#[test]
fn names_are_read_as_they_are_written() {
    for slow in Slow::ALL {
        assert_eq!(Slow::named(slow.name()), Some(slow));
    }
    assert_eq!(Slow::named("drop"), None);
}

#[test]
fn a_newer_item_of_its_channel_takes_the_place_of_one_that_waits() {
    let mut newest = Newest::default();
    assert!(!newest.keep(1, "aaa".into()));
    assert!(!newest.keep(2, "b".into()));
    assert_eq!((newest.bytes_with(1, 5), newest.bytes_with(3, 5)), (6, 9));
    assert!(newest.keep(1, "cc".into()));
    assert_eq!((newest.len(), newest.bytes_with(9, 0)), (2, 3));
    assert!(newest.forget(2) && !newest.forget(2));
    assert_eq!((newest.pop(), newest.pop()), (Some("cc".into()), None));
    assert!(newest.is_empty());
}

/// A subscriber of some channels, its queue and its socket; what a shard does for one, without a shard.
struct Model {
    policies: Vec<Slow>,
    rings: Vec<Ring>,
    published: Vec<Vec<u32>>,
    limits: Limits,
    queue_bytes: usize,
    queue: VecDeque<Bytes>,
    newest: Newest,
    /// By channel, what comes next from its log.
    behind: HashMap<usize, Place>,
    got: Vec<u8>,
    closed: bool,
}

impl Model {
    fn new(policies: &[Slow], log_items: usize, queue_bytes: usize) -> Self {
        Self {
            rings: policies.iter().map(|_| Ring::new(7)).collect(),
            published: vec![Vec::new(); policies.len()],
            policies: policies.to_vec(),
            limits: Limits { items: log_items, bytes: usize::MAX, age_s: u32::MAX },
            queue_bytes,
            queue: VecDeque::new(),
            newest: Newest::default(),
            behind: HashMap::new(),
            got: Vec::new(),
            closed: false,
        }
    }

    fn queued(&self) -> usize {
        self.queue.iter().map(Bytes::len).sum()
    }

    /// An item is its channel, its number and a full stop.
    fn publish(&mut self, channel: usize) {
        let number = self.published[channel].len() as u32;
        self.published[channel].push(number);
        let item = Bytes::from(format!("{channel}:{number}."));
        let place = self.rings[channel].push(Entry::new(item.to_vec().into(), 0));
        self.rings[channel].trim(&self.limits, 0);
        if self.closed || self.behind.contains_key(&channel) {
            return;
        }
        let policy = self.policies[channel];
        let with = match policy {
            Slow::Newest => self.newest.bytes_with(channel as u32, item.len()),
            Slow::Close | Slow::Repair => item.len(),
        };
        let room = self.queued() + with <= self.queue_bytes;
        match policy.step(Subscriber { waits: !self.queue.is_empty(), room, logged: true }) {
            Step::Write => self.queue.push_back(item),
            Step::Keep => _ = self.newest.keep(channel as u32, item),
            Step::Repair => _ = self.behind.insert(channel, Place { position: place.position - 1, ..place }),
            Step::Close => self.closed = true,
        }
    }

    /// The socket takes so many bytes.
    fn take(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let Some(first) = self.queue.front_mut() else { return };
            let taken = first.split_to(bytes.min(first.len()));
            bytes -= taken.len();
            self.got.extend_from_slice(&taken);
            if first.is_empty() {
                self.queue.pop_front();
                if self.queue.is_empty() && !self.closed {
                    self.drained();
                }
            }
        }
    }

    fn drained(&mut self) {
        if let Some(item) = self.newest.pop() {
            return self.queue.push_back(item);
        }
        let Some(channel) = self.behind.keys().min().copied() else { return };
        let ring = &self.rings[channel];
        let from = self.behind[&channel];
        let Some(after) = ring.after(&Start::Place(from), 0) else {
            self.closed = true;
            return;
        };
        // Two at a time.
        let piece: Vec<Bytes> =
            ring.behind(after).take(2).map(|entry| Bytes::copy_from_slice(&entry.record)).collect();
        let through = after + piece.len() as u64;
        if through + 1 == ring.next() {
            self.behind.remove(&channel);
        } else {
            self.behind.insert(channel, Place { position: through, ..from });
        }
        self.queue.extend(piece);
    }

    /// The numbers of a channel that were got whole.
    fn got(&self, channel: usize) -> Vec<u32> {
        let text = String::from_utf8(self.got.clone()).unwrap();
        let whole = text.rfind('.').map_or("", |end| &text[..end]);
        let items = whole.split('.').filter_map(|item| item.split_once(':'));
        items
            .filter(|(of, _)| *of == channel.to_string())
            .map(|(_, number)| number.parse().unwrap())
            .collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Publish(usize),
    Take(usize),
}

fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let publish = (0..3_usize).prop_map(Happens::Publish);
    let take = (1..12_usize).prop_map(Happens::Take);
    prop::collection::vec(prop_oneof![3 => publish, 1 => take], 0..120)
}

fn policies() -> impl Strategy<Value = Vec<Slow>> {
    prop::collection::vec(prop::sample::select(&Slow::ALL[..]), 3)
}

proptest! {
    /// Whatever is published and taken, in whichever order: a channel whose subscribers are repaired has no hole, no
    /// repeat and no other order, or the subscriber is closed; of one with the newest items it gets some in order, and in
    /// the end the newest.
    #[test]
    fn nobody_has_a_hole_but_by_choice(
        policies in policies(),
        (log_items, queue_bytes) in (1..30_usize, 8..60_usize),
        happenings in happenings(),
    ) {
        let mut model = Model::new(&policies, log_items, queue_bytes);
        for happens in happenings {
            match happens {
                Happens::Publish(channel) => model.publish(channel),
                Happens::Take(bytes) => model.take(bytes),
            }
            let waits = model.queued() + model.newest.bytes_with(u32::MAX, 0);
            // What is left of an item that found an empty queue may be longer, and so may two from a log.
            prop_assert!(waits <= 2 * queue_bytes.max(14));
        }
        model.take(usize::MAX);
        for (channel, policy) in policies.iter().enumerate() {
            let (got, published) = (model.got(channel), &model.published[channel]);
            match policy {
                Slow::Close | Slow::Repair => {
                    prop_assert_eq!(&got[..], &published[..got.len()], "no hole, no repeat, in order");
                    prop_assert!(model.closed || got.len() == published.len(), "{:?} of {:?}", got, published);
                }
                Slow::Newest => {
                    prop_assert!(got.is_sorted_by(|a, b| a < b), "{:?}", got);
                    prop_assert!(model.closed || got.last() == published.last());
                }
            }
        }
    }
}
