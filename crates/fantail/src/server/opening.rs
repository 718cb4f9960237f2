//! What is there before anybody is served: the logs, the hub over them, and what XMPP gets of the rest.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::{
    hub::Hub,
    log::{self, Log},
    metrics::Process,
    publish::Publisher,
    snapshot::Snapshot,
    stats::Stats,
    upstream::Workers,
    xmpp,
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

pub(super) fn xmpp(
    (hub, publisher): (&Arc<Hub>, &Arc<Publisher>),
    snapshot: &Arc<ArcSwap<Snapshot>>,
    (counts, workers): (&Arc<Process>, &Arc<Workers>),
) -> xmpp::Parts {
    xmpp::Parts {
        hub: Arc::clone(hub),
        snapshot: Arc::clone(snapshot),
        publisher: Arc::clone(publisher),
        counts: Arc::clone(counts),
        workers: Arc::clone(workers),
    }
}
