//! The configuration as it is written: one struct a section of `fantail.default.toml`, every key present,
//! because the defaults are always underneath. [`File::build`] is the one way to the program's form; it
//! refuses what cannot work. It reads no file and knows nothing of layers.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use fantail_proto::forward::{self, ForwardedFor, RuleError};
use http::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::{
    Address, FanOut, LogFormat, Pace, TlsProfile, UnixSocket, control, log, realm, sockjs, stats, webhooks,
    xmpp, zeromq,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    server: Server,
    tls: Tls,
    client: Client,
    routes: Routes,
    proxy: Proxy,
    origin: Origin,
    grip: Grip,
    websocket: WebSocket,
    sockjs: sockjs::Section,
    hub: Hub,
    control: control::Section,
    zeromq: zeromq::Section,
    webhooks: webhooks::Section,
    stats: stats::Section,
    xmpp: xmpp::Section,
    #[serde(default)]
    realm: Vec<realm::Section>,
    #[serde(default)]
    log: Vec<log::Section>,
    logging: Logging,
}

/// Why one value cannot be used. Values that may be secret are not repeated.
#[derive(Debug, thiserror::Error)]
pub(super) enum Invalid {
    #[error(
        r#""{0}" is not a duration: write a whole number and a unit, as in "500ms", "10s", "5m" or "1h""#
    )]
    Duration(String),
    #[error(r#""{0}" is longer than a year"#)]
    Long(String),
    #[error(r#"must be longer than "0s""#)]
    NoTime,
    #[error(r#"must be at least "2s" and at most "12h""#)]
    Lost,
    #[error("must be at least {0}")]
    TooSmall(usize),
    #[error("must be at most {0}")]
    TooLarge(usize),
    #[error(
        r#""{0}" is not an address: write "127.0.0.1:7999", "[::1]:7999" or "unix:/run/fantail.sock?mode=0660""#
    )]
    Address(String),
    #[error(r#""{0}" is not an address: write "127.0.0.1:5561" or "[::1]:5561""#)]
    Control(String),
    #[error(r#""{0}" is not the name of a host: write it without a port; addresses and "localhost" may be used anyway"#)]
    ControlHost(String),
    #[error(r#"the name in "{0}" is not looked up: write an IP address or "localhost""#)]
    Name(String),
    #[error(
        r#"no interface of this machine has an address and is called "{0}", and names of hosts are not looked up: write an IP address, "*" or "localhost""#
    )]
    Interface(String),
    #[error(
        r#"the path of "{path}" is empty or longer than the {UNIX_PATH} bytes that a socket's name may have"#
    )]
    UnixPath { path: String },
    #[error(r#"the mode of "{0}" is not octal digits up to 0777"#)]
    Mode(String),
    #[error(r#""{0}" has something behind its "?" that is neither mode=, user= nor group="#)]
    Query(String),
    #[error(r#""{0}" is not an address of ZeroMQ: write "tcp://127.0.0.1:5560" or "ipc:///run/fantail/in""#)]
    Endpoint(String),
    #[error(r#""{0}" is there twice"#)]
    Twice(String),
    #[error(transparent)]
    Forwarded(#[from] RuleError),
    #[error(r#""{0}" is not a header's name"#)]
    HeaderName(String),
    #[error(r#""{0}" cannot be in a CDN-Loop header: write letters, digits, "-", "." and "_""#)]
    CdnLoop(String),
    #[error(r#""{0}" is not an origin: write "https://example.com", with a port if it is not the usual one"#)]
    Origin(String),
    #[error(r#""{0}" is no place: write "HOST:PORT""#)]
    LinkHost(String),
    #[error(r#""{0}" is no level: write "error", "warn", "info", "debug" or "trace""#)]
    Level(String),
    #[error(r#""{0}" is not a realm's id: write 1 to 64 of A–Z, a–z, 0–9, "_" and "-""#)]
    RealmId(String),
    #[error(r#""{0}" is no block of addresses: write "10.0.0.0/8", "fd00::/8" or one address"#)]
    Block(String),
    #[error(r#""{0}" cannot begin the name of a metric: write letters, digits and "_""#)]
    Prefix(String),
    #[error(r#""{0}" is not an address: write "127.0.0.1:5347" or "xmpp.example.com:5347""#)]
    XmppServer(String),
    #[error(r#""{0}" is not a component's address: write "push.example.com""#)]
    Domain(String),
    #[error(r#""{0}" is not a user's address: write "user@example.com""#)]
    Jid(String),
    #[error(r#"it is empty, or what follows base64: is not base64"#)]
    Secret,
    #[error(r#"a key of realm "{0}" is empty: anyone could sign with it"#)]
    RealmKey(String),
    #[error(transparent)]
    Log(#[from] log::Fault),
}

impl File {
    /// Relative paths start from `base`, which is absolute.
    pub(super) fn build(self, base: &Path) -> Result<super::Parts, Invalid> {
        Ok(super::Parts {
            server: self.server.build(base)?,
            tls: self.tls.build(base),
            client: self.client.build()?,
            routes: self.routes.build(base),
            proxy: self.proxy.build()?,
            origin: self.origin.build(base)?,
            grip: self.grip.build()?,
            websocket: self.websocket.build()?,
            sockjs: self.sockjs.build()?,
            hub: self.hub.build()?,
            control: self.control.build()?,
            zeromq: self.zeromq.build(base)?,
            webhooks: self.webhooks.build(base)?,
            stats: self.stats.build(base)?,
            xmpp: self.xmpp.build(base)?,
            realms: self.realm.into_iter().map(realm::Section::build).collect::<Result<_, _>>()?,
            logs: self.log.into_iter().map(log::Section::build).collect::<Result<_, _>>()?,
            logging: self.logging.build(base)?,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Server {
    listen: Vec<String>,
    tls_listen: Vec<String>,
    shards: usize,
    fan_out: FanOut,
    backlog: u32,
    drain_timeout: String,
    data_dir: String,
}

impl Server {
    fn build(self, base: &Path) -> Result<super::Server, Invalid> {
        let mut listen: Vec<Address> = Vec::with_capacity(self.listen.len());
        for text in self.listen {
            let address = address(&text, base)?;
            let any_port = matches!(address, Address::Tcp(a) if a.port() == 0);
            if !any_port && listen.contains(&address) {
                return Err(Invalid::Twice(text));
            }
            listen.push(address);
        }
        let mut tls_listen: Vec<SocketAddr> = Vec::with_capacity(self.tls_listen.len());
        for text in self.tls_listen {
            let address = socket_address(&text)?;
            let taken = tls_listen.contains(&address) || listen.contains(&Address::Tcp(address));
            if address.port() != 0 && taken {
                return Err(Invalid::Twice(text));
            }
            tls_listen.push(address);
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Ok(super::Server {
            listen,
            tls_listen,
            shards: match self.shards {
                0 => cores().min(super::MAX_SHARDS),
                shards => at_most(super::MAX_SHARDS, shards)?,
            },
            fan_out: self.fan_out,
            backlog: at_least(1, self.backlog)?,
            drain_timeout: duration(&self.drain_timeout)?,
            data_dir: path(&self.data_dir, base),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    cert_file: String,
    key_file: String,
    folder: String,
    profile: TlsProfile,
}

impl Tls {
    fn build(self, base: &Path) -> super::Tls {
        super::Tls {
            cert_file: path(&self.cert_file, base),
            key_file: path(&self.key_file, base),
            folder: path(&self.folder, base),
            profile: self.profile,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Client {
    connections: usize,
    connections_per_address: usize,
    head_bytes: usize,
    headers: usize,
    target_bytes: usize,
    head_timeout: String,
    idle_timeout: String,
    body_bytes: u64,
    body_timeout: String,
    send_timeout: String,
    lost_timeout: String,
    least_rate: u32,
    least_rate_window: String,
    queue_bytes: usize,
}

impl Client {
    fn build(self) -> Result<super::Client, Invalid> {
        let within = time_limit(&self.least_rate_window)?;
        let bytes =
            u64::try_from(u128::from(self.least_rate) * within.as_millis() / 1000).unwrap_or(u64::MAX);
        Ok(super::Client {
            connections: self.connections,
            connections_per_address: self.connections_per_address,
            head_bytes: at_least(MIN_HEAD, self.head_bytes)?,
            headers: at_least(1, self.headers)?,
            target_bytes: at_least(1, self.target_bytes)?,
            head_timeout: time_limit(&self.head_timeout)?,
            idle_timeout: time_limit(&self.idle_timeout)?,
            body_bytes: self.body_bytes,
            body_timeout: time_limit(&self.body_timeout)?,
            send_timeout: time_limit(&self.send_timeout)?,
            lost_timeout: lost_timeout(&self.lost_timeout)?,
            pace: (bytes > 0).then_some(Pace { bytes, within }),
            queue_bytes: at_least(1, self.queue_bytes)?,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Routes {
    file: String,
    lines: Vec<String>,
    lenient: bool,
}

impl Routes {
    fn build(self, base: &Path) -> super::Routes {
        super::Routes { file: path(&self.file, base), lines: self.lines, lenient: self.lenient }
    }
}

#[expect(clippy::struct_excessive_bools, reason = "keys that are independent of each other")]
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Proxy {
    debug: bool,
    sig_iss: String,
    sig_key: String,
    upstream_key: String,
    x_forwarded_for: String,
    x_forwarded_for_trusted: String,
    set_x_forwarded_protocol: SetProtocol,
    accept_x_forwarded_protocol: bool,
    orig_headers_need_mark: Vec<String>,
    accept_pushpin_route: bool,
    cdn_loop: String,
    share_requests: bool,
    auto_cross_origin: bool,
}

#[derive(Debug, Deserialize)]
enum SetProtocol {
    #[serde(rename = "false")]
    Off,
    #[serde(rename = "proto-only")]
    ProtoOnly,
    #[serde(rename = "true")]
    Both,
}

impl Proxy {
    fn build(self) -> Result<super::Proxy, Invalid> {
        let header = |name: String| HeaderName::try_from(&name).map_err(|_| Invalid::HeaderName(name));
        let in_cdn_id = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let cdn_loop = HeaderValue::from_str(&self.cdn_loop)
            .ok()
            .filter(|_| self.cdn_loop.chars().all(in_cdn_id))
            .ok_or(Invalid::CdnLoop(self.cdn_loop))?;
        Ok(super::Proxy {
            debug: self.debug,
            sig_iss: self.sig_iss,
            sig_key: self.sig_key,
            upstream_key: self.upstream_key,
            forward: forward::Rules {
                forwarded_for: ForwardedFor::parse(&self.x_forwarded_for)?,
                forwarded_for_trusted: ForwardedFor::parse(&self.x_forwarded_for_trusted)?,
                set_protocol: match self.set_x_forwarded_protocol {
                    SetProtocol::Off => forward::SetProtocol::Off,
                    SetProtocol::ProtoOnly => forward::SetProtocol::ProtoOnly,
                    SetProtocol::Both => forward::SetProtocol::Both,
                },
                accept_protocol: self.accept_x_forwarded_protocol,
                need_mark: self.orig_headers_need_mark.into_iter().map(header).collect::<Result<_, _>>()?,
                accept_pushpin_route: self.accept_pushpin_route,
                cdn_loop: Some(cdn_loop).filter(|name| !name.is_empty()),
            },
            share_requests: self.share_requests,
            auto_cross_origin: self.auto_cross_origin,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Origin {
    connect_timeout: String,
    response_timeout: String,
    idle_timeout: String,
    keep_alive: String,
    lost_timeout: String,
    connections: usize,
    ca_file: String,
}

impl Origin {
    fn build(self, base: &Path) -> Result<super::Origin, Invalid> {
        Ok(super::Origin {
            connect_timeout: time_limit(&self.connect_timeout)?,
            response_timeout: time_limit(&self.response_timeout)?,
            idle_timeout: time_limit(&self.idle_timeout)?,
            keep_alive: duration(&self.keep_alive)?,
            lost_timeout: lost_timeout(&self.lost_timeout)?,
            connections: at_least(1, self.connections)?,
            ca_file: path(&self.ca_file, base),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grip {
    subscriptions: usize,
    channel_bytes: usize,
    instruct_bytes: usize,
    max_timeout: String,
    update_on_first_subscription: bool,
    updates_per_second: u32,
    link_hosts: Vec<String>,
}

impl Grip {
    fn build(self) -> Result<super::Grip, Invalid> {
        let is_place = |text: &str| {
            let (host, port) = text.rsplit_once(':').unwrap_or_default();
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        if let Some(text) = self.link_hosts.iter().find(|text| !is_place(text)) {
            return Err(Invalid::LinkHost(text.clone()));
        }
        Ok(super::Grip {
            subscriptions: at_least(1, self.subscriptions)?,
            channel_bytes: at_least(1, self.channel_bytes)?,
            instruct_bytes: at_least(1, self.instruct_bytes)?,
            max_timeout: time_limit(&self.max_timeout)?,
            update_on_first_subscription: self.update_on_first_subscription,
            updates_per_second: at_least(1, self.updates_per_second)?,
            link_hosts: self.link_hosts,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WebSocket {
    message_bytes: usize,
    fragments: u32,
    buffer_bytes: u32,
    deflate: bool,
    deflate_from: usize,
    origins: Vec<String>,
    message_timeout: String,
    close_timeout: String,
    handshake_timeout: String,
    idle_timeout: String,
    ping_every: String,
}

impl WebSocket {
    fn build(self) -> Result<super::WebSocket, Invalid> {
        let is_origin = |text: &str| text.contains("://") && !text.ends_with('/') && text.is_ascii();
        if let Some(text) = self.origins.iter().find(|text| !is_origin(text)) {
            return Err(Invalid::Origin(text.clone()));
        }
        Ok(super::WebSocket {
            message_bytes: at_least(1, self.message_bytes)?,
            fragments: at_least(1, self.fragments)?,
            buffer_bytes: at_least(1, self.buffer_bytes)?,
            deflate: self.deflate,
            deflate_from: self.deflate_from,
            origins: self.origins.into_iter().map(|text| text.to_ascii_lowercase()).collect(),
            message_timeout: time_limit(&self.message_timeout)?,
            close_timeout: time_limit(&self.close_timeout)?,
            handshake_timeout: time_limit(&self.handshake_timeout)?,
            idle_timeout: duration(&self.idle_timeout)?,
            ping_every: duration(&self.ping_every)?,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hub {
    id_ttl: String,
    ids: usize,
    order_wait: String,
    linger: String,
    mailbox_items: usize,
    id_bytes: usize,
    meta_bytes: usize,
}

impl Hub {
    fn build(self) -> Result<super::Hub, Invalid> {
        Ok(super::Hub {
            id_ttl: duration(&self.id_ttl)?,
            ids: self.ids,
            order_wait: duration(&self.order_wait)?,
            linger: duration(&self.linger)?,
            mailbox_items: at_least(1, self.mailbox_items)?,
            id_bytes: at_least(1, self.id_bytes)?,
            meta_bytes: self.meta_bytes,
        })
    }
}

#[expect(clippy::struct_excessive_bools, reason = "keys that are independent of each other")]
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Logging {
    format: LogFormat,
    file: String,
    level: String,
    access: bool,
    from: bool,
    user_agent: bool,
    channels: bool,
}

impl Logging {
    fn build(self, base: &Path) -> Result<super::Logging, Invalid> {
        let level = match self.level.as_str() {
            "error" => tracing::Level::ERROR,
            "warn" => tracing::Level::WARN,
            "info" => tracing::Level::INFO,
            "debug" => tracing::Level::DEBUG,
            "trace" => tracing::Level::TRACE,
            _ => return Err(Invalid::Level(self.level)),
        };
        Ok(super::Logging {
            format: self.format,
            file: path(&self.file, base),
            level,
            access: self.access,
            from: self.from,
            user_agent: self.user_agent,
            channels: self.channels,
        })
    }
}

/// A whole number and a unit; at most [`MAX_TIME`].
pub(super) fn duration(text: &str) -> Result<Duration, Invalid> {
    let invalid = || Invalid::Duration(text.into());
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
    let (number, unit) = text.split_at(unit_at);
    let ms_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(invalid()),
    };
    if number.is_empty() {
        return Err(invalid());
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(ms_per_unit))
        .map(Duration::from_millis)
        .filter(|time| *time <= MAX_TIME)
        .ok_or_else(|| Invalid::Long(text.into()))
}

/// A duration after which something is given up; with none, nothing could succeed.
pub(super) fn time_limit(text: &str) -> Result<Duration, Invalid> {
    let limit = duration(text)?;
    if limit.is_zero() { Err(Invalid::NoTime) } else { Ok(limit) }
}

/// What the kernel can be told of silence: it counts whole seconds.
fn lost_timeout(text: &str) -> Result<Duration, Invalid> {
    let lost = duration(text)?;
    if LOST.contains(&lost) { Ok(lost) } else { Err(Invalid::Lost) }
}

pub(super) fn at_least<N: Copy + PartialOrd + TryFrom<usize>>(least: usize, value: N) -> Result<N, Invalid> {
    let enough = N::try_from(least).is_ok_and(|least| value >= least);
    if enough { Ok(value) } else { Err(Invalid::TooSmall(least)) }
}

pub(super) fn at_most(most: usize, value: usize) -> Result<usize, Invalid> {
    if value <= most { Ok(value) } else { Err(Invalid::TooLarge(most)) }
}

pub(super) fn address(text: &str, base: &Path) -> Result<Address, Invalid> {
    let Some(rest) = text.strip_prefix("unix:") else {
        return socket_address(text).map(Address::Tcp);
    };
    let (name, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut socket = UnixSocket { path: base.join(name), ..UnixSocket::default() };
    if name.is_empty() || socket.path.as_os_str().len() > UNIX_PATH {
        return Err(Invalid::UnixPath { path: text.into() });
    }
    for item in query.split('&').filter(|_| rest.contains('?')) {
        match item.split_once('=') {
            Some(("mode", mode)) => {
                socket.mode = Some(octal_mode(mode).ok_or_else(|| Invalid::Mode(text.into()))?);
            }
            Some(("user", user)) if !user.is_empty() => socket.user = Some(user.into()),
            Some(("group", group)) if !group.is_empty() => socket.group = Some(group.into()),
            _ => return Err(Invalid::Query(text.into())),
        }
    }
    Ok(Address::Unix(socket))
}

pub(super) fn octal_mode(digits: &str) -> Option<u32> {
    let octal = !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
    u32::from_str_radix(digits, 8).ok().filter(|mode| octal && *mode <= 0o777)
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Invalid> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let invalid = || Invalid::Address(text.into());
    let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    match host {
        "localhost" => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
        name if name.contains(|c: char| c.is_ascii_alphabetic()) && name.chars().all(in_name) => {
            Err(Invalid::Name(text.into()))
        }
        _ => Err(invalid()),
    }
}

pub(super) fn path(text: &str, base: &Path) -> Option<PathBuf> {
    (!text.is_empty()).then(|| base.join(text))
}

/// Far over any use, and far under what overflows when it is added to a clock.
const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Enough for a request line and a Host, so that a small typing error does not refuse everybody.
pub(super) const MIN_HEAD: usize = 256;

/// A probe and its answer; what `TCP_KEEPIDLE` can say, and rounded.
const LOST: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_hours(12);

/// `sun_path` of unix(7) is 108 bytes with its NUL.
pub(super) const UNIX_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        let ms = |n| Some(Duration::from_millis(n));
        for (text, expected) in [
            ("0s", ms(0)),
            ("500ms", ms(500)),
            ("10s", ms(10_000)),
            ("5m", ms(300_000)),
            ("1h", ms(3_600_000)),
            ("8760h", ms(365 * 24 * 3_600_000)),
            ("8761h", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
            ("", None),
            ("s", None),
            ("10", None),
            ("-1s", None),
            ("1.5s", None),
            ("10 s", None),
            ("10S", None),
            ("١s", None),
        ] {
            assert_eq!(duration(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn addresses() {
        let tcp = |text: &str| Some(Address::Tcp(text.parse().unwrap()));
        let socket = |path: &str, mode| UnixSocket { path: path.into(), mode, ..UnixSocket::default() };
        let unix = |path: &str, mode| Some(Address::Unix(socket(path, mode)));
        let owned =
            UnixSocket { user: Some("u".into()), group: Some("7".into()), ..socket("/f", Some(0o600)) };
        for (text, expected) in [
            ("127.0.0.1:7999", tcp("127.0.0.1:7999")),
            ("127.0.0.1:0", tcp("127.0.0.1:0")),
            ("[::1]:7999", tcp("[::1]:7999")),
            ("localhost:80", tcp("127.0.0.1:80")),
            ("unix:/run/f.sock", unix("/run/f.sock", None)),
            ("unix:f.sock?mode=0660", unix("/etc/fantail/f.sock", Some(0o660))),
            ("unix:/f?group=7&mode=0600&user=u", Some(Address::Unix(owned))),
            ("unix:/f?", None),
            ("unix:/f?user=", None),
            ("unix:/f?owner=u", None),
            ("unix:/f?mode=1777", None),
            ("unix:/f?mode=", None),
            ("unix:/f?mode=+7", None),
            ("unix:", None),
            ("example.com:80", None),
            (":7999", None),
            ("7999", None),
            ("127.0.0.1", None),
            ("127.0.0.1:65536", None),
            ("::1:7999", None),
            ("", None),
        ] {
            assert_eq!(address(text, Path::new("/etc/fantail")).ok(), expected, "{text}");
        }
        let long = format!("unix:/{}", "x".repeat(UNIX_PATH));
        assert!(matches!(address(&long, Path::new("/")), Err(Invalid::UnixPath { .. })));
        assert!(matches!(socket_address("example.com:80"), Err(Invalid::Name(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,40}") {
            let _ = (duration(&text).is_ok(), address(&text, Path::new("/")).is_ok());
        }

        #[test]
        fn every_socket_address_is_read_back(ip: std::net::IpAddr, port: u16) {
            let address = SocketAddr::new(ip, port);
            prop_assert_eq!(socket_address(&address.to_string()).ok(), Some(address));
        }
    }
}
