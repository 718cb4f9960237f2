//! The judgement of webhooks: a pure function. Each endpoint gets each acknowledged item, at least once, and can tell by
//! the webhook's id what it has already. Owns these rules, and histories with and without a defect to test them; never
//! asks a clock or a server.

use std::collections::{HashMap, HashSet};

use super::dice::Dice;
use super::history::{Class, Event, Id, Time, What};
use super::verdict::{Kind, Verdict};

/// What the endpoints of a run got.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) due: u64,
    pub(crate) requests: u64,
    /// Answered with an error, or not at all.
    pub(crate) turned_away: u64,
    /// Taken more than once.
    pub(crate) again: u64,
}

struct Publish {
    invoke: Time,
    ok: Time,
}

pub(crate) fn judge(history: &[Event], verdict: &mut Verdict) {
    let publishes = publishes(history);
    let mut endpoints: HashMap<u16, (u16, Time)> = HashMap::new();
    let mut taken: HashMap<(u16, Id), usize> = HashMap::new();
    let mut names: HashMap<(u16, Id), HashSet<&str>> = HashMap::new();
    let mut items: HashMap<(u16, &str), Id> = HashMap::new();
    for Event { t, what } in history {
        let (w, ch, id, name, took) = match what {
            What::EndpointOk { w, ch } => {
                endpoints.entry(*w).or_insert((*ch, *t));
                continue;
            }
            What::Webhook { w, ch, id, name, taken } => (*w, *ch, *id, name.as_str(), *taken),
            _ => continue,
        };
        verdict.webhooks.requests += 1;
        verdict.webhooks.turned_away += u64::from(!took);
        let say = |what: String| move || format!("endpoint {w}: {what}");
        let Some(id) = id else {
            verdict.convict(Kind::Corrupt, say("something that nobody published".into()));
            continue;
        };
        if endpoints.get(&w).is_some_and(|(own, _)| *own != ch) {
            verdict.convict(Kind::Stray, say(format!("{id} of channel {ch}")));
            continue;
        }
        match publishes.get(&(ch, id)) {
            None => verdict.convict(Kind::Phantom, say(format!("{id} was never published"))),
            Some(publish) if *t < publish.invoke => {
                verdict.convict(Kind::Early, say(format!("{id} came before its publish")));
            }
            Some(_) => {
                let known = names.entry((w, id)).or_default();
                known.insert(name);
                let other = *items.entry((w, name)).or_insert(id);
                // However often it is published, an item is one webhook.
                if known.len() > 1 || other != id || name.is_empty() {
                    verdict.convict(Kind::Unnamed, say(format!("{id} came as {name:?} and by other names")));
                }
            }
        }
        if took {
            let count = taken.entry((w, id)).or_default();
            *count += 1;
            verdict.webhooks.again += u64::from(*count > 1);
        }
    }
    for (w, (ch, since)) in endpoints {
        let mut due: Vec<Id> = publishes
            .iter()
            .filter(|((of, _), publish)| *of == ch && publish.invoke > since && publish.ok != Time::MAX)
            .map(|((_, id), _)| *id)
            .collect();
        due.sort_unstable();
        verdict.webhooks.due += due.len() as u64;
        for id in due.into_iter().filter(|id| !taken.contains_key(&(w, *id))) {
            verdict.convict(Kind::Lost, || format!("endpoint {w} never took {id} of channel {ch}"));
        }
    }
}

fn publishes(history: &[Event]) -> HashMap<(u16, Id), Publish> {
    let answered: HashMap<u32, Time> = history
        .iter()
        .filter_map(|event| match event.what {
            What::PubOk { request } => Some((request, event.t)),
            _ => None,
        })
        .collect();
    let mut all: HashMap<(u16, Id), Publish> = HashMap::new();
    for event in history {
        let What::PubInvoke { ch, id, request, .. } = event.what else { continue };
        let fresh = Publish { invoke: event.t, ok: Time::MAX };
        let publish = all.entry((ch, id)).or_insert(fresh);
        publish.ok = publish.ok.min(answered.get(&request).copied().unwrap_or(Time::MAX));
    }
    all
}

