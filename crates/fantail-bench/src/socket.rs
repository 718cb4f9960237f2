//! Sockets, the poller and the clock: what the loops ask of the kernel. All sockets are non-blocking,
//! IPv4 and on loopback.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::error::Error;

pub(crate) use rustix::event::epoll::{Event, EventFlags};

/// What one `recv` takes at most.
pub(crate) const READ_BYTES: usize = 128 * 1024;

/// Connections from one source address. The kernel has some 28,000 ephemeral ports for each pair of
/// addresses; this leaves room for those that are in TIME-WAIT and for publishers.
const CONNECTIONS_PER_SOURCE: usize = 20_000;

/// Descriptors that are not connections: the poller, the standard streams, publishers.
const OTHER_DESCRIPTORS: u64 = 80;

const EVENTS: usize = 512;

/// An epoll instance. A closed socket leaves it by itself.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    /// See [`Self::gathering`].
    pause: Duration,
}

impl Poller {
    /// Tells of what happens when it happens.
    pub(crate) fn new() -> Result<Self, Error> {
        Self::gathering(Duration::ZERO)
    }

    /// While things happen, asks for them once in `pause` only. Whoever sends to a process that sleeps until it does
    /// pays for waking it, which is a fifth of a delivery.
    pub(crate) fn gathering(pause: Duration) -> Result<Self, Error> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::system("create an epoll instance"))?;
        Ok(Self { epoll, pause })
    }

    pub(crate) fn add(&self, socket: impl AsFd, token: u64, flags: EventFlags) -> Result<(), Error> {
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), flags)
            .map_err(Error::system("watch a socket"))
    }

    pub(crate) fn modify(&self, socket: impl AsFd, token: u64, flags: EventFlags) -> Result<(), Error> {
        epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(token), flags)
            .map_err(Error::system("watch a socket"))
    }

    pub(crate) fn remove(&self, socket: impl AsFd) -> Result<(), Error> {
        epoll::delete(&self.epoll, socket).map_err(Error::system("watch a socket no more"))
    }

    /// Replaces `events` by what is ready within `milliseconds`; for ever if negative.
    pub(crate) fn wait(&self, events: &mut Vec<Event>, milliseconds: i64) -> Result<(), Error> {
        let gathers = !self.pause.is_zero() && !events.is_empty();
        if gathers && events.len() < EVENTS {
            std::thread::sleep(self.pause);
        }
        let milliseconds = if gathers { 0 } else { milliseconds };
        events.clear();
        events.reserve(EVENTS);
        let timeout = (milliseconds >= 0)
            .then(|| Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::System { what: "wait for sockets", errno }),
        }
    }
}

/// Wakes whoever waits at a poller, from another thread.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new(poller: &Poller, token: u64) -> Result<Self, Error> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = eventfd(0, flags).map_err(Error::system("create an eventfd"))?;
        // Told once for each ring: nobody has to read it.
        poller.add(&bell, token, EventFlags::IN | EventFlags::ET)?;
        Ok(Self(bell))
    }

    pub(crate) fn ring(&self) -> Result<(), Error> {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).map_err(Error::system("wake a thread"))?;
        Ok(())
    }
}

/// Starts connection number `index` of a run; it is ready for writing when it stands. What is written in one go
/// and then answered needs no [`no_delay`].
pub(crate) fn connect(to: SocketAddrV4, index: usize) -> Result<OwnedFd, Errno> {
    let socket = stream_socket()?;
    let source = index / CONNECTIONS_PER_SOURCE;
    if source > 0 {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        let host = u32::from(Ipv4Addr::LOCALHOST) + u32::try_from(source).unwrap_or(u32::MAX >> 8);
        net::bind(&socket, &SocketAddrV4::new(host.into(), 0))?;
    }
    match net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// Sends what is written at once, whatever is on its way.
pub(crate) fn no_delay(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)
}

/// A listening socket and its address, the port filled in.
pub(crate) fn listen(at: SocketAddrV4) -> Result<(OwnedFd, SocketAddrV4), Errno> {
    let socket = stream_socket()?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &at)?;
    net::listen(&socket, 4096)?;
    let address = net::getsockname(&socket)?.try_into()?;
    Ok((socket, address))
}

pub(crate) fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    let socket = net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    no_delay(&socket)?;
    Ok(socket)
}

pub(crate) fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    net::send(socket, bytes, SendFlags::NOSIGNAL)
}

pub(crate) fn recv(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    net::recv(socket, buffer, net::RecvFlags::empty()).map(|(taken, _)| taken)
}

/// Raises the limit of open files to what is allowed; an error if that is too little.
pub(crate) fn reserve_descriptors(connections: usize) -> Result<(), Error> {
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })
        .map_err(Error::system("raise the limit of open files"))?;
    match limit {
        Some(limit) if connections as u64 + OTHER_DESCRIPTORS > limit => {
            Err(Error::Descriptors { wanted: connections, limit })
        }
        _ => Ok(()),
    }
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Seconds of CPU that this process has used.
pub(crate) fn own_cpu() -> f64 {
    nanoseconds(ClockId::ProcessCPUTime) as f64 / 1e9
}

pub(crate) const SECOND: u64 = 1_000_000_000;

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * SECOND + time.tv_nsec.unsigned_abs()
}
