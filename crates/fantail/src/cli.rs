//! The command line: `serve`, `check`, `convert` and `publish`, and what Pushpin's takes. Flags become the
//! uppermost layer of the configuration; nothing else is decided here.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, value_parser};
use fantail_proto::route::{self, Asked, Host, Route, Table};

mod publish;
mod pushpin;

use crate::{
    config::{Address, Config, DEFAULT_REALM, Flag, Sources},
    logging::printable,
    snapshot::Snapshot,
};
pub use publish::{Publish, publish};

/// Holds client connections open and pushes data through them.
#[derive(Debug, Parser)]
#[command(name = "fantail", version, args_conflicts_with_subcommands = true, args_override_self = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

/// What the program was asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server (the default)
    Serve(Flags),
    /// Check a configuration and its routes, and print what is in effect
    Check(Flags),
    /// Print the fantail.toml that says the same as a pushpin.conf
    Convert(Convert),
    /// Publish to a channel
    Publish(Box<Publish>),
}

/// Which file to convert.
#[derive(Args, Debug)]
pub struct Convert {
    /// A pushpin.conf; what it includes is read too
    file: PathBuf,
    /// As of the instance with this number
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(..=pushpin::MOST_INSTANCES))]
    id: Option<u32>,
}

impl Command {
    /// Ends the process for `--help`, `--version` (0) and what it does not understand: 2, or 1 under Pushpin's
    /// name, which also says where a configuration is looked for.
    pub fn from_args() -> Self {
        let name = pushpin::called(std::env::args_os().next());
        let arguments = publish::named(std::env::args_os()).into_iter().map(pushpin::long);
        match Self::parse(name, arguments) {
            Ok(command) => command,
            Err(failure) => failure.exit(),
        }
    }

    fn parse(
        name: Result<pushpin::Name, pushpin::Refused>,
        arguments: impl Iterator<Item = OsString>,
    ) -> Result<Self, Failure> {
        let name = name.map_err(Failure::Refused)?;
        let matched = CommandLine::command().name(name.text()).try_get_matches_from(arguments);
        let line = matched.and_then(|matches| CommandLine::from_arg_matches(&matches));
        let CommandLine { command, mut flags } = line.map_err(|error| Failure::Usage(name, error))?;
        if let Some(command) = command {
            return Ok(command);
        }
        if name == pushpin::Name::Pushpin && flags.config.is_none() {
            flags.config = Some(pushpin::find().map_err(Failure::Refused)?);
        }
        Ok(Self::Serve(flags))
    }
}

/// Why no command came of the arguments.
enum Failure {
    Usage(pushpin::Name, clap::Error),
    Refused(pushpin::Refused),
}

impl Failure {
    fn exit(self) -> ! {
        match self {
            Self::Usage(pushpin::Name::Pushpin, error) if error.use_stderr() => {
                // Nobody to tell: the status says it all the same.
                error.print().unwrap_or_default();
                std::process::exit(1)
            }
            Self::Usage(_, error) => error.exit(),
            Self::Refused(why) => {
                eprintln!("fantail: {why}");
                std::process::exit(1)
            }
        }
    }
}

/// Flags that set keys of the configuration.
#[derive(Args, Debug)]
pub struct Flags {
    /// Read this file instead of ./fantail.toml; one of Pushpin's if it ends in .conf
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accept clients here: HOST:PORT or unix:PATH [may repeat]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Accept clients with TLS here: HOST:PORT [may repeat]
    #[arg(long, value_name = "ADDR")]
    tls_listen: Vec<String>,
    /// The certificate for TLS, with its chain: a PEM file
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The key of --cert: a PEM file
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Accept publishers here: HOST:PORT
    #[arg(long, value_name = "ADDR")]
    control: Option<String>,
    /// A line of the routes format, instead of the configured routes [may repeat]
    #[arg(long, value_name = "LINE")]
    route: Vec<String>,
    /// Threads that serve clients; 0: one per core
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// How items are written to many connections
    #[arg(long, value_parser = ["auto", "io_uring", "send"])]
    fan_out: Option<String>,
    /// Tell clients why a request failed
    #[arg(long)]
    debug: bool,
    #[arg(long, value_parser = ["text", "json", "pushpin"])]
    log_format: Option<String>,
    #[arg(long, value_parser = ["error", "warn", "info", "debug", "trace"])]
    log_level: Option<String>,
    #[command(flatten)]
    pushpin: pushpin::Options,
}

