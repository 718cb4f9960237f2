//! Streams that follow their origins' links (spec 3.10, 4.4): what waits while a page is fetched, what a page changes,
//! and when the link is followed again. Fetches nothing itself.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use bytes::Bytes;
use fantail_pin::{Form, KeepAlive, Outcome, Payload, PinId, Tally};
use fantail_proto::{
    log::Place,
    recovery::{self, Step},
    render::{Chunk, Message, Rendered, StreamPart},
};
use smallvec::SmallVec;

use super::{GripLink, Hold, HoldKind, Holds, List, Onward, Subscription, first_beat, updates::Cause};

/// What a stream that follows a link knows of it.
#[derive(Debug)]
pub(super) struct Follow {
    /// `None` after a page that had none: the hold is the last.
    link: Option<GripLink>,
    stage: Stage,
    /// Items that came since the stream was found to be behind, or its link is fetched. At most [`MAX_WAITING`].
    waiting: VecDeque<Waiting>,
    /// There were more, or a hint came while the link was fetched: it is followed once more.
    again: bool,
    /// What was fetched a moment ago was too old.
    fresh: bool,
    /// Channels that had a delivery since the link was followed.
    heard: SmallVec<[u32; 2]>,
    /// The round that it goes with.
    round: Option<u64>,
    /// Pages in a row that went on and had next to nothing for the client.
    scanty: u8,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// Items are delivered.
    Live,
    /// It stands in line; items are delivered.
    Due,
    /// It stands in line, and items wait, for it has missed one.
    Behind,
    /// Its link is being fetched, and items wait.
    Fetching,
}

#[derive(Debug)]
struct Waiting {
    channel: u32,
    item: Rc<Parked>,
}

/// An item that waits for many streams.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) id: Option<String>,
    pub(super) prev_id: Option<String>,
    /// In the log of its channel.
    pub(super) place: Option<Place>,
    pub(super) part: Option<ParkedPart>,
}

#[derive(Clone, Debug)]
pub(super) enum ParkedPart {
    Content(Chunk),
    End,
    Message(Message),
    /// A WebSocket's end, by this frame.
    Close(Bytes),
}

impl Parked {
    pub(super) fn new(item: &Rendered, place: Option<Place>, part: Option<ParkedPart>) -> Rc<Self> {
        Rc::new(Self { id: item.id.clone(), prev_id: item.prev_id.clone(), place, part })
    }
}

impl Follow {
    /// `at_once`: there is nothing but the link.
    pub(super) fn new(link: GripLink, at_once: bool) -> Self {
        Self {
            link: Some(link),
            stage: if at_once { Stage::Behind } else { Stage::Live },
            waiting: VecDeque::new(),
            again: false,
            fresh: false,
            heard: SmallVec::new(),
            round: None,
            scanty: 0,
        }
    }

    pub(super) const fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// Items are not for now.
    const fn holds_back(&self) -> bool {
        matches!(self.stage, Stage::Behind | Stage::Fetching)
    }
}

/// What an item is to a stream, before its filters are asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    Deliver,
    /// It goes to [`Holds::park`].
    Wait,
    /// It is nothing to it.
    Pass,
}

/// A page that a link led to, as the streams take it.
#[derive(Debug)]
pub struct Page {
    /// `None`: the page does not hold.
    pub hold: Option<Held>,
    /// Where to go on from it.
    pub next: Option<GripLink>,
    pub body: Bytes,
    /// The body has next to nothing for a client.
    pub scanty: bool,
}

/// What a page holds its streams with.
#[derive(Debug)]
pub struct Held {
    pub subscriptions: Vec<Subscription>,
    pub meta: Vec<(String, String)>,
    pub keep_alive: Option<Rc<KeepAlive>>,
}

/// Streams that fetch the same, once for all.
#[derive(Debug)]
pub struct Fetch {
    pub link: GripLink,
    /// For `Grip-Last`.
    pub last_ids: Vec<(String, String)>,
    /// What makes fetches the same.
    pub key: String,
    /// Not answered by what was asked for before.
    pub fresh: bool,
    pub pins: Vec<PinId>,
}

