//! The judgement of a history: a pure function. Which items each subscriber had to get, which it got, in which order,
//! and what it was told of the rest. Never asks a clock or a server.
//!
//! Two publishes are in order if the first was acknowledged before the second began, or if they stand in that order in
//! one request. All else may come either way, but the same way for all.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::history::{Class, Event, Fault, Id, Time, Transport, What};
use super::verdict::{Kind, Verdict};
use super::webhook;

/// What is tolerated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From an acknowledgement to a subscriber's receipt, when nothing is broken.
    pub(crate) stale: Time,
    /// After a fault ended, everything may still take longer.
    pub(crate) settle: Time,
}

pub(crate) fn judge(history: &[Event], limits: Limits) -> Verdict {
    let tables = Tables::new(history);
    let mut verdict = Verdict::default();
    for (&(s, ch), steps) in &tables.steps {
        let Some(view) = tables.view(s, ch, steps) else {
            verdict.convict(Kind::Stray, || format!("subscriber {s} got an item of channel {ch}"));
            continue;
        };
        view.judge_items(&mut verdict);
        view.judge_order(&mut verdict);
        view.judge_losses(&mut verdict);
        view.judge_liveness(&mut verdict);
        view.judge_staleness(limits, &mut verdict);
    }
    tables.judge_agreement(&mut verdict);
    webhook::judge(history, &mut verdict);
    for _ in 0..tables.died {
        verdict.convict(Kind::Died, || "the server ended by itself".into());
    }
    if tables.quiesce == Time::MAX {
        verdict.convict(Kind::Stalled, || "the run did not come to its end".into());
    }
    tables.count(&mut verdict);
    verdict
}

/// A subscriber, and what it got between one break and the next.
type Run = (u16, Vec<Vec<Id>>);
/// Of each item: the stretch, and the place in it.
type Places = HashMap<Id, (usize, usize)>;

/// One item, over all attempts to publish it.
#[derive(Clone, Copy, Debug)]
struct Publish {
    invoke: Time,
    /// `Time::MAX`: never acknowledged.
    ok: Time,
    /// Every attempt was answered with an error.
    refused: bool,
    request: u32,
    at: u16,
    attempts: u32,
    marker: bool,
}

impl Publish {
    fn before(&self, other: &Self) -> bool {
        self.ok < other.invoke || self.request == other.request && self.at < other.at
    }
}

/// What happened to one subscriber on one channel, in its order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Asked { after: Option<Id> },
    Held { t: Time },
    Got { t: Time, id: Option<Id> },
    Gap,
}

#[derive(Debug, Default)]
struct Tables {
    classes: HashMap<u16, Class>,
    subscribers: HashMap<u16, (Transport, Vec<u16>)>,
    publishes: HashMap<u16, HashMap<Id, Publish>>,
    steps: BTreeMap<(u16, u16), Vec<Step>>,
    /// When each fault was on; whose it was.
    faults: Vec<(Fault, Option<u16>, Time, Time)>,
    quiesce: Time,
    died: usize,
}

