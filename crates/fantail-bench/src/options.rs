//! The command line: what to ask, whom, how often. Addresses are loopback by type.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

/// Drives a push server over loopback and checks every message on every connection.
#[derive(Debug, Parser)]
#[command(name = "fantail-bench", version)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Open streams and hold them: rate, the server's CPU for each, its memory as a slope between sizes
    Hold(Hold),
    /// Publish to many streams: loss, repeats, order, latency, the server's CPU for each delivery
    Fan(Fan),
    /// The same with 64 messages under way
    Burst(Fan),
    /// Set-ups: streams opened and held, or (with --cycles) long-polls answered and asked again
    Setup(Setup),
    /// Clients who come back at once and have missed some items, which a log has: when they have all of it, and what
    /// their origin, which is here, hears of that
    CatchUp(CatchUp),
    /// Plain requests on keep-alive connections: rate, latency, the server's CPU for each
    Proxy(Proxy),
    /// WebSockets whose origin echoes: every message back, whole, once, in order; rate, latency, the server's CPU
    Echo(Echo),
    /// Webhooks: endpoints subscribed, messages posted to each; rate, latency, the server's CPU and memory
    Webhooks(Webhooks),
    /// Publishers who wait until their items are kept: rate, latency, the server's memory for each item
    Keep(Keep),
    /// Serve: a bare loop of `send`, the least that a server can do
    Floor(Floor),
    /// Serve: an origin of WebSockets over HTTP that opens, subscribes and echoes
    EventsOrigin(EventsOrigin),
}

/// Whom to ask, and for what.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// The address for clients
    #[arg(long, default_value = "127.0.0.1:7999")]
    pub(crate) sub: Loopback,
    /// The path that they ask for
    #[arg(long, default_value = "/")]
    pub(crate) path: String,
    #[arg(long, default_value = "localhost")]
    pub(crate) host: String,
    /// A header line to add; may repeat
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<HeaderLine>,
    /// The server's processes, whose CPU and memory are read
    #[arg(long, value_delimiter = ',', value_name = "PID,…")]
    pub(crate) pids: Vec<u32>,
    /// Give up after this many seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    /// Connections being opened at once
    #[arg(long, alias = "burst", default_value_t = 256)]
    pub(crate) opening: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl Target {
    /// The bytes of a GET for this target.
    pub(crate) fn request(&self) -> Vec<u8> {
        self.get("")
    }

    /// The bytes of a WebSocket's handshake for this target.
    pub(crate) fn handshake(&self) -> Vec<u8> {
        // The key of RFC 6455, section 1.3: any will do.
        self.get(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        )
    }

    fn get(&self, more: &str) -> Vec<u8> {
        let Self { path, host, headers, .. } = self;
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}{}\r\n", lines(headers)).into_bytes()
    }
}

/// How to publish.
#[derive(Args, Debug)]
pub(crate) struct Publish {
    /// The address for publishers
    #[arg(long = "pub", default_value = "127.0.0.1:5561")]
    pub(crate) address: Loopback,
    #[arg(long, default_value = "/publish/")]
    pub(crate) pub_path: String,
    /// A header line for publishers; may repeat
    #[arg(long = "pub-header", value_name = "NAME: VALUE")]
    pub(crate) pub_headers: Vec<HeaderLine>,
    /// The body to post; %M% stands for the message. Without it: JSON for the channel "test"
    #[arg(long)]
    pub(crate) body: Option<Template>,
    #[arg(long, default_value = "application/json")]
    pub(crate) ctype: String,
    /// End a message with a line feed, not with the two characters \n of a JSON string
    #[arg(long)]
    pub(crate) raw: bool,
    /// Bytes of a message, before the line feed
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) size: u32,
    /// Publishing connections, one request in flight on each; with more than one, order is not checked
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) pubs: u32,
}

impl Publish {
    /// The head of a publish request up to the value of Content-Length.
    pub(crate) fn head(&self) -> String {
        let (path, ctype, headers) = (&self.pub_path, &self.ctype, lines(&self.pub_headers));
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {ctype}\r\n{headers}Content-Length: "
        )
    }
}

#[derive(Args, Debug)]
pub(crate) struct Hold {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Open WebSockets, not streams
    #[arg(long)]
    pub(crate) websocket: bool,
    /// Connections; with several ascending sizes, memory is the slope from the first to the last
    #[arg(short, default_value = "2000,15000", value_delimiter = ',')]
    pub(crate) n: Vec<usize>,
    /// Seconds of rest before memory is read
    #[arg(long, default_value_t = 3, value_name = "SECONDS")]
    pub(crate) hold: u64,
}

