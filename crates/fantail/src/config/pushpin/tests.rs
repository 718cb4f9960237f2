use super::*;
use crate::config::{Address, Config, LogFormat, Sources, UnixSocket, keys::KEYS};

/// Debian's, as it is installed.
const DEBIAN: &str = include_str!("../../../tests/it/pushpin/debian.conf");

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pushpin.conf"), text).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn sources(&self) -> Sources {
        Sources { file: Some(self.path("pushpin.conf")), ..Sources::default() }
    }

    fn load(&self) -> Config {
        Config::load(self.sources()).unwrap()
    }
}

fn load(text: &str) -> Config {
    Folder::with(&format!("[runner]\nhttp_port=7999\n{text}")).load()
}

fn notices(config: &Config) -> Vec<String> {
    config.notices.iter().map(ToString::to_string).collect()
}

fn tcp(address: &str) -> Address {
    Address::Tcp(address.parse().unwrap())
}

#[test]
fn the_table_names_keys_that_exist_and_each_key_once() {
    let mut seen = std::collections::BTreeSet::new();
    for row in ROWS {
        let keys: &[&str] = match &row.meaning {
            Meaning::Becomes(key, ..) => std::slice::from_ref(key),
            Meaning::PartOf(keys) => keys,
            Meaning::Nothing(_) => &[],
        };
        for key in keys {
            assert!(KEYS.iter().any(|known| known.full == *key), "{key}");
        }
        for name in row.names {
            assert!(seen.insert((row.section, *name)), "{} {name}", row.section);
        }
    }
}

#[test]
fn debians_file_is_all_used_or_explained() {
    let config = Folder::with(DEBIAN).load();
    assert_eq!(config.server.listen, [tcp("0.0.0.0:7999")]);
    assert_eq!(config.client.connections, 50_000);
    assert_eq!(config.control.listen, "127.0.0.1:5561".parse().unwrap());
    assert_eq!(config.hub.id_ttl.as_secs(), 60);
    assert_eq!(config.logging.format, LogFormat::Pushpin);
    assert!(!config.logging.from && config.logging.channels);
    assert!(config.routes.lenient && config.routes.file.as_ref().unwrap().ends_with("routes"));
    let doubtful: Vec<&Notice> =
        config.notices.iter().filter(|notice| matches!(notice, Notice::Doubtful(_))).collect();
    assert!(doubtful.is_empty(), "{doubtful:#?}");
}

#[test]
fn what_is_absent_is_as_pushpin_has_it() {
    let config = load("");
    assert_eq!((config.proxy.sig_iss.as_str(), config.proxy.sig_key.as_str()), ("pushpin", ""));
    assert!(config.hub.id_ttl.is_zero());
    assert_eq!(config.client.head_bytes, 8192);
    assert_eq!(config.grip.subscriptions, 20);
}

#[test]
fn ports_are_all_that_listen() {
    let text = "[runner]\nhttp_port=80, 127.0.0.1:81,[::1]:82\n\
                local_ports={rundir}/{ipc_prefix}s?mode=660&user=u&group=g\n[global]\nrundir=/run/p\n";
    let socket = UnixSocket {
        path: "/run/p/pushpin-s".into(),
        mode: Some(0o660),
        user: Some("u".into()),
        group: Some("g".into()),
    };
    let expected = [tcp("0.0.0.0:80"), tcp("127.0.0.1:81"), tcp("[::1]:82"), Address::Unix(socket)];
    assert_eq!(Folder::with(text).load().server.listen, expected);
    for none in ["[runner]\nhttp_port=\n", "[proxy]\ndebug=true\n"] {
        let problems = Config::load(Folder::with(none).sources()).unwrap_err().to_string();
        assert!(problems.contains("no server ports configured"), "{problems}");
    }
    assert!(Config::load(Folder::with("[runner]\nhttp_port=x\n").sources()).is_err());
}

#[test]
fn ports_with_tls_have_their_certificates_beside_the_file() {
    let folder = Folder::with("[runner]\nhttps_ports=443,[::1]:444\n");
    let config = folder.load();
    assert!(config.server.listen.is_empty());
    assert_eq!(config.server.tls_listen, ["0.0.0.0:443".parse().unwrap(), "[::1]:444".parse().unwrap()]);
    assert_eq!(config.tls.folder, Some(folder.path("runner/certs")));
}

