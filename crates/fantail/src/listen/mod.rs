//! Accepts connections on a shard's own sockets and serves requests with hyper until one is held. It
//! owns a connection from accept to hold and from hold to close; what an answer is, *proxy* decides.

mod connection;
pub mod guard;
mod meter;
mod socket;
pub mod tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixListener,
    sync::mpsc,
};

use crate::{
    config::{Address, UnixSocket},
    hold::{Onward, Released},
    proxy,
    shard::{Moved, Shard},
    tcp,
};
use connection::Connection;
use socket::Fresh;
pub use socket::Socket;

/// An address that is bound, for one shard.
#[derive(Debug)]
pub enum Bound {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Bound {
    /// Binds `address` for `shards` shards: each has a TCP socket of its own (`SO_REUSEPORT`), and the
    /// kernel spreads connections over them; they share a Unix socket. Port 0 is the same for all.
    ///
    /// A client on TCP that says nothing for `lost` is lost.
    ///
    /// # Errors
    /// The address is in use or not ours, or the path cannot be made.
    pub fn all(address: &Address, backlog: u32, lost: Duration, shards: usize) -> io::Result<Vec<Self>> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        match address {
            Address::Tcp(address) => {
                let first = listener(*address, backlog, lost)?;
                let actual = first.local_addr()?;
                let others = (1..shards).map(|_| listener(actual, backlog, lost));
                std::iter::once(Ok(first)).chain(others).map(|bound| bound.map(Self::Tcp)).collect()
            }
            Address::Unix(socket) => {
                let first = unix(socket, backlog)?;
                let others = (1..shards).map(|_| first.try_clone()).collect::<io::Result<Vec<_>>>()?;
                Ok(std::iter::once(first).chain(others).map(Self::Unix).collect())
            }
        }
    }

    /// Whether nobody listens there: of those who let others listen beside them, the kernel would give each a part of the
    /// clients.
    ///
    /// # Errors
    /// Somebody does, or the address is not ours.
    pub fn check_free(address: &Address) -> io::Result<()> {
        match address {
            Address::Tcp(address) if address.port() > 0 => socket(*address)?.bind(&(*address).into()),
            Address::Tcp(_) | Address::Unix(_) => Ok(()),
        }
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(bound) => bound.try_clone().map(Self::Tcp),
            Self::Unix(bound) => bound.try_clone().map(Self::Unix),
        }
    }

    /// Where clients connect, with the port that port 0 became.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(bound) => bound.local_addr().map(Address::Tcp),
            Self::Unix(bound) => {
                let address = bound.local_addr()?;
                let path = address.as_pathname().map(Path::to_owned).unwrap_or_default();
                Ok(Address::Unix(UnixSocket { path, ..UnixSocket::default() }))
            }
        }
    }
}

/// Accepts until the shard drains, clients that speak TLS if there is a configuration for it. While there is no room for a connection, none is accepted: the
/// kernel keeps them waiting.
///
/// # Errors
/// The socket cannot be used at all.
pub async fn accept(shard: Rc<Shard>, bound: Bound, tls: Option<Arc<ServerConfig>>) -> io::Result<()> {
    let listener = Listener::new(bound)?;
    let mut drained = std::pin::pin!(shard.drained());
    loop {
        if shard.is_draining() {
            return Ok(());
        }
        if shard.connections.is_full() {
            shard.counters.accept_pauses.add(1);
            tokio::select! {
                () = shard.connections.room() => continue,
                () = &mut drained => return Ok(()),
            }
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut drained => return Ok(()),
        };
        match accepted {
            Ok((socket, peer)) => {
                if let Some(client) = shard.connections.take(peer) {
                    Connection::start(&shard, socket, client, tls.as_ref());
                }
            }
            Err(error) if is_exhaustion(&error) => {
                shard.counters.accept_pauses.add(1);
                tracing::warn!(%error, "accepting pauses");
                tokio::time::sleep(EXHAUSTION_PAUSE).await;
            }
            // The client left while it waited (accept(2)).
            Err(error) => tracing::debug!(%error, "accept"),
        }
    }
}

