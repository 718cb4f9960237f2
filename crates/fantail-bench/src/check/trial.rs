//! A run: subscribers and publishers on threads of their own, faults in the middle, calm at the end. Owns the plan of who
//! listens to what; its outcome is the history.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;

use super::dice::Dice;
use super::faults::Processes;
use super::history::{Class, Event, Fault, Id, Recorder, Transport, What};
use super::origin::Heads;
use super::publisher::Publisher;
use super::receiver;
use super::subscriber::{Arena, Subscriber};
use super::{Failure, Trial};
use crate::socket::{self, SECOND};

pub(crate) fn run(options: &Trial) -> Result<Vec<Event>, Failure> {
    let folder = tempfile::tempdir().map_err(Failure::io("make a folder"))?;
    let path = folder.path().join("heads");
    let heads = Heads::open(&path).map_err(Failure::io("make the heads"))?;
    let mut processes = Processes::start(options, &path)?;
    let arena = Arena {
        recorder: Recorder::default(),
        clients: options.sub.0,
        publishers: options.publish.0,
        faults: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        gap_code: options.gap_code,
    };
    let (requests, phase) = (AtomicU32::new(1), AtomicU32::new(0));
    let mut dice = Dice::new(options.seed);
    let channels = channels(&options.classes);
    let hooked = if options.hooks.is_some() { hooked(&options.classes, channels.len()) } else { Vec::new() };
    for channel in channels.iter().chain(&hooked) {
        arena.recorder.note(What::Channel { ch: channel.ch, class: channel.class });
    }
    thread::scope(|scope| {
        if let Some(hooks) = options.hooks {
            let subscribe = |(n, channel): (u16, &Channel)| {
                receiver::subscribe(&arena, channel.ch, channel.class, hooks.0, n * receiver::ENDPOINTS)
            };
            let subscribed =
                receiver::listen(scope, &arena, hooks.0, &phase, Dice::new(dice.below(u64::MAX)))
                    .and_then(|()| (0..).zip(&hooked).try_for_each(subscribe));
            if subscribed.is_err() {
                arena.stop.store(true, SeqCst);
                return subscribed;
            }
        }
        let plan = plan(&channels, options.subscribers);
        for (s, (transport, listens)) in (0..).zip(&plan) {
            let subscriber = Subscriber::new(&arena, s, *transport, listens, dice.below(u64::MAX));
            scope.spawn(move || subscriber.run());
        }
        for channel in channels.iter().chain(&hooked) {
            for publisher in 0..channel.publishers {
                let publisher = Publisher {
                    arena: &arena,
                    ch: channel.ch,
                    class: channel.class,
                    publisher,
                    alone: channel.publishers == 1,
                    posts: hooked.iter().any(|hooked| hooked.ch == channel.ch),
                    repeats: publisher == 0,
                    heads: &heads,
                    dice: Dice::new(dice.below(u64::MAX)),
                    pace: options.pace,
                };
                let (requests, phase) = (&requests, &phase);
                scope.spawn(move || publisher.run(requests, phase));
            }
        }
        let outcome = drive(options, (&arena, &plan), &mut processes, &mut dice, &phase);
        arena.stop.store(true, SeqCst);
        outcome
    })?;
    Ok(arena.recorder.take())
}

fn drive(
    options: &Trial,
    (arena, plan): (&Arena, &[Listener]),
    processes: &mut Processes<'_>,
    dice: &mut Dice,
    phase: &AtomicU32,
) -> Result<(), Failure> {
    arena.pause(WARM_MS);
    arena.faults.store(options.faults.contains(&Fault::Cut), SeqCst);
    processes.torment(arena, dice)?;
    arena.faults.store(false, SeqCst);
    // Whoever has left is back, and origins that were retried are reached again.
    arena.pause(CALM_MS);
    let calm = arena.recorder.len();
    phase.store(1, SeqCst);
    arena.pause(MARKERS_MS);
    // How fast it goes is the machine's affair: the end waits for everybody, unless somebody is waited for in vain.
    let latest = socket::now() + LAST_SECONDS * SECOND;
    let lacks = |wanted| arena.recorder.since(calm, |end| lacks(plan, end, wanted));
    while socket::now() < latest && lacks(Wanted::Marker) {
        arena.pause(QUIET_MS / 10);
    }
    phase.store(2, SeqCst);
    let latest = socket::now() + LAST_SECONDS * SECOND;
    arena.pause(QUIET_MS);
    while socket::now() < latest {
        let quiet = socket::now() - arena.recorder.last_receipt();
        if quiet >= REPAIRED_MS * 1_000_000 || quiet >= QUIET_MS * 1_000_000 && !lacks(Wanted::Newest) {
            break;
        }
        arena.pause(QUIET_MS / 10);
    }
    processes.look(arena)?;
    arena.recorder.note(What::Quiesce);
    Ok(())
}

/// How somebody listens, and to what.
type Listener = (Transport, Vec<(u16, Class)>);

/// What everybody is to get at the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wanted {
    /// Of each channel some item that was published then.
    Marker,
    /// And the one that was acknowledged last, unless nothing is promised between two polls.
    Newest,
}

