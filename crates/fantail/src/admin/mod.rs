//! The control port: the endpoints of publishers and of webhooks, and for operators
//!
//! - `GET /metrics`: everything counted
//! - `GET /healthz`: the process lives; `GET /readyz`: it wants new clients
//! - `…/channel/{channel}/xs-subscriptions/`: who is subscribed over XMPP
//! - `…/subscriptions/`: which channels have a subscriber
//! - `/`: says what this is
//!
//! Nothing here knows an item.

mod browser;
mod connection;
mod feed;
pub mod prometheus;
mod xmpp;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Response, StatusCode, header::ACCEPT},
    routing::{MethodRouter, any, get},
};
use hyper::{Request, body::Incoming, service::Service as _};
use hyper_util::service::TowerToHyperService;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    config,
    hub::Hub,
    logging::Output,
    metrics::{Counters, Exposition, Process, expose},
    publish::{
        Publisher,
        answer::{self, Format},
        http::{Endpoints, overload},
    },
    webhook::{Webhooks, http::Subscriptions},
    xmpp::Desk,
};

use connection::{Limits, Seat};
pub use connection::{RESERVED, SEATS};

/// What the control port shows and changes.
#[derive(Debug)]
pub struct State {
    endpoints: Arc<Endpoints>,
    subscriptions: Arc<Subscriptions>,
    hub: Arc<Hub>,
    shards: Vec<Arc<Counters>>,
    process: Arc<Process>,
    log: Output,
    phase: AtomicU8,
    started: Instant,
    limits: Limits,
    /// What the control port may be called.
    hosts: Vec<String>,
    xmpp: Option<Desk>,
    /// To follow the feed of subscriptions.
    streams: Arc<Semaphore>,
}

/// Whether a load balancer should send clients here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Phase {
    Starting,
    Ready,
    Draining,
}

impl State {
    /// Starts in [`Phase::Starting`]. `shards` in the order of their numbers.
    pub fn new(
        publisher: Arc<Publisher>,
        hub: Arc<Hub>,
        shards: Vec<Arc<Counters>>,
        process: Arc<Process>,
        log: Output,
        (control, webhooks): (&config::Control, Option<Arc<Webhooks>>),
    ) -> Self {
        Self {
            subscriptions: Arc::new(Subscriptions::new(Arc::clone(&publisher), webhooks)),
            endpoints: Arc::new(Endpoints::new(publisher, Arc::clone(&process), control)),
            hub,
            shards,
            process,
            log,
            phase: AtomicU8::new(Phase::Starting as u8),
            started: Instant::now(),
            limits: Limits::new(control.head_bytes),
            hosts: control.hosts.clone(),
            xmpp: None,
            streams: Arc::new(Semaphore::new(feed::STREAMS)),
        }
    }

    /// With the endpoints of XMPP subscriptions, if there is a component.
    pub fn with_xmpp(self, xmpp: Option<Desk>) -> Self {
        Self { xmpp, ..self }
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            phase if phase == Phase::Ready as u8 => Phase::Ready,
            phase if phase == Phase::Draining as u8 => Phase::Draining,
            _ => Phase::Starting,
        }
    }

    fn metrics(&self, exposition: Exposition) -> String {
        self.process.hub_channels.set(i64::try_from(self.hub.channels()).unwrap_or(i64::MAX));
        let early = self.hub.early();
        self.process.early_in_turn.set(early.in_turn.load(Relaxed));
        self.process.early_late.set(early.late.load(Relaxed));
        self.process.early_dropped.set(early.dropped.load(Relaxed));
        self.process.items_waiting.set(i64::try_from(self.hub.waiting()).unwrap_or(i64::MAX));
        self.process.uptime_seconds.set(i64::try_from(self.started.elapsed().as_secs()).unwrap_or(i64::MAX));
        self.process.log_lines_dropped.set(self.log.dropped());
        expose(&self.shards, &self.process, exposition)
    }
}

