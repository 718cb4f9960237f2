//! Keep-alives of streams, as the pins take them.

use fantail_pin::{KeepAlive, KeepAliveMode, Payload};
use fantail_proto::{grip, render::Chunk};

/// A stream's keep-alive.
pub fn beats(keep_alive: &grip::KeepAlive) -> KeepAlive {
    let chunk = Chunk::new(&keep_alive.content);
    KeepAlive {
        payload: Payload { coded: chunk.framed().clone(), plain: chunk.content() },
        every_ms: u32::try_from(keep_alive.timeout.as_millis()).unwrap_or(u32::MAX),
        mode: match keep_alive.mode {
            grip::KeepAliveMode::Idle => KeepAliveMode::Idle,
            grip::KeepAliveMode::Interval => KeepAliveMode::Interval,
        },
    }
}

pub(super) fn first_beat(beats: &KeepAlive) -> u32 {
    beats.every_ms.saturating_sub(jitter_ms())
}

/// Spreads what would come together: up to a second.
pub fn jitter_ms() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    u32::try_from(RandomState::new().hash_one(()) % 1000).unwrap_or(0)
}
