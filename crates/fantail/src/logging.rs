//! Log lines and access lines, as text or JSON, to standard output or a file. One thread writes; everybody else puts
//! lines into a buffer with a limit and goes on: when the reader of the output is too slow, lines are
//! dropped, counted and announced. Nothing that serves a client ever waits for the log.

use std::{
    fmt::{self, Write as _},
    fs::{self, File},
    io::{self, IsTerminal as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime},
};

use parking_lot::{Condvar, Mutex};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    layer::{self, SubscriberExt as _},
};

use crate::config::{self, LogFormat};

mod access;
mod escape;
mod stamp;
#[cfg(test)]
mod tests;

pub use access::{Access, AccessLog, Outcome};
pub use escape::Printable;
use stamp::Stamp;

/// Starts the log on standard output or its file, and sends to it what the program traces. The first call
/// of a process decides what is traced.
pub fn init(log: &config::Logging) -> io::Result<Output> {
    let output = match &log.file {
        Some(path) => Output::start(log, open(path)?)?,
        None => Output::start(log, io::stdout())?,
    };
    tracing::subscriber::set_global_default(output.subscriber())
        .map_err(|why| io::Error::new(io::ErrorKind::AlreadyExists, why))?;
    Ok(output)
}

/// Text for a terminal or a log, with what is not printable escaped.
pub fn printable(text: &str) -> Printable<'_> {
    Printable(text)
}

/// Whether [`subscribed`] and [`published`] say anything.
pub fn says_channels() -> bool {
    tracing::enabled!(target: CHANNELS, Level::INFO)
}

/// A request subscribes to a channel; in Pushpin's words (spec 9.9), as the next.
pub fn subscribed(uri: &str, channel: &str) {
    tracing::info!(target: CHANNELS, channel, "subscribe {uri}");
}

/// An item has been delivered to so many subscribers, or as far as they take it.
pub fn published(channel: &str, receivers: u64) {
    tracing::info!(target: CHANNELS, channel, receivers, "publish");
}

/// Where lines go. Clones are cheap and share one writer.
#[derive(Clone, Debug)]
pub struct Output(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: config::Logging,
    buffer: Mutex<Buffer>,
    filled: Condvar,
    ended: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Buffer {
    /// Whole lines; at most [`BUFFER_BYTES`].
    lines: String,
    /// The file to write to from now on.
    reopened: Option<File>,
    closing: bool,
    ended: bool,
}

impl Output {
    /// Starts the thread that writes to `sink`; it ends after [`Output::finish`].
    pub fn start(log: &config::Logging, sink: impl io::Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            settings: log.clone(),
            buffer: Mutex::default(),
            filled: Condvar::new(),
            ended: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("log".into()).spawn(move || writer.write(Box::new(sink)))?;
        Ok(Self(shared))
    }

    /// Whether its lines are on a terminal now.
    pub fn is_terminal(&self) -> bool {
        self.0.settings.file.is_none() && io::stdout().is_terminal()
    }

    /// For one shard.
    pub fn access(&self) -> AccessLog {
        let Shared { settings, .. } = &*self.0;
        AccessLog::new(self.clone(), settings.access && settings.level >= Level::INFO)
    }

    /// Lines lost since the start: the output was too slow, or could not be written.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    /// Opens the log's file anew, if it has one: what turns log files over has moved it away. After a failure
    /// the log goes on where it was.
    pub fn reopen(&self) -> io::Result<()> {
        if let Some(path) = &self.0.settings.file {
            self.0.buffer.lock().reopened = Some(open(path)?);
            self.0.filled.notify_one();
        }
        Ok(())
    }

    /// Waits until everything is written, or at most a second if nobody reads. Later lines are dropped.
    pub fn finish(&self) {
        let mut buffer = self.0.buffer.lock();
        buffer.closing = true;
        self.0.filled.notify_one();
        self.0.ended.wait_while_for(&mut buffer, |buffer| !buffer.ended, FINISH_TIMEOUT);
    }

    fn subscriber(&self) -> impl Subscriber + Send + Sync + 'static {
        let settings = &self.0.settings;
        let level = LevelFilter::from_level(settings.level);
        // Libraries explain themselves at length; they are asked only at "trace".
        let others = if settings.level == Level::TRACE { level } else { level.min(LevelFilter::WARN) };
        let channels = if settings.channels { level } else { LevelFilter::OFF };
        let filter =
            Targets::new().with_target("fantail", level).with_target(CHANNELS, channels).with_default(others);
        tracing_subscriber::registry().with(Traced(self.clone()).with_filter(filter))
    }

    fn format(&self) -> LogFormat {
        self.0.settings.format
    }

    /// `text` is whole lines, `lines` of them.
    fn push(&self, text: &str, lines: u64) {
        let mut buffer = self.0.buffer.lock();
        if buffer.closing || buffer.lines.len() + text.len() > BUFFER_BYTES {
            self.0.dropped.fetch_add(lines, Relaxed);
            return;
        }
        let wake = buffer.lines.is_empty();
        buffer.lines.push_str(text);
        drop(buffer);
        if wake {
            self.0.filled.notify_one();
        }
    }
}

