//! The real binary on free loopback ports. It is killed by its pid when the test ends, and the test fails
//! if it died or panicked before.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    client::{Client, Response},
    wire::DEADLINE,
};

/// How a server is started, beyond its routes.
#[derive(Debug, Default)]
pub struct Options {
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    config: Option<String>,
    control: Option<String>,
    descriptors: Option<u32>,
    files: Vec<(String, String)>,
}

impl Options {
    /// One key of the configuration, such as `client.head_timeout`, through its environment variable.
    pub fn set(&mut self, key: &str, value: &str) -> &mut Self {
        let name = format!("FANTAIL_{}", key.to_uppercase().replace('.', "__"));
        self.environment.push((name, value.into()));
        self
    }

    /// A variable of the process's environment.
    pub fn environment(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// A configuration file.
    pub fn config(&mut self, toml: impl Into<String>) -> &mut Self {
        self.config = Some(toml.into());
        self
    }

    /// An address for the control port instead of a free one on loopback.
    pub fn control(&mut self, address: impl Into<String>) -> &mut Self {
        self.control = Some(address.into());
        self
    }

    pub fn argument(&mut self, argument: impl Into<String>) -> &mut Self {
        self.arguments.push(argument.into());
        self
    }

    /// What the server, and nobody else, finds in a file of the system.
    pub fn file(&mut self, path: &str, text: &str) -> &mut Self {
        self.files.push((path.into(), text.into()));
        self
    }

    /// The process's limit of open files.
    pub fn descriptors(&mut self, limit: u32) -> &mut Self {
        self.descriptors = Some(limit);
        self
    }
}

#[derive(Debug)]
pub struct TestServer {
    child: Child,
    /// The first client address.
    pub client: SocketAddr,
    /// The first that speaks TLS.
    pub client_tls: Option<SocketAddr>,
    pub control: SocketAddr,
    /// Holds `fantail.toml`, if there is one, and what a test puts beside it.
    pub folder: tempfile::TempDir,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
    stopped: bool,
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    out: Vec<String>,
    err: String,
    ended: bool,
}

impl TestServer {
    /// Starts the server with these routes and waits until it listens.
    pub fn start(routes: &[&str], options: impl FnOnce(&mut Options)) -> Self {
        let mut chosen = Options::default();
        options(&mut chosen);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (child, log, readers) = spawn(routes, &chosen, folder.path());
        let unset = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Self {
            child,
            client: unset,
            client_tls: None,
            control: unset,
            folder,
            log,
            readers,
            stopped: false,
        };
        let line = server.log_line(|line| field(line, "message") == Some(&json!("listening")));
        let address = |name| {
            let all = field(&line, name).and_then(Value::as_str).expect("an address");
            all.split(',').next().expect("one at least").trim().parse()
        };
        server.client = address("client").expect("an address");
        server.client_tls = address("client_tls").ok();
        server.control = address("control").expect("an address");
        server.log_line(|line| {
            field(line, "message").and_then(Value::as_str).is_some_and(|m| m.ends_with("started"))
        });
        server
    }

    /// One route to this target, and nothing else.
    pub fn before(origin: &impl ToString) -> Self {
        Self::start(&[&format!("* {}", origin.to_string())], |_| {})
    }

    /// Starts a server that must refuse to run; returns its exit status and all it wrote.
    pub fn refused(routes: &[&str], options: impl FnOnce(&mut Options)) -> (ExitStatus, String) {
        let mut chosen = Options::default();
        options(&mut chosen);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut child, log, readers) = spawn(routes, &chosen, folder.path());
        let status = wait(&mut child).expect("it refuses to start");
        readers.into_iter().for_each(|r| drop(r.join()));
        let lines = log.lines.lock().expect("no panic holds it");
        (status, format!("{}\n{}", lines.out.join("\n"), lines.err))
    }

