//! One request to an origin, one answer: connections, their reuse, time-outs. It owns a shard's
//! connections to origins; an idle one is a record with no task, driven by whoever uses it. It never
//! looks at what a request or an answer says.

mod body;
mod connect;
mod flights;
mod pages;
mod repeat;
mod workers;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    mem,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use fantail_proto::zhttp::Broken;
use http::{Method, Request, Response, StatusCode, header, response};
use hyper::client::conn::http1;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};

pub use body::{Download, DownloadError, Progress, Upload, UploadError};
pub use connect::{Destination, Tls, Trust, Wire, roots};
pub use flights::{Flight, Flights, Key, Landed, Lead};
pub use pages::{Landed as PageLanded, Page, Pages, Seat};
pub use workers::{Backend, BindError, Workers};

use repeat::Repeat;

use crate::{channel::ByName, config, metrics::Counters};

/// A shard's way to all origins.
#[derive(Debug)]
pub struct Upstream {
    origins: RefCell<ByName<Destination, Rc<Origin>>>,
    /// By address and limit: however many names an origin is asked by, it has one limit.
    permits: RefCell<ByName<(String, u16, usize), Arc<Semaphore>>>,
    /// Unused connections of all origins.
    idle: Rc<Cell<usize>>,
    trust: RefCell<Trust>,
    workers: Arc<Workers>,
    counters: Arc<Counters>,
}

/// Who answers for a target.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A server, connected to.
    Server(Destination),
    /// Workers behind ZeroMQ, who connect to us.
    Workers(Backend),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("cannot connect: {0}")]
    Unreachable(std::io::Error),
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("the address of an untrusted target is private")]
    Blocked,
    #[error("all {0} connections to the origin are in use")]
    Busy(usize),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Broken(hyper::Error),
    #[error("the answer's {0}")]
    Malformed(&'static str),
    #[error("{UploadError}")]
    Upload,
    #[error("nothing is bound for its workers")]
    Unbound,
    #[error("no worker within {0:?}")]
    NoWorker(Duration),
    #[error("{0}")]
    Worker(Broken),
    #[error("the request's body has more than {0} bytes")]
    TooLarge(usize),
    #[error("WebSockets cannot be used with zhttpreq target")]
    NoWebSockets,
}

impl Failure {
    /// Nothing of the request was sent: the next target may have it.
    pub fn is_unreached(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::ConnectTimeout(_)
            | Self::Tls(_)
            | Self::Unbound
            | Self::NoWorker(_) => true,
            // As if there had been no connection (spec 1.6).
            Self::Worker(Broken::Expired | Broken::Untaken) => true,
            Self::Worker(Broken::Said(condition)) => condition.is_unreached(),
            _ => false,
        }
    }
}

/// A failure and, when nothing of it was sent, the request.
#[derive(Debug)]
pub struct Unanswered {
    pub failure: Failure,
    pub request: Option<Box<Request<Upload>>>,
}

/// An origin's answer to a request to switch protocols.
#[derive(Debug)]
pub enum Switched {
    /// `unread` came behind the head.
    Yes {
        head: response::Parts,
        wire: Box<Wire>,
        unread: Bytes,
    },
    No(Response<Download>),
}

impl Upstream {
    pub fn new(counters: Arc<Counters>, workers: Arc<Workers>) -> Self {
        Self {
            origins: RefCell::default(),
            permits: RefCell::default(),
            idle: Rc::default(),
            trust: RefCell::default(),
            workers,
            counters,
        }
    }

    /// Sends `request` to who answers for a target.
    pub async fn ask(
        &self,
        to: &Peer,
        request: Box<Request<Upload>>,
        config: &config::Origin,
    ) -> Result<Response<Download>, Unanswered> {
        match to {
            Peer::Server(destination) => self.send(destination, request, config).await,
            Peer::Workers(backend) => Box::pin(self.ask_workers(backend, request, config)).await,
        }
    }

