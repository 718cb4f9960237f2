//! Publishing over ZeroMQ (spec 5.1, 5.7): sockets that take items (PULL, SUB), tell publishers which channels have
//! subscribers (SUB), and answer commands (ROUTER). All are for the default realm, and nobody authenticates.
//!
//! The wire is [`fantail_proto::zmtp`] and not the crate `zeromq`: that one sets no limit on a frame's announced
//! length, and reserves it, so that ten bytes of garbage end the process.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use fantail_proto::{
    item::{Item, ItemError, decode_packet},
    log::Durability,
    zmtp::Socket,
};
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Publisher, Refusal};
use crate::{
    config::{self, DEFAULT_REALM, Endpoint},
    hub::{Hub, Refused},
    metrics::Process,
    session::Sessions,
};
use interest::Interest;
use socket::Listener;
pub use stats::Board;

mod command;
mod interest;
mod socket;
mod stats;

/// Everything is bound, and nobody is accepted yet.
#[derive(Debug)]
pub struct Sockets {
    bound: Vec<(Role, Listener)>,
    connected: Vec<Endpoint>,
}

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {endpoint}: {source}")]
pub struct BindError {
    endpoint: Endpoint,
    source: io::Error,
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Role {
    Pull,
    Sub,
    Command,
    Stats,
    Session,
}

impl Role {
    fn socket(self) -> Socket {
        match self {
            Self::Pull => Socket::Pull,
            Self::Sub => Socket::Sub,
            Self::Command => Socket::Router,
            Self::Stats => Socket::Pub,
            Self::Session => Socket::Dealer,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Sub => "sub",
            Self::Command => "command",
            Self::Stats => "stats",
            Self::Session => "session",
        }
    }
}

impl Sockets {
    /// # Errors
    /// The first that could not be bound.
    pub fn bind(config: &config::ZeroMq, stats: &config::Stats) -> Result<Self, BindError> {
        let subs = if config.sub_connect { &[][..] } else { &config.sub };
        let pull = config.pull.iter().map(|endpoint| (Role::Pull, endpoint));
        let sub = subs.iter().map(|endpoint| (Role::Sub, endpoint));
        let command = config.command.iter().map(|endpoint| (Role::Command, endpoint));
        let stats = stats.socket.iter().map(|endpoint| (Role::Stats, endpoint));
        let session = config.session.iter().map(|endpoint| (Role::Session, endpoint));
        let bind = |(role, endpoint): (Role, &Endpoint)| {
            let bound = Listener::bind(endpoint, config.ipc_file_mode);
            let listener = bound.map_err(|source| BindError { endpoint: endpoint.clone(), source })?;
            tracing::info!(socket = role.name(), address = %listener, "zeromq");
            Ok((role, listener))
        };
        let all = pull.chain(sub).chain(command).chain(stats).chain(session);
        let bound = all.map(bind).collect::<Result<_, _>>()?;
        Ok(Self { bound, connected: if config.sub_connect { config.sub.clone() } else { Vec::new() } })
    }

    /// Serves until it is dropped.
    pub async fn serve(self, inputs: Arc<Inputs>) {
        let mut tasks = JoinSet::new();
        for (role, listener) in self.bound {
            tasks.spawn(socket::accept(Arc::clone(&inputs), role, listener));
        }
        for endpoint in self.connected {
            tasks.spawn(socket::connect(Arc::clone(&inputs), Role::Sub, endpoint));
        }
        if let Some(board) = inputs.board.clone() {
            tasks.spawn(async move { board.keep().await });
        }
        if inputs.config.sub.is_empty() {
            tasks.spawn(std::future::pending());
        } else {
            tasks.spawn(async move { inputs.interest.keep(&inputs.hub).await });
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a ZeroMQ socket has failed");
            }
        }
    }
}

/// What all of the sockets share.
#[derive(Debug)]
pub struct Inputs {
    publisher: Arc<Publisher>,
    hub: Arc<Hub>,
    counts: Arc<Process>,
    config: config::ZeroMq,
    interest: Interest,
    /// If anybody watches.
    board: Option<Arc<Board>>,
    /// If there may be somebody who keeps them.
    sessions: Option<Arc<Sessions>>,
    /// When a lost message was last logged.
    complained: Mutex<Option<Instant>>,
}