/// Whether somebody has not got that yet, as far as the end of a history shows.
fn lacks(plan: &[Listener], end: &[Event], wanted: Wanted) -> bool {
    let mut items: HashMap<u32, Vec<(u16, Id)>> = HashMap::new();
    let mut marked: HashMap<u16, Vec<Id>> = HashMap::new();
    let mut got: HashSet<(usize, u16, Id)> = HashSet::new();
    for event in end {
        match &event.what {
            What::PubInvoke { ch, id, request, marker: true, .. } => {
                items.entry(*request).or_default().push((*ch, *id));
            }
            What::PubOk { request } => {
                for (ch, id) in items.remove(request).into_iter().flatten() {
                    marked.entry(ch).or_default().push(id);
                }
            }
            What::Recv { s, ch, id: Some(id) } => _ = got.insert((usize::from(*s), *ch, *id)),
            _ => {}
        }
    }
    plan.iter().enumerate().any(|(s, (transport, listens))| {
        listens.iter().any(|(ch, class)| {
            let marked = marked.get(ch).map_or(&[][..], Vec::as_slice);
            let has = |id: &Id| got.contains(&(s, *ch, *id));
            match wanted {
                Wanted::Newest if *transport == Transport::Poll && *class == Class::Plain => false,
                Wanted::Newest => !marked.last().is_some_and(has),
                Wanted::Marker => !marked.iter().any(has),
            }
        })
    })
}

/// A channel, and how many publish on it.
#[derive(Clone, Copy, Debug)]
struct Channel {
    ch: u16,
    class: Class,
    publishers: u16,
}

/// Of each class one with a publisher whose items say which one they follow, and one with two who do not know each
/// other. An origin that repairs knows the order itself: it publishes alone.
fn channels(classes: &[Class]) -> Vec<Channel> {
    let each =
        classes.iter().flat_map(|class| [(*class, 1), (*class, if *class == Class::Origin { 1 } else { 2 })]);
    (0..).zip(each).map(|(ch, (class, publishers))| Channel { ch, class, publishers }).collect()
}

/// Channels that have endpoints, and nobody who listens: one without a log, and one of each class whose log outlives a
/// process, so that there is an item that the log has and webhooks have not.
fn hooked(classes: &[Class], first: usize) -> Vec<Channel> {
    let first = u16::try_from(first).unwrap_or(u16::MAX);
    let logged = classes.iter().filter(|class| matches!(class, Class::Logged | Class::Synced));
    let classes = std::iter::once(&Class::Plain).chain(logged);
    (first..).zip(classes).map(|(ch, class)| Channel { ch, class: *class, publishers: 2 }).collect()
}

/// Who listens to what, and how: each channel over each transport, and both channels of a class over one connection.
fn plan(channels: &[Channel], each: u16) -> Vec<Listener> {
    let mut plan = Vec::new();
    for transport in Transport::ALL {
        for channel in channels {
            plan.extend((0..each).map(|_| (transport, vec![(channel.ch, channel.class)])));
        }
        for pair in channels.chunks(2) {
            // A poll of two channels without a log would miss one while it is told of the other.
            if transport != Transport::Poll || pair.iter().all(|channel| channel.class != Class::Plain) {
                plan.push((transport, pair.iter().map(|channel| (channel.ch, channel.class)).collect()));
            }
        }
    }
    plan
}

/// Until everybody has subscribed and has got something to go on from.
const WARM_MS: u64 = 1500;
/// Longer than an origin is waited for between two tries.
const CALM_MS: u64 = 5000;
const MARKERS_MS: u64 = 1000;
/// Without a receipt for so long, nothing more is expected of those who have the newest.
const QUIET_MS: u64 = 2000;
/// And of others: a poll times out after eight seconds, and an item waits for another for five.
const REPAIRED_MS: u64 = 15_000;
/// And in any case after so long.
const LAST_SECONDS: u64 = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_waits_for_everybody() {
        let id = |number| Id { publisher: 0, number };
        let plan = [
            (Transport::Stream, vec![(1, Class::Logged)]),
            (Transport::Poll, vec![(1, Class::Logged)]),
            (Transport::Poll, vec![(2, Class::Plain)]),
        ];
        let invoke =
            |ch, request, number, marker| What::PubInvoke { ch, id: id(number), request, at: 0, marker };
        let recv = |s, ch, number| What::Recv { s, ch, id: Some(id(number)) };
        let mut end = Vec::new();
        let steps = [
            (
                vec![invoke(1, 1, 5, false), What::PubOk { request: 1 }, recv(0, 1, 5), recv(1, 1, 5)],
                true,
                true,
            ),
            (vec![invoke(1, 2, 6, true), invoke(2, 3, 1, true), recv(0, 1, 6), recv(1, 1, 6)], true, true),
            (vec![What::PubOk { request: 2 }, What::PubOk { request: 3 }], true, false),
            (vec![recv(2, 2, 1)], false, false),
            (vec![invoke(1, 4, 7, true), What::PubOk { request: 4 }, recv(0, 1, 7)], false, true),
            (vec![invoke(2, 5, 2, true), What::PubOk { request: 5 }, recv(1, 1, 7)], false, false),
        ];
        for (more, marker, newest) in steps {
            end.extend(more.into_iter().map(|what| Event { t: 0, what }));
            let found = [Wanted::Marker, Wanted::Newest].map(|wanted| lacks(&plan, &end, wanted));
            assert_eq!(found, [marker, newest], "{}", end.len());
        }
    }
}