    /// Sends `request`, on an idle connection if there is one. A request that a connection had closed on
    /// without an answer is sent once more, on a new connection, if it changes nothing at the origin.
    pub async fn send(
        &self,
        to: &Destination,
        request: Box<Request<Upload>>,
        config: &config::Origin,
    ) -> Result<Response<Download>, Unanswered> {
        let origin = self.origin(to);
        let permits = self.permits(to, &origin, config.connections);
        let permit = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => match Box::pin(wait(permits, config.response_timeout)).await {
                Some(permit) => permit,
                None => {
                    let failure = Failure::Busy(config.connections);
                    self.count(&failure);
                    return Err(Unanswered { failure, request: Some(request) });
                }
            },
        };
        self.counters.origin_requests.add(1);
        let asked = Instant::now();
        match self.exchange(to, &origin, request, config).await {
            Ok((response, link)) => {
                self.counters.origin_latency.observe(asked.elapsed());
                let hold = InUse { link, origin, _permit: permit };
                Ok(response.map(|incoming| Download::new(incoming, hold, config.idle_timeout)))
            }
            Err(unanswered) => {
                self.count(&unanswered.failure);
                Err(unanswered)
            }
        }
    }

    /// Asks an origin to switch protocols, on a connection of its own. An answer that does not switch is one like
    /// any other; a connection that has switched counts no more against the origin's limit.
    pub async fn switch(
        &self,
        to: &Peer,
        request: Box<Request<Upload>>,
        config: &config::Origin,
    ) -> Result<Switched, Unanswered> {
        match to {
            Peer::Server(destination) => self.switch_server(destination, request, config).await,
            Peer::Workers(backend) => {
                let switched = Box::pin(self.switch_worker(backend, request, config)).await;
                switched.inspect_err(|unanswered| self.count(&unanswered.failure))
            }
        }
    }

    async fn switch_server(
        &self,
        to: &Destination,
        request: Box<Request<Upload>>,
        config: &config::Origin,
    ) -> Result<Switched, Unanswered> {
        let origin = self.origin(to);
        let permits = self.permits(to, &origin, config.connections);
        let Some(permit) = wait(permits, config.response_timeout).await else {
            let failure = Failure::Busy(config.connections);
            self.count(&failure);
            return Err(Unanswered { failure, request: Some(request) });
        };
        self.counters.origin_requests.add(1);
        let asked = Instant::now();
        let switched = match self.connect(to, config).await {
            Ok(mut link) => match link.exchange(request, config.response_timeout, true).await {
                Ok(response) => Ok((response, link)),
                Err(unanswered) => Err(unanswered),
            },
            Err(failure) => Err(Unanswered { failure, request: Some(request) }),
        };
        let (response, mut link) = switched.inspect_err(|unanswered| self.count(&unanswered.failure))?;
        self.counters.origin_latency.observe(asked.elapsed());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(connection) = link.connection.take()
        {
            let parts = connection.into_parts();
            let (head, _) = response.into_parts();
            return Ok(Switched::Yes { head, wire: Box::new(parts.io.into_inner()), unread: parts.read_buf });
        }
        let in_use = InUse { link, origin, _permit: permit };
        Ok(Switched::No(response.map(|incoming| Download::new(incoming, in_use, config.idle_timeout))))
    }

    /// Closes connections that were idle for longer than `keep_alive` and forgets origins without any.
    pub fn sweep(&self, keep_alive: Duration) {
        let now = Instant::now();
        self.origins.borrow_mut().retain(|_, origin| {
            let mut idle = origin.idle.borrow_mut();
            while idle.front().is_some_and(|i| now - i.since >= keep_alive) {
                idle.pop_front();
                self.idle.set(self.idle.get() - 1);
            }
            !idle.is_empty() || Rc::strong_count(origin) > 1
        });
        self.permits.borrow_mut().retain(|_, permits| Arc::strong_count(permits) > 1);
    }

    /// After a reload: certificates are read again, and connections made with the old ones not used again.
    pub fn forget(&self) {
        self.trust.borrow_mut().forget();
        self.sweep(Duration::ZERO);
        // Those that are in use come back to what is not asked any more.
        self.origins.borrow_mut().drain().for_each(|(_, origin)| origin.stale.set(true));
    }

    async fn exchange(
        &self,
        to: &Destination,
        origin: &Origin,
        mut request: Box<Request<Upload>>,
        config: &config::Origin,
    ) -> Result<(Response<hyper::body::Incoming>, Box<Link>), Unanswered> {
        // Who found one connection closed may find the others so, too.
        let mut idle = origin.checkout();
        loop {
            let again = if idle.is_some() { Repeat::of(&request) } else { None };
            if let Some(link) = idle.as_mut().filter(|_| again.is_none())
                && !link.is_open().await
            {
                idle = None;
            }
            let reused = idle.is_some();
            let mut link = match idle.take() {
                Some(link) => link,
                None => match Box::pin(self.connect(to, config)).await {
                    Ok(link) => link,
                    Err(failure) => return Err(Unanswered { failure, request: Some(request) }),
                },
            };
            match link.exchange(request, config.response_timeout, false).await {
                Ok(response) => return Ok((response, link)),
                Err(Unanswered { failure: failure @ Failure::Broken(_), request: back }) if reused => {
                    match back.or_else(|| again.map(Repeat::into_request)) {
                        Some(next) => request = next,
                        None => return Err(Unanswered { failure, request: None }),
                    }
                }
                Err(unanswered) => return Err(unanswered),
            }
        }
    }

    async fn connect(&self, to: &Destination, config: &config::Origin) -> Result<Box<Link>, Failure> {
        self.counters.origin_connects.add(1);
        let tls = match &to.tls {
            Some(tls) => Some(self.trust.borrow_mut().config(tls, config).map_err(Failure::Tls)?),
            None => None,
        };
        let opening = connect::open(to, tls, (config.connect_timeout, config.lost_timeout));
        let stream = match tokio::time::timeout(config.connect_timeout, opening).await {
            Ok(opened) => opened?,
            Err(_) => return Err(Failure::ConnectTimeout(config.connect_timeout)),
        };
        let (sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            // Without a number of headers it is 100, and hyper's slots for them are on the stack.
            .max_buf_size(ANSWER_HEAD_BYTES)
            // Most requests are a small head: one buffer, one plain send.
            .writev(false)
            .handshake(stream)
            .await
            .map_err(Failure::Broken)?;
        Ok(Box::new(Link {
            sender,
            connection: Some(connection),
            alarm: Box::pin(tokio::time::sleep(config.response_timeout)),
        }))
    }

    fn permits(&self, to: &Destination, origin: &Origin, limit: usize) -> Arc<Semaphore> {
        let mut known = origin.permits.borrow_mut();
        if let Some((of, permits)) = &*known
            && *of == limit
        {
            return Arc::clone(permits);
        }
        let mut all = self.permits.borrow_mut();
        let key = (to.host.clone(), to.port, limit);
        let permits = Arc::clone(all.entry(key).or_insert_with(|| Arc::new(Semaphore::new(limit))));
        *known = Some((limit, Arc::clone(&permits)));
        permits
    }

    fn origin(&self, to: &Destination) -> Rc<Origin> {
        let mut origins = self.origins.borrow_mut();
        if let Some(origin) = origins.get(to) {
            return Rc::clone(origin);
        }
        let origin = Rc::new(Origin {
            idle: RefCell::default(),
            stale: Cell::new(false),
            all_idle: Rc::clone(&self.idle),
            permits: RefCell::default(),
        });
        origins.insert(to.clone(), Rc::clone(&origin));
        origin
    }

    fn count(&self, failure: &Failure) {
        match failure {
            Failure::Silent(_) | Failure::Busy(_) | Failure::Worker(Broken::Expired) => {
                self.counters.origin_timeouts.add(1);
            }
            Failure::Unreachable(_)
            | Failure::ConnectTimeout(_)
            | Failure::Tls(_)
            | Failure::Blocked
            | Failure::Unbound
            | Failure::NoWorker(_) => self.counters.origin_connect_failures.add(1),
            Failure::Broken(_) | Failure::Malformed(_) | Failure::Worker(_) => {
                self.counters.origin_errors.add(1)
            }
            Failure::Upload | Failure::TooLarge(_) | Failure::NoWebSockets => {}
        }
    }
}