#[derive(Args, Debug)]
pub(crate) struct Fan {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) publish: Publish,
    /// Open WebSockets, not streams, and publish for them
    #[arg(long)]
    pub(crate) websocket: bool,
    /// Connections
    #[arg(short, default_value_t = 1000)]
    pub(crate) n: usize,
    /// Messages
    #[arg(short, default_value_t = 1000)]
    pub(crate) m: usize,
    /// Messages that not everyone has yet, at most
    #[arg(long)]
    pub(crate) window: Option<usize>,
    /// Publish so many a second, whatever has arrived
    #[arg(long, conflicts_with = "window", value_name = "PER SECOND")]
    pub(crate) rate: Option<f64>,
    /// While something arrives, look only once in so long: the server need not wake this process for each arrival
    #[arg(long, default_value_t = 0, value_name = "MICROSECONDS")]
    pub(crate) gather: u64,
}

#[derive(Args, Debug)]
pub(crate) struct Setup {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) publish: Publish,
    /// Connections
    #[arg(short, default_value_t = 5000)]
    pub(crate) n: usize,
    /// Long-polls: each connection is answered this often on average. 0: streams, opened and held
    #[arg(long, default_value_t = 0)]
    pub(crate) cycles: u64,
}

#[derive(Args, Debug)]
pub(crate) struct CatchUp {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) publish: Publish,
    /// Connections
    #[arg(short, default_value_t = 10_000)]
    pub(crate) n: usize,
    /// Items that each of them has missed
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) behind: u32,
    /// A channel with a log that is new
    #[arg(long, default_value = "catch-up")]
    pub(crate) channel: Channel,
    /// Where their origin listens: a route of the server's has to lead there
    #[arg(long, default_value = "127.0.0.1:9004")]
    pub(crate) origin: Loopback,
}

#[derive(Args, Debug)]
pub(crate) struct Proxy {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Keep-alive connections, one request in flight on each
    #[arg(short, default_value_t = 32)]
    pub(crate) n: usize,
    /// Seconds
    #[arg(long, default_value_t = 4, value_name = "SECONDS")]
    pub(crate) duration: u64,
}

#[derive(Args, Debug)]
pub(crate) struct Echo {
    #[command(flatten)]
    pub(crate) target: Target,
    /// WebSockets, one message in flight on each
    #[arg(short, default_value_t = 32)]
    pub(crate) n: usize,
    /// Seconds
    #[arg(long, default_value_t = 4, value_name = "SECONDS")]
    pub(crate) duration: u64,
    /// So many messages in all, however long it takes
    #[arg(long, conflicts_with = "duration")]
    pub(crate) messages: Option<u64>,
    /// Say all messages without waiting for echoes
    #[arg(long, requires = "messages")]
    pub(crate) pipeline: bool,
    /// Bytes of a message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) size: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Webhooks {
    #[command(flatten)]
    pub(crate) publish: Publish,
    /// Where webhooks are taken; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: Loopback,
    /// Endpoints that answer
    #[arg(short, default_value_t = 10)]
    pub(crate) n: usize,
    /// Endpoints that never do
    #[arg(long, default_value_t = 0)]
    pub(crate) dead: usize,
    /// Messages; 0: only subscribe
    #[arg(short, default_value_t = 1000)]
    pub(crate) m: usize,
    /// Messages that not every endpoint has yet, at most
    #[arg(long, default_value_t = 64)]
    pub(crate) window: usize,
    /// Publish so many a second, whatever has arrived
    #[arg(long, conflicts_with = "window", value_name = "PER SECOND")]
    pub(crate) rate: Option<f64>,
    /// A channel of its own for each endpoint
    #[arg(long)]
    pub(crate) apart: bool,
    /// The endpoints were subscribed by a run before, at the same --listen
    #[arg(long)]
    pub(crate) subscribed: bool,
    /// The server's processes, whose CPU and memory are read
    #[arg(long, value_delimiter = ',', value_name = "PID,…")]
    pub(crate) pids: Vec<u32>,
    /// Give up after this many seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Keep {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) publish: Publish,
    /// Items of one request
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) items: u32,
    /// Items without ids: a server remembers those for a while, whether it keeps the items or not
    #[arg(long)]
    pub(crate) without_ids: bool,
    /// So many channels in turn: this name with 0, 1 and so on behind it
    #[arg(long, default_value = "keep-")]
    pub(crate) channel: Channel,
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) channels: u32,
    /// Seconds
    #[arg(long, default_value_t = 4, value_name = "SECONDS")]
    pub(crate) duration: u64,
    /// So many items in all, however long it takes
    #[arg(short, conflicts_with = "duration")]
    pub(crate) m: Option<u64>,
    /// Measure before how long an fsync takes in this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) fsync: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Floor {
    /// The address for clients; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9001")]
    pub(crate) listen: Loopback,
    /// The address for publishers
    #[arg(long, default_value = "127.0.0.1:9002")]
    pub(crate) pub_listen: Loopback,
}

