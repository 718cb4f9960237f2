//! What is there before anybody is served: the logs, and the hub over them.

use std::sync::Arc;

use crate::{
    hub::Hub,
    log::{self, Log},
    metrics::Process,
    snapshot::Snapshot,
    stats::Stats,
};

/// The hub, with the logs that the configuration asks for. Blocks for as long as reading them takes.
pub(super) fn hub(
    wanted: &Snapshot,
    process: &Arc<Process>,
    stats: Option<Arc<Stats>>,
) -> Result<(Arc<Log>, Arc<Hub>), log::OpenError> {
    let config = &wanted.config;
    let log = Arc::new(Log::new(config.server.data_dir.clone(), Arc::clone(process)));
    log.configure(&config.logs, |realm| wanted.realms.get(realm))?;
    let hub = Hub::with_log(config.server.shards, &config.hub, Arc::clone(&log)).watched(stats);
    Ok((log, Arc::new(hub)))
}