/// One origin's connections.
#[derive(Debug)]
struct Origin {
    /// Oldest first; the newest is used first.
    idle: RefCell<VecDeque<Idle>>,
    /// A reload came: its connections are not used again.
    stale: Cell<bool>,
    all_idle: Rc<Cell<usize>>,
    /// Its permits of [`Upstream::permits`], with the limit that they are for.
    permits: RefCell<Option<(usize, Arc<Semaphore>)>>,
}

#[derive(Debug)]
struct Idle {
    link: Box<Link>,
    since: Instant,
}

impl Origin {
    /// The newest idle connection. Whether the origin has closed it since, the exchange finds out.
    fn checkout(&self) -> Option<Box<Link>> {
        let idle = self.idle.borrow_mut().pop_back()?;
        self.all_idle.set(self.all_idle.get() - 1);
        Some(idle.link)
    }
}

/// A connection to an origin, driven by its user.
#[derive(Debug)]
struct Link {
    sender: http1::SendRequest<Upload>,
    /// None when it ended without an answer to who asked.
    connection: Option<http1::Connection<connect::Stream, Upload>>,
    /// For the answer that is awaited. It is only ever put off when it rings, for most answers come long before:
    /// so a request arms no timer.
    alarm: Pin<Box<Sleep>>,
}