impl Holds {
    /// What an item is to a stream that has a position or follows a link.
    pub(super) fn turn_of(&mut self, id: PinId, channel: u32, item: &Rendered) -> Turn {
        let Some(hold) = self.pins.get(id) else { return Turn::Pass };
        let Some(standing) = &hold.standing else { return Turn::Deliver };
        match (&item.stream, &item.prev_id, &standing.follow) {
            (Some(StreamPart::Hint), _, Some(_)) => {
                self.hint(id);
                return Turn::Pass;
            }
            // Who closes without saying behind what, closes.
            (Some(StreamPart::Close), None, _) => return Turn::Deliver,
            (_, _, Some(follow)) if follow.holds_back() => return Turn::Wait,
            _ => {}
        }
        // Its log has shown that nothing can be missing.
        let position = standing.position(channel).filter(|_| !hold.is_vouched_for(channel));
        let Some(position) = position else { return Turn::Deliver };
        match recovery::step(position, item.id.as_deref(), item.prev_id.as_deref()) {
            Step::Deliver => Turn::Deliver,
            Step::Skip => Turn::Pass,
            Step::Gap => {
                self.mend(id);
                Turn::Wait
            }
        }
    }

    /// Keeps an item for a stream until its link has been followed.
    pub(super) fn park(&mut self, id: PinId, channel: u32, item: Rc<Parked>) {
        let Some(follow) = self.follow(id) else { return };
        if follow.waiting.len() >= MAX_WAITING {
            // What is lost here is on the next page.
            follow.again = true;
            return;
        }
        let behind = follow.stage == Stage::Behind;
        let (own, prev_id) = (item.id.clone(), item.prev_id.clone());
        follow.waiting.push_back(Waiting { channel, item });
        let position = self.pins.get(id).and_then(|hold| hold.position(channel));
        if behind && position.is_some_and(|at| [own, prev_id].iter().flatten().any(|id| id == at)) {
            self.updates.rejoining.push(id);
        }
    }

    /// A stream stands in line, and an item came that it may go on from: its page was ahead of its items, or what was
    /// missing was late.
    pub(super) fn rejoin(&mut self, id: PinId) {
        if self.is_websocket(id) {
            return self.rejoin_websocket(id);
        }
        let Some(follow) = self.follow(id).filter(|follow| follow.stage == Stage::Behind) else { return };
        if follow.again {
            return;
        }
        let waiting = std::mem::take(&mut follow.waiting);
        let left = self.catch_up(id, waiting);
        if let Some(follow) = self.follow(id) {
            follow.stage = if left.is_empty() { Stage::Live } else { Stage::Behind };
            follow.waiting = left;
        }
        self.collect();
    }

    /// An item of a channel was delivered to a stream.
    pub(super) fn heard(&mut self, id: PinId, channel: u32) {
        if let Some(follow) = self.follow(id)
            && !follow.heard.contains(&channel)
        {
            follow.heard.push(channel);
        }
    }

    /// A stream that is behind: its items wait from now on. True if it was not known to be.
    pub(super) fn fall_behind(&mut self, id: PinId) -> bool {
        let Some(follow) = self.follow(id) else { return false };
        let known = follow.holds_back();
        let stands = follow.stage == Stage::Due;
        if !known {
            follow.stage = Stage::Behind;
        }
        !known && !stands
    }

    /// Puts a stream in the line, if it has a link and does not stand there.
    pub(super) fn is_due(&mut self, id: PinId, fresh: bool) -> bool {
        match self.follow(id) {
            Some(follow) if follow.link.is_some() && follow.stage == Stage::Live => {
                follow.stage = Stage::Due;
                follow.fresh = fresh;
                true
            }
            _ => false,
        }
    }

    /// A publisher says that there is something to fetch: what waits is on the page.
    fn hint(&mut self, id: PinId) {
        let Some(follow) = self.follow(id) else { return };
        if follow.link.is_none() {
            return;
        }
        follow.waiting.clear();
        if follow.stage == Stage::Fetching {
            follow.again = true;
            return;
        }
        follow.stage = Stage::Behind;
        Cause::Hint.count(&self.counters);
        self.updates.urgent.push(id);
    }

    /// The stream's round has come. One that heard from all of its channels is spared.
    pub(super) fn due_stream(&mut self, id: PinId) {
        let Some(Hold { subs, standing: Some(standing), .. }) = self.pins.get_mut(id) else { return };
        let channels = subs.len();
        let Some(follow) = &mut standing.follow else { return };
        let spared = channels > 0 && follow.heard.len() >= channels;
        follow.heard.clear();
        self.await_round(id);
        if !spared {
            self.line_up(id, Cause::Timer);
        }
    }