#[test]
fn instances_have_ports_and_sockets_of_their_own() {
    let text = "[global]\nport_offset=5\nrundir=/r\n[runner]\nlocal_ports={rundir}/{ipc_prefix}s\n\
                [handler]\npush_in_http_port=5561\n";
    let folder = Folder::with(text);
    let socket = |config: &Config| config.server.listen[0].to_string();
    let config = folder.load();
    assert_eq!((config.control.listen.port(), socket(&config)), (5566, "unix:/r/pushpin-s".into()));
    let config = Config::load(Sources { instance: Some(2), ..folder.sources() }).unwrap();
    assert_eq!((config.control.listen.port(), socket(&config)), (5581, "unix:/r/p2-s".into()));
    let none = Sources { instance: Some(2), ..Sources::default() };
    assert!(Config::load(none).unwrap_err().to_string().starts_with("--id: "));
}

#[test]
fn variables_and_tcp_ports() {
    let variables =
        Variables { libdir: "/lib".into(), rundir: "/run".into(), ipc_prefix: "p1-".into(), port_offset: 10 };
    for (text, expected) in [
        ("ipc://{rundir}/{ipc_prefix}stats", "ipc:///run/p1-stats"),
        ("{libdir}/internal.conf", "/lib/internal.conf"),
        ("tcp://127.0.0.1:5560", "tcp://127.0.0.1:5570"),
        ("tcp://*:5560,tcp://[::1]:1", "tcp://*:5570,tcp://[::1]:11"),
        ("tcp://h", "tcp://h"),
        ("tcp://h:", "tcp://h:"),
        ("tcp://h:65530", "tcp://h:65530"),
        ("http://h:80", "http://h:80"),
        ("tcp://", "tcp://"),
    ] {
        assert_eq!(variables.resolve(text), expected);
    }
}

#[test]
fn an_included_file_gives_what_the_first_does_not() {
    let folder = Folder::with("[global]\ninclude=more.conf\n[runner]\nhttp_port=1\n[proxy]\nsig_iss=a\n");
    std::fs::write(folder.path("more.conf"), "[proxy]\nsig_iss=b\ncdn_loop=c\nintreq_in_specs=x\nzz=1\n")
        .unwrap();
    let config = folder.load();
    assert_eq!(config.proxy.sig_iss, "a");
    assert_eq!(config.proxy.forward.cdn_loop.as_ref().unwrap(), "c");
    let notices = notices(&config);
    assert!(
        notices.iter().any(|n| n.contains("more.conf: no meaning here: intreq_in_specs: ")),
        "{notices:?}"
    );
    assert!(
        notices.iter().any(|n| n.contains("more.conf:5:1: there is no key zz in [proxy]")),
        "{notices:?}"
    );
    std::fs::remove_file(folder.path("more.conf")).unwrap();
    assert!(folder.load().notices[0].to_string().contains("cannot be read"));
}

#[test]
fn what_cannot_be_used_is_said_and_starts_all_the_same() {
    for (text, expected) in [
        ("frobnicate=1", "there is no key frobnicate in [runner]"),
        ("client_maxconn=many", "client_maxconn: \"many\" is not taken"),
        ("client_buffer_size=1", "`client.head_bytes` stays as it is"),
        ("log_level=2,proxy:3", "proxy:3 is not used"),
        ("log_level=loud", "no level"),
        ("services=mongrel2\nworkers=2", "services: Fantail is one process"),
        ("[proxy]\nworkers=2", "workers: server.shards"),
        ("[proxy]\nx_forwarded_for=prepend", "`proxy.x_forwarded_for` stays"),
        ("[handler]\npush_in_http_port=0", "5561 is taken"),
        ("[handler]\npush_in_http_addr=pushpin", "127.0.0.1 is taken"),
        ("[handler]\npush_in_http_addr=0.0.0.0", "may publish, as with Pushpin"),
        ("[global]\nsecret=1", "there is no key secret in [global]"),
    ] {
        let notices = notices(&load(text));
        assert!(notices.iter().any(|notice| notice.contains(expected)), "{text}: {notices:#?}");
    }
}

