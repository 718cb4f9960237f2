//! Access lines: one a request, formatted into a buffer of the shard's own and handed to the writer now
//! and then. Nothing here waits, and nothing goes through tracing.

use std::{
    fmt::Write as _,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::{
    Output,
    escape::{json, word},
    stamp::Stamp,
};
use crate::config::LogFormat;

/// What is said of one request. All text may come from strangers.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    pub method: &'a str,
    pub uri: &'a str,
    /// `HOST:PORT` or `test`; empty: it was sent nowhere.
    pub target: &'a str,
    /// A WebSocket that the target is asked about by HTTP requests.
    pub over_http: bool,
    pub outcome: Outcome,
    /// From the request's head to its outcome.
    pub took: Duration,
    /// Empty: no realm was found.
    pub realm: &'a str,
    /// The route's explicit id, or empty.
    pub route: &'a str,
    /// `None` on a Unix socket.
    pub from: Option<IpAddr>,
    pub user_agent: Option<&'a [u8]>,
    /// `Referer`
    pub referer: Option<&'a [u8]>,
    /// A hold asked the origin again; no client sent this request.
    pub retry: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Answered: the status, and the bytes of the body.
    Code(u16, u64),
    /// Became a hold.
    Accept,
    /// The client left, or the response broke off.
    Error,
}

/// A shard's access lines. When they are switched off, [`AccessLog::line`] returns at once.
#[derive(Debug)]
pub struct AccessLog {
    on: bool,
    output: Output,
    buffer: String,
    lines: u64,
    stamp: Stamp,
}

impl AccessLog {
    pub(super) fn new(output: Output, on: bool) -> Self {
        Self { on, output, buffer: String::new(), lines: 0, stamp: Stamp::default() }
    }

    /// Whether lines are wanted: to spare the caller gathering what is not said.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Never blocks. The line is with the writer after [`FLUSH_BYTES`] or the next flush.
    pub fn line(&mut self, access: &Access<'_>) {
        if !self.on {
            return;
        }
        let settings = &self.output.0.settings;
        let access = &Access {
            from: access.from.filter(|_| settings.from),
            user_agent: access.user_agent.filter(|_| settings.user_agent),
            ..*access
        };
        let time = self.stamp.at(SystemTime::now());
        match self.output.format() {
            LogFormat::Text => text_line(&mut self.buffer, time, access),
            LogFormat::Pushpin => pushpin_line(&mut self.buffer, time, access),
            LogFormat::Json => json_line(&mut self.buffer, time, access),
        }
        self.lines += 1;
        if self.buffer.len() >= FLUSH_BYTES {
            self.flush();
        }
    }

    /// Hands what there is to the writer; to be called a few times a second, and costs nothing when there
    /// is nothing. Never blocks: what does not fit is dropped and counted.
    pub fn flush(&mut self) {
        if self.lines > 0 {
            self.output.push(&self.buffer, self.lines);
            self.buffer.clear();
            self.lines = 0;
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Pushpin's request line, field by field (spec 9.9).
fn pushpin_line(out: &mut String, time: &str, access: &Access<'_>) {
    put(out, format_args!("[INFO] {time} "));
    word(out, access.method);
    out.push(' ');
    word(out, access.uri);
    if !access.target.is_empty() {
        out.push_str(" -> ");
        word(out, access.target);
        out.push_str(if access.over_http { "[http]" } else { "" });
    }
    if let Some(from) = access.from {
        put(out, format_args!(" from={from}"));
    }
    let lossy = |text: Option<&[u8]>| text.map(|text| String::from_utf8_lossy(text).into_owned());
    let route = Some(access.route).filter(|route| !route.is_empty()).map(str::to_owned);
    for (name, value) in [(" ref=", lossy(access.referer)), (" route=", route)] {
        if let Some(value) = value {
            out.push_str(name);
            word(out, &value);
        }
    }
    outcome(out, access);
    if let Some(user_agent) = lossy(access.user_agent) {
        out.push_str(" ua=");
        word(out, &user_agent);
    }
    out.push('\n');
}

fn outcome(out: &mut String, access: &Access<'_>) {
    match access.outcome {
        Outcome::Code(code, bytes) => put(out, format_args!(" code={code} {bytes}")),
        Outcome::Accept => out.push_str(" accept"),
        Outcome::Error => out.push_str(" error"),
    }
    if access.retry {
        out.push_str(" retry");
    }
}

/// Pushpin's request line, and what it does not say.
fn text_line(out: &mut String, time: &str, access: &Access<'_>) {
    out.push_str("[INFO] ");
    out.push_str(time);
    out.push(' ');
    word(out, access.method);
    out.push(' ');
    word(out, access.uri);
    for (name, value) in [(" -> ", access.target), (" route=", access.route), (" realm=", access.realm)] {
        if !value.is_empty() {
            out.push_str(name);
            word(out, value);
        }
    }
    if let Some(from) = access.from {
        put(out, format_args!(" from={from}"));
    }
    outcome(out, access);
    put(out, format_args!(" ms={}", Millis(access.took)));
    if let Some(user_agent) = access.user_agent {
        out.push_str(" ua=");
        word(out, &String::from_utf8_lossy(user_agent));
    }
    out.push('\n');
}

fn json_line(out: &mut String, time: &str, access: &Access<'_>) {
    let (date, hour) = time.split_once(' ').unwrap_or((time, ""));
    put(out, format_args!(r#"{{"time":"{date}T{hour}Z","level":"info","message":"request""#));
    let always = [(r#","method":"#, access.method), (r#","uri":"#, access.uri)];
    let known =
        [(r#","target":"#, access.target), (r#","route":"#, access.route), (r#","realm":"#, access.realm)];
    for (name, value) in always.into_iter().chain(known.into_iter().filter(|(_, value)| !value.is_empty())) {
        out.push_str(name);
        json(out, value);
    }
    if let Some(from) = access.from {
        put(out, format_args!(r#","from":"{from}""#));
    }
    match access.outcome {
        Outcome::Code(code, bytes) => put(out, format_args!(r#","code":{code},"bytes":{bytes}"#)),
        Outcome::Accept => out.push_str(r#","outcome":"accept""#),
        Outcome::Error => out.push_str(r#","outcome":"error""#),
    }
    if access.retry {
        out.push_str(r#","retry":true"#);
    }
    put(out, format_args!(r#","ms":{}"#, Millis(access.took)));
    if let Some(user_agent) = access.user_agent {
        out.push_str(r#","ua":"#);
        json(out, &String::from_utf8_lossy(user_agent));
    }
    out.push_str("}\n");
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    out.write_fmt(text).unwrap_or_default();
}

struct Millis(Duration);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0.as_millis(), self.0.subsec_micros() % 1000)
    }
}

/// A few hundred lines: few enough hand-overs, and little lost if the process is killed.
const FLUSH_BYTES: usize = 16 * 1024;