    /// A stream has its socket: what was to be done at once is done.
    pub(super) fn begin_following(&mut self, id: PinId) {
        let Some(Hold { subs, .. }) = self.pins.get(id) else { return };
        if subs.is_empty() && self.follow(id).is_some_and(|follow| follow.stage == Stage::Behind) {
            return self.updates.urgent.push(id);
        }
        self.await_round(id);
    }

    /// Plans when the link is followed next without a cause.
    fn await_round(&mut self, id: PinId) {
        let now_ms = self.now_ms;
        let Some(Hold { standing: Some(standing), .. }) = self.pins.get_mut(id) else { return };
        let Some(Follow { link: Some(link), round, .. }) = standing.follow.as_deref_mut() else { return };
        if link.timeout_ms == 0 {
            return;
        }
        let round = *round.get_or_insert_with(|| self.rounds.join(link, now_ms));
        let left_ms = self.rounds.left_ms(round, link.timeout_ms, now_ms);
        self.pins.set_deadline(id, left_ms);
    }

    fn leave_round(&mut self, id: PinId) {
        if let Some(round) = self.follow(id).and_then(|follow| follow.round.take()) {
            self.rounds.leave(round);
        }
    }

    /// A stream ends, or its link changes.
    pub(super) fn unfollow(&mut self, id: PinId) {
        if self.pins.get(id).is_some_and(|hold| hold.standing.is_some()) {
            self.leave_round(id);
        }
    }

    /// Adds a stream whose turn it is to those that fetch the same. False if that is a fetch more than there may be.
    pub(super) fn gather(
        &mut self,
        id: PinId,
        fetches: &mut HashMap<String, Fetch>,
        fresh: bool,
        more: bool,
    ) -> bool {
        let Some(hold) = self.pins.get(id) else { return true };
        let Some(standing) = &hold.standing else { return true };
        let Some(Follow { link: Some(link), stage, fresh: own, .. }) = standing.follow.as_deref() else {
            return true;
        };
        let fresh = fresh || *own;
        if *stage == Stage::Fetching || *stage == Stage::Live {
            return true;
        }
        let mut last_ids = self.last_ids(hold);
        last_ids.sort_unstable();
        let key = key(link, &last_ids);
        match fetches.get_mut(&key) {
            Some(fetch) => {
                fetch.fresh |= fresh;
                fetch.pins.push(id);
            }
            None if !more => return false,
            None => {
                let fetch = Fetch { link: link.clone(), last_ids, key: key.clone(), fresh, pins: vec![id] };
                fetches.insert(key, fetch);
            }
        }
        if let Some(follow) = self.follow(id) {
            follow.stage = Stage::Fetching;
            follow.fresh = false;
            follow.heard.clear();
        }
        true
    }

    /// Whether somebody still waits for a fetch.
    pub fn await_page(&self, pins: &[PinId]) -> bool {
        pins.iter().any(|id| self.fetches(*id))
    }

    /// A part of a page that is too large to be had whole. Says how many bytes wait for the slowest client, if any
    /// client is left.
    pub fn page_part(&mut self, pins: &[PinId], part: &[u8]) -> Option<usize> {
        let pins: Vec<PinId> = pins.iter().copied().filter(|id| self.fetches(*id)).collect();
        // A keep-alive must not come in between.
        pins.iter().for_each(|id| self.pins.clear_keep_alive(*id));
        self.write_page(&pins, part);
        pins.iter().filter(|id| self.fetches(**id)).map(|id| self.pins.queue_len(*id)).max()
    }

    /// Subscribes streams to what is new on a page that they are about to get: whoever sees it may count on its channels.
    /// Items wait until [`Self::page`].
    pub fn begin_page(&mut self, pins: &[PinId], page: &Page) {
        let Some(held) = &page.hold else { return };
        for id in pins.iter().copied().filter(|id| self.fetches(*id)).collect::<Vec<_>>() {
            self.join_new(id, held);
        }
    }

    /// Gives streams the page that they have waited for.
    pub fn page(&mut self, pins: &[PinId], page: &Page) {
        self.begin_page(pins, page);
        let pins: Vec<PinId> = pins.iter().copied().filter(|id| self.fetches(*id)).collect();
        self.write_page(&pins, &page.body);
        for id in pins {
            match (&page.hold, &page.next) {
                (Some(held), next) => self.hold_on(id, held, next.clone()),
                (None, Some(next)) => {
                    self.unfollow(id);
                    if let Some(follow) = self.follow(id) {
                        follow.link = Some(next.clone());
                        follow.stage = Stage::Behind;
                        follow.scanty = if page.scanty { follow.scanty.saturating_add(1) } else { 0 };
                        // Pages that lead in a circle must not be asked for as fast as their origin answers.
                        if follow.scanty < MAX_SCANTY {
                            self.updates.urgent.push(id);
                        } else {
                            self.updates.push(id, self.now_ms);
                        }
                    }
                }
                (None, None) => _ = self.close_stream(id),
            }
        }
        self.collect();
    }