#[test]
fn values_become_values() {
    let config = load(
        "log_level=0\nallow_compression=true\n[proxy]\ndebug=1\nset_x_forwarded_protocol=proto-only\n\
         x_forwarded_for=truncate:0,append\norig_headers_need_mark=X-A, X-B\naccept_pushpin_route=true\n\
         sig_key=\"a,b\"\nupstream_key=file:key\n[handler]\nid_cache_ttl=7\npush_in_http_addr=::1\npush_in_http_port=9\n",
    );
    assert_eq!(config.logging.level, tracing::Level::ERROR);
    assert!(config.websocket.deflate && config.proxy.debug && config.proxy.forward.accept_pushpin_route);
    assert_eq!(config.proxy.forward.need_mark, ["x-a", "x-b"]);
    assert_eq!(config.proxy.sig_key, "a,b");
    assert_eq!(config.proxy.upstream_key, format!("file:{}", config.base.join("key").display()));
    assert_eq!((config.hub.id_ttl.as_secs(), config.control.listen), (7, "[::1]:9".parse().unwrap()));
}

#[test]
fn the_environment_and_flags_are_above_it() {
    let folder = Folder::with(DEBIAN);
    let variables =
        vec![("FANTAIL_PROXY__SIG_ISS".into(), "x".into()), ("FANTAIL_REALM".into(), "[]".into())];
    let config = Config::load(Sources { variables, ..folder.sources() }).unwrap();
    assert_eq!(config.proxy.sig_iss, "x");
    assert!(config.render().contains("sig_iss = \"x\"  # FANTAIL_PROXY__SIG_ISS\n"), "{}", config.render());
    assert!(config.render().contains("pushpin.conf:"), "{}", config.render());
}

#[test]
fn a_converted_file_says_the_same() {
    for text in
        [DEBIAN, "[runner]\nhttp_port=1,2\nlog_level=4\n[proxy]\nsig_key=a\"\\\\b\nupstream_key=file:k\n"]
    {
        let config = Folder::with(text).load();
        let toml = config.to_toml();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fantail.toml");
        std::fs::write(&file, &toml).unwrap();
        let again = Config::load(Sources { file: Some(file), ..Sources::default() }).unwrap();
        assert_eq!(config.differences(&again), Vec::<&str>::new(), "{toml}");
        assert!(toml.contains("listen = [\"0.0.0.0:") && toml.contains("# [runner] http_port"), "{toml}");
    }
}

#[test]
fn files_are_told_apart() {
    for (name, text, expected) in [
        ("pushpin.conf", "", true),
        ("x.conf", "[server]\n", true),
        ("fantail.toml", "[global]\n", false),
        ("config", "# x\n\n[runner]\n", true),
        ("config", "[proxy]\n", false),
        ("config", "", false),
    ] {
        assert_eq!(is_one(Path::new(name), text), expected, "{name} {text}");
    }
}

#[test]
fn levels() {
    for (text, expected) in [
        ("2", Some(("info", ""))),
        ("0", Some(("error", ""))),
        ("9", Some(("trace", ""))),
        ("1,proxy:3, handler:0", Some(("warn", "proxy:3,handler:0"))),
        ("proxy:3", Some(("info", "proxy:3"))),
        ("", None),
        ("-1", None),
        (":1", None),
        ("2,proxy:x", None),
    ] {
        let found = level(text).ok();
        assert_eq!(found.as_ref().map(|(level, apart)| (*level, apart.as_str())), expected, "{text}");
    }
}

/// `docs/pushpin-conf.md` has a row for each key and what becomes of it.
#[test]
fn the_document_has_every_key() {
    let document = include_str!("../../../../../docs/pushpin-conf.md");
    let rows = |section: &str| {
        let heading = format!("`[{section}]`\n");
        let text = document.split("\n## ").find(|text| text.starts_with(&heading)).unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.split(" | ").map(|cell| cell.trim_matches(['|', ' ', '`'])).collect()).collect()
    };
    let mut documented: Vec<(&str, Vec<&str>)> = Vec::new();
    for section in ["global", "runner", "proxy", "handler"] {
        let rows: Vec<Vec<&str>> = rows(section);
        documented.extend(rows.into_iter().map(|row| (section, row)));
    }
    let mut known = 0;
    for row in ROWS {
        for name in row.names {
            known += 1;
            let found =
                documented.iter().find(|(section, cells)| *section == row.section && cells[0] == *name);
            let (_, cells) = found.unwrap_or_else(|| panic!("[{}] {name} is not documented", row.section));
            let becomes = match row.meaning {
                Meaning::Becomes(key, ..) => key,
                Meaning::PartOf(keys) => keys.first().copied().unwrap_or("–"),
                Meaning::Nothing(_) => "–",
            };
            assert_eq!(cells[1], becomes, "[{}] {name}", row.section);
        }
    }
    assert_eq!(documented.len(), known, "the document has keys that the table has not");
}
