//! One client's connection while hyper serves it: drives hyper, keeps the time-outs, answers what the
//! guard refused, and takes the socket out when its request is held.

use std::{
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::StatusCode;
use hyper::server::conn::http1;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use super::{
    Socket,
    guard::{Guard, State, Wait},
    meter::Meter,
    tls::TlsStream,
};
use crate::{
    client::Client,
    config, error,
    hold::{self, Released, Replay},
    proxy::{self, Conversation},
    shard::Shard,
};

/// Starts the task that serves one connection.
#[derive(Debug)]
pub(super) struct Connection;

impl Connection {
    /// Closes without losing what was written.
    pub(super) fn close(closed: hold::Socket) {
        let hold::Socket { wire, client } = closed;
        if let Ok(socket) = Socket::from_wire(wire, client.peer.is_some()) {
            tokio::task::spawn_local(async move {
                linger(socket).await;
                drop(client);
            });
        }
    }

    pub(super) fn start(shard: &Rc<Shard>, socket: Socket, client: Client, tls: Option<&Arc<ServerConfig>>) {
        let shard = Rc::clone(shard);
        match (socket, tls) {
            (Socket::Fresh(fresh), Some(config)) => {
                let config = Arc::clone(config);
                spawn(async move {
                    let Ok(tcp) = fresh.into_tcp() else { return };
                    match Box::pin(TlsStream::accept(tcp, config, &shard)).await {
                        Ok(stream) => serve(shard, Socket::Tls(stream), client, None).await,
                        Err(tcp) => linger(Socket::Tcp(tcp)).await,
                    }
                });
            }
            (socket, _) => spawn(serve(shard, socket, client, None)),
        }
    }

    pub(super) fn go_on(shard: &Rc<Shard>, released: Released) {
        let Released { wire, client, unread, replay } = released;
        match Socket::from_wire(wire, client.peer.is_some()) {
            Ok(socket) => {
                let held = Held { unread, replay };
                spawn(serve(Rc::clone(shard), socket, client, Some(held)));
            }
            Err(error) => tracing::warn!(%error, "a connection cannot go on after its hold"),
        }
    }
}

/// Boxed, because the runtime moves a task's future several times before it runs and when it has ended.
fn spawn(serve: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(Box::pin(serve));
}

/// What a connection brings from a hold.
struct Held {
    unread: Vec<u8>,
    replay: Option<Replay>,
}

async fn serve(shard: Rc<Shard>, socket: Socket, client: Client, held: Option<Held>) {
    let is_new = held.is_none();
    let Held { unread, replay } = held.unwrap_or(Held { unread: Vec::new(), replay: None });
    let snapshot = shard.snapshot.load_full();
    let config = &snapshot.config.client;
    let (secure, fresh) = (socket.is_tls(), socket.is_fresh());
    let guard = Guard::new(socket, unread, snapshot.request_limits, snapshot.record_bytes);
    let state = guard.state();
    if fresh {
        state.watch_later();
    }
    let conversation = Conversation::new(Rc::clone(&shard), Rc::clone(&state), client.peer, secure, replay);
    let asked = Rc::clone(&conversation);
    let service = hyper::service::service_fn(move |request| {
        // hyper gives the socket back only from a connection that can be moved.
        Box::pin(proxy::answer(Rc::clone(&asked), request))
    });
    let mut hyper = http1::Builder::new()
        .header_read_timeout(None)
        // It is the guard that sees a client leave.
        .half_close(true)
        .title_case_headers(true)
        .max_headers(config.headers)
        .max_buf_size(snapshot.request_limits.head_bytes.max(HYPER_BUFFER_BYTES))
        .serve_connection(guard, service);
    let turn = |cx: &mut Context<'_>, draining: bool| {
        if draining {
            Pin::new(&mut hyper).graceful_shutdown();
        }
        // A failure ends the connection like its end: whoever caused it has been told.
        hyper.poll_without_shutdown(cx).map(drop)
    };
    let end = drive(turn, &conversation, &state, Clock::new(config, is_new)).await;
    let parts = hyper.into_parts();
    let (socket, mut unread) = parts.io.into_parts();
    match end {
        // TLS is told of its end.
        End::Closed if state.is_complete() && unread.is_empty() && !socket.is_tls() => {}
        End::Closed => Box::pin(linger(socket)).await,
        End::Held => {
            let Some(parked) = conversation.take_parked() else { return };
            unread.splice(0..0, parts.read_buf.iter().copied());
            match socket.into_wire(&mut unread) {
                Ok(wire) => parked.pin(&shard, wire, client, unread),
                Err(error) => tracing::warn!(%error, "a connection cannot be held"),
            }
        }
        End::Refused(status, text) => Box::pin(refuse(&shard, socket, status, &text)).await,
    }
}

/// Why hyper is done with a connection.
#[derive(Debug)]
enum End {
    Closed,
    Held,
    Refused(StatusCode, String),
}

