//! Origins behind ZeroMQ (spec appendix A): for each `zhttp/` and `zhttpreq/` target of the routes a [`Crew`] of
//! workers, who connect to sockets that are bound here. All shards share them; the connections live on the control
//! runtime. What is said over them is [`exchange`]'s and [`websocket`]'s business.

use std::{
    collections::HashMap,
    fmt, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use fantail_proto::{
    route::{Meeting, Protocol, Workers as Address},
    zhttp::Flags,
    zmtp::Socket,
};
use http::{Request, Response};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::Instant,
};

pub(super) use answer::Answer;
use crew::Crew;

use self::websocket::Opened;
use super::{Download, Failure, Switched, Unanswered, Upload, Upstream, Wire, wait};
use crate::config;

mod answer;
mod crew;
mod exchange;
mod talk;
mod websocket;
mod wire;

/// Who answers for a `zhttp/` or `zhttpreq/` target, and how they are asked.
#[derive(Clone, Debug)]
pub struct Backend {
    pub address: Address,
    /// The request's URI is one of `https`.
    pub tls: bool,
    pub flags: Flags,
}

/// All workers, by where they connect.
#[derive(Debug, Default)]
pub struct Workers {
    crews: Mutex<HashMap<Address, Arc<Crew>>>,
}

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind {address} for workers: {source}")]
pub struct BindError {
    address: Address,
    source: io::Error,
}

impl Workers {
    /// Binds what is wanted and not bound, and marks the rest for [`Self::sweep`]. Tasks go to `runtime`.
    ///
    /// # Errors
    /// What could not be bound; the rest is. Requests for such a target cannot reach it.
    pub fn open<'a>(
        &self,
        wanted: impl Iterator<Item = (&'a Address, Option<u32>)>,
        runtime: &Handle,
    ) -> Vec<BindError> {
        let mut crews = self.crews.lock();
        crews.values().for_each(|crew| crew.retire(true));
        let mut errors = Vec::new();
        for (address, mode) in wanted {
            if let Some(crew) = crews.get(address) {
                crew.retire(false);
            } else if crews.len() >= MAX_ADDRESSES {
                tracing::warn!(%address, "more than {MAX_ADDRESSES} addresses for workers: not bound");
            } else {
                match bind(address, mode) {
                    Ok(bound) => _ = crews.insert(address.clone(), start(address, bound, runtime)),
                    Err(source) => errors.push(BindError { address: address.clone(), source }),
                }
            }
        }
        errors
    }

    /// Closes what is not wanted any more and has nothing to do. To be called every some seconds.
    pub fn sweep(&self) {
        self.crews.lock().retain(|address, crew| {
            let keep = !crew.is_done();
            if !keep {
                tracing::info!(%address, "no longer bound for workers");
                crew.close();
            }
            keep
        });
    }

    pub(super) fn find(&self, address: &Address) -> Option<Arc<Crew>> {
        self.crews.lock().get(address).cloned()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.crews.lock().values().for_each(|crew| crew.close());
    }
}

impl Upstream {
    pub(super) async fn ask_workers(
        &self,
        to: &Backend,
        request: Box<Request<Upload>>,
        config: &config::Origin,
    ) -> Result<Response<Download>, Unanswered> {
        let Some(crew) = self.workers.find(&to.address) else {
            return Err(Unanswered { failure: Failure::Unbound, request: Some(request) });
        };
        let permits = self.worker_permits(&to.address, config.connections);
        let Some(permit) = wait(permits, config.response_timeout).await else {
            let failure = Failure::Busy(config.connections);
            self.count(&failure);
            return Err(Unanswered { failure, request: Some(request) });
        };
        self.counters.origin_requests.add(1);
        let asked = Instant::now();
        match exchange::send(&crew, to, request, config.connect_timeout).await {
            Ok(response) => {
                self.counters.origin_latency.observe(asked.elapsed());
                Ok(response.map(|answer| Download::of_worker(answer, permit, config.idle_timeout)))
            }
            Err(unanswered) => {
                self.count(&unanswered.failure);
                Err(unanswered)
            }
        }
    }