/// Serves connections that come from other shards, until those are gone.
pub async fn adopt(shard: Rc<Shard>, mut moving: mpsc::Receiver<Moved>) {
    while let Some(Moved { wire, traveller, unread }) = moving.recv().await {
        let client = shard.connections.admit(traveller);
        Connection::go_on(&shard, Released { wire, client, unread, replay: None });
    }
}

/// Takes what a hold leaves.
pub fn go_on(shard: &Rc<Shard>, onward: Onward) {
    match onward {
        Onward::Released(released) => Connection::go_on(shard, released),
        Onward::Closed(socket) => Connection::close(socket),
        Onward::Ask(asking) => proxy::ask(shard, asking),
        Onward::Fetch(fetch) => proxy::fetch(shard, fetch),
        Onward::Question(question) => proxy::inquire(shard, question),
        Onward::Gone(link) => proxy::say_gone(shard, link),
    }
}

enum Listener {
    /// Not the runtime's own, which would be told of each connection at once.
    Tcp(AsyncFd<std::net::TcpListener>),
    Unix(UnixListener),
}

impl Listener {
    fn new(bound: Bound) -> io::Result<Self> {
        Ok(match bound {
            #[expect(deprecated, reason = "sound for a socket that is owned; what replaces it is unsafe")]
            Bound::Tcp(bound) => Self::Tcp(AsyncFd::with_interest(bound, Interest::READABLE)?),
            Bound::Unix(bound) => Self::Unix(UnixListener::from_std(bound)?),
        })
    }

    async fn accept(&self) -> io::Result<(Socket, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let accept = |listener: &std::net::TcpListener| Ok(acceptfrom_with(listener, flags)?);
                let (socket, peer) = listener.async_io(Interest::READABLE, accept).await?;
                let peer = peer.ok_or(Errno::CONNABORTED).and_then(SocketAddr::try_from)?;
                Ok((Socket::Fresh(Fresh::new(socket)), Some(peer.ip().to_canonical())))
            }
            Self::Unix(listener) => Ok((Socket::Unix(listener.accept().await?.0), None)),
        }
    }
}

fn socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    let domain = Domain::for_address(address);
    let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn listener(address: SocketAddr, backlog: i32, lost: Duration) -> io::Result<std::net::TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    // Connections inherit these.
    socket.set_tcp_nodelay(true)?;
    tcp::lose_after(&socket, lost)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// A socket file that nobody listens on any more is in the way of a restart and is replaced.
fn unix(wanted: &UnixSocket, backlog: i32) -> io::Result<std::os::unix::net::UnixListener> {
    let path = &wanted.path;
    let left_over = std::fs::metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if left_over && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    let user = wanted.user.as_deref().map(|name| number(name, uzers::get_user_by_name, |user| user.uid()));
    let group =
        wanted.group.as_deref().map(|name| number(name, uzers::get_group_by_name, |group| group.gid()));
    if user.is_some() || group.is_some() {
        std::os::unix::fs::chown(path, user.transpose()?, group.transpose()?)?;
    }
    if let Some(mode) = wanted.mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    socket.listen(backlog)?;
    Ok(OwnedFd::from(socket).into())
}

/// The number of a user or a group, given as it is or by name.
fn number<A>(name: &str, find: impl Fn(&str) -> Option<A>, number: impl Fn(&A) -> u32) -> io::Result<u32> {
    let found = name.parse().ok().or_else(|| find(name).as_ref().map(number));
    found
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no user or group {name:?}")))
}

fn is_exhaustion(error: &io::Error) -> bool {
    let kind = Errno::from_io_error(error);
    matches!(kind, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// Long enough to cost nothing, short enough that nobody who waits gives up.
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(100);
