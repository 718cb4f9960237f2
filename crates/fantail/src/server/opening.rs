//! What is there before anybody is served: addresses for clients, the logs, the hub over them, and what XMPP gets of the rest.

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::ServerError;
use crate::{
    config::Address,
    hub::Hub,
    listen::{Bound, tls},
    log::{self, Log},
    metrics::Process,
    publish::Publisher,
    snapshot::Snapshot,
    stats::Stats,
    upstream::Workers,
    xmpp,
};

/// An address for clients.
#[derive(Debug)]
pub(super) struct Door {
    /// One a shard.
    pub(super) bounds: Vec<Bound>,
    /// For an address that speaks TLS.
    pub(super) tls: Option<Arc<ServerConfig>>,
}

/// Binds the addresses for clients.
pub(super) fn doors(snapshot: &Arc<ArcSwap<Snapshot>>) -> Result<Vec<Door>, ServerError> {
    let config = &snapshot.load_full().config;
    let server = &config.server;
    let plain = server.listen.iter().map(|address| ("server.listen", address.clone()));
    let sealed = server.tls_listen.iter().map(|&address| ("server.tls_listen", Address::Tcp(address)));
    // All, before the first is bound: the next may be another name of the same port.
    for (key, address) in plain.clone().chain(sealed.clone()) {
        Bound::check_free(&address).map_err(ServerError::listen(key, &address))?;
    }
    let bind = |(key, address): (_, Address)| {
        Bound::all(&address, server.backlog, config.client.lost_timeout, server.shards)
            .map_err(ServerError::listen(key, &address))
    };
    let plain = plain.map(|door| Ok(Door { bounds: bind(door)?, tls: None }));
    let sealed = sealed.map(|door| {
        let bounds = bind(door)?;
        let Some(Ok(Address::Tcp(bound))) = bounds.first().map(Bound::address) else {
            return Err(ServerError::Start(io::ErrorKind::AddrNotAvailable.into()));
        };
        let tls = tls::config(config.tls.profile, bound, Arc::clone(snapshot));
        Ok(Door { bounds, tls: Some(tls.map_err(ServerError::Tls)?) })
    });
    plain.chain(sealed).collect()
}

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