/// Serves the control port until `drain` is ready and then until the requests in progress are answered;
/// dropping it ends them at once.
pub async fn serve(listener: TcpListener, state: Arc<State>, drain: impl Future<Output = ()>) {
    let port = Arc::new(Port::new(&listener, Arc::clone(&state)));
    let Limits { seats, reserved, .. } = state.limits;
    let (stop, stopping) = watch::channel(false);
    let mut open = JoinSet::new();
    let mut drain = pin!(drain);
    loop {
        tokio::select! {
            biased;
            () = &mut drain => break,
            Some(ended) = open.join_next() => log_panic(ended),
            accepted = listener.accept(), if open.len() < seats + reserved => match accepted {
                Ok((socket, _)) => {
                    let seat = if open.len() < seats { Seat::Ordinary } else { Seat::Reserved };
                    open.spawn(connection::drive(socket, seat, Arc::clone(&port), stopping.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the control port cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    while let Some(ended) = open.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection of the control port failed");
    }
}

/// The listening port, shared by its connections.
#[derive(Debug)]
struct Port {
    state: Arc<State>,
    loopback: bool,
    router: TowerToHyperService<Router>,
}

impl Port {
    fn new(listener: &TcpListener, state: Arc<State>) -> Self {
        let loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let router = router(&state);
        Self { state, loopback, router: TowerToHyperService::new(router) }
    }

    async fn answer(&self, seat: Seat, request: Request<Incoming>) -> Response<Body> {
        let mut response = self.decide(seat, request).await;
        let open = usize::try_from(self.state.process.control_connections.get()).unwrap_or_default();
        if seat == Seat::Reserved || open > self.state.limits.crowded {
            connection::close_after(&mut response);
        }
        response
    }

    async fn decide(&self, seat: Seat, request: Request<Incoming>) -> Response<Body> {
        let hosts = &self.state.hosts;
        let strict = self.loopback || !hosts.is_empty();
        if let Err(reason) = browser::check(&request, strict.then_some(hosts)) {
            tracing::warn!(%reason, "control request refused");
            return answer::text(StatusCode::FORBIDDEN, &reason.to_string());
        }
        let operators = OPERATORS.contains(&request.uri().path());
        if !operators && Format::accepted(request.headers()).is_none() {
            let text = "Not Acceptable. Supported formats are text/plain and application/json.";
            return answer::text(StatusCode::NOT_ACCEPTABLE, text);
        }
        if !operators && seat == Seat::Reserved {
            self.state.process.publishes_overload.add(1);
            return overload("Too many connections.");
        }
        match self.router.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

fn router(state: &Arc<State>) -> Router {
    Router::new()
        .route("/", any(async || answer::text(StatusCode::OK, "Fantail API")))
        .route("/metrics", only_get(get(metrics)))
        .route("/healthz", only_get(get(async || answer::text(StatusCode::OK, "ok"))))
        .route("/readyz", only_get(get(ready)))
        .fallback(async || answer::text(StatusCode::NOT_FOUND, "Not Found"))
        .with_state(Arc::clone(state))
        .merge(Arc::clone(&state.endpoints).router())
        .merge(Arc::clone(&state.subscriptions).router())
        .merge(feed::router(state))
        .merge(xmpp::router(state))
}

type Shared = axum::extract::State<Arc<State>>;

async fn metrics(axum::extract::State(state): Shared, headers: HeaderMap) -> Response<Body> {
    let exposition =
        headers.get(ACCEPT).map_or(Exposition::Prometheus, |accept| Exposition::accepted(accept.as_bytes()));
    answer::page(StatusCode::OK, exposition.content_type(), state.metrics(exposition))
}

async fn ready(axum::extract::State(state): Shared) -> Response<Body> {
    match state.phase() {
        Phase::Ready => answer::text(StatusCode::OK, "ready"),
        Phase::Starting => answer::text(StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Phase::Draining => answer::text(StatusCode::SERVICE_UNAVAILABLE, "draining"),
    }
}

fn only_get(route: MethodRouter<Arc<State>>) -> MethodRouter<Arc<State>> {
    route.fallback(async |method: Method| answer::wrong_method(&method, "GET, HEAD"))
}

/// What must be answered whatever publishers do; the reserved connections are for them.
const OPERATORS: [&str; 3] = ["/metrics", "/healthz", "/readyz"];
/// Out of descriptors: accepting again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