impl Flags {
    /// All layers over the defaults, with the environment as it is.
    pub fn sources(&self) -> Sources {
        let variables = std::env::vars_os()
            .map(|(name, text)| (name.to_string_lossy().into_owned(), text.to_string_lossy().into_owned()));
        Sources {
            file: self.config.clone(),
            instance: self.pushpin.id,
            variables: variables.collect(),
            flags: self.keys(),
        }
    }

    fn keys(&self) -> Vec<Flag> {
        let list = |list: &Vec<String>| (!list.is_empty()).then(|| toml::Value::from(list.clone()));
        let text = |text: &Option<String>| text.clone().map(toml::Value::from);
        let path = |path: &Option<PathBuf>| {
            let path = std::path::absolute(path.as_ref()?).ok()?;
            Some(toml::Value::from(path.to_string_lossy().into_owned()))
        };
        let keys = [
            ("--tls-listen", "server.tls_listen", list(&self.tls_listen)),
            ("--cert", "tls.cert_file", path(&self.cert)),
            ("--key", "tls.key_file", path(&self.key)),
            ("--listen", "server.listen", list(&self.listen)),
            ("--control", "control.listen", text(&self.control)),
            ("--route", "routes.lines", list(&self.route)),
            ("--shards", "server.shards", self.shards.map(|n| toml::Value::from(i64::from(n)))),
            ("--fan-out", "server.fan_out", text(&self.fan_out)),
            ("--debug", "proxy.debug", self.debug.then(|| toml::Value::from(true))),
            ("--log-format", "logging.format", text(&self.log_format)),
            ("--log-level", "logging.level", text(&self.log_level)),
        ];
        let keys = keys.into_iter().chain(self.pushpin.keys());
        let set = keys.filter_map(|(name, key, value)| Some((name, key, value?)));
        set.map(|(name, key, value)| Flag { name, key, value }).collect()
    }
}

/// Prints the effective configuration and the routes, or everything that is wrong.
pub fn check(flags: &Flags) -> ExitCode {
    let config = match Config::load(flags.sources()) {
        Ok(config) => config,
        Err(problems) => return refuse(problems.0),
    };
    let snapshot = match Snapshot::load(config, None) {
        Ok(snapshot) => snapshot,
        Err(invalid) => return refuse(invalid.0),
    };
    if !snapshot.broken.is_empty() {
        return refuse(&snapshot.broken);
    }
    let config = &snapshot.config;
    let head = match &config.file {
        Some(file) => format!("# Read: {}\n\n", printable(&file.to_string_lossy())),
        None => "# No file was read: there is no ./fantail.toml\n\n".into(),
    };
    let mut notices: String = config.notices.iter().map(|notice| comment(&notice.to_string())).collect();
    notices.extend(snapshot.routes.skipped().iter().map(|skipped| comment(&skipped.to_string())));
    let notices = if notices.is_empty() { notices } else { notices + "\n" };
    say(&(head + &notices + &config.render() + "\n" + &routes_table(snapshot.routes.table().routes())))
}

/// Prints the configuration of a `pushpin.conf` as a `fantail.toml`.
pub fn convert(convert: &Convert) -> ExitCode {
    let sources = Sources { file: Some(convert.file.clone()), instance: convert.id, ..Sources::default() };
    match Config::load(sources) {
        Err(problems) => refuse(problems.0),
        Ok(config) => {
            let head = comment(&format!("Converted from {}.", convert.file.display()));
            let notices = config.notices.iter().map(|notice| comment(&notice.to_string()));
            say(&(head + &notices.collect::<String>() + &config.to_toml()))
        }
    }
}