    fn worker_permits(&self, address: &Address, limit: usize) -> Arc<Semaphore> {
        // Port 0 is nobody's.
        let key = (address.to_string(), 0, limit);
        Arc::clone(self.permits.borrow_mut().entry(key).or_insert_with(|| Arc::new(Semaphore::new(limit))))
    }

    pub(super) async fn switch_worker(
        &self,
        to: &Backend,
        request: Box<Request<Upload>>,
        config: &config::Origin,
    ) -> Result<Switched, Unanswered> {
        let Some(crew) = self.workers.find(&to.address) else {
            return Err(Unanswered { failure: Failure::Unbound, request: Some(request) });
        };
        let permits = self.worker_permits(&to.address, config.connections);
        let Some(permit) = wait(permits, config.response_timeout).await else {
            return Err(Unanswered { failure: Failure::Busy(config.connections), request: Some(request) });
        };
        self.counters.origin_requests.add(1);
        let asked = Instant::now();
        let opened = websocket::open(&crew, to, &request, config.connect_timeout).await;
        self.counters.origin_latency.observe(asked.elapsed());
        match opened {
            Ok(Opened::Yes { head, wire }) => {
                Ok(Switched::Yes { head, wire: Box::new(Wire::Worker(wire)), unread: Bytes::new() })
            }
            Ok(Opened::No(response)) => Ok(Switched::No(
                response.map(|answer| Download::of_worker(answer, permit, config.idle_timeout)),
            )),
            Err(failure) => Err(Unanswered { failure, request: Some(request) }),
        }
    }
}

fn start(address: &Address, bound: Vec<(Socket, Bound)>, runtime: &Handle) -> Arc<Crew> {
    let (stop, stopped) = watch::channel(false);
    let crew = Arc::new(Crew::new(address.clone(), stop));
    for (socket, bound) in bound {
        runtime.spawn(wire::accept(Arc::clone(&crew), socket, bound, stopped.clone()));
    }
    tracing::info!(%address, "bound for workers");
    crew
}

/// One bound socket.
#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Ipc(UnixListener, SocketFile),
}

/// Removes the file when nobody listens there any more.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be another's already, or be gone; then nothing is lost.
        drop(std::fs::remove_file(&self.0));
    }
}

impl fmt::Debug for SocketFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn bind(address: &Address, mode: Option<u32>) -> io::Result<Vec<(Socket, Bound)>> {
    let sockets: &[(Socket, &str)] = match address.protocol {
        Protocol::Whole => &[(Socket::Dealer, "")],
        Protocol::Streaming => {
            &[(Socket::Push, "-out"), (Socket::Router, "-out-stream"), (Socket::Sub, "-in")]
        }
    };
    let bind = |((socket, suffix), n): (&(Socket, &str), u16)| {
        let bound = match &address.at {
            Meeting::Ipc(path) => bind_file(Path::new(&format!("{path}{suffix}")), mode)?,
            Meeting::Tcp(ip, port) => bind_tcp(SocketAddr::new(*ip, port.saturating_add(n)))?,
            Meeting::Interface(name, port) => {
                let ip = config::interface(name).ok_or_else(|| {
                    let why = format!("no interface of this machine has an address and is called {name}");
                    io::Error::new(io::ErrorKind::AddrNotAvailable, why)
                })?;
                bind_tcp(SocketAddr::new(ip, port.saturating_add(n)))?
            }
        };
        Ok((*socket, bound))
    };
    sockets.iter().zip(0..).map(bind).collect()
}

fn bind_tcp(address: SocketAddr) -> io::Result<Bound> {
    let bound = TcpListener::bind(address)?;
    bound.set_nonblocking(true)?;
    Ok(Bound::Tcp(bound))
}

/// A file of one who has ended is replaced; one where somebody listens is not.
fn bind_file(path: &Path, mode: Option<u32>) -> io::Result<Bound> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path)?;
    }
    let bound = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    if let Some(mode) = mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    bound.set_nonblocking(true)?;
    Ok(Bound::Ipc(bound, file))
}

/// As many as Pushpin has (spec 2.4).
const MAX_ADDRESSES: usize = 100;