impl Link {
    /// True when the connection is open and ready for a request.
    fn settle(&mut self) -> bool {
        self.poll_connection(&mut quiet()).is_pending() && self.sender.is_ready()
    }

    /// For what cannot be sent twice. The origin may have closed the connection, and the poller not have been asked since.
    async fn is_open(&mut self) -> bool {
        tokio::task::yield_now().await;
        self.settle()
    }

    /// Ready when the connection has ended; why it did shows in the exchange.
    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        poll_connection(&mut self.connection, cx)
    }

    async fn exchange(
        &mut self,
        request: Box<Request<Upload>>,
        patience: Duration,
        switches: bool,
    ) -> Result<Response<hyper::body::Incoming>, Unanswered> {
        let Self { sender, connection, alarm } = self;
        let progress = request.body().progress();
        let asked = Instant::now();
        if asked + patience < alarm.deadline() {
            alarm.as_mut().reset(asked + patience);
        }
        let mut answer = std::pin::pin!(sender.try_send_request(*request));
        let mut sent = false;
        // Until the answer's head is here this future drives the connection; its body does later.
        let mut drive = move |cx: &mut Context<'_>| {
            let ended = poll_connection(connection, cx).is_ready();
            let mut answered = answer.as_mut().poll(&mut quiet());
            if ended && answered.is_pending() {
                // It has not taken the request, and gives it back when it is dropped.
                *connection = None;
                answered = answer.as_mut().poll(&mut quiet());
            }
            answered
        };
        let exchange = std::future::poll_fn(|cx| {
            if mem::replace(&mut sent, true)
                && let Poll::Ready(answer) = drive(&mut quiet())
            {
                return Poll::Ready(Ok(answer));
            }
            if let Poll::Ready(answer) = drive(cx) {
                return Poll::Ready(Ok(answer));
            }
            // The origin's time does not run while the client's body is awaited.
            while alarm.as_mut().poll(cx).is_ready() {
                let since = match progress.as_ref().map(|progress| progress.get()) {
                    None => asked,
                    Some(Progress::Client) => Instant::now(),
                    Some(Progress::Origin(since)) => since,
                };
                if since + patience <= Instant::now() {
                    return Poll::Ready(Err(()));
                }
                alarm.as_mut().reset(since + patience);
            }
            Poll::Pending
        });
        match exchange.await {
            Ok(Ok(response)) => match malformed(&response) {
                _ if switches && response.status() == StatusCode::SWITCHING_PROTOCOLS => Ok(response),
                None => Ok(response),
                Some(what) => Err(Unanswered { failure: Failure::Malformed(what), request: None }),
            },
            Ok(Err(mut unsent)) => {
                let request = unsent.take_message().map(Box::new);
                let error = unsent.into_error();
                let failure =
                    if UploadError::caused(&error) { Failure::Upload } else { Failure::Broken(error) };
                Err(Unanswered { failure, request })
            }
            Err(()) => Err(Unanswered { failure: Failure::Silent(patience), request: None }),
        }
    }
}

