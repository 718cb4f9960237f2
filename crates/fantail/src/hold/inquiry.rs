//! Items that a subscriber gets when its origin has been asked about them (spec 6.8). Of a channel they stand in a line,
//! so that they keep their order; the first is asked about, once for all subscribers of whom the question is the same.
//! Owns the lines and the questions that are open; who asks is given a [`Question`].

use std::{collections::VecDeque, rc::Rc, sync::Arc};

use bytes::Bytes;
use fantail_pin::PinId;
use fantail_proto::{
    filter::{Filter, question::Word, template::TemplateError},
    link::Place,
};
use hashbrown::HashMap;
use http::HeaderValue;
use smallvec::SmallVec;

use super::{Hold, Holds, List, Onward, Standing, Trail, fanout::Work, fill::FILL_ITEMS};
use crate::hub::{Delivery, Receipt};

/// What an origin is asked about an item.
#[derive(Debug)]
pub struct Question {
    /// For the answer.
    pub inquiry: u64,
    /// What makes questions the same, on all shards.
    pub key: String,
    pub wording: Wording,
    /// For `Grip-Last`.
    pub last_ids: Vec<(String, String)>,
}

/// A question, as its filter puts it.
#[derive(Clone, Debug)]
pub struct Wording {
    pub filter: Filter,
    pub trail: Rc<Trail>,
    pub place: Place,
    pub sub_meta: HeaderValue,
    pub pub_meta: HeaderValue,
    /// What the item says by then; nothing for `http-check`.
    pub content: Bytes,
    /// What a question after this one may have to say.
    pub(super) ahead: usize,
    /// What the filters before it have read of the subscriber.
    pub(super) class: Vec<u8>,
}

/// A channel's items that wait for one subscriber.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) channel: u32,
    items: VecDeque<Queued>,
    turn: Turn,
}

/// How it stands with the first of a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Turn {
    /// It has its turn, or is about to.
    Now,
    Asked(u64),
    /// It is asked about when there is room for the question.
    Later,
}

#[derive(Clone, Debug)]
struct Queued {
    item: Arc<Delivery>,
    /// The channel's log has it for this subscriber.
    from_log: bool,
}

/// Questions without an answer.
#[derive(Debug, Default)]
pub(super) struct Inquiries {
    open: HashMap<u64, Inquiry>,
    by_key: HashMap<String, u64>,
    last: u64,
    /// What the open ones take.
    bytes: usize,
    /// Whose first item is to be asked about when there is room, and when to look for those who have left.
    later: VecDeque<(PinId, u32)>,
    look_at: usize,
}

/// Subscribers for whom the same is asked about an item.
#[derive(Debug)]
struct Inquiry {
    key: String,
    bytes: usize,
    list: List,
    channel: u32,
    work: Box<Work>,
    waiting: Vec<PinId>,
    /// Its answer is in `work`, and some have had it.
    answered: bool,
}

impl Holds {
    /// Whether items of a channel wait for a subscriber.
    pub(super) fn is_in_line(&self, id: PinId, channel: u32) -> bool {
        let standing = self.pins.get(id).and_then(|hold| hold.standing.as_ref());
        standing.is_some_and(|standing| standing.lines.iter().any(|line| line.channel == channel))
    }

    /// Puts an item behind those that wait, if any do. Who has too many waiting has lost this one.
    pub(super) fn stands_behind(&mut self, work: &mut Work, id: PinId, channel: u32, item: usize) -> bool {
        if work.turn.is_some() || !self.is_in_line(id, channel) {
            return false;
        }
        let Some(hold) = self.pins.get(id) else { return false };
        if hold.position(channel).is_none() && !work.means_something(hold.kind.list(), item) {
            return false;
        }
        let from_log = work.from_log;
        let Some(line) = self.line(id, channel) else { return false };
        if line.items.len() >= MAX_WAITING {
            work.receipt(item).dropped_filter += 1;
            self.counters.filter_errors.add(1);
            self.mend(id);
            return true;
        }
        line.items.push_back(Queued { item: Arc::clone(&work.batch[item]), from_log });
        self.counters.filter_waiting.add(1);
        true
    }

