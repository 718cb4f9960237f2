//! Who is told what happens to clients: the statistics socket, Prometheus, commands. Makes what they share, if there is
//! any of them, and nothing else.

use std::sync::Arc;

use crate::{
    admin::prometheus::Page,
    config::Config,
    metrics::{Counters, Process},
    publish::zeromq::Board,
    stats::Stats,
};

/// Who is told what happens to clients, if anybody is.
#[derive(Default)]
pub(super) struct Watchers {
    pub(super) stats: Option<Arc<Stats>>,
    pub(super) board: Option<Arc<Board>>,
    pub(super) page: Option<Page>,
}

impl Watchers {
    pub(super) fn new(config: &Config, counters: &[Arc<Counters>], process: &Arc<Process>) -> Self {
        let told = config.stats.socket.is_some() || config.stats.prometheus.is_some();
        if !told && config.zeromq.command.is_none() {
            return Self::default();
        }
        let shards = counters.to_vec();
        let stats = Stats::new(shards.len(), config.stats.block_bytes, process);
        let board = Board::new(&stats, &config.stats, config.hub.linger, shards.clone(), process);
        let page = Page {
            prefix: config.stats.prometheus_prefix.clone(),
            shards,
            process: Arc::clone(process),
            stats: Arc::clone(&stats),
        };
        Self { stats: Some(stats), board: Some(board), page: Some(page) }
    }
}