impl Shared {
    fn write(&self, mut sink: Box<dyn io::Write + Send>) {
        let mut chunk = String::new();
        let mut announced = 0;
        loop {
            let mut buffer = self.buffer.lock();
            let idle =
                |buffer: &mut Buffer| buffer.lines.is_empty() && buffer.reopened.is_none() && !buffer.closing;
            self.filled.wait_while(&mut buffer, idle);
            std::mem::swap(&mut buffer.lines, &mut chunk);
            let (reopened, closing) = (buffer.reopened.take(), buffer.closing);
            drop(buffer);
            if let Some(file) = reopened {
                sink = Box::new(file);
            }
            let dropped = self.dropped.load(Relaxed);
            if dropped > announced {
                self.announce(&mut chunk, dropped - announced);
                announced = dropped;
            }
            if chunk.is_empty() {
                if closing {
                    break;
                }
                continue;
            }
            if sink.write_all(chunk.as_bytes()).and_then(|()| sink.flush()).is_err() {
                let lost = u64::try_from(chunk.matches('\n').count()).unwrap_or(u64::MAX);
                announced += lost;
                self.dropped.fetch_add(lost, Relaxed);
            }
            chunk.clear();
        }
        self.buffer.lock().ended = true;
        self.ended.notify_all();
    }

    fn announce(&self, chunk: &mut String, dropped: u64) {
        let mut stamp = Stamp::default();
        let message = format!("{dropped} lines of this log were dropped: its reader is too slow");
        let format = self.settings.format;
        line(chunk, format, Level::WARN, &mut stamp, &Fields { message, ..Fields::new(format) });
    }
}

/// The events of tracing as lines.
struct Traced(Output);

impl<S: Subscriber> Layer<S> for Traced {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let format = self.0.format();
        let mut fields = Fields::new(format);
        event.record(&mut fields);
        let mut out = String::new();
        line(&mut out, format, *event.metadata().level(), &mut Stamp::default(), &fields);
        self.0.push(&out, 1);
    }
}

/// An event's message, and its other fields as they will stand in the line.
struct Fields {
    format: LogFormat,
    message: String,
    others: String,
}

impl Fields {
    fn new(format: LogFormat) -> Self {
        Self { format, message: String::new(), others: String::new() }
    }

    fn name(&mut self, name: &str) {
        match self.format {
            LogFormat::Text | LogFormat::Pushpin => {
                self.others.push(' ');
                self.others.push_str(name);
                self.others.push('=');
            }
            LogFormat::Json => {
                self.others.push(',');
                escape::json(&mut self.others, name);
                self.others.push(':');
            }
        }
    }

    fn text(&mut self, field: &Field, text: String) {
        if field.name() == "message" {
            self.message = text;
            return;
        }
        self.name(field.name());
        match self.format {
            LogFormat::Text | LogFormat::Pushpin => escape::word(&mut self.others, &text),
            LogFormat::Json => escape::json(&mut self.others, &text),
        }
    }

    /// A number or a truth, which is written alike in text and JSON.
    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.name(field.name());
        // Writing to a String cannot fail.
        write!(self.others, "{value}").unwrap_or_default();
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, value.to_string());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.plain(field, value);
        } else {
            self.text(field, value.to_string());
        }
    }
}

fn line(out: &mut String, format: LogFormat, level: Level, stamp: &mut Stamp, fields: &Fields) {
    let time = stamp.at(SystemTime::now());
    match format {
        LogFormat::Text | LogFormat::Pushpin => {
            // Pushpin's names (spec 9.9), which tools parse.
            let level = if level == Level::ERROR { "ERR" } else { level.as_str() };
            let message = printable(&fields.message);
            write!(out, "[{level}] {time} {message}{}", fields.others).unwrap_or_default();
            out.push('\n');
        }
        LogFormat::Json => {
            let (date, hour) = time.split_once(' ').unwrap_or((time, ""));
            let level = level.as_str().to_ascii_lowercase();
            write!(out, r#"{{"time":"{date}T{hour}Z","level":"{level}","message":"#).unwrap_or_default();
            escape::json(out, &fields.message);
            out.push_str(&fields.others);
            out.push_str("}\n");
        }
    }
}

/// What lines about published items and subscriptions are traced as.
const CHANNELS: &str = "fantail::channels";

/// Creates the folder, too: Pushpin does.
fn open(path: &Path) -> io::Result<File> {
    let opened = path.parent().map_or(Ok(()), fs::create_dir_all);
    let opened = opened.and_then(|()| File::options().append(true).create(true).open(path));
    opened.map_err(|why| io::Error::new(why.kind(), format!("{}: {why}", path.display())))
}

/// A second of access lines at some 30,000 requests a second.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// How long a process that ends waits for a reader of its log.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