impl Inputs {
    /// From now on the hub's interest is followed, if there is a SUB socket: to be called before there are clients.
    pub fn new(
        publisher: &Arc<Publisher>,
        hub: &Arc<Hub>,
        counts: &Arc<Process>,
        config: &config::ZeroMq,
        (board, sessions): (Option<Arc<Board>>, Option<Arc<Sessions>>),
    ) -> Arc<Self> {
        if !config.sub.is_empty() {
            hub.follow(publisher.default_realm());
        }
        let interest = Interest::new();
        Arc::new(Self {
            publisher: Arc::clone(publisher),
            hub: Arc::clone(hub),
            counts: Arc::clone(counts),
            config: config.clone(),
            interest,
            board,
            sessions,
            complained: Mutex::default(),
        })
    }

    /// Publishes what the messages say, in their order; returns when the hub has taken it, however long that takes, and
    /// the log as it promises: meanwhile the peer is not read.
    async fn publish(&self, role: Role, messages: &[Vec<Bytes>]) {
        let items: Vec<Item> = messages.iter().filter_map(|message| self.item(role, message)).collect();
        self.counts.zeromq_accepted.add(items.len() as u64);
        if self.publisher.publish_all(items).await.is_err() {
            self.counts.zeromq_unkept.add(1);
        }
    }

    /// The item of one message; without one, the message is counted.
    fn item(&self, role: Role, message: &[Bytes]) -> Option<Item> {
        let (channel, packet) = match (role, message) {
            (Role::Sub, [channel, packet]) => (Some(channel), packet),
            (Role::Pull, [packet]) => (None, packet),
            _ => return self.lost(role, &Lost::Parts(message.len())),
        };
        let Ok(channel) = channel.map(|channel| str::from_utf8(channel)).transpose() else {
            return self.lost(role, &Lost::Channel);
        };
        match decode_packet(packet, channel) {
            Ok(item) => {
                match self.publisher.check(self.publisher.default_realm(), std::slice::from_ref(&item)) {
                    Ok(()) => Some(item),
                    Err(refusal) => self.lost(role, &Lost::Refused(refusal)),
                }
            }
            Err(error) => self.lost(role, &Lost::Item(error)),
        }
    }

    fn lost(&self, role: Role, why: &Lost) -> Option<Item> {
        match why {
            Lost::Refused(_) => self.counts.zeromq_refused.add(1),
            Lost::Parts(_) | Lost::Channel | Lost::Item(_) => self.counts.zeromq_malformed.add(1),
        }
        self.complain(|| tracing::warn!("IN {}: {why}, skipping", role.name()));
        None
    }

    /// Says something, unless something was said a moment ago: a flood of garbage is not to be one of the log.
    fn complain(&self, say: impl FnOnce()) {
        let now = Instant::now();
        let mut last = self.complained.lock();
        if last.is_none_or(|last| now - last >= COMPLAINTS_EVERY) {
            *last = Some(now);
            drop(last);
            say();
        }
    }
}

/// Why a message is no item.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("message with {0} parts")]
    Parts(usize),
    #[error("channel that is not UTF-8")]
    Channel,
    #[error("bad format ({0})")]
    Item(ItemError),
    #[error("{0}")]
    Refused(Refusal),
}

impl Publisher {
    /// Hands items to the default realm, all of them, in their order, however long their mailboxes are full. When the disk
    /// takes nothing, items that are to be kept are lost: nobody can be told, and the others are not to wait.
    async fn publish_all(&self, mut items: Vec<Item>) -> Result<(), Refusal> {
        let mut count = items.len();
        let realm = self.default_realm();
        let mut outcome = Ok(());
        let accepted = loop {
            match self.hub.publish_within(realm, items, false, Durability::Accepted, self.patience).await {
                Ok(accepted) => break accepted,
                Err(Refused::Full(again)) => {
                    self.counts.zeromq_waits.add(1);
                    items = again;
                }
                Err(Refused::Log(refused, mut again)) => {
                    again.retain(|item| !self.hub.log().waits(realm, &item.channel));
                    self.counts.items_refused.add((count - again.len()) as u64);
                    outcome = Err(Refusal::Log(refused));
                    if again.is_empty() || again.len() == count {
                        return outcome;
                    }
                    count = again.len();
                    items = again;
                }
            }
        };
        self.count(count, &accepted);
        if let Some(on_disk) = accepted.on_disk {
            timeout(self.patience, on_disk.wait()).await.map_err(|_| Refusal::Slow)??;
        }
        outcome
    }

    fn default_realm(&self) -> crate::hub::RealmId {
        // The default realm always exists.
        self.snapshot.load().realms.get(DEFAULT_REALM).unwrap_or_default()
    }
}

const COMPLAINTS_EVERY: Duration = Duration::from_secs(1);