    /// An item of a subscriber's is asked about, and stands first in its line.
    pub(super) fn inquire(
        &mut self,
        work: &Work,
        (id, channel): (PinId, u32),
        item: usize,
        (list, wording): (List, Wording),
    ) {
        let Some(hold) = self.pins.get(id) else { return };
        let last_ids = self.last_ids(hold);
        let delivery = &work.batch[item];
        let key = key((list, delivery.number), work.words(), hold.filters(channel), &wording, &last_ids);
        let inquiry = match self.inquiries.by_key.get(&key) {
            Some(inquiry) => Some(*inquiry),
            // What has been asked about before is asked about to its end.
            None if self.inquiries.is_full() && work.words().is_empty() => None,
            None => {
                self.inquiries.last += 1;
                let inquiry = self.inquiries.last;
                let mut own = Box::new(Work::of_turn(Arc::clone(delivery), work.from_log));
                own.turn = Some(work.words().to_vec());
                let bytes = QUESTION_BYTES + 3 * key.len() + wording.bytes();
                let open = Inquiry {
                    key: key.clone(),
                    bytes,
                    list,
                    channel,
                    work: own,
                    waiting: Vec::new(),
                    answered: false,
                };
                self.inquiries.bytes += bytes;
                self.inquiries.open.insert(inquiry, open);
                self.inquiries.by_key.insert(key.clone(), inquiry);
                let question = Question { inquiry, key, wording, last_ids };
                self.onward.push(Onward::Question(Box::new(question)));
                Some(inquiry)
            }
        };
        let turn = match inquiry {
            Some(inquiry) => {
                self.inquiries.open.get_mut(&inquiry).into_iter().for_each(|open| open.waiting.push(id));
                Turn::Asked(inquiry)
            }
            None => {
                self.ask_later(id, channel);
                Turn::Later
            }
        };
        if let Some(line) = self.line(id, channel) {
            line.turn = turn;
            return;
        }
        let Some(standing) = self.pins.get_mut(id).and_then(|hold| hold.standing.as_mut()) else { return };
        let first = Queued { item: Arc::clone(delivery), from_log: work.from_log };
        let items = VecDeque::from([first]);
        standing.lines.push(Line { channel, items, turn });
        self.counters.filter_waiting.add(1);
    }

    fn ask_later(&mut self, id: PinId, channel: u32) {
        let Inquiries { later, look_at, .. } = &mut self.inquiries;
        if later.len() >= *look_at {
            let pins = &self.pins;
            later.retain(|(id, channel)| {
                pins.get(*id).is_some_and(|hold| hold.turn(*channel) == Some(Turn::Later))
            });
            *look_at = 2 * later.len() + CHUNK;
        }
        later.push_back((id, channel));
    }

    /// Asks what there is room for by now. True if there is more to ask.
    pub fn ask_on(&mut self) -> bool {
        let mut left = CHUNK;
        while left > 0
            && !self.inquiries.is_full()
            && let Some((id, channel)) = self.inquiries.later.pop_front()
        {
            left -= 1;
            if let Some(line) = self.line(id, channel)
                && line.turn == Turn::Later
            {
                line.turn = Turn::Now;
                self.next_in_line(id, channel);
            }
        }
        self.collect();
        left == 0
    }

    /// Whether nobody waits for the answer to a question any more; then there is no such question.
    pub fn withdraw(&mut self, inquiry: u64) -> bool {
        let Some(open) = self.inquiries.open.get(&inquiry) else { return true };
        let waits = |id: &PinId| {
            self.pins.get(*id).is_some_and(|hold| hold.turn(open.channel) == Some(Turn::Asked(inquiry)))
        };
        if open.waiting.iter().any(waits) {
            return false;
        }
        if let Some(mut open) = self.inquiries.open.remove(&inquiry) {
            self.inquiries.by_key.remove(&open.key);
            self.inquiries.bytes -= open.bytes;
            open.work.finish();
        }
        true
    }

    /// Takes the answer to a question, for some of those who wait for it. True if there are more, or more to ask.
    pub fn answered_about(&mut self, inquiry: u64, word: &Result<Word, TemplateError>) -> bool {
        let Some(mut open) = self.inquiries.open.remove(&inquiry) else { return self.ask_on() };
        if !std::mem::replace(&mut open.answered, true) {
            // Who comes from now on asks anew.
            self.inquiries.by_key.remove(&open.key);
            match word {
                Ok(word) => open.work.turn.get_or_insert_default().push(word.clone()),
                Err(error) => open.work.lost = Some(error.clone()),
            }
        }
        let rest = open.waiting.len().saturating_sub(CHUNK);
        let mut turned: SmallVec<[PinId; 8]> = SmallVec::new();
        open.work.begin_alone(open.channel, self.channels.changes());
        for id in open.waiting.drain(rest..) {
            // It may have left, or have other filters.
            let Some(line) = self.line(id, open.channel) else { continue };
            if line.turn == Turn::Asked(inquiry) {
                line.turn = Turn::Now;
                turned.push(id);
            }
        }
        self.give_turn(&mut open.work, open.list, &turned);
        for id in turned {
            self.step_forward(id, open.channel);
            self.next_in_line(id, open.channel);
        }
        if open.waiting.is_empty() {
            open.work.finish();
            self.inquiries.bytes -= open.bytes;
            return self.ask_on();
        }
        self.inquiries.open.insert(inquiry, open);
        self.collect();
        true
    }

