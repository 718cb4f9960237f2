//! Counters. Each shard owns one [`Counters`], written with relaxed atomics by its thread alone and
//! summed when somebody asks. No label is made of what a client or publisher sent.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// One shard's counters.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    pub connections: Gauge,
    pub accepted: Count,
    /// Accepting paused: at the limit of connections, or of descriptors.
    pub accept_pauses: Count,
    pub requests: Count,
    /// Refused before routing: malformed.
    pub refused_malformed: Count,
    /// Refused before routing: over a limit (head, target, body).
    pub refused_limit: Count,
    /// Closed for a time-out before or in a request.
    pub refused_timeout: Count,
    pub pins_stream: Gauge,
    pub pins_poll: Gauge,
    pub channels: Gauge,
    pub subscriptions: Gauge,
    pub delivered_stream: Count,
    pub delivered_poll: Count,
    pub queued: Count,
    pub filtered: Count,
    /// Items that never reached a client: it left before they were written.
    pub dropped_gone: Count,
    /// … its queue was over `client.queue_bytes`, and it was closed.
    pub dropped_overflow: Count,
    /// Pins that ended, by cause.
    pub ended_client: Count,
    pub ended_overflow: Count,
    pub ended_stalled: Count,
    pub ended_close: Count,
    pub ended_answered: Count,
    pub ended_timeout: Count,
    pub keep_alives: Count,
    pub bytes_pushed: Count,
    pub origin_requests: Count,
    pub origin_connects: Count,
    pub origin_connect_failures: Count,
    pub origin_errors: Count,
    pub origin_timeouts: Count,
    pub instruct_errors: Count,
    pub origin_latency: Latency,
}

/// Upper bounds of the buckets of [`Latency`], in seconds; one more holds the rest.
pub const LATENCY_BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// From a request's last byte towards the origin to the first of its answer.
#[derive(Debug, Default)]
pub struct Latency {
    pub buckets: [Count; LATENCY_BOUNDS.len() + 1],
    pub sum_us: Count,
}

impl Latency {
    pub fn observe(&self, took: std::time::Duration) {
        let seconds = took.as_secs_f64();
        let bucket = LATENCY_BOUNDS.iter().position(|b| seconds <= *b).unwrap_or(LATENCY_BOUNDS.len());
        self.buckets[bucket].add(1);
        self.sum_us.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}