fn comment(text: &str) -> String {
    format!("# {}\n", printable(text))
}

/// Tells what is wrong, one line each, and gives the exit code for it.
pub fn refuse(problems: impl IntoIterator<Item = impl fmt::Display>) -> ExitCode {
    for problem in problems {
        eprintln!("fantail: {problem}");
    }
    ExitCode::FAILURE
}

/// What to say on the terminal when the server listens: where, and what to try if the built-in origin is
/// behind one of the routes. Addresses are those that were bound: without TLS, and with.
pub fn banner(
    config: &Config,
    [clients, sealed]: [&[Address]; 2],
    control: SocketAddr,
    routes: &Table,
) -> String {
    let file = config.file.as_ref().map(|file| printable(&file.to_string_lossy()).to_string());
    let mut out = format!("Fantail {}\n", env!("CARGO_PKG_VERSION"));
    out += &format!("  configuration  {}\n", file.as_deref().unwrap_or("the defaults"));
    for address in clients {
        out += &format!("  clients        {address}\n");
    }
    for address in sealed {
        out += &format!("  clients        https://{address}\n");
    }
    out += &format!("  publishers     http://{control}\n");
    if let Some(stream) = try_stream(config, clients, routes) {
        let item = r#"{"items":[{"channel":"test","formats":{"http-stream":{"content":"hello\n"}}}]}"#;
        let publish = format!("curl -d '{item}' http://{}/publish/", reachable(control));
        out += "\nTry it: hold a stream, then publish to it from another terminal.\n";
        out += &format!("  {stream}\n  {publish}\n");
    }
    out
}

/// The command that holds a stream of the built-in origin, when one is reachable without a name, and
/// anybody may publish to it.
fn try_stream(config: &Config, clients: &[Address], routes: &Table) -> Option<String> {
    let open = config.realms.iter().all(|realm| realm.id != DEFAULT_REALM || realm.keys.is_empty());
    let (client, host) = clients.iter().find_map(|address| match address {
        Address::Tcp(address) => Some((reachable(*address), reachable(*address).ip().to_string())),
        Address::Unix(_) => None,
    })?;
    let path = routes.routes().iter().filter(|_| open).find_map(|route| {
        let path = format!("{}/stream", route.path_beg.trim_end_matches('/'));
        let asked = Asked { host: &host, path: &path, tls: false, ws: false, id: None };
        let found = routes.find(asked).is_some_and(|found| Arc::ptr_eq(found, route));
        let is_test = route.targets.first().is_some_and(|target| target.address == route::Address::Test);
        let default = route.realm.as_deref().is_none_or(|realm| realm == DEFAULT_REALM);
        let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b));
        (found && is_test && default && plain && route.prefix.is_empty()).then_some(path)
    })?;
    Some(format!("curl -N http://{client}{path}"))
}

/// An address to connect to for one that was bound.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => address,
        IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
    }
}

/// One line a route, each a comment of TOML, so that the whole output of `check` is a configuration.
fn routes_table(routes: &[Arc<Route>]) -> String {
    let mut rows =
        vec![["line", "id", "proto", "host", "path", "realm", "slow", "targets"].map(String::from)];
    for route in routes {
        let or_dash = |text: &str| if text.is_empty() { "-".into() } else { printable(text).to_string() };
        let host = match &route.host {
            Host::Any => "*".into(),
            Host::None => "-".into(),
            Host::Exact(host) => printable(host).to_string(),
        };
        rows.push([
            route.line.to_string(),
            or_dash(&route.id),
            or_dash(route.ws.map_or("", |ws| if ws { "ws" } else { "http" })),
            host,
            or_dash(&route.path_beg),
            or_dash(route.realm.as_deref().unwrap_or(DEFAULT_REALM)),
            route.slow.name().to_owned(),
            route.targets.iter().map(target).collect::<Vec<_>>().join(" "),
        ]);
    }
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or_default();
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut out = String::from("# Routes\n");
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        out += format!("#   {}", cells.collect::<Vec<_>>().join("  ")).trim_end();
        out.push('\n');
    }
    out
}