/// A connection while its answer's body is read; given back by [`InUse::release`].
#[derive(Debug)]
struct InUse {
    link: Box<Link>,
    origin: Rc<Origin>,
    _permit: OwnedSemaphorePermit,
}

impl InUse {
    /// Keeps the connection for the next request if it is ready for one; closes it if not.
    fn release(mut self) {
        let all_idle = &self.origin.all_idle;
        // The poll that gave the end of the body has mostly made it ready.
        let settled = |link: &mut Link| link.sender.is_ready() || link.settle();
        if !self.origin.stale.get() && all_idle.get() < MAX_IDLE && settled(&mut self.link) {
            all_idle.set(all_idle.get() + 1);
            let idle = Idle { link: self.link, since: Instant::now() };
            self.origin.idle.borrow_mut().push_back(idle);
        }
    }
}

fn poll_connection<C>(connection: &mut Option<C>, cx: &mut Context<'_>) -> Poll<()>
where
    C: Future + Unpin,
{
    match connection {
        Some(connection) => Pin::new(connection).poll(cx).map(drop),
        None => Poll::Ready(()),
    }
}

/// For a poll whose outcome is looked at at once. hyper wakes whoever drives a connection when an answer or a part of
/// a body is handed over, which here is the one who takes it: the task would run once more for nothing. So one polls
/// quietly first, and then, if nothing came, to be woken.
fn quiet() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// What of an answer cannot be passed on: hyper is more patient with origins than a client must be.
fn malformed<B>(response: &Response<B>) -> Option<&'static str> {
    if response.status().is_informational() {
        return Some("status switches to a protocol that was not asked for");
    }
    // One look at each name is cheaper than lookups.
    let (mut length, mut coding) = (false, false);
    for (name, value) in response.headers() {
        if *name == header::CONTENT_LENGTH {
            if mem::replace(&mut length, true) || !value.as_bytes().iter().all(u8::is_ascii_digit) {
                return Some("Content-Length is not one number");
            }
        } else if *name == header::TRANSFER_ENCODING
            && (mem::replace(&mut coding, true) || !value.as_bytes().eq_ignore_ascii_case(b"chunked"))
        {
            return Some("Transfer-Encoding is not exactly chunked");
        }
    }
    (length && coding).then_some("length is said twice, by Content-Length and Transfer-Encoding")
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

async fn wait(permits: Arc<Semaphore>, patience: Duration) -> Option<OwnedSemaphorePermit> {
    tokio::time::timeout(patience, permits.acquire_owned()).await.ok()?.ok()
}

/// Unused connections of a shard at most: as many descriptors as are worth an early answer.
pub const MAX_IDLE: usize = 1024;
/// Bytes of the buffer that must hold an answer's head.
const ANSWER_HEAD_BYTES: usize = 64 << 10;
