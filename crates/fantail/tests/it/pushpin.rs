//! Started as Pushpin is started, with its configuration: what its users and `fastly compute serve` rely on.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::harness::{Client, DEADLINE, Origin, Request, hold};

const BINARY: &str = env!("CARGO_BIN_EXE_fantail");
const DEBIAN: &str = include_str!("pushpin/debian.conf");
const FASTLY: &str = include_str!("pushpin/fastly.conf");

/// A process with a folder of its own, killed at the end.
struct Pushpin {
    child: Child,
    lines: Receiver<String>,
    folder: tempfile::TempDir,
}

impl Pushpin {
    /// `conf` and `routes` may name the `{folder}`.
    fn start(conf: &str, routes: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let text = text.replace("{folder}", &folder.path().to_string_lossy());
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        write("pushpin.conf", conf);
        write("routes", routes);
        let arguments: Vec<String> = arguments
            .iter()
            .map(|argument| argument.replace("{folder}", &folder.path().to_string_lossy()))
            .collect();
        let mut child = Command::new(BINARY)
            .arg(format!("--config={}", folder.path().join("pushpin.conf").display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, folder }
    }

    /// Reads its output up to a line that ends so, and returns what was read.
    fn read_until(&self, end: &str) -> Vec<String> {
        self.read_to(&format!("a line that ends in {end}"), |line| line.ends_with(end))
    }

    fn read_to(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut read = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => read.push(line),
                Err(why) => panic!("{why}: not {what}: {read:#?}"),
            }
            if read.last().is_some_and(|line| wanted(line)) {
                return read;
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Pushpin {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Pushpin cannot be asked for free ports.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn publish(control: u16, channel: &str, content: &str) {
    let body = format!(
        r#"{{"items":[{{"channel":"{channel}","formats":{{"http-stream":{{"content":"{content}"}}}}}}]}}"#
    );
    let address = SocketAddr::from(([127, 0, 0, 1], control));
    let fields = [("Host", "127.0.0.1"), ("Content-Type", "application/json")];
    let mut client = Client::connect(address);
    assert_eq!(client.request("POST", "/publish/", &fields, body.as_bytes()).response().status(), 200);
}

/// [LEVEL] date time message
fn message(line: &str) -> (&str, &str) {
    let mut parts = line.splitn(4, ' ');
    let level = parts.next().unwrap().trim_matches(['[', ']']);
    let (date, time) = (parts.next().unwrap(), parts.next().unwrap());
    assert!(date.len() == "2026-11-24".len() && time.len() == "03:04:05.678".len(), "{line}");
    (level, parts.next().unwrap())
}

/// Binaries under other names, started in an empty folder.
fn called(name: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join(name);
    symlink(BINARY, &program).unwrap();
    Command::new(program).args(arguments).current_dir(folder.path()).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// fanout-cloud.md B1.
#[test]
fn fastly_compute_serve_gets_what_it_expects() {
    let origin = Origin::answering(|_: &Request| hold("stream", "news", &[], "open\n"));
    let (client, control) = (free_port(), free_port());
    let mut conf = FASTLY.replace("push_in_http_addr=0.0.0.0", "push_in_http_addr=127.0.0.1");
    let zeromq = ["pull", "sub", "command"].map(|name| (format!("{{{name}}}"), free_port().to_string()));
    for (name, port) in zeromq {
        conf = conf.replace(&name, &port);
    }
    let conf =
        conf.replace("{client}", &format!("127.0.0.1:{client}")).replace("{control}", &control.to_string());
    let routes = format!("id=backend,replace_beg=/base {},over_http,host=a.example\n", origin.address());
    let pushpin = Pushpin::start(&conf, &routes, &["--verbose"]);
    let lines = pushpin.read_until("started");
    let calm = |line: &String| message(line).0 != "WARN" || line.contains(" open files ");
    assert!(lines.iter().all(calm), "{lines:#?}");
    assert!(lines.iter().any(|line| message(line).1 == "routes loaded with 1 entries"), "{lines:#?}");

    let address = SocketAddr::from(([127, 0, 0, 1], client));
    let mut stream = Client::connect(address);
    let fields = [("Host", "b.example"), ("pushpin-route", "backend")];
    stream.request("GET", "/x?y", &fields, b"").head();
    assert_eq!(stream.content("open\n".len()), b"open\n");
    let asked = origin.request();
    assert_eq!((asked.target(), asked.head.field("host")), ("/base/x?y", Some("a.example")));
    assert!(asked.head.has("grip-sig"));
    publish(control, "news", "item");
    assert_eq!(stream.content("item".len()), b"item");
    let lines = pushpin.read_until("publish channel=news receivers=1");
    assert!(
        lines.iter().any(|line| line.ends_with(" subscribe http://b.example/x?y channel=news")),
        "{lines:#?}"
    );

    let mut lost = Client::connect(address);
    lost.request("GET", "/x", &[("Host", "b.example"), ("Pushpin-Route", "other")], b"");
    assert_eq!(lost.response().status(), 502);
}

#[test]
fn debians_files_run_unchanged() {
    // As of an instance far away: the ports in the file are everybody's.
    let id = 700 + std::process::id() % 200;
    let (client, control) = (free_port(), u16::try_from(5561 + id * 10).unwrap());
    let (id, port) = (format!("--id={id}"), format!("127.0.0.1:{client}"));
    let pushpin = Pushpin::start(DEBIAN, "* test\n", &[&id, "--port", &port, "-m"]);
    let lines = pushpin.read_until("started");
    let calm = |line: &String| message(line).0 == "INFO" || line.contains(" open files ");
    assert!(lines.iter().all(calm), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("no meaning here: services")), "{lines:#?}");
    let mut stream = Client::connect(SocketAddr::from(([127, 0, 0, 1], client)));
    stream.get("/stream").head();
    publish(control, "test", "hello\\n");
    stream.expect("[stream opened]\nhello\n");
    pushpin.read_until("publish channel=test receivers=1");
    publish(control, "nobody", "hello\\n");
    pushpin.read_until("publish channel=nobody receivers=0");
}

#[test]
fn routes_are_read_as_far_as_they_can_be() {
    let conf = "[runner]\nhttp_port=127.0.0.1:{client}\n[handler]\npush_in_http_port={control}\n";
    let client = free_port();
    let conf = conf.replace("{client}", &client.to_string()).replace("{control}", &free_port().to_string());
    let routes = "* test\nbad.example\n*,proto=x test\nodd.example,frobnicate=1 test,over_http\n* test\n";
    let pushpin = Pushpin::start(&conf, routes, &[]);
    let lines = pushpin.read_until("started");
    for (line, what) in [(2, "no target"), (3, "proto"), (4, "frobnicate"), (5, "the same condition")] {
        let place = format!("routes:{line}: ");
        let said = |text: &String| message(text).0 == "WARN" && text.contains(&place) && text.contains(what);
        assert!(lines.iter().any(said), "{line} {what}: {lines:#?}");
    }
    assert!(lines.iter().any(|line| line.ends_with("routes loaded with 2 entries")), "{lines:#?}");
    let status = |host: &str| {
        let mut client = Client::connect(SocketAddr::from(([127, 0, 0, 1], client)));
        client.request("GET", "/", &[("Host", host)], b"").response().status()
    };
    assert_eq!((status("a.example"), status("odd.example")), (200, 200));

    // What is gone changes nothing; what comes back counts.
    std::fs::remove_file(pushpin.path("routes")).unwrap();
    pushpin.signal(Signal::HUP);
    pushpin.read_until("reloading");
    pushpin.read_to("an error", |line| line.starts_with("[ERR]") && line.contains("nothing has changed"));
    assert_eq!(status("a.example"), 200);
    std::fs::write(pushpin.path("routes"), "b.example test\n").unwrap();
    pushpin.read_until("routes loaded with 1 entries");
    assert_eq!((status("a.example"), status("b.example")), (502, 200));
}

#[test]
fn a_route_may_be_quiet() {
    let client = free_port();
    let conf =
        format!("[runner]\nhttp_port=127.0.0.1:{client}\n[handler]\npush_in_http_port={}\n", free_port());
    let routes =
        "quiet.example,log_level=1 test\nquiet.example,log_level=1,path_beg=/down 127.0.0.1:1\n* test\n";
    let pushpin = Pushpin::start(&conf, routes, &["--verbose"]);
    pushpin.read_until("started");
    let ask = |host: &str, target: &str| {
        let mut client = Client::connect(SocketAddr::from(([127, 0, 0, 1], client)));
        client.request("GET", target, &[("Host", host)], b"").head().status()
    };
    assert_eq!(ask("quiet.example", "/"), 200);
    assert_eq!(ask("quiet.example", "/down"), 502);
    assert_eq!(ask("quiet.example", "/stream"), 200);
    assert_eq!(ask("loud.example", "/"), 200);
    let lines = pushpin.read_until("http://loud.example/ -> test code=200 36");
    let info: Vec<&String> = lines.iter().filter(|line| message(line).0 == "INFO").collect();
    assert_eq!(info.len(), 1, "{info:#?}");
}

#[test]
fn a_log_file_is_appended_to_and_opened_again() {
    let conf = format!(
        "[runner]\nhttp_port=127.0.0.1:{}\n[handler]\npush_in_http_port={}\n",
        free_port(),
        free_port()
    );
    let pushpin = Pushpin::start(&conf, "* test\n", &["--logfile={folder}/logs/pushpin.log"]);
    let log = pushpin.path("logs/pushpin.log");
    let wait = |path: &Path, text: &str| {
        let until = Instant::now() + DEADLINE;
        while !std::fs::read_to_string(path).unwrap_or_default().contains(text) {
            assert!(Instant::now() < until, "{text} is not in {}", path.display());
            thread::park_timeout(std::time::Duration::from_millis(10));
        }
    };
    wait(&log, "started");
    let moved = pushpin.path("logs/pushpin.log.1");
    std::fs::rename(&log, &moved).unwrap();
    pushpin.signal(Signal::HUP);
    wait(&log, "routes loaded with 1 entries");
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert!(read(&moved).contains("started") && !read(&log).contains("started"));
}

#[test]
fn local_ports_have_their_mode_and_owner() {
    let me = std::fs::metadata("/proc/self").unwrap();
    let conf = format!(
        "[global]\nrundir={{folder}}/run\nipc_prefix=a-\n[runner]\n\
         local_ports={{rundir}}/{{ipc_prefix}}s?mode=620&user={}&group={}\n[handler]\npush_in_http_port={}\n",
        me.uid(),
        me.gid(),
        free_port()
    );
    let pushpin = Pushpin::start(&conf, "* test\n", &[]);
    pushpin.read_until("started");
    let socket = std::fs::metadata(pushpin.path("run/a-s")).unwrap();
    assert_eq!((socket.permissions().mode() & 0o777, socket.uid()), (0o620, me.uid()));
    assert!(std::os::unix::net::UnixStream::connect(pushpin.path("run/a-s")).is_ok());
}

#[test]
fn without_ports_nothing_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pushpin.conf");
    std::fs::write(&file, "[runner]\nhttp_port=\n").unwrap();
    let output = Command::new(BINARY).arg("--config").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no server ports configured"), "{}", stderr(&output));
}

#[test]
fn pushpins_programs_are_told_apart_by_name() {
    for part in ["pushpin-proxy", "pushpin-handler", "pushpin-connmgr"] {
        let output = called(part, &["--config=x"]);
        assert_eq!(output.status.code(), Some(1), "{part}");
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    let version = called("pushpin", &["--version"]);
    assert_eq!(version.stdout, format!("pushpin {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    assert_eq!(called("pushpin", &["--frobnicate"]).status.code(), Some(1));
    assert_eq!(called("fantail", &["--frobnicate"]).status.code(), Some(2));
    let help = called("pushpin", &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for option in
        ["--config", "--logfile", "--loglevel", "--verbose", "--port", "--id", "--route", "--merge-output"]
    {
        assert!(String::from_utf8_lossy(&help.stdout).contains(option), "{option}");
    }
    if !Path::new("/etc/pushpin/pushpin.conf").exists() {
        let output = called("pushpin", &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("no configuration file found. Tried: "), "{}", stderr(&output));
    }
}

#[test]
fn a_converted_file_is_one_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("pushpin.conf"), DEBIAN).unwrap();
    std::fs::write(path("routes"), "* test\nbad\n").unwrap();
    let run = |arguments: &[&str]| {
        Command::new(BINARY).args(arguments).current_dir(folder.path()).output().unwrap()
    };
    let converted = run(&["convert", "pushpin.conf", "--id", "1"]);
    assert!(converted.status.success(), "{}", stderr(&converted));
    let text = String::from_utf8(converted.stdout).unwrap();
    assert!(
        text.starts_with("# Converted from pushpin.conf.\n") && text.contains("no meaning here"),
        "{text}"
    );
    assert!(text.contains("listen = \"127.0.0.1:5571\"  # [handler] push_in_http_addr"), "{text}");
    std::fs::write(path("fantail.toml"), text).unwrap();
    let effective = |arguments: &[&str]| {
        let output = run(&[&["check"], arguments].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let values = text.lines().filter(|line| !line.starts_with('#'));
        values.map(|line| line.split("  # ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(effective(&[]), effective(&["--config", "pushpin.conf", "--id", "1"]));
}
