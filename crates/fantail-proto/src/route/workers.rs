//! Targets behind ZeroMQ (spec 2.4): how workers are spoken to, and where we wait for them to connect. Reads the
//! words of a line; sockets are bound elsewhere.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use super::Reason;

/// Where the workers of a target connect. Two targets for which this is equal have the same workers.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Workers {
    pub protocol: Protocol,
    pub at: Meeting,
}

/// How a request gets to a worker.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// `zhttpreq`: whole, as one message, and the response too.
    Whole,
    /// `zhttp`: in as many packets as it takes, either way.
    Streaming,
}

/// What we bind.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Meeting {
    /// A path; for `zhttp` the beginning of three.
    Ipc(String),
    /// For `zhttp` the first of three ports.
    Tcp(IpAddr, u16),
    /// The same, at the address of an interface of the machine.
    Interface(String, u16),
}

impl Workers {
    /// How many sockets are bound.
    pub fn sockets(&self) -> u16 {
        match self.protocol {
            Protocol::Whole => 1,
            Protocol::Streaming => 3,
        }
    }
}

/// As in the routes file.
impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.protocol {
            Protocol::Whole => WHOLE,
            Protocol::Streaming => STREAMING,
        })?;
        match &self.at {
            Meeting::Ipc(path) => write!(f, "ipc://{path}"),
            Meeting::Tcp(IpAddr::V6(ip), port) => write!(f, "tcp://[{ip}]:{port}"),
            Meeting::Tcp(ip, port) => write!(f, "tcp://{ip}:{port}"),
            Meeting::Interface(name, port) => write!(f, "tcp://{name}:{port}"),
        }
    }
}

pub(super) fn is_address(value: &str) -> bool {
    value.starts_with(STREAMING) || value.starts_with(WHOLE)
}

/// Reads what [`is_address`] has found to be one.
pub(super) fn read(value: String) -> Result<Workers, Reason> {
    let protocol = if value.starts_with(WHOLE) { Protocol::Whole } else { Protocol::Streaming };
    let spec = value.split_once('/').map_or("", |(_, spec)| spec);
    let workers = |at| Workers { protocol, at };
    if let Some(path) = spec.strip_prefix("ipc://") {
        let fits = !path.starts_with('@') && (1..=LONGEST_PATH).contains(&path.len());
        if fits {
            return Ok(workers(Meeting::Ipc(path.to_owned())));
        }
        return Err(Reason::Target { value, wanted: "behind ipc:// comes a path of 1 to 90 bytes" });
    }
    let Some((host, port)) = spec.strip_prefix("tcp://").and_then(|address| address.rsplit_once(':')) else {
        return Err(Reason::Target { value, wanted: "write ipc://PATH or tcp://ADDRESS:PORT" });
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let ip = if host == "*" { Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) } else { bare.parse().ok() };
    let number = super::condition::port(port);
    let port = match ip {
        Some(ip) => number.map(|port| workers(Meeting::Tcp(ip, port))),
        None if is_interface(host) => number.map(|port| workers(Meeting::Interface(host.to_owned(), port))),
        None => {
            let wanted = "the address to bind is an IP address, an interface of this machine, or *";
            return Err(Reason::Target { value, wanted });
        }
    };
    let fits = |workers: &Workers| match workers.at {
        Meeting::Tcp(_, port) | Meeting::Interface(_, port) => {
            port.checked_add(workers.sockets() - 1).is_some()
        }
        Meeting::Ipc(_) => true,
    };
    port.filter(fits).ok_or(Reason::Target {
        value,
        wanted: "the port is a number from 1 to 65535; zhttp takes the two that follow, too",
    })
}

/// Whether an interface may be called so: a mistyped address is none. Names of hosts, which are never looked up, cannot be
/// told from those of interfaces, but for one.
fn is_interface(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_number = name.chars().all(|c| c.is_ascii_digit() || c == '.');
    (1..=LONGEST_INTERFACE).contains(&name.len())
        && name.chars().all(fits)
        && !is_number
        && name != "localhost"
}

/// Permissions in octal digits.
pub(super) fn file_mode(value: String) -> Result<u32, Reason> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    match u32::from_str_radix(&value, 8) {
        Ok(mode) if digits && mode <= 0o777 => Ok(mode),
        _ => Err(Reason::Value { name: "ipc_file_mode", value, wanted: "permissions in octal, like 770" }),
    }
}

const STREAMING: &str = "zhttp/";
const WHOLE: &str = "zhttpreq/";
/// The address of a Unix socket has 108 bytes, and `-out-stream` comes behind it.
const LONGEST_PATH: usize = 90;
/// Linux has 16 bytes for a name, with a zero behind it.
const LONGEST_INTERFACE: usize = 15;