    /// Ends streams whose link could not be followed: in order, with a text for the client if there is one; or, where a
    /// part of a page has been sent, as an answer that breaks off.
    pub fn page_failed(&mut self, pins: &[PinId], text: Option<&str>, cut: bool) {
        for id in pins.iter().copied().filter(|id| self.fetches(*id)).collect::<Vec<_>>() {
            self.counters.ended_link.add(1);
            if cut {
                self.drop_pin(id);
                continue;
            }
            if let Some(text) = text {
                self.write_page(&[id], text.as_bytes());
            }
            self.finish_stream(id);
        }
        self.collect();
    }

    /// Joins those channels of a page that a stream does not have yet. If it is behind there, its link is followed again.
    fn join_new(&mut self, id: PinId, held: &Held) {
        let Some(Hold { standing: Some(standing), .. }) = self.pins.get_mut(id) else { return };
        standing.meta.clone_from(&held.meta);
        let link = standing.follow.as_ref().and_then(|follow| follow.link.as_ref());
        let Some(realm) = link.map(|link| link.trail.route.realm) else { return };
        for subscription in &held.subscriptions {
            let Subscription { channel: name, prev_id, .. } = subscription;
            let known = self.channels.find(realm, name);
            let has = |hold: &Hold| hold.subs.iter().any(|sub| Some(sub.channel) == known);
            if self.pins.get(id).is_none_or(has) {
                continue;
            }
            self.join(id, realm, List::Streams, subscription.clone());
            if prev_id.as_ref().is_some_and(|prev_id| self.channels.contradicts(realm, name, prev_id))
                && let Some(follow) = self.follow(id)
            {
                follow.again = true;
            }
        }
    }

    fn hold_on(&mut self, id: PinId, held: &Held, next: Option<GripLink>) {
        let Some(Hold { standing: Some(standing), .. }) = self.pins.get_mut(id) else { return };
        let Some(follow) = standing.follow.as_deref_mut() else { return };
        let same = match (&follow.link, &next) {
            (Some(old), Some(new)) => old.is_like(new),
            _ => false,
        };
        let realm = follow.link.as_ref().map(|link| link.trail.route.realm);
        standing.trail =
            follow.link.as_ref().map(|link| Rc::clone(&link.trail)).or_else(|| standing.trail.take());
        follow.link = next;
        let waiting = std::mem::take(&mut follow.waiting);
        let mut again = std::mem::take(&mut follow.again);
        follow.stage = Stage::Live;
        let Some(realm) = realm else { return };
        if !same {
            self.leave_round(id);
        }
        // Those that it had before begin anew: the page has what came until then.
        for subscription in &held.subscriptions {
            self.join(id, realm, List::Streams, subscription.clone());
        }
        let listed = |name: &str| held.subscriptions.iter().any(|s| s.channel == name);
        while let Some(place) = self
            .pins
            .get(id)
            .and_then(|hold| hold.subs.iter().position(|sub| !listed(self.channels.name(sub.channel))))
        {
            self.leave(id, place);
        }
        match &held.keep_alive {
            Some(beat) => self.pins.set_keep_alive(id, Rc::clone(beat), first_beat(beat)),
            None => self.pins.clear_keep_alive(id),
        }
        self.await_round(id);
        // Kept, they could ask for ever.
        again |= !self.catch_up(id, waiting).is_empty();
        if again && self.is_due(id, true) {
            self.fall_behind(id);
            self.stand_in_line(id, Cause::Gap);
        } else if again && self.follow(id).is_some_and(|follow| follow.link.is_none()) {
            // There is no next page that could have it.
            self.break_off(id);
        }
    }

