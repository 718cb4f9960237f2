//! The whole server: binds what the configuration names, starts a thread a shard and the control
//! runtime, reloads on demand, and stops in order. It owns the threads and decides nothing else.

mod descriptors;
mod ending;
mod opening;
mod watchers;
mod watching;

use std::{
    io::{self, IsTerminal},
    pin::pin,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use fantail_pin::FanOut;
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    runtime,
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};

use crate::{
    admin::{self, Phase, prometheus},
    cli,
    client::{Connections, Crowd},
    config::{self, Address, Config, LogFormat, Notice},
    drain::{Signal, Signals},
    hold::Holds,
    hub::Hub,
    listen::{self, Bound},
    log::{self, Log},
    logging::Output,
    metrics::{Counters, Process},
    publish::{
        Publisher,
        zeromq::{self, Inputs, Sockets},
    },
    session::Sessions,
    shard::{Moved, Neighbours, Parts, Shard},
    snapshot::{AllInvalid, Snapshot},
    stats::{Notes, Stats},
    upstream::{BindError, Pages, Workers},
    webhook::{self, Delivering, Webhooks},
    xmpp::{self, Xmpp, XmppError},
};
use ending::Ending;
use opening::Door;
use watchers::Watchers;
use watching::{Watching, files};

/// Serves until it is told to stop.
pub fn run(config: Config, log: &Output) -> ExitCode {
    let watching = Watching::new(files(&config));
    // It may have changed before it was watched.
    let config = config.reload().unwrap_or(config);
    if let Some(file) = &config.file {
        tracing::info!("using config: {}", file.display());
    }
    say_notices(&config, &[]);
    let end = Server::bind(config).and_then(|server| server.serve(log, watching));
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(ServerError::Invalid(invalid)) => cli::refuse(invalid.0),
        Err(error) => {
            tracing::error!("{error}");
            // On a terminal, that was said now.
            if log.is_terminal() { ExitCode::FAILURE } else { cli::refuse([error]) }
        }
    }
}

/// Everything is bound and nothing runs yet.
#[derive(Debug)]
struct Server {
    clients: Vec<Door>,
    control: std::net::TcpListener,
    sockets: Sockets,
    prometheus: Option<prometheus::Door>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    fan_out: FanOut,
    xmpp: Option<(Xmpp, xmpp::Desk)>,
}