    /// A subscriber's filters are others now: what waits for it is looked at again.
    pub(super) fn turn_again(&mut self, id: PinId, channel: u32) {
        if let Some(line) = self.line(id, channel) {
            line.turn = Turn::Now;
            self.next_in_line(id, channel);
        }
    }

    /// Nobody waits for these any more.
    pub(super) fn disperse(&self, line: Option<Line>, list: List) {
        for Queued { item, from_log } in line.into_iter().flat_map(|line| line.items) {
            self.counters.filter_waiting.add(-1);
            // A long-poll gets one item, and was not to have the others.
            if !from_log && list != List::Polls {
                item.report(Receipt { dropped_gone: 1, ..Receipt::default() });
                self.counters.dropped_gone.add(1);
            }
        }
    }

    /// Sees to the first of a line, and to those behind it, until one is to be asked about.
    fn next_in_line(&mut self, id: PinId, channel: u32) {
        while let Some(hold) = self.pins.get(id)
            && let Some(Queued { item, from_log }) = hold.first_in_line(channel)
        {
            let list = hold.kind.list();
            let mut work = Work::of_turn(item, from_log);
            work.begin_alone(channel, self.channels.changes());
            self.give_turn(&mut work, list, &[id]);
            if !self.step_forward(id, channel) {
                return;
            }
            work.finish();
        }
        let Some(standing) = self.pins.get_mut(id).and_then(|hold| hold.standing.as_mut()) else { return };
        if standing.lines.iter().any(|line| line.channel == channel && line.items.is_empty()) {
            standing.take_line(channel);
            self.read_on_soon(id);
        }
    }

    fn give_turn(&mut self, work: &mut Work, list: List, pins: &[PinId]) {
        match list {
            List::Polls => pins.iter().for_each(|id| _ = self.answer(work, *id)),
            List::Streams | List::WebSockets | List::SockJs => self.write_turn(work, list, pins),
        }
    }

    /// The first of a line has had its turn. False if it is asked about once more.
    fn step_forward(&mut self, id: PinId, channel: u32) -> bool {
        match self.line(id, channel) {
            Some(line) if line.turn == Turn::Now => {
                if line.items.pop_front().is_some() {
                    self.counters.filter_waiting.add(-1);
                }
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    fn line(&mut self, id: PinId, channel: u32) -> Option<&mut Line> {
        let Standing { lines, .. } = self.pins.get_mut(id)?.standing.as_deref_mut()?;
        lines.iter_mut().find(|line| line.channel == channel)
    }
}

impl Hold {
    /// The first of a line, if it has its turn.
    fn first_in_line(&self, channel: u32) -> Option<Queued> {
        let lines = &self.standing.as_ref()?.lines;
        let line = lines.iter().find(|line| line.channel == channel && line.turn == Turn::Now)?;
        line.items.front().cloned()
    }

    fn turn(&self, channel: u32) -> Option<Turn> {
        let lines = &self.standing.as_ref()?.lines;
        lines.iter().find(|line| line.channel == channel).map(|line| line.turn)
    }
}

impl Inquiries {
    fn is_full(&self) -> bool {
        self.bytes >= OPEN_BYTES
    }
}

impl Wording {
    fn bytes(&self) -> usize {
        self.content.len() + self.ahead + self.class.len() + self.sub_meta.len() + self.pub_meta.len()
    }
}

/// All that an answer depends on: the item, what was said of it before, and the question.
fn key(
    (list, item): (List, u64),
    words: &[Word],
    filters: &[Filter],
    wording: &Wording,
    last_ids: &[(String, String)],
) -> String {
    let Wording { trail, place, sub_meta, class, .. } = wording;
    let route = Arc::as_ptr(&trail.route).addr();
    let scheme = if place.tls() { "s" } else { "" };
    let mut key = format!(
        "item {item} {list:?} {words:?} {filters:?} {route:x} {} {} {scheme}//{}{}\n{:?}\n{class:?}",
        trail.target,
        trail.home.authority(),
        place.authority(),
        place.path_and_query(),
        sub_meta,
    );
    let mut last_ids: Vec<_> = last_ids.iter().collect();
    last_ids.sort_unstable();
    for (channel, id) in last_ids {
        key.push_str(&format!("\n{}:{channel}={id}", channel.len()));
    }
    key
}

/// Subscribers that get an answer between two looks at the shard's other work.
const CHUNK: usize = 512;
/// What open questions of a shard take: 256 are on their way at once, and what is beyond these bytes is made when it is
/// asked.
const OPEN_BYTES: usize = 16 << 20;
/// What a question takes beside what it says.
const QUESTION_BYTES: usize = 1 << 10;
/// Items of a channel that wait for one subscriber: what a log gives it at once, and a hundred that come meanwhile.
const MAX_WAITING: usize = FILL_ITEMS + 100;