fn target(target: &route::Target) -> String {
    let address = target.address.to_string();
    let flags = [
        (target.tls, ",ssl"),
        (target.untrusted, ",untrusted"),
        (target.trust_connect_host, ",trust_connect_host"),
        (target.insecure, ",insecure"),
        (target.over_http, ",over_http"),
        (target.one_event, ",one_event"),
    ];
    let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
    printable(&(address + &flags)).to_string()
}

/// Prints to standard output; nobody reading it is a failure, but no panic.
fn say(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn flags_are_the_uppermost_layer() {
        let line =
            ["fantail", "--listen", "127.0.0.1:1", "--listen", "[::1]:2", "--route", "a test", "--debug"];
        let flags = CommandLine::try_parse_from(line).unwrap().flags;
        let config = Config::load(Sources { flags: flags.keys(), ..Sources::default() }).unwrap();
        assert_eq!(config.server.listen.len(), 2);
        assert_eq!(config.routes.lines, ["a test"]);
        assert!(config.proxy.debug);
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_flag_sets_a_key_that_exists() {
        let flags = Flags {
            config: None,
            listen: vec!["127.0.0.1:1".into()],
            tls_listen: vec!["127.0.0.1:4".into()],
            cert: Some("a.crt".into()),
            key: Some("a.key".into()),
            control: Some("127.0.0.1:2".into()),
            route: vec!["* test".into()],
            shards: Some(3),
            fan_out: Some("send".into()),
            debug: true,
            log_format: Some("json".into()),
            log_level: Some("debug".into()),
            pushpin: pushpin::Options { logfile: Some("/nowhere/log".into()), ..pushpin::Options::default() },
        };
        let rendered = Config::load(Sources { flags: flags.keys(), ..Sources::default() }).unwrap().render();
        for flag in flags.keys() {
            assert!(rendered.contains(&format!("# {}\n", flag.name)), "{}: {rendered}", flag.name);
        }
    }

    #[test]
    fn the_banner_says_what_works() {
        let config = Config::default();
        let control = "0.0.0.0:5561".parse().unwrap();
        let clients = [Address::Tcp("[::]:7999".parse().unwrap())];
        let banner = |config: &Config, clients: &[Address], lines: &str| {
            banner(config, [clients, &[]], control, &Table::parse(lines).unwrap())
        };
        let stream = |lines: &str| {
            let text = banner(&config, &clients, lines);
            text.lines().find(|line| line.contains("curl -N")).map(|line| line.trim().to_owned())
        };
        assert_eq!(stream("* test").as_deref(), Some("curl -N http://[::1]:7999/stream"));
        assert_eq!(stream("*,path_beg=/t/ test").as_deref(), Some("curl -N http://[::1]:7999/t/stream"));
        for without in
            ["* 127.0.0.1:80", "example.com test", "*,ssl=yes test", "*,realm=a test", "*,prefix=p test"]
        {
            assert_eq!(stream(without), None, "{without}");
        }
        assert!(banner(&config, &clients, "* test").contains("http://127.0.0.1:5561/publish/"));
        let mut keyed = config.clone();
        keyed.realms[0].keys.push("k".into());
        assert!(!banner(&keyed, &clients, "* test").contains("curl"));
    }

    #[test]
    fn a_routes_table_is_a_comment() {
        let table =
            Table::parse("*,id=a 127.0.0.1:80 [::1]:81,ssl\nb.example,path_beg=/x,sig_key=s3cret test")
                .unwrap();
        let text = routes_table(table.routes());
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
        assert!(text.contains("127.0.0.1:80 [::1]:81,ssl\n") && text.contains("/x"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}
