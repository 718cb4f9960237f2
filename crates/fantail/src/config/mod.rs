//! The configuration: one type, its defaults in `fantail.default.toml`, its layers (defaults < file <
//! environment < flags). Unknown keys are errors that name the nearest key. Nothing here opens a port.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use fantail_proto::forward;
use serde::Deserialize;

mod control;
mod document;
mod file;
mod keys;
mod layers;
mod log;
mod pushpin;
mod realm;
mod render;
mod sockjs;
mod stats;
#[cfg(test)]
mod tests;
mod webhooks;
mod whole;
mod xmpp;
mod zeromq;

use crate::logging;
pub use control::Control;
use layers::Layers;
pub use log::{Log, Storage};
pub use pushpin::{LevelError, Notice, level, tcp};
pub use sockjs::SockJs;
pub use stats::{Stats, StatsFormat};
pub use webhooks::Webhooks;
pub use xmpp::{Secret, Xmpp};
pub use zeromq::{Endpoint, Transport, ZeroMq, interface};

/// The whole configuration, valid: what cannot work is refused when it is loaded.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    pub tls: Tls,
    pub client: Client,
    pub routes: Routes,
    pub proxy: Proxy,
    pub origin: Origin,
    pub grip: Grip,
    pub websocket: WebSocket,
    pub sockjs: SockJs,
    pub hub: Hub,
    pub control: Control,
    pub zeromq: ZeroMq,
    pub webhooks: Webhooks,
    pub stats: Stats,
    pub xmpp: Option<Xmpp>,
    /// The realm `default` is always there, and first.
    pub realms: Vec<Realm>,
    /// The first that fits a channel counts.
    pub logs: Vec<Log>,
    pub logging: Logging,
    /// The folder that relative paths start from, absolute: that of the file, or the current one.
    pub base: PathBuf,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
    /// What to say at start: of a `pushpin.conf`, what it says in vain.
    pub notices: Vec<Notice>,
    sources: Sources,
    layers: Layers,
}

/// What stands over the defaults, as it was found when the process started. A reload reads the file
/// again; the rest stays.
#[derive(Clone, Default)]
pub struct Sources {
    /// Without one, `fantail.toml` in the current folder is read if it exists.
    pub file: Option<PathBuf>,
    /// Which of several Pushpins on one machine, as `--id` says it: only for a file of Pushpin's.
    pub instance: Option<u32>,
    /// Variables of the environment; those that are not ours are passed over.
    pub variables: Vec<(String, String)>,
    pub flags: Vec<Flag>,
}

/// Variables and flags may say secrets.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Sources");
        shown.field("file", &self.file).field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// One flag of the command line that sets a key.
#[derive(Clone)]
pub struct Flag {
    /// As it is typed: `--listen`.
    pub name: &'static str,
    /// The key that it sets: `server.listen`.
    pub key: &'static str,
    pub value: toml::Value,
}

impl fmt::Debug for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flag").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Why a configuration was refused: everything that was found, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", Lines(.0))]
pub struct Problems(pub Vec<Problem>);

/// One thing to mend; one line when printed, whatever the file said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    pub place: Place,
    /// What is wrong and what to do about it.
    pub reason: String,
}

/// Where a value was set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    Default,
    /// Line and column count from 1; both are 0 where the file as a whole is meant.
    File {
        path: PathBuf,
        line: usize,
        column: usize,
    },
    Variable(String),
    Flag(&'static str),
}

impl Config {
    /// Reads all layers. Nothing is used unless everything is good.
    pub fn load(sources: Sources) -> Result<Self, Problems> {
        let (layers, mut problems) = Layers::read(&sources);
        let base = base(layers.file.as_deref());
        problems.extend(layers.check_values(&base));
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let parts = layers.build(&base).map_err(|problem| Problems(vec![problem]))?;
        problems.extend(whole::check(&parts, &layers));
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        Ok(Self::assemble(parts, base, sources, layers))
    }

    /// Loads again from the same sources: the file may have changed.
    pub fn reload(&self) -> Result<Self, Problems> {
        Self::load(self.sources.clone())
    }