    /// Delivers what has waited and follows. Returns what neither follows nor is had.
    fn catch_up(&mut self, id: PinId, waiting: VecDeque<Waiting>) -> VecDeque<Waiting> {
        self.give_all_newest(id);
        let Some(hold) = self.pins.get(id) else { return VecDeque::new() };
        let (mut given, mut left, mut sorted) = (Vec::new(), Vec::new(), true);
        for sub in &hold.subs {
            let places = waiting.iter().enumerate().filter(|(_, w)| w.channel == sub.channel);
            let Some(position) = hold.position(sub.channel) else {
                given.extend(places.map(|(place, _)| place));
                continue;
            };
            let (places, ids): (Vec<usize>, Vec<_>) =
                places.map(|(place, w)| (place, (w.item.id.as_deref(), w.item.prev_id.as_deref()))).unzip();
            let reconciled = recovery::reconcile(position, &ids);
            sorted &= reconciled.deliver.is_sorted();
            given.extend(reconciled.deliver.iter().map(|place| places[*place]));
            left.extend(reconciled.left.iter().map(|place| places[*place]));
        }
        if sorted {
            given.sort_unstable();
        }
        for place in given {
            let Waiting { channel, item } = &waiting[place];
            if let Some(standing) = self.pins.get_mut(id).and_then(|hold| hold.standing.as_mut()) {
                standing.advance(*channel, item.id.as_deref());
            }
            match &item.part {
                Some(ParkedPart::Content(chunk)) => {
                    let bytes = match self.pins.form(id) {
                        Some(Form::Coded) => chunk.framed().clone(),
                        _ => chunk.content(),
                    };
                    if matches!(self.pins.write(id, &bytes), Outcome::Sent | Outcome::Queued) {
                        self.counters.delivered_stream.add(1);
                        self.counters.bytes_pushed.add(bytes.len() as u64);
                    }
                    self.heard(id, *channel);
                }
                Some(ParkedPart::End) => {
                    self.close_stream(id);
                    return VecDeque::new();
                }
                // Those are WebSockets'.
                Some(ParkedPart::Message(_) | ParkedPart::Close(_)) | None => {}
            }
        }
        left.sort_unstable();
        let mut place = 0..;
        let keeps = |_: &Waiting| place.next().is_some_and(|place| left.binary_search(&place).is_ok());
        waiting.into_iter().filter(keeps).collect()
    }

    pub(super) fn write_page(&mut self, pins: &[PinId], content: &[u8]) {
        if content.is_empty() {
            return;
        }
        // They came before it.
        pins.iter().for_each(|id| self.give_all_newest(*id));
        let chunk = Chunk::new(content);
        let payload = Payload { coded: chunk.framed().clone(), plain: chunk.content() };
        let mut tally = Tally::default();
        self.pins.fan_out(pins, &payload, &mut tally);
        self.counters.bytes_pushed.add(tally.bytes);
    }

    fn fetches(&self, id: PinId) -> bool {
        let follow = self.pins.get(id).and_then(|hold| hold.standing.as_ref()?.follow.as_ref());
        follow.is_some_and(|follow| follow.stage == Stage::Fetching)
    }

    fn follow(&mut self, id: PinId) -> Option<&mut Follow> {
        let Hold { standing: Some(standing), kind: HoldKind::Stream { .. }, .. } = self.pins.get_mut(id)?
        else {
            return None;
        };
        standing.follow.as_deref_mut()
    }

    /// Hands over what is to be fetched.
    pub(super) fn send_for(&mut self, fetches: HashMap<String, Fetch>) -> usize {
        let count = fetches.len();
        self.onward.extend(fetches.into_values().map(|fetch| Onward::Fetch(Box::new(fetch))));
        count
    }

    /// Counts why a hold stands in the line.
    pub(super) fn stand_in_line(&mut self, id: PinId, cause: Cause) {
        self.updates.push(id, self.now_ms);
        cause.count(&self.counters);
    }
}

/// Links that are the same but for the query are one, for those who have the same ids: these say where they are. Without
/// an id the query may.
fn key(link: &GripLink, last_ids: &[(String, String)]) -> String {
    let (trail, place) = (&link.trail, &link.place);
    let route = std::sync::Arc::as_ptr(&trail.route).addr();
    let path = if last_ids.is_empty() { place.path_and_query() } else { place.path() };
    let scheme = if place.tls() { "s" } else { "" };
    let (home, host) = (trail.home.authority(), place.authority());
    let mut key = format!("{route:x} {} {home} {scheme}//{host}{path}", trail.target);
    for (channel, id) in last_ids {
        key.push_str(&format!("\n{}:{channel}={id}", channel.len()));
    }
    key
}

/// Items that wait for one stream while its link is followed (spec 4.4).
pub(super) const MAX_WAITING: usize = 100;
/// So many [`Page::scanty`] pages are fetched one after another before they wait for their turn.
const MAX_SCANTY: u8 = 100;