    /// Changes what the server finds in a file of [`Options::file`].
    pub fn put_file(&self, path: &str, text: &str) {
        std::fs::write(instead_of(self.folder.path(), path), text).expect("a temporary file");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.client)
    }

    /// One GET on its own connection.
    pub fn get(&self, target: &str) -> Response {
        self.connect().get(target).response()
    }

    /// One request on its own connection.
    pub fn request(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Response {
        self.connect().request(method, target, fields, body).response()
    }

    /// Asks for a stream and waits until its head is there.
    pub fn stream(&self, target: &str) -> Client {
        let mut client = self.connect();
        let head = client.get(target).head();
        assert_eq!(head.status(), 200, "{head:?}");
        client
    }

    /// One request to the control port.
    pub fn control(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Response {
        let host = self.control.to_string();
        let mut all = vec![("Host", host.as_str())];
        all.extend_from_slice(fields);
        if method == "POST" && body.is_empty() {
            all.push(("Content-Length", "0"));
        }
        Client::connect(self.control).request(method, target, &all, body).response()
    }

    /// Publishes `items`, a JSON list; returns the status and the answer's text.
    pub fn try_publish(&self, items: &Value) -> (u16, String) {
        let body = json!({ "items": items }).to_string();
        let answer = self.control("POST", "/publish/", &JSON, body.as_bytes());
        (answer.status(), answer.text())
    }

    /// Publishes items that must be accepted.
    pub fn publish(&self, items: &Value) {
        let (status, text) = self.try_publish(items);
        assert_eq!(status, 200, "{text}");
    }

    /// Publishes `content` to the streams of `channel`.
    pub fn publish_stream(&self, channel: &str, content: &str) {
        self.publish(&json!([stream_item(channel, content)]));
    }

    /// Publishes and waits for the receipt: one JSON object an item.
    pub fn receipts(&self, items: &Value) -> Vec<Value> {
        let body = json!({ "items": items }).to_string();
        let answer = self.control("POST", "/publish/?receipt=true", &JSON, body.as_bytes());
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let receipt: Value = serde_json::from_slice(&answer.body).expect("JSON");
        receipt["items"].as_array().expect("a list").clone()
    }

    /// All samples of the metrics page: the name with its labels, and the value.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        let page = self.control("GET", "/metrics", &[], b"");
        assert_eq!(page.status(), 200);
        let text = page.text();
        let samples = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
        samples
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').expect("a sample");
                (name.to_string(), value.parse().expect("a number"))
            })
            .collect()
    }

    /// The sum of all samples of `name` that have every one of `labels` (`kind="stream"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let metrics = self.metrics();
        let fits = |sample: &str| {
            let (own, rest) = sample.split_once('{').unwrap_or((sample, ""));
            own == name && labels.iter().all(|l| rest.contains(l))
        };
        let all: Vec<f64> = metrics.iter().filter(|(n, _)| fits(n)).map(|(_, v)| *v).collect();
        assert!(!all.is_empty(), "no metric {name} {labels:?} in {metrics:#?}");
        all.iter().sum()
    }

    /// Waits until a metric has a value.
    pub fn wait_metric(&self, name: &str, labels: &[&str], wanted: f64) {
        self.wait_until(DEADLINE, &format!("{name} {labels:?} = {wanted}"), || {
            (self.metric(name, labels) - wanted).abs() < 0.5
        });
    }

    /// Waits until that many connections are held: `kind` is `stream` or `poll`.
    pub fn wait_pins(&self, kind: &str, wanted: usize) {
        self.wait_metric("fantail_pins", &[&format!("kind=\"{kind}\"")], wanted as f64);
    }

    /// Asks again and again, each time over a socket, until it is so.
    pub fn wait_until(&self, time: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + time;
        while !is_so() {
            assert!(Instant::now() < until, "not within {time:?}: {what}");
            thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Waits for a line of the log, those already written included.
    pub fn log_line(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let lines = self.log.lines.lock().expect("no panic holds it");
        let search =
            |lines: &Lines| lines.out.iter().filter_map(|l| serde_json::from_str(l).ok()).find(|v| wanted(v));
        let (lines, _) = self
            .log
            .more
            .wait_timeout_while(lines, DEADLINE, |lines| search(lines).is_none() && !lines.ended)
            .expect("no panic holds it");
        let found = search(&lines);
        let shown = format!("{}\n{}", lines.out.join("\n"), lines.err);
        drop(lines);
        found.unwrap_or_else(|| panic!("no such line in the log:\n{shown}"))
    }

    /// Waits for a line of the log whose text contains this.
    pub fn log_text(&self, part: &str) -> Value {
        self.log_line(|line| line.to_string().contains(part))
    }

    /// The lines written so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lines.lock().expect("no panic holds it").out.clone()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }

    /// SIGTERM, then the exit status.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let status = wait(&mut self.child).expect("it stops when it is told to");
        self.stopped = true;
        status
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        wait(&mut self.child).expect("nothing outlives SIGKILL");
        self.stopped = true;
    }

    /// CPU time used so far, user and system.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        let after = stat.rsplit(')').next().expect("fields after the name");
        let ticks: u64 =
            after.split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Resident anonymous memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with("RssAnon:")).expect("Linux 4.5");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// Open file descriptors.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let died = if self.stopped { None } else { self.child.try_wait().ok().flatten() };
        drop(self.child.kill());
        drop(self.child.wait());
        self.readers.drain(..).for_each(|r| drop(r.join()));
        let lines = self.log.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let panicked = lines.err.contains("panicked");
        if thread::panicking() {
            let mut shown = String::new();
            for line in &lines.out {
                writeln!(shown, "{line}").expect("a String takes all");
            }
            eprintln!("--- the server's log\n{shown}--- its errors\n{}", lines.err);
        } else {
            assert!(died.is_none(), "the server died: {died:?}\n{}", lines.err);
            assert!(!panicked, "the server panicked:\n{}", lines.err);
        }
    }
}