#[derive(Args, Debug)]
pub(crate) struct EventsOrigin {
    /// Port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9003")]
    pub(crate) listen: Loopback,
    /// Answer so many milliseconds late
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub(crate) delay: u64,
    /// Ask for GRIP, and subscribe each WebSocket to this channel
    #[arg(long, value_name = "CHANNEL")]
    pub(crate) subscribe: Option<Channel>,
}

/// A channel whose name can stand in a JSON string as it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Channel(pub(crate) String);

impl FromStr for Channel {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let plain = !text.is_empty() && !text.contains(|c: char| matches!(c, '"' | '\\') || c.is_control());
        if plain { Ok(Self(text.into())) } else { Err(OptionError::Channel) }
    }
}

/// An IPv4 address of this machine's loopback, with a port: a load generator must not reach others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Loopback(pub(crate) SocketAddrV4);

impl FromStr for Loopback {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let address: SocketAddrV4 = text.parse().map_err(|_| OptionError::Address)?;
        if address.ip().is_loopback() { Ok(Self(address)) } else { Err(OptionError::NotLoopback) }
    }
}

/// One header line without its line break.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct HeaderLine(String);

impl FromStr for HeaderLine {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        match text.split_once(':') {
            Some((name, _)) if !name.is_empty() && !text.contains(['\r', '\n']) => Ok(Self(text.into())),
            _ => Err(OptionError::Header),
        }
    }
}

/// A publish body around the place of its message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Template {
    pub(crate) before: String,
    pub(crate) after: String,
}

impl FromStr for Template {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (before, after) = text.split_once("%M%").ok_or(OptionError::Template)?;
        Ok(Self { before: before.into(), after: after.into() })
    }
}

#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum OptionError {
    #[error("want a numeric IPv4 address and a port, as in 127.0.0.1:7999")]
    Address,
    #[error("want an address in 127.0.0.0/8: this tool loads the machine that it runs on, and no other")]
    NotLoopback,
    #[error("want NAME: VALUE on one line")]
    Header,
    #[error("want %M% where the message goes")]
    Template,
    #[error("want a name without quotes, backslashes and control characters")]
    Channel,
}

fn lines(headers: &[HeaderLine]) -> String {
    headers.iter().flat_map(|line| [line.0.as_str(), "\r\n"]).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn values_are_parsed_or_refused() {
        assert!("127.0.0.9:80".parse::<Loopback>().is_ok());
        assert_eq!("10.0.0.1:80".parse::<Loopback>(), Err(OptionError::NotLoopback));
        assert_eq!("localhost:80".parse::<Loopback>(), Err(OptionError::Address));
        assert_eq!("A: b\r\nC: d".parse::<HeaderLine>(), Err(OptionError::Header));
        assert_eq!("no colon".parse::<HeaderLine>(), Err(OptionError::Header));
        assert_eq!("{}".parse::<Template>(), Err(OptionError::Template));
        assert_eq!("a\"b".parse::<Channel>(), Err(OptionError::Channel));
        assert_eq!("a b".parse(), Ok(Channel("a b".into())));
        assert_eq!("a%M%b".parse(), Ok(Template { before: "a".into(), after: "b".into() }));
    }

    #[test]
    fn sizes_and_pids_are_lists() {
        let parsed =
            Options::parse_from(["fantail-bench", "hold", "-n", "2,7", "--pids", "4,5", "--header", "A: b"]);
        let Command::Hold(hold) = parsed.command else { panic!("not hold") };
        assert_eq!((hold.n, hold.target.pids.clone()), (vec![2, 7], vec![4, 5]));
        let request = String::from_utf8(hold.target.request()).unwrap();
        assert_eq!(request, "GET / HTTP/1.1\r\nHost: localhost\r\nA: b\r\n\r\n");
    }

    #[test]
    fn a_rate_excludes_a_window() {
        let line = ["fantail-bench", "fan", "--rate", "5", "--window", "1"];
        assert!(Options::try_parse_from(line).is_err());
    }
}