    /// The keys whose values are others in `new`.
    pub fn differences(&self, new: &Self) -> Vec<&'static str> {
        self.layers.differences(&new.layers)
    }

    /// Those that only a restart can change.
    pub fn restart_needed(&self, new: &Self) -> Vec<&'static str> {
        self.differences(new)
            .into_iter()
            .filter(|key| !RELOADED.iter().any(|r| layers::is_under(key, r)))
            .collect()
    }

    /// The effective configuration as TOML, with what set each value that is not the default. Keys are
    /// shown as `***`.
    pub fn render(&self) -> String {
        render::render(&self.layers)
    }

    /// The configuration as a `fantail.toml` of what is not the default, with where each value came from.
    /// Secrets are written out.
    pub fn to_toml(&self) -> String {
        render::differences(&self.layers)
    }

    fn assemble(parts: Parts, base: PathBuf, sources: Sources, layers: Layers) -> Self {
        let (mut realms, others): (Vec<_>, Vec<_>) =
            parts.realms.into_iter().partition(|realm| realm.id == DEFAULT_REALM);
        if realms.is_empty() {
            realms.push(Realm::bare(DEFAULT_REALM));
        }
        realms.extend(others);
        Self {
            server: parts.server,
            tls: parts.tls,
            client: parts.client,
            routes: parts.routes,
            proxy: parts.proxy,
            origin: parts.origin,
            grip: parts.grip,
            websocket: parts.websocket,
            sockjs: parts.sockjs,
            hub: parts.hub,
            control: parts.control,
            zeromq: parts.zeromq,
            webhooks: parts.webhooks,
            stats: parts.stats,
            xmpp: parts.xmpp.finish(),
            realms,
            logs: parts.logs,
            logging: parts.logging,
            base,
            file: layers.file.clone(),
            notices: layers.notices.clone(),
            sources,
            layers,
        }
    }
}

impl Default for Config {
    /// `fantail.default.toml` and nothing else; relative paths start from the current folder.
    fn default() -> Self {
        let layers = Layers::default();
        let base = base(None);
        let parts = layers.build(&base).expect("a test builds the default file");
        Self::assemble(parts, base, Sources::default(), layers)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, logging::printable(&self.reason))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0, .. } => write!(f, "{}", path.display()),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Server {
    pub listen: Vec<Address>,
    /// Where clients speak TLS.
    pub tls_listen: Vec<std::net::SocketAddr>,
    /// Never 0 here.
    pub shards: usize,
    pub fan_out: FanOut,
    pub backlog: u32,
    pub drain_timeout: Duration,
    /// Where what survives a restart is kept.
    pub data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    Tcp(std::net::SocketAddr),
    Unix(UnixSocket),
}

/// A socket in the file system, and whose it will be; what is `None` is left as it comes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UnixSocket {
    pub path: PathBuf,
    pub mode: Option<u32>,
    /// A name or a number.
    pub user: Option<String>,
    pub group: Option<String>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(socket) => write!(f, "unix:{}", socket.path.display()),
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum FanOut {
    Auto,
    IoUring,
    Send,
}

/// TLS towards clients.
#[derive(Clone, Debug)]
pub struct Tls {
    /// For every name that the folder has nothing for. Both are set, or none.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub folder: Option<PathBuf>,
    pub profile: TlsProfile,
}

/// What is agreed to, as Mozilla names it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum TlsProfile {
    /// TLS 1.2 and 1.3.
    Intermediate,
    /// TLS 1.3.
    Modern,
}

#[derive(Clone, Debug)]
pub struct Client {
    /// 0: from the limit of open files.
    pub connections: usize,
    /// 0: no limit.
    pub connections_per_address: usize,
    pub head_bytes: usize,
    pub headers: usize,
    pub target_bytes: usize,
    pub head_timeout: Duration,
    pub idle_timeout: Duration,
    pub body_bytes: u64,
    pub body_timeout: Duration,
    pub send_timeout: Duration,
    /// Of silence, or without an acknowledgement of what was sent.
    pub lost_timeout: Duration,
    /// None: any progress will do.
    pub pace: Option<Pace>,
    pub queue_bytes: usize,
}

/// The least progress of a client that is waited for: each `bytes` pass within this time of waiting.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub bytes: u64,
    pub within: Duration,
}

#[derive(Clone)]
pub struct Routes {
    pub file: Option<PathBuf>,
    pub lines: Vec<String>,
    /// What cannot be read is passed over, with a warning.
    pub lenient: bool,
}

/// Lines may say keys.
impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("file", &self.file).field("lines", &self.lines.len()).finish()
    }
}