impl Tables {
    fn new(history: &[Event]) -> Self {
        let mut tables = Self { quiesce: Time::MAX, ..Self::default() };
        let mut answers: HashMap<u32, (Time, bool)> = HashMap::new();
        for event in history {
            match event.what {
                What::PubOk { request } => drop(answers.insert(request, (event.t, true))),
                What::PubFail { request } => drop(answers.insert(request, (event.t, false))),
                _ => {}
            }
        }
        let mut steps: BTreeMap<(u16, u16), Vec<Step>> = BTreeMap::new();
        let mut step = |s: &u16, ch: &u16, step| steps.entry((*s, *ch)).or_default().push(step);
        for Event { t, what } in history {
            let t = *t;
            match what {
                What::Channel { ch, class } => drop(tables.classes.insert(*ch, *class)),
                What::Subscriber { s, tr, chs } => {
                    tables.subscribers.insert(*s, (*tr, chs.clone()));
                }
                What::PubInvoke { ch, id, request, at, marker } => {
                    let (ok, refused) = match answers.get(request) {
                        Some((ok, true)) => (*ok, false),
                        Some((_, false)) => (Time::MAX, true),
                        None => (Time::MAX, false),
                    };
                    let (request, at, marker) = (*request, *at, *marker);
                    let first = Publish { invoke: t, ok, refused, request, at, attempts: 0, marker };
                    let item = tables.publishes.entry(*ch).or_default().entry(*id).or_insert(first);
                    item.ok = item.ok.min(ok);
                    item.refused &= refused;
                    item.attempts += 1;
                }
                What::SubInvoke { s, ch, after } => step(s, ch, Step::Asked { after: *after }),
                What::SubOk { s, ch } => step(s, ch, Step::Held { t }),
                What::Recv { s, ch, id } => step(s, ch, Step::Got { t, id: *id }),
                What::Gap { s, ch } => step(s, ch, Step::Gap),
                What::Fault { fault, s, on: true } => tables.faults.push((*fault, *s, t, Time::MAX)),
                What::Fault { fault, s, on: false } => {
                    let mut open = tables.faults.iter_mut().rev();
                    if let Some(open) = open.find(|open| (open.0, open.1, open.3) == (*fault, *s, Time::MAX))
                    {
                        open.3 = t;
                    }
                }
                What::Died => tables.died += 1,
                What::Quiesce => tables.quiesce = t,
                What::PubOk { .. }
                | What::PubFail { .. }
                | What::Disc { .. }
                | What::EndpointOk { .. }
                | What::Webhook { .. } => {}
            }
        }
        tables.steps = steps;
        tables
    }

    fn view<'a>(&'a self, s: u16, ch: u16, steps: &'a [Step]) -> Option<View<'a>> {
        let (transport, channels) = self.subscribers.get(&s)?;
        let class = *self.classes.get(&ch)?;
        let publishes = self.publishes.get(&ch);
        channels.contains(&ch).then_some(View {
            tables: self,
            s,
            ch,
            class,
            transport: *transport,
            publishes,
            steps,
        })
    }

    /// All subscribers of a channel saw one order, and the same of what was never acknowledged.
    fn judge_agreement(&self, verdict: &mut Verdict) {
        let mut runs: BTreeMap<u16, Vec<Run>> = BTreeMap::new();
        for (&(s, ch), steps) in &self.steps {
            runs.entry(ch).or_default().push((s, stretches(steps)));
        }
        for (ch, runs) in &runs {
            let mut after: HashMap<Id, HashSet<Id>> = HashMap::new();
            for (_, stretches) in runs {
                let all: Vec<Id> = stretches.iter().flatten().copied().collect();
                for pair in all.windows(2) {
                    if let [a, b] = *pair
                        && a != b
                    {
                        after.entry(a).or_default().insert(b);
                    }
                }
            }
            if let Some(id) = in_a_circle(&after) {
                verdict.convict(Kind::Disagreement, || {
                    format!("channel {ch}: subscribers got {id} and others in different orders")
                });
            }
            self.judge_unacknowledged(*ch, runs, verdict);
        }
    }