/// Why the server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
enum ServerError {
    #[error("the configuration is not valid")]
    Invalid(AllInvalid),
    #[error("cannot listen on {address} ({key}): {source}")]
    Listen { key: &'static str, address: String, source: io::Error },
    #[error("io_uring was asked for (server.fan_out) and is not to be had here: take auto or send")]
    NoIoUring,
    #[error("cannot speak TLS: {0}")]
    Tls(rustls::Error),
    #[error("{0}")]
    Workers(BindError),
    #[error(transparent)]
    ZeroMq(#[from] zeromq::BindError),
    #[error("cannot keep logs: {0}")]
    Log(#[from] log::OpenError),
    #[error(transparent)]
    Webhooks(#[from] webhook::StartError),
    #[error(transparent)]
    Xmpp(#[from] XmppError),
    #[error("cannot start: {0}")]
    Start(io::Error),
    #[error("shard {0} has stopped")]
    Shard(usize),
    #[error("{0} have stopped")]
    Outpost(&'static str),
}

impl ServerError {
    fn listen(key: &'static str, address: &impl ToString) -> impl FnOnce(io::Error) -> Self {
        let address = address.to_string();
        move |source| Self::Listen { key, address, source }
    }
}

impl Server {
    /// Binds all addresses. Nobody is accepted before [`Self::run`].
    fn bind(config: Config) -> Result<Self, ServerError> {
        let snapshot = Snapshot::load(config, None).map_err(ServerError::Invalid)?;
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let loaded = snapshot.load_full();
        complain(&loaded);
        let server = &loaded.config.server;
        let fan_out = match server.fan_out {
            config::FanOut::Send => FanOut::Send,
            config::FanOut::Auto if !fantail_pin::io_uring_available() => FanOut::Send,
            config::FanOut::IoUring if !fantail_pin::io_uring_available() => {
                return Err(ServerError::NoIoUring);
            }
            config::FanOut::Auto | config::FanOut::IoUring => FanOut::IoUring,
        };
        let address = loaded.config.control.listen;
        let control = std::net::TcpListener::bind(address)
            .and_then(|bound| bound.set_nonblocking(true).map(|()| bound))
            .map_err(ServerError::listen("control.listen", &address))?;
        let sockets = Sockets::bind(&loaded.config.zeromq, &loaded.config.stats)?;
        let bind = |address: &Address| {
            prometheus::Door::bind(address).map_err(ServerError::listen("stats.prometheus", address))
        };
        let prometheus = loaded.config.stats.prometheus.as_ref().map(bind).transpose()?;
        let xmpp = Xmpp::open(&loaded.config)?;
        // Last: clients that come from now on wait in the kernel, and would be reset if something else failed.
        let clients = opening::doors(&snapshot)?;
        Ok(Self { clients, control, sockets, prometheus, snapshot, fan_out, xmpp })
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Says on the terminal and in the log where we are.
    fn announce(&self) -> io::Result<()> {
        let addresses = |tls: bool| {
            let doors = self.clients.iter().filter(move |door| door.tls.is_some() == tls);
            let firsts = doors.filter_map(|door| door.bounds.first());
            firsts.map(Bound::address).collect::<io::Result<Vec<Address>>>()
        };
        let (clients, sealed) = (addresses(false)?, addresses(true)?);
        let control = self.control.local_addr()?;
        let snapshot = self.snapshot();
        if io::stdout().is_terminal() && snapshot.config.logging.format != LogFormat::Pushpin {
            print!(
                "{}",
                cli::banner(&snapshot.config, [&clients, &sealed], control, snapshot.routes.table())
            );
        }
        let join = |all: &[Address]| all.iter().map(Address::to_string).collect::<Vec<_>>().join(",");
        let (client, client_tls) = (join(&clients), join(&sealed));
        let fan_out = match self.fan_out {
            FanOut::IoUring => "io_uring",
            FanOut::Send => "send",
        };
        let shards = snapshot.config.server.shards;
        tracing::info!(client, client_tls, %control, shards, fan_out, "listening");
        say_routes(&snapshot);
        tracing::info!("started");
        Ok(())
    }

    /// Serves until a signal stops the process, and returns when all is let go.
    fn serve(mut self, output: &Output, watching: Watching) -> Result<(), ServerError> {
        let config = self.snapshot().config.clone();
        let runtime = control_runtime().map_err(ServerError::Start)?;
        let control = self.control.try_clone().map_err(ServerError::Start)?;
        let process = Arc::new(Process::default());
        let counters: Vec<Arc<Counters>> = (0..config.server.shards).map(|_| Arc::default()).collect();
        let Watchers { stats, board, page } = Watchers::new(&config, &counters, &process);
        let wanted = self.snapshot();
        let (log, hub) = opening::hub(&wanted, &process, stats.clone())?;
        // Whatever ends the start.
        let _closing = Closing(Arc::clone(&log));
        let workers = Arc::new(Workers::default());
        if let Some(error) = workers.open(wanted.routes.workers(), runtime.handle()).pop() {
            return Err(ServerError::Workers(error));
        }
        let patience = config.control.publish_timeout;
        let publisher =
            Publisher::new(Arc::clone(&hub), Arc::clone(&self.snapshot), Arc::clone(&process), patience);
        let publisher = Arc::new(publisher);
        let sessions = config.zeromq.session.as_ref().map(|_| Arc::<Sessions>::default());
        let inputs = Inputs::new(&publisher, &hub, &process, &config.zeromq, (board, sessions.clone()));
        // What they got of the hub would be lost from then on, and publishers would wait in vain.
        let (lost, outposts) = mpsc::channel(OUTPOSTS);
        let begin = Ending::later(WEBHOOKS, &lost);
        let (webhooks, delivering) = webhook::start(&self.snapshot, &hub, &process, begin)?;
        // It has its subscribers before anybody can publish, and for as long.
        let parts = opening::xmpp((&hub, &publisher), &self.snapshot, (&process, &workers));
        let (component, desk) = self.xmpp.take().unzip();
        let component = component.map(|xmpp| xmpp.start(parts, Ending(XMPP, lost))).transpose()?;
        let (stop, stopping) = watch::channel(false);
        let shards = self
            .start_shards((&hub, &workers), (stats.as_ref(), sessions.as_ref()), &counters, output, &stopping)
            .map_err(ServerError::Start)?;
        let (timed, waiting) = (Arc::clone(&hub), Arc::clone(&hub));
        let asked = (&config.control, webhooks.clone());
        let state = admin::State::new(publisher, hub, counters, process, output.clone(), asked);
        let state = Arc::new(state.with_xmpp(desk));
        let end = runtime.block_on(async {
            let control = TcpListener::from_std(control).map_err(ServerError::Start)?;
            // The control port outlives the shards: /readyz says that they drain.
            let (close, closing) = watch::channel(false);
            let mut port = tokio::spawn(admin::serve(control, Arc::clone(&state), stopped(closing)));
            let signals = Signals::new().map_err(ServerError::Start)?;
            state.enter(Phase::Ready);
            self.announce().map_err(ServerError::Start)?;
            let sockets = tokio::spawn(self.sockets.serve(inputs));
            let prometheus = self.prometheus.zip(page);
            let prometheus = prometheus.map(|(door, page)| tokio::spawn(door.serve(Arc::new(page))));
            let time = tokio::spawn(async move { timed.keep_time().await });
            // The shards have their own: when the last of them stops listening, nobody is kept waiting.
            drop((self.clients, self.control));
            let (output, logs) = (output.clone(), Arc::clone(&log));
            let snapshot = self.snapshot;
            let life =
                Life { snapshot, watching, signals, shards, outposts, output, workers, logs, webhooks };
            let end = life.run(&state, &stop).await;
            close.send_replace(true);
            sockets.abort();
            prometheus.iter().for_each(tokio::task::JoinHandle::abort);
            time.abort();
            // Publishers may be waiting for what is early.
            waiting.release_all();
            if timeout_at(Instant::now() + DRAIN_GRACE, &mut port).await.is_err() {
                port.abort();
            }
            end
        });
        runtime.shutdown_timeout(DRAIN_GRACE);
        component.into_iter().for_each(xmpp::Running::stop);
        // Now nobody publishes any more.
        waiting.release_all();
        // What its log has kept comes into the mailbox of webhooks, which are told to stop when nothing comes any more.
        log.close();
        delivering.into_iter().for_each(Delivering::stop);
        end
    }

    fn start_shards(
        &self,
        (hub, workers): (&Arc<Hub>, &Arc<Workers>),
        (stats, sessions): (Option<&Arc<Stats>>, Option<&Arc<Sessions>>),
        counters: &[Arc<Counters>],
        output: &Output,
        stopping: &watch::Receiver<bool>,
    ) -> io::Result<mpsc::Receiver<usize>> {
        let config = &self.snapshot().config;
        let shards = config.server.shards;
        let origins = shards.saturating_mul(config.origin.connections);
        let webhooks = config.server.data_dir.as_ref().map_or(0, |_| webhook::connections(&config.webhooks));
        let limit = descriptors::connection_limit(config.client.connections, origins + webhooks);
        let crowd = Crowd::new(limit, config.client.connections_per_address);
        let (ended, endings) = mpsc::channel(shards);
        let pages = Arc::new(Pages::default());
        let (neighbours, takers) = Neighbours::new(shards);
        for (index, (moving, counted)) in takers.into_iter().zip(counters).enumerate() {
            let thread = Thread {
                index,
                hub: Arc::clone(hub),
                workers: Arc::clone(workers),
                notes: stats.map(|stats| stats.shard(index)),
                sessions: sessions.map(Arc::clone),
                pages: Arc::clone(&pages),
                snapshot: Arc::clone(&self.snapshot),
                counters: Arc::clone(counted),
                output: output.clone(),
                crowd: Arc::clone(&crowd),
                fan_out: self.fan_out,
                stopping: stopping.clone(),
                neighbours: neighbours.clone(),
                moving,
            };
            let mine = |door: &Door| Ok((door.bounds[index].try_clone()?, door.tls.clone()));
            let bounds = self.clients.iter().map(mine).collect::<io::Result<Vec<_>>>()?;
            let ended = ended.clone();
            thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
                // Sent however the thread ends: a shard that has panicked is missed, too.
                let _ending = Ending(index, ended);
                if let Err(error) = thread.run(bounds) {
                    tracing::error!(%error, shard = index, "a shard has failed");
                }
            })?;
        }
        Ok(endings)
    }
}

fn control_runtime() -> io::Result<runtime::Runtime> {
    let mut builder = runtime::Builder::new_multi_thread();
    builder.worker_threads(CONTROL_THREADS).thread_name("control").enable_all().build()
}

/// Closes the logs in order, however the process ends: what was only accepted is kept then.
struct Closing(Arc<Log>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A running server, until it has stopped.
struct Life {
    snapshot: Arc<ArcSwap<Snapshot>>,
    watching: Watching,
    signals: Signals,
    /// Which shard has ended.
    shards: mpsc::Receiver<usize>,
    /// Who else has, that the hub has mail for.
    outposts: mpsc::Receiver<&'static str>,
    output: Output,
    workers: Arc<Workers>,
    logs: Arc<Log>,
    webhooks: Option<Arc<Webhooks>>,
}

impl Life {
    async fn run(mut self, state: &admin::State, stop: &watch::Sender<bool>) -> Result<(), ServerError> {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut age = interval(log::SWEEP_EVERY);
        age.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            tokio::select! {
                _ = sweep.tick() => self.workers.sweep(),
                _ = age.tick() => self.logs.sweep(),
                signal = self.signals.next() => match signal {
                    Signal::Stop => break Ok(()),
                    Signal::Reload => {
                        tracing::info!("reloading");
                        if let Err(error) = self.output.reopen() {
                            tracing::error!("the log goes on where it was: {error}");
                        }
                        self.reload();
                    }
                },
                () = self.watching.changed() => self.reload(),
                _ = look.tick() => if self.has_other_certificates().await {
                    tracing::info!("certificates have changed");
                    self.reload();
                },
                Some(outpost) = self.outposts.recv() => break Err(ServerError::Outpost(outpost)),
                shard = self.shards.recv() => break Err(ServerError::Shard(shard.unwrap_or_default())),
            }
        };
        tracing::info!("stopping");
        state.enter(Phase::Draining);
        stop.send_replace(true);
        let patience = self.snapshot.load().config.server.drain_timeout + DRAIN_GRACE;
        let gone = async { while self.shards.recv().await.is_some() {} };
        tokio::select! {
            () = gone => {}
            () = tokio::time::sleep(patience) => tracing::warn!("connections did not end in time"),
            () = self.signals.stop() => tracing::warn!("stopping at once"),
        }
        end
    }

    /// Certificates may be links to anywhere, so that no watch on a folder sees all changes.
    async fn has_other_certificates(&self) -> bool {
        let snapshot = self.snapshot.load_full();
        tokio::task::spawn_blocking(move || snapshot.certificates.have_changed()).await.unwrap_or(false)
    }

    fn reload(&mut self) {
        let Self { snapshot, watching, workers, logs, webhooks, .. } = self;
        watching.read_again(|| {
            load(snapshot, workers, logs, webhooks.as_deref());
            files(&snapshot.load().config)
        });
    }
}

/// All or nothing: a configuration with errors changes nothing, and the log says what is wrong.
fn load(snapshot: &ArcSwap<Snapshot>, workers: &Arc<Workers>, logs: &Log, webhooks: Option<&Webhooks>) {
    let old = snapshot.load_full();
    let config = match old.config.reload() {
        Ok(config) => config,
        Err(problems) => return tracing::error!("not reloaded, nothing has changed: {problems}"),
    };
    say_notices(&config, &old.config.notices);
    let restart = old.config.restart_needed(&config);
    if !restart.is_empty() {
        tracing::warn!("only a restart changes {}", restart.join(", "));
    }
    match Snapshot::load(config, Some(&old)) {
        Ok(new) => {
            let admitted = webhooks.map_or(Ok(()), |webhooks| webhooks.admit(&new.realms, &old.realms));
            if let Err(error) = admitted {
                return tracing::error!("not reloaded, nothing has changed: webhooks: {error}");
            }
            if let Err(error) = logs.configure(&new.config.logs, |realm| new.realms.get(realm)) {
                return tracing::error!("not reloaded, nothing has changed: {error}");
            }
            complain(&new);
            for error in workers.open(new.routes.workers(), &runtime::Handle::current()) {
                tracing::error!("{error}");
            }
            let new = Arc::new(new);
            snapshot.store(Arc::clone(&new));
            say_routes(&new);
        }
        Err(invalid) => tracing::error!("not reloaded, nothing has changed: {invalid}"),
    }
}

/// Names the certificates that stay as they were, or away.
fn complain(snapshot: &Snapshot) {
    for error in &snapshot.broken {
        tracing::error!("tls: {error}");
    }
}

/// Those that have not been said.
fn say_notices(config: &Config, said: &[Notice]) {
    for notice in config.notices.iter().filter(|notice| !said.contains(notice)) {
        match notice {
            Notice::Meaningless { .. } => tracing::info!("{notice}"),
            Notice::Doubtful(_) => tracing::warn!("{notice}"),
        }
    }
}

fn say_routes(snapshot: &Snapshot) {
    for skipped in snapshot.routes.skipped() {
        tracing::warn!("{skipped}");
    }
    tracing::info!("routes loaded with {} entries", snapshot.routes.routes().len());
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error is a sender that is gone: stopped, too.
    drop(stopping.wait_for(|stop| *stop).await);
}

/// What one shard's thread is made of.
struct Thread {
    index: usize,
    hub: Arc<Hub>,
    workers: Arc<Workers>,
    notes: Option<Arc<Notes>>,
    sessions: Option<Arc<Sessions>>,
    pages: Arc<Pages>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    counters: Arc<Counters>,
    output: Output,
    crowd: Arc<Crowd>,
    fan_out: FanOut,
    stopping: watch::Receiver<bool>,
    neighbours: Neighbours,
    moving: mpsc::Receiver<Moved>,
}

impl Thread {
    fn run(self, bounds: Vec<(Bound, Option<Arc<ServerConfig>>)>) -> io::Result<()> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
        let end = runtime.block_on(self.serve(bounds));
        // Look-ups may block their threads for long.
        runtime.shutdown_background();
        end
    }

    async fn serve(self, bounds: Vec<(Bound, Option<Arc<ServerConfig>>)>) -> io::Result<()> {
        let Self {
            index,
            hub,
            workers,
            notes,
            sessions,
            pages,
            snapshot,
            counters,
            output,
            crowd,
            fan_out,
            stopping,
            neighbours,
            moving,
        } = self;
        let connections = Connections::new(crowd, Arc::clone(&counters));
        let holds =
            Holds::new(Arc::clone(&hub), index, fan_out, &snapshot.load().config, Arc::clone(&counters))?;
        let holds = holds.watched(notes);
        let access = output.access();
        let shard = Shard::new(Parts {
            index,
            hub,
            snapshot,
            counters,
            connections,
            access,
            holds,
            workers,
            pages,
            sessions,
            neighbours,
        });
        tokio::task::spawn_local(listen::adopt(Rc::clone(&shard), moving));
        for (bound, tls) in bounds {
            tokio::task::spawn_local(listen::accept(Rc::clone(&shard), bound, tls));
        }
        let looping = Rc::clone(&shard);
        let mut looping = tokio::task::spawn_local(async move {
            looping.run(|released| listen::go_on(&looping, released)).await
        });
        let mut stopped = pin!(stopped(stopping));
        let mut tidy = interval(TIDY_EVERY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tidy.tick() => shard.tidy(),
                ended = &mut looping => return ended.map_err(io::Error::other)?,
                () = &mut stopped => break,
            }
        }
        shard.start_draining();
        let deadline = Instant::now() + shard.snapshot.load().config.server.drain_timeout;
        while shard.is_busy() && timeout_at(deadline, shard.connections.room()).await.is_ok() {}
        if let untold @ 1.. = shard.untold() {
            tracing::warn!(untold, "origins of WebSockets were not told in time that these have ended");
        }
        shard.tidy();
        Ok(())
    }
}

const WEBHOOKS: &str = "webhooks";
const XMPP: &str = "XMPP subscriptions";
const OUTPOSTS: usize = 2;
/// Publishing decodes JSON and little else.
const CONTROL_THREADS: usize = 2;
/// How much later than `server.drain_timeout` the process ends at last.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// Access lines are written, and idle connections to origins closed, so often.
const TIDY_EVERY: Duration = Duration::from_millis(200);
/// Files of certificates are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Addresses for workers that no route names any more are given free so often (spec 2.4).
const SWEEP_EVERY: Duration = Duration::from_secs(10);