#[derive(Clone)]
pub struct Proxy {
    pub debug: bool,
    pub sig_iss: String,
    pub sig_key: String,
    pub upstream_key: String,
    /// Decides about headers on the way to origins.
    pub forward: forward::Rules,
    pub share_requests: bool,
    /// As if all routes had `aco`.
    pub auto_cross_origin: bool,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("sig_iss", &self.sig_iss).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
pub struct Origin {
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub idle_timeout: Duration,
    pub keep_alive: Duration,
    pub lost_timeout: Duration,
    pub connections: usize,
    pub ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct WebSocket {
    pub message_bytes: usize,
    pub fragments: u32,
    pub buffer_bytes: u32,
    pub deflate: bool,
    pub deflate_from: usize,
    /// Empty: any.
    pub origins: Vec<String>,
    pub message_timeout: Duration,
    pub close_timeout: Duration,
    /// To be taken in by an origin that is asked by POSTs.
    pub handshake_timeout: Duration,
    /// Zero: none.
    pub idle_timeout: Duration,
    /// Zero: never.
    pub ping_every: Duration,
}

#[derive(Clone, Debug)]
pub struct Grip {
    pub subscriptions: usize,
    pub channel_bytes: usize,
    pub instruct_bytes: usize,
    pub max_timeout: Duration,
    pub update_on_first_subscription: bool,
    pub updates_per_second: u32,
    /// `HOST:PORT`s.
    pub link_hosts: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Hub {
    pub id_ttl: Duration,
    pub ids: usize,
    pub order_wait: Duration,
    pub linger: Duration,
    pub mailbox_items: usize,
    pub id_bytes: usize,
    pub meta_bytes: usize,
}

#[derive(Clone)]
pub struct Realm {
    pub id: String,
    /// As written: plain, `base64:…` or `file:PATH`.
    pub keys: Vec<String>,
    /// An endpoint is asked whether it wants to be subscribed.
    pub webhook_verify: bool,
    /// 0: only `webhooks.endpoints` counts.
    pub webhook_endpoints: u64,
}

impl Realm {
    /// As if only its id were written.
    pub fn bare(id: &str) -> Self {
        Self { id: id.into(), keys: Vec::new(), webhook_verify: false, webhook_endpoints: 0 }
    }
}

impl fmt::Debug for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Realm").field("id", &self.id).field("keys", &self.keys.len()).finish()
    }
}

#[expect(clippy::struct_excessive_bools, reason = "keys that are independent of each other")]
#[derive(Clone, Debug)]
pub struct Logging {
    pub format: LogFormat,
    /// `None`: standard output.
    pub file: Option<PathBuf>,
    pub level: tracing::Level,
    pub access: bool,
    pub from: bool,
    pub user_agent: bool,
    pub channels: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
    /// Text as Pushpin writes it (spec 9.9).
    Pushpin,
}

/// What the file form builds: [`Config`] without where it came from.
#[derive(Debug)]
struct Parts {
    server: Server,
    tls: Tls,
    client: Client,
    routes: Routes,
    proxy: Proxy,
    origin: Origin,
    grip: Grip,
    websocket: WebSocket,
    sockjs: SockJs,
    hub: Hub,
    control: Control,
    zeromq: ZeroMq,
    webhooks: Webhooks,
    stats: Stats,
    xmpp: xmpp::Draft,
    realms: Vec<Realm>,
    logs: Vec<Log>,
    logging: Logging,
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

fn base(file: Option<&Path>) -> PathBuf {
    let folder = file.and_then(Path::parent).filter(|f| !f.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf())
}

/// Shards at most: the hub keeps a channel's shards as the bits of one word.
pub const MAX_SHARDS: usize = 56;
/// The realm of the plain `/publish/` and of routes without `realm=`.
pub const DEFAULT_REALM: &str = "default";

/// Keys and sections that a reload changes, those that the default file marks "(reload)".
const RELOADED: &[&str] = &[
    "tls.cert_file",
    "tls.key_file",
    "tls.folder",
    "client.head_bytes",
    "client.headers",
    "client.target_bytes",
    "client.head_timeout",
    "client.idle_timeout",
    "client.body_bytes",
    "client.body_timeout",
    "routes",
    "proxy",
    "origin",
    "grip",
    "websocket",
    "sockjs",
    "realm",
    "log",
];