    fn judge_unacknowledged(&self, ch: u16, runs: &[Run], verdict: &mut Verdict) {
        let Some(publishes) = self.publishes.get(&ch) else { return };
        let class = self.classes.get(&ch).copied();
        // Whoever is promised that it misses nothing.
        let whole = |s: u16| {
            let poll = self.subscribers.get(&s).is_some_and(|(transport, _)| *transport == Transport::Poll);
            !(poll && class == Some(Class::Plain))
        };
        let places: Vec<(u16, Places)> = runs
            .iter()
            .filter(|(s, _)| whole(*s))
            .map(|(s, stretches)| {
                let places = stretches
                    .iter()
                    .enumerate()
                    .flat_map(|(n, ids)| ids.iter().enumerate().map(move |(at, id)| (*id, (n, at))));
                (*s, places.collect())
            })
            .collect();
        for (s, stretches) in runs.iter().filter(|(s, _)| whole(*s)) {
            for triple in stretches.iter().flat_map(|ids| ids.windows(3)) {
                let [before, id, after] = *triple else { continue };
                if publishes.get(&id).is_none_or(|publish| publish.ok != Time::MAX) {
                    continue;
                }
                for (other, places) in &places {
                    let missed = !places.contains_key(&id)
                        && matches!(
                            (places.get(&before), places.get(&after)),
                            (Some((a, from)), Some((b, to))) if a == b && from < to
                        );
                    if missed {
                        verdict.convict(Kind::Uneven, || {
                            format!("channel {ch}: {id} was never acknowledged; {s} got it, {other} did not")
                        });
                    }
                }
            }
        }
    }

    fn count(&self, verdict: &mut Verdict) {
        let seen: HashSet<(u16, Id)> = self
            .steps
            .iter()
            .flat_map(|(&(_, ch), steps)| {
                steps.iter().filter_map(move |step| match step {
                    Step::Got { id: Some(id), .. } => Some((ch, *id)),
                    _ => None,
                })
            })
            .collect();
        for (ch, publishes) in &self.publishes {
            for (id, publish) in publishes {
                let counts = &mut verdict.publishes;
                match (publish.ok, publish.refused) {
                    (Time::MAX, true) => {
                        counts.refused += 1;
                        counts.refused_but_seen += u64::from(seen.contains(&(*ch, *id)));
                    }
                    (Time::MAX, false) => counts.unknown += 1,
                    _ => counts.acknowledged += 1,
                }
                counts.repeated += u64::from(publish.attempts > 1);
            }
        }
        for (fault, ..) in &self.faults {
            *verdict.faults.entry(*fault).or_default() += 1;
        }
    }
}

/// One subscriber on one channel.
#[derive(Debug)]
struct View<'a> {
    tables: &'a Tables,
    s: u16,
    ch: u16,
    class: Class,
    transport: Transport,
    publishes: Option<&'a HashMap<Id, Publish>>,
    steps: &'a [Step],
}

/// Between the last item before a break that was told, and what came after it.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: Time,
    to: Time,
    /// Whether anything had been got before.
    open: bool,
}

