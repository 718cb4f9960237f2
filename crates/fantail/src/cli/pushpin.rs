//! Pushpin's own command line (spec 9.6): its options, the names of its programs, and where it looks for its
//! configuration.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use clap::{Args, value_parser};

use crate::config;

/// Options of Pushpin's that Fantail has under other names, or not.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Options of Pushpin's")]
pub(super) struct Options {
    /// Accept clients here, and nowhere else: [ADDR:]PORT
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = port, conflicts_with = "listen")]
    pub(super) port: Option<String>,
    /// One of several instances with one pushpin.conf: ZeroMQ and control ports are 10 N higher
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(..=MOST_INSTANCES))]
    pub(super) id: Option<u32>,
    /// Log to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    pub(super) logfile: Option<PathBuf>,
    /// 0 (errors) to 4 (all), as --log-level; what is said of single services is not used
    #[arg(long, value_name = "N", value_parser = level, conflicts_with = "log_level")]
    pub(super) loglevel: Option<String>,
    /// As --log-level debug
    #[arg(long, conflicts_with = "log_level")]
    pub(super) verbose: bool,
    /// Does nothing: there is one output
    #[arg(short, long)]
    pub(super) merge_output: bool,
}

/// Flag, key and value.
type Key = (&'static str, &'static str, Option<toml::Value>);

impl Options {
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + use<> {
        let level = self.loglevel.clone().filter(|_| !self.verbose).map(toml::Value::from);
        // Where it was meant: relative paths of the configuration start from its file.
        let logfile = self.logfile.as_ref().map(|file| {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
            toml::Value::from(file.to_string_lossy().into_owned())
        });
        let listen = self.port.clone().map(|address| toml::Value::from(vec![address]));
        let encrypted = self.port.is_some().then(|| toml::Value::Array(Vec::new()));
        [
            ("--port", "server.listen", listen),
            ("--port", "server.tls_listen", encrypted),
            ("--logfile", "logging.file", logfile),
            ("--loglevel", "logging.level", level),
            ("--verbose", "logging.level", self.verbose.then(|| toml::Value::from("debug"))),
        ]
        .into_iter()
    }
}

/// What the program was called as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Name {
    Fantail,
    Pushpin,
}

impl Name {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Fantail => "fantail",
            Self::Pushpin => "pushpin",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("port must be greater than or equal to 1")]
struct NoPort;

/// Why nothing is started under a name of Pushpin's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "this is Fantail, which has no process of its own for {0}: start it as pushpin or fantail, with the \
         same pushpin.conf"
    )]
    Part(String),
    #[error("no configuration file found. Tried: {}", PLACES.join(" "))]
    NoConfiguration,
}

/// Which program the first argument names. Those that Pushpin starts itself are refused: they are parts of one
/// process here.
pub(super) fn called(program: Option<OsString>) -> Result<Name, Refused> {
    let program = program.unwrap_or_default();
    let name = Path::new(&program).file_name().and_then(OsStr::to_str).unwrap_or_default();
    match name {
        "pushpin" => Ok(Name::Pushpin),
        name if PARTS.contains(&name) => Err(Refused::Part(name.to_owned())),
        _ => Ok(Name::Fantail),
    }
}

/// Pushpin 1.x takes its long options with one dash, too.
pub(super) fn long(argument: OsString) -> OsString {
    let Some(text) = argument.to_str() else { return argument };
    let name = text.strip_prefix('-').map(|rest| rest.split('=').next().unwrap_or(rest));
    match name {
        Some(name) if LONG.contains(&name) => format!("-{text}").into(),
        _ => argument,
    }
}

/// The configuration of who is called `pushpin` without being told one.
pub(super) fn find() -> Result<PathBuf, Refused> {
    let found = PLACES.iter().map(PathBuf::from).find(|path| path.is_file());
    found.ok_or(Refused::NoConfiguration)
}

fn port(text: &str) -> Result<String, NoPort> {
    let port = text.rsplit_once(':').map_or(text, |(_, port)| port);
    match port.parse::<u16>() {
        Ok(1..) => Ok(config::tcp(text)),
        _ => Err(NoPort),
    }
}

fn level(text: &str) -> Result<String, config::LevelError> {
    config::level(text).map(|(level, _)| level.to_owned())
}

/// The highest of which all of Pushpin's usual ports exist.
pub(super) const MOST_INSTANCES: i64 = 5990;
const PARTS: [&str; 5] =
    ["pushpin-proxy", "pushpin-handler", "pushpin-connmgr", "pushpin-condure", "m2adapter"];
const LONG: [&str; 10] =
    ["config", "logfile", "loglevel", "verbose", "merge-output", "port", "id", "route", "version", "help"];
const PLACES: [&str; 4] =
    ["config/pushpin.conf", "pushpin.conf", "examples/config/pushpin.conf", "/etc/pushpin/pushpin.conf"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs() {
        let called = |program: &str| called(Some(program.into()));
        assert_eq!(called("/usr/bin/pushpin").unwrap(), Name::Pushpin);
        assert_eq!(called("target/debug/fantail").unwrap(), Name::Fantail);
        assert_eq!(called("pushpin2").unwrap(), Name::Fantail);
        for part in PARTS {
            assert!(called(&format!("/usr/bin/{part}")).unwrap_err().to_string().contains(part));
        }
    }

    #[test]
    fn one_dash_is_enough_for_long_options() {
        for (given, expected) in [
            ("-config=x", "--config=x"),
            ("-verbose", "--verbose"),
            ("--verbose", "--verbose"),
            ("-m", "-m"),
            ("-idle", "-idle"),
            ("config", "config"),
        ] {
            assert_eq!(long(given.into()), expected);
        }
    }

    #[test]
    fn ports() {
        assert_eq!(port("80").unwrap(), "0.0.0.0:80");
        assert_eq!(port("[::1]:80").unwrap(), "[::1]:80");
        for bad in ["0", "", "x", "127.0.0.1:", "127.0.0.1:0", "65536"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}