pub const JSON: [(&str, &str); 1] = [("Content-Type", "application/json")];

/// An item for the streams of a channel.
pub fn stream_item(channel: &str, content: &str) -> Value {
    json!({ "channel": channel, "formats": { "http-stream": { "content": content } } })
}

/// An item for the long-polls of a channel.
pub fn poll_item(channel: &str, body: &str) -> Value {
    json!({ "channel": channel, "formats": { "http-response": { "body": body } } })
}

/// A field of a log line, wherever the format puts it.
pub fn field<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    line.get(name).or_else(|| line.get("fields")?.get(name))
}

/// Where the text is that the server finds in a file of the system.
fn instead_of(folder: &Path, path: &str) -> std::path::PathBuf {
    folder.join(path.replace('/', "-"))
}

fn spawn(routes: &[&str], options: &Options, folder: &Path) -> (Child, Arc<Log>, Vec<JoinHandle<()>>) {
    let binary = env!("CARGO_BIN_EXE_fantail");
    let mut command = match options.descriptors {
        None if !options.files.is_empty() => {
            // A name space for mounts, which ends with the process.
            let mut script = String::new();
            for (path, text) in &options.files {
                let ours = instead_of(folder, path);
                std::fs::write(&ours, text).expect("a temporary file");
                write!(script, "mount --bind {} {path} && ", ours.display()).expect("a String takes all");
            }
            let mut unshare = Command::new("unshare");
            unshare.args(["-rm", "sh", "-c", &format!(r#"{script}exec "$@""#), "sh", binary]);
            unshare
        }
        Some(limit) => {
            let mut prlimit = Command::new("prlimit");
            prlimit.arg(format!("--nofile={limit}:{limit}")).arg(binary);
            prlimit
        }
        None => Command::new(binary),
    };
    command.args(["serve", "--listen", "127.0.0.1:0", "--control"]);
    command.arg(options.control.as_deref().unwrap_or("127.0.0.1:0"));
    for route in routes {
        command.args(["--route", route]);
    }
    if let Some(toml) = &options.config {
        let file = folder.join("fantail.toml");
        std::fs::write(&file, toml.replace("{folder}", &folder.to_string_lossy())).expect("a temporary file");
        command.arg("--config").arg(file);
    }
    command.args(&options.arguments).current_dir(folder);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FANTAIL_")) {
        command.env_remove(name);
    }
    // Tests count what origins are asked.
    command.env("FANTAIL_GRIP__UPDATE_ON_FIRST_SUBSCRIPTION", "false");
    command.env("FANTAIL_LOGGING__FORMAT", "json").envs(options.environment.iter().cloned());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let log = Arc::new(Log::default());
    let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let readers = vec![
        thread::spawn({
            let log = log.clone();
            move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    log.lines.lock().expect("no panic holds it").out.push(line);
                    log.more.notify_all();
                }
                log.lines.lock().expect("no panic holds it").ended = true;
                log.more.notify_all();
            }
        }),
        thread::spawn({
            let log = log.clone();
            move || {
                let (mut err, mut piece) = (err, [0; 4096]);
                while let Ok(n @ 1..) = err.read(&mut piece) {
                    let text = String::from_utf8_lossy(&piece[..n]).into_owned();
                    log.lines.lock().expect("no panic holds it").err.push_str(&text);
                }
            }
        }),
    ];
    (child, log, readers)
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let until = Instant::now() + DEADLINE;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().expect("our child") {
            return Some(status);
        }
        thread::park_timeout(Duration::from_millis(10));
    }
    drop(child.kill());
    None
}
