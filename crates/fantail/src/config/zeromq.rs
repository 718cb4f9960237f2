//! The section `[zeromq]`: which sockets there are, and where. It reads addresses as ZeroMQ writes them, looks
//! up no name of a host and opens nothing.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::file::{Invalid, UNIX_PATH, at_least, octal_mode};

/// Sockets that speak ZeroMQ, all of them for the realm `default`, and nobody authenticates on any of them.
#[derive(Clone, Debug)]
pub struct ZeroMq {
    pub pull: Vec<Endpoint>,
    pub sub: Vec<Endpoint>,
    pub sub_connect: bool,
    pub command: Option<Endpoint>,
    pub session: Option<Endpoint>,
    pub ipc_file_mode: Option<u32>,
    pub message_bytes: usize,
}

/// Where a socket is bound or connected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// As it was written, but for an interface's name: what is told to who asks.
    pub spec: String,
    pub place: Transport,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Transport {
    /// The host is an address, `*` or, where it is connected, a name.
    Tcp(String, u16),
    /// Absolute.
    Ipc(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.spec)
    }
}

impl Endpoint {
    /// `tcp://HOST:PORT` or `ipc://PATH`; a relative path starts from `base`.
    pub(crate) fn parse(spec: &str, base: &Path) -> Option<Self> {
        let place = if let Some(path) = spec.strip_prefix("ipc://") {
            let whole = base.join(path);
            (!path.is_empty() && whole.as_os_str().len() <= UNIX_PATH).then_some(Transport::Ipc(whole))?
        } else {
            let (host, port) = spec.strip_prefix("tcp://")?.rsplit_once(':')?;
            let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
            let port = if port == "*" { 0 } else { port.parse().ok()? };
            let in_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            let known = bare == "*" || bare.parse::<IpAddr>().is_ok() || bare.chars().all(in_name);
            (known && !bare.is_empty()).then(|| Transport::Tcp(bare.to_owned(), port))?
        };
        Some(Self { spec: spec.to_owned(), place })
    }

    /// Where to bind it, if that is a socket address: `None` for a path, and for names.
    pub fn address(&self) -> Option<SocketAddr> {
        let Transport::Tcp(host, port) = &self.place else { return None };
        let ip = match host.as_str() {
            "*" => Ipv4Addr::UNSPECIFIED.into(),
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            host => host.parse().ok()?,
        };
        Some(SocketAddr::new(ip, *port))
    }
}

/// The address that an interface of this machine has now: of IPv4 if it has one, as libzmq takes it.
pub fn interface(name: &str) -> Option<IpAddr> {
    let all = if_addrs::get_if_addrs().ok()?;
    let of = |v4: bool| move |one: &&if_addrs::Interface| one.name == name && one.ip().is_ipv4() == v4;
    all.iter().find(of(true)).or_else(|| all.iter().find(of(false))).map(if_addrs::Interface::ip)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    pull: Vec<String>,
    sub: Vec<String>,
    sub_connect: bool,
    command: String,
    session: String,
    ipc_file_mode: String,
    message_bytes: usize,
}

impl Section {
    pub(super) fn build(self, base: &Path) -> Result<ZeroMq, Invalid> {
        let all = |specs: Vec<String>, bind: bool| {
            specs.iter().map(|spec| endpoint(spec, base, bind)).collect::<Result<_, _>>()
        };
        let mode = Some(self.ipc_file_mode).filter(|mode| !mode.is_empty());
        Ok(ZeroMq {
            pull: all(self.pull, true)?,
            sub: all(self.sub, !self.sub_connect)?,
            sub_connect: self.sub_connect,
            command: optional(&self.command, base)?,
            session: optional(&self.session, base)?,
            ipc_file_mode: mode.map(|mode| octal_mode(&mode).ok_or(Invalid::Mode(mode))).transpose()?,
            message_bytes: at_least(1, self.message_bytes)?,
        })
    }
}

pub(super) fn optional(spec: &str, base: &Path) -> Result<Option<Endpoint>, Invalid> {
    if spec.is_empty() { Ok(None) } else { endpoint(spec, base, true).map(Some) }
}

fn endpoint(spec: &str, base: &Path, bind: bool) -> Result<Endpoint, Invalid> {
    let invalid = || Invalid::Endpoint(spec.to_owned());
    let endpoint = Endpoint::parse(spec, base).ok_or_else(invalid)?;
    match &endpoint.place {
        Transport::Tcp(host, port) if bind && endpoint.address().is_none() => {
            let ip = interface(host).ok_or_else(|| Invalid::Interface(host.clone()))?;
            let spec = format!("tcp://{}", SocketAddr::new(ip, *port));
            Ok(Endpoint { spec, place: Transport::Tcp(ip.to_string(), *port) })
        }
        Transport::Tcp(host, port) if !bind && (host == "*" || *port == 0) => Err(invalid()),
        _ => Ok(endpoint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let tcp = |host: &str, port| Some(Transport::Tcp(host.into(), port));
        for (spec, place, bound) in [
            ("tcp://127.0.0.1:5560", tcp("127.0.0.1", 5560), true),
            ("tcp://*:5560", tcp("*", 5560), true),
            ("tcp://127.0.0.1:*", tcp("127.0.0.1", 0), true),
            ("tcp://[::1]:1", tcp("::1", 1), true),
            ("tcp://localhost:1", tcp("localhost", 1), true),
            ("tcp://eth_0.1:1", tcp("eth_0.1", 1), false),
            ("tcp://example.com:1", tcp("example.com", 1), false),
            ("ipc://run/x", Some(Transport::Ipc("/base/run/x".into())), false),
            ("ipc:///run/x", Some(Transport::Ipc("/run/x".into())), false),
            ("ipc://", None, false),
            ("tcp://:1", None, false),
            ("tcp://a b:1", None, false),
            ("tcp://127.0.0.1", None, false),
            ("tcp://127.0.0.1:65536", None, false),
            ("udp://127.0.0.1:1", None, false),
            ("", None, false),
        ] {
            let endpoint = Endpoint::parse(spec, Path::new("/base"));
            assert_eq!(endpoint.as_ref().map(|endpoint| endpoint.place.clone()), place, "{spec}");
            assert_eq!(endpoint.is_some_and(|endpoint| endpoint.address().is_some()), bound, "{spec}");
        }
    }

    #[test]
    fn interfaces() {
        let endpoint = |spec, bind| endpoint(spec, Path::new("/"), bind);
        let bound = endpoint("tcp://lo:5560", true).expect("there is a loopback interface");
        assert_eq!((bound.spec.as_str(), bound.address().is_some()), ("tcp://127.0.0.1:5560", true));
        assert!(matches!(endpoint("tcp://no_such_if0:1", true), Err(Invalid::Interface(_))));
        assert_eq!(
            endpoint("tcp://lo:1", false).expect("a host's name").place,
            Transport::Tcp("lo".into(), 1)
        );
    }
}