impl View<'_> {
    fn publish(&self, id: Id) -> Option<&Publish> {
        self.publishes?.get(&id)
    }

    fn got(&self) -> impl Iterator<Item = (Time, Id)> {
        self.steps.iter().filter_map(|step| match *step {
            Step::Got { t, id: Some(id) } => Some((t, id)),
            _ => None,
        })
    }

    fn convict(&self, verdict: &mut Verdict, kind: Kind, what: impl FnOnce() -> String) {
        let (s, ch, class, transport) = (self.s, self.ch, self.class.name(), self.transport.name());
        verdict.counts(self.class, self.transport).violations += 1;
        verdict.convict(kind, || format!("{transport} {s}, {class} channel {ch}: {}", what()));
    }

    /// Corrupt, phantom, early, repeated.
    fn judge_items(&self, verdict: &mut Verdict) {
        let mut seen = HashSet::new();
        for step in self.steps {
            match *step {
                Step::Got { t, id: Some(id) } => {
                    verdict.counts(self.class, self.transport).received += 1;
                    let again = !seen.insert(id);
                    match self.publish(id) {
                        None => self.convict(verdict, Kind::Phantom, || format!("{id} was never published")),
                        Some(publish) if t < publish.invoke => {
                            self.convict(verdict, Kind::Early, || format!("{id} came before its publish"));
                        }
                        Some(publish) if again && self.forgotten(publish) => {
                            verdict.counts(self.class, self.transport).repeated_after_crash += 1;
                        }
                        Some(_) if again => {
                            self.convict(verdict, Kind::Duplicate, || format!("{id} came twice"))
                        }
                        Some(_) => {}
                    }
                }
                Step::Got { t, id: None } => {
                    self.convict(verdict, Kind::Corrupt, || format!("something else came at {t}"));
                }
                Step::Asked { after: Some(_) } => verdict.counts(self.class, self.transport).resumes += 1,
                Step::Gap => verdict.counts(self.class, self.transport).gaps += 1,
                Step::Asked { after: None } | Step::Held { .. } => {}
            }
        }
    }

    /// Published again after the server had forgotten that it had been, and was allowed to forget.
    fn forgotten(&self, publish: &Publish) -> bool {
        matches!(self.class, Class::Plain | Class::Accepted)
            && publish.attempts > 1
            && self.tables.crashed(publish.invoke, publish.ok)
    }

    fn judge_order(&self, verdict: &mut Verdict) {
        let (mut latest, mut requests) = (0, HashMap::new());
        let mut seen = HashSet::new();
        for (_, id) in self.got() {
            let Some(publish) = self.publish(id).filter(|_| seen.insert(id)) else { continue };
            let place = requests.entry(publish.request).or_insert(publish.at);
            if publish.ok < latest || publish.at < *place {
                self.convict(verdict, Kind::Reordered, || format!("{id} came after what is newer"));
            }
            latest = latest.max(publish.invoke);
            *place = publish.at.max(*place);
        }
    }

    /// From when on nothing may be missed, and the breaks that were told.
    fn obligation(&self) -> (Option<Time>, Vec<Window>) {
        let (mut start, mut last, mut windows) = (None, None, Vec::<Window>::new());
        for step in self.steps {
            match *step {
                Step::Held { t } => {
                    start.get_or_insert(t);
                    if let Some(window) = windows.last_mut().filter(|window| window.open) {
                        window.to = window.to.min(t);
                    }
                }
                Step::Got { id: Some(id), .. } => {
                    let Some(publish) = self.publish(id) else { continue };
                    last = Some(publish.invoke);
                    if let Some(window) = windows.last_mut().filter(|window| window.open) {
                        window.to = window.to.min(publish.ok);
                        window.open = false;
                    }
                }
                // Nothing was there to go on from: it begins anew.
                Step::Gap if last.is_none() => start = None,
                Step::Gap => {
                    let from = last.unwrap_or(0);
                    windows.push(Window { from, to: Time::MAX, open: true });
                }
                Step::Got { id: None, .. } | Step::Asked { .. } => {}
            }
        }
        (start, windows)
    }

    fn judge_losses(&self, verdict: &mut Verdict) {
        let (start, windows) = self.obligation();
        let crash = |window: &Window| self.tables.crashed(window.from, window.to);
        if self.class.resumes() {
            for window in &windows {
                if !crash(window) || self.class == Class::Origin {
                    self.convict(verdict, Kind::NeedlessGap, || {
                        format!("told of a break between {} and {} without a cause", window.from, window.to)
                    });
                }
            }
        }
        let (Some(start), Some(publishes)) = (start, self.publishes) else { return };
        let received: HashSet<Id> = self.got().map(|(_, id)| id).collect();
        let resumes = self.resumes();
        for (id, publish) in publishes {
            if publish.ok > self.tables.quiesce || publish.invoke <= start {
                continue;
            }
            verdict.counts(self.class, self.transport).expected += 1;
            if received.contains(id) {
                continue;
            }
            let told = windows.iter().find(|window| publish.ok >= window.from && publish.invoke <= window.to);
            match told {
                Some(_) if matches!(self.class, Class::Plain | Class::Accepted) => {
                    verdict.counts(self.class, self.transport).told_losses += 1;
                }
                Some(_) => self.convict(verdict, Kind::ToldLoss, || {
                    format!("{id} was acknowledged, and is lost with notice")
                }),
                None if resumes.iter().any(|(x, f)| x.before(publish) && publish.before(f)) => {
                    self.convict(verdict, Kind::ResumeBroken, || {
                        format!("{id} is missing between the position of a return and what came next")
                    });
                }
                None => self.convict(verdict, Kind::Lost, || format!("{id} is lost without notice")),
            }
        }
    }

    /// Of each return with a position: that item, and the first that came.
    fn resumes(&self) -> Vec<(Publish, Publish)> {
        let mut asked = None;
        let mut found = Vec::new();
        for step in self.steps {
            match *step {
                Step::Asked { after } => asked = after.and_then(|id| self.publish(id)),
                Step::Got { id: Some(id), .. } => {
                    if let (Some(x), Some(first)) = (asked.take(), self.publish(id)) {
                        found.push((*x, *first));
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn judge_liveness(&self, verdict: &mut Verdict) {
        let markers: HashMap<Id, Time> = self
            .publishes
            .into_iter()
            .flatten()
            .filter(|(_, publish)| publish.marker)
            .map(|(id, publish)| (*id, publish.invoke))
            .collect();
        let first = markers.values().min();
        let came = self.got().find(|(_, id)| markers.contains_key(id)).map(|(t, _)| t);
        match (first, came) {
            (Some(first), Some(came)) => {
                verdict.counts(self.class, self.transport).alive_after.record(came.saturating_sub(*first));
            }
            _ => self.convict(verdict, Kind::Stalled, || "got nothing that was published at the end".into()),
        }
    }

    fn judge_staleness(&self, limits: Limits, verdict: &mut Verdict) {
        let (start, _) = self.obligation();
        let Some(start) = start else { return };
        let mut seen = HashSet::new();
        for (t, id) in self.got() {
            let Some(publish) = self.publish(id).filter(|_| seen.insert(id)) else { continue };
            if publish.ok == Time::MAX || publish.invoke <= start {
                continue;
            }
            let late = t.saturating_sub(publish.ok);
            let disturbed = self.tables.faults.iter().any(|(_, s, from, to)| {
                s.is_none_or(|s| s == self.s)
                    && *from <= t
                    && publish.invoke <= to.saturating_add(limits.settle)
            });
            let counts = verdict.counts(self.class, self.transport);
            if disturbed {
                counts.late_in_faults.record(late);
            } else {
                counts.late.record(late);
            }
            // A poll takes one item at a time, at its own pace.
            if late > limits.stale && !disturbed && self.transport != Transport::Poll {
                self.convict(verdict, Kind::Stale, || format!("{id} took {} ms", late / 1_000_000));
            }
        }
    }
}

impl Tables {
    /// Whether the server lost its memory at some time of these.
    fn crashed(&self, from: Time, to: Time) -> bool {
        self.faults.iter().any(|(fault, _, on, off)| fault.forgets() && *on <= to && from <= *off)
    }
}

/// What was got between one break and the next.
fn stretches(steps: &[Step]) -> Vec<Vec<Id>> {
    let mut found = vec![Vec::new()];
    let mut seen = HashSet::new();
    for step in steps {
        match step {
            Step::Got { id: Some(id), .. } if seen.insert(*id) => {
                if let Some(last) = found.last_mut() {
                    last.push(*id);
                }
            }
            Step::Gap => found.push(Vec::new()),
            _ => {}
        }
    }
    found
}

/// One that comes after itself, if there is any.
fn in_a_circle(after: &HashMap<Id, HashSet<Id>>) -> Option<Id> {
    let mut waits: HashMap<Id, usize> = after.keys().map(|id| (*id, 0)).collect();
    after.values().flatten().for_each(|id| *waits.entry(*id).or_default() += 1);
    let mut free: Vec<Id> = waits.iter().filter(|(_, count)| **count == 0).map(|(id, _)| *id).collect();
    while let Some(id) = free.pop() {
        waits.remove(&id);
        for next in after.get(&id).into_iter().flatten() {
            if let Some(count) = waits.get_mut(next) {
                *count -= 1;
                if *count == 0 {
                    free.push(*next);
                }
            }
        }
    }
    waits.into_keys().min()
}
