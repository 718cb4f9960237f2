//! A seeded simulation of the hub, the logs and those who hold channels, through crashes, losses of power, torn writes,
//! origins that are slow or gone, items that come twice, and subscribers that do not read. The hub, the logs and their
//! files are real; time is paused, there is no socket, and a disk's losses are made by cutting copies of its files.
//! After each step a shadow of what was published says what each subscriber must have got. A failure prints its seed.
//!
//! `SIMULATION_SEED=17 cargo test -p fantail --test simulation` replays one, `SIMULATION_SEEDS=100000` runs more.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod disk;
mod pin;
mod shadow;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use world::{Figures, World};

#[test]
fn nobody_loses_an_item_silently() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("SIMULATION_SEED") {
        let figures = World::new(seed, true).run();
        println!("{figures:?}");
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let all: Vec<_> = thread::scope(|scope| {
        let threads = [(); THREADS].map(|()| scope.spawn(|| some(&next, seeds)));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut sum = Figures::default();
    let mut failed: Vec<u64> = Vec::new();
    for (figures, seeds) in all {
        sum.add(&figures);
        failed.extend(seeds);
    }
    println!("{seeds} seeds: {sum:?}");
    failed.sort_unstable();
    failed.truncate(5);
    let replay = failed.iter().map(|seed| {
        format!("SIMULATION_SEED={seed} cargo test -p fantail --test simulation -- --nocapture\n")
    });
    assert!(
        failed.is_empty(),
        "what went wrong stands above; to see it again:\n{}",
        replay.collect::<String>()
    );
    assert!(sum.reaches_everything(), "a part of the simulation never came about: {sum:?}");
}

/// Seeds until there are none left, and those that failed.
fn some(next: &AtomicU64, seeds: u64) -> (Figures, Vec<u64>) {
    let (mut figures, mut failed) = (Figures::default(), Vec::new());
    loop {
        let seed = next.fetch_add(1, Relaxed);
        if seed >= seeds || failed.len() > 5 {
            return (figures, failed);
        }
        match catch_unwind(AssertUnwindSafe(|| World::new(seed, false).run())) {
            Ok(more) => figures.add(&more),
            Err(_) => failed.push(seed),
        }
    }
}

const SEEDS: u64 = 2000;
const THREADS: usize = 2;
