//! The configuration: one type, its defaults in `fantail.default.toml`, its layers (defaults < file <
//! environment < flags). Unknown keys are errors that name the nearest key. Nothing here opens a port.

use std::{path::PathBuf, time::Duration};

/// The whole configuration, valid: what cannot work is refused when it is loaded.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    pub client: Client,
    pub routes: Routes,
    pub proxy: Proxy,
    pub origin: Origin,
    pub grip: Grip,
    pub hub: Hub,
    pub control: Control,
    pub realms: Vec<Realm>,
    pub log: Log,
    /// The folder that relative paths start from: that of the file, or the current one.
    pub base: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Server {
    pub listen: Vec<Address>,
    /// Never 0 here.
    pub shards: usize,
    pub fan_out: FanOut,
    pub backlog: u32,
    pub drain_timeout: Duration,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    Tcp(std::net::SocketAddr),
    Unix { path: PathBuf, mode: Option<u32> },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FanOut {
    Auto,
    IoUring,
    Send,
}

#[derive(Clone, Debug)]
pub struct Client {
    /// 0: from the limit of open files.
    pub connections: usize,
    pub head_bytes: usize,
    pub headers: usize,
    pub target_bytes: usize,
    pub head_timeout: Duration,
    pub idle_timeout: Duration,
    pub body_bytes: u64,
    pub body_timeout: Duration,
    pub send_timeout: Duration,
    pub queue_bytes: usize,
}

#[derive(Clone, Debug)]
pub struct Routes {
    pub file: Option<PathBuf>,
    pub lines: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Proxy {
    pub debug: bool,
    pub sig_iss: String,
    pub sig_key: String,
    pub upstream_key: String,
    pub x_forwarded_for: String,
    pub x_forwarded_for_trusted: String,
    pub set_x_forwarded_protocol: SetProtocol,
    pub accept_x_forwarded_protocol: bool,
    pub orig_headers_need_mark: Vec<String>,
    pub accept_pushpin_route: bool,
    pub cdn_loop: String,
    pub share_requests: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetProtocol {
    Off,
    ProtoOnly,
    Both,
}

#[derive(Clone, Debug)]
pub struct Origin {
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub idle_timeout: Duration,
    pub keep_alive: Duration,
    pub connections: usize,
    pub ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Grip {
    pub subscriptions: usize,
    pub channel_bytes: usize,
    pub instruct_bytes: usize,
    pub max_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct Hub {
    pub id_ttl: Duration,
    pub ids: usize,
    pub mailbox_items: usize,
}

#[derive(Clone, Debug)]
pub struct Control {
    pub listen: std::net::SocketAddr,
    pub head_bytes: usize,
    pub body_bytes: usize,
    pub publish_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct Realm {
    pub id: String,
    pub keys: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
    pub access: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    Text,
    Json,
}