/// A lie about webhooks, and what it is to be called.
const LIES: [(Lie, Kind); 7] = [
    (Lie::Lost, Kind::Lost),
    (Lie::OnlyTurnedAway, Kind::Lost),
    (Lie::Renamed, Kind::Unnamed),
    (Lie::NamedAsAnother, Kind::Unnamed),
    (Lie::Phantom, Kind::Phantom),
    (Lie::Corrupt, Kind::Corrupt),
    (Lie::Stray, Kind::Stray),
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lie {
    Lost,
    OnlyTurnedAway,
    Renamed,
    NamedAsAnother,
    Phantom,
    Corrupt,
    Stray,
}

pub(crate) const LIES_COUNT: u64 = LIES.len() as u64;

/// Judges `count` honest histories, and each lie in each. Returns what was judged wrongly.
pub(crate) fn self_test(count: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let verdict = |history: &[Event]| {
        let mut verdict = Verdict::default();
        judge(history, &mut verdict);
        verdict
    };
    for seed in 0..count {
        let mut dice = Dice::new(seed);
        let honest = honest(&mut dice);
        let found = verdict(&honest);
        if !found.passed() || found.webhooks.due == 0 {
            wrong.push(format!("seed {seed}: honest webhooks were convicted: {found}"));
        }
        for (lie, kind) in LIES {
            let mut history = honest.clone();
            tell(lie, &mut history, &mut dice);
            let found = verdict(&history);
            if found.kinds().ne([kind]) {
                let kinds: Vec<_> = found.kinds().collect();
                wrong.push(format!("seed {seed}: {lie:?} was called {kinds:?}"));
            }
        }
    }
    wrong
}

/// Two endpoints; some requests are turned away and tried again, some are taken twice, and every tenth item is lost on
/// its way to the server and published again.
fn honest(dice: &mut Dice) -> Vec<Event> {
    let (ch, mut t) = (3, 0);
    let mut events = Vec::new();
    let mut push = |what| {
        t += 1;
        events.push(Event { t, what });
    };
    push(What::Channel { ch, class: Class::Plain });
    (0..2).for_each(|w| push(What::EndpointOk { w, ch }));
    for number in 1..60 {
        let id = Id { publisher: 0, number };
        let again = number % 10 == 0;
        for attempt in 0..=u32::from(again) {
            let request = number * 2 + attempt;
            push(What::PubInvoke { ch, id, request, at: 0, marker: false });
            if attempt == 1 || !again {
                push(What::PubOk { request });
            }
            let name = number.to_string();
            for w in 0..2 {
                let hook = |taken| What::Webhook { w, ch, id: Some(id), name: name.clone(), taken };
                (0..dice.below(3)).for_each(|_| push(hook(false)));
                (0..1 + dice.below(2)).for_each(|_| push(hook(true)));
            }
        }
    }
    push(What::Quiesce);
    events
}

fn tell(lie: Lie, history: &mut Vec<Event>, dice: &mut Dice) {
    let places: Vec<usize> = history
        .iter()
        .enumerate()
        .filter(|(_, event)| matches!(event.what, What::Webhook { id: Some(_), taken: true, .. }))
        .map(|(at, _)| at)
        .collect();
    let at = dice.one_of(&places).unwrap_or_default();
    let chosen = history[at].clone();
    let What::Webhook { w: endpoint, id: Some(item), .. } = chosen.what else { unreachable!("as chosen") };
    let same = |event: &Event| matches!(&event.what, What::Webhook { w, id: Some(id), .. } if (*w, *id) == (endpoint, item));
    match lie {
        Lie::Lost => history.retain(|event| !same(event)),
        Lie::OnlyTurnedAway => history.iter_mut().filter(|event| same(event)).for_each(|event| {
            if let What::Webhook { taken, .. } = &mut event.what {
                *taken = false;
            }
        }),
        _ => {
            let mut event = chosen;
            if let What::Webhook { ch, id, name, .. } = &mut event.what {
                match lie {
                    Lie::Renamed => name.push('x'),
                    Lie::NamedAsAnother => {
                        *id = Some(Id { number: if item.number == 1 { 2 } else { 1 }, ..item });
                    }
                    Lie::Phantom => *id = Some(Id { publisher: 9, ..item }),
                    Lie::Corrupt => *id = None,
                    _ => *ch += 1,
                }
            }
            // At the end, where everything has been published.
            event.t = history.last().map_or(0, |last| last.t);
            history.push(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_honest_pass_and_lies_are_caught() {
        assert_eq!(self_test(50), Vec::<String>::new());
    }
}