/// Gives hyper its turns until the connection ends, one way or another. `turn` gets true once, when the
/// shard drains.
async fn drive(
    mut turn: impl FnMut(&mut Context<'_>, bool) -> Poll<()>,
    conversation: &Conversation,
    state: &State,
    mut clock: Clock,
) -> End {
    let shard = conversation.shard();
    let mut drained = pin!(shard.drained());
    let mut alarm = pin!(tokio::time::sleep_until(clock.start + clock.head_timeout));
    let mut draining = false;
    let mut told = false;
    poll_fn(|cx| {
        loop {
            // A task is woken by one waker for life: to leave it once is enough.
            let tells = !mem::replace(&mut told, true) && drained.as_mut().poll(cx).is_ready();
            let drains = !draining && (tells || shard.is_draining());
            draining |= drains;
            if turn(cx, drains).is_ready() {
                return Poll::Ready(End::Closed);
            }
            if state.flushed() {
                if conversation.is_parked() {
                    return Poll::Ready(End::Held);
                }
                if let Some(refusal) = state.refused()
                    && !conversation.is_busy()
                {
                    return Poll::Ready(End::Refused(refusal.status(), refusal.to_string()));
                }
            }
            let Some(deadline) = clock.deadline(state) else { return Poll::Pending };
            if deadline < alarm.deadline() {
                alarm.as_mut().reset(deadline);
            }
            ready!(alarm.as_mut().poll(cx));
            if Instant::now() < deadline {
                alarm.as_mut().reset(deadline);
                return alarm.as_mut().poll(cx).map(|()| End::Closed);
            }
            if !clock.slow && matches!(state.wait(), Wait::Unwatched(_)) {
                state.watch();
                continue;
            }
            return Poll::Ready(late(state, conversation, &clock));
        }
    })
    .await
}

/// What happens to a client that is late: it is told, if it can still be.
fn late(state: &State, conversation: &Conversation, clock: &Clock) -> End {
    let wait = state.wait();
    let counters = &conversation.shard().counters;
    if clock.slow {
        counters.refused_slow.add(1);
    } else if !matches!(wait, Wait::Request(_)) {
        counters.refused_timeout.add(1);
    }
    match wait {
        Wait::Head(_) => End::Refused(StatusCode::REQUEST_TIMEOUT, "the head is late".into()),
        Wait::Body(_) if state.flushed() && !conversation.is_answering() => {
            End::Refused(StatusCode::REQUEST_TIMEOUT, "the body is late".into())
        }
        _ => End::Closed,
    }
}

/// When a connection's patience with its client ends.
#[derive(Debug)]
struct Clock {
    start: Instant,
    /// Nothing was answered on it yet.
    is_new: bool,
    head_timeout: Duration,
    idle_timeout: Duration,
    body_timeout: Duration,
    send_timeout: Duration,
    /// Bytes that the client had taken, and since when no more.
    written: (u64, Instant),
    takes: Meter,
    sends: Meter,
    /// What the deadline is for: a client that is too slow, not one that is silent.
    slow: bool,
}

impl Clock {
    fn new(config: &config::Client, is_new: bool) -> Self {
        let start = Instant::now();
        Self {
            start,
            is_new,
            head_timeout: config.head_timeout,
            idle_timeout: config.idle_timeout,
            body_timeout: config.body_timeout,
            send_timeout: config.send_timeout,
            written: (0, start),
            takes: Meter::new(config.pace),
            sends: Meter::new(config.pace),
            slow: false,
        }
    }

    fn deadline(&mut self, state: &State) -> Option<Instant> {
        let silent = self.silent(state);
        let slow = if state.flushed() {
            self.takes.rests(Instant::now);
            match state.wait() {
                Wait::Body(since) => self.sends.waits(since, state.body()),
                _ => {
                    self.sends.rests(Instant::now);
                    None
                }
            }
        } else {
            self.takes.waits(self.written.1, self.written.0)
        };
        self.slow = slow.is_some_and(|slow| silent.is_none_or(|silent| slow < silent));
        if self.slow { slow } else { silent }
    }

    /// When a client is late that does nothing at all.
    fn silent(&mut self, state: &State) -> Option<Instant> {
        if !state.flushed() {
            if self.written.0 != state.written() {
                self.written = (state.written(), Instant::now());
            }
            return Some(self.written.1 + self.send_timeout);
        }
        self.written = (u64::MAX, self.start);
        match state.wait() {
            Wait::Nothing => None,
            // A new connection is for a request: it has no more time than a head.
            Wait::Request(since) if self.is_new && state.written() == 0 => {
                Some(since + self.head_timeout.min(self.idle_timeout))
            }
            Wait::Request(since) => Some(since + self.idle_timeout),
            Wait::Head(since) => Some(since + self.head_timeout),
            Wait::Body(since) => Some(since + self.body_timeout),
            Wait::Unwatched(since) => Some(since + WATCH_AFTER),
        }
    }
}

async fn refuse(shard: &Shard, mut socket: Socket, status: StatusCode, text: &str) {
    match status {
        StatusCode::REQUEST_TIMEOUT => {}
        StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::URI_TOO_LONG
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => shard.counters.refused_limit.add(1),
        _ => shard.counters.refused_malformed.add(1),
    }
    let answer = error::refusal(status, text);
    // A client that does not read its refusal is not waited for.
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, socket.write_all(&answer)).await {
        linger(socket).await;
    }
}

/// Closes without losing what was written: a close with unread bytes would be a reset, which takes the
/// answer away from the client (RFC 9112, 9.6).
async fn linger(mut socket: Socket) {
    let drain = async {
        if socket.shutdown().await.is_err() {
            return;
        }
        let mut scratch = [0; 1024];
        let mut left = LINGER_BYTES;
        while let Ok(read @ 1..) = socket.read(&mut scratch).await
            && left > 0
        {
            left = left.saturating_sub(read);
        }
    };
    if tokio::time::timeout(LINGER, drain).await.is_err() {
        tracing::trace!("a client keeps sending after its connection has ended");
    }
}

/// hyper takes no smaller limit for its buffers.
const HYPER_BUFFER_BYTES: usize = 8192;
/// How long a client may have left before its origin's answer and nobody notices: most origins answer sooner, and to
/// watch its socket costs as much as a tenth of the request.
const WATCH_AFTER: Duration = Duration::from_millis(100);
/// Enough for a client to read an answer and stop sending.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
