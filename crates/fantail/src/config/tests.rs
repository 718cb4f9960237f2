use std::collections::BTreeSet;

use super::{keys::KEYS, *};

fn variables(list: &[(&str, &str)]) -> Sources {
    let variables = list.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    Sources { variables, ..Sources::default() }
}

fn flag(name: &'static str, key: &'static str, value: impl Into<toml::Value>) -> Flag {
    Flag { name, key, value: value.into() }
}

/// What `fantail.toml` with this text gives; places in problems are without the folder.
fn load(text: &str) -> Result<Config, Vec<String>> {
    load_over(text, Sources::default())
}

fn load_over(text: &str, over: Sources) -> Result<Config, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fantail.toml");
    std::fs::write(&file, text).unwrap();
    let prefix = format!("{}/", folder.path().display());
    Config::load(Sources { file: Some(file), ..over })
        .map_err(|problems| problems.0.iter().map(|p| p.to_string().replace(&prefix, "")).collect())
}

fn problems(text: &str) -> Vec<String> {
    load(text).unwrap_err()
}

#[test]
fn default_file_and_types_are_in_step() {
    let config = Config::default();
    assert_eq!(config.server.listen, [Address::Tcp("127.0.0.1:7999".parse().unwrap())]);
    assert!(config.server.shards > 0);
    assert_eq!(config.client.idle_timeout, Duration::from_secs(75));
    assert_eq!(config.realms.len(), 1);
    let table: toml::Table = keys::TEXT.parse().unwrap();
    let parsed: BTreeSet<String> = table
        .iter()
        .flat_map(|(section, keys)| keys.as_table().unwrap().keys().map(move |k| format!("{section}.{k}")))
        .collect();
    assert_eq!(parsed, KEYS.iter().map(|key| key.full.clone()).collect());
}

/// Each key has a comment above it, or stands in a group that has one; `(reload` marks those of
/// [`RELOADED`].
#[test]
fn default_file_documents_every_key() {
    let mut section = "";
    let mut comment = String::new();
    let mut in_comment = false;
    let mut whole_section = false;
    let mut keys = KEYS.iter();
    for line in keys::TEXT.lines() {
        if line.starts_with('#') {
            comment = if in_comment { comment + line } else { line.into() };
            in_comment = true;
            whole_section |= comment.contains("as is all of this section");
            continue;
        }
        in_comment = false;
        if line.starts_with('[') {
            section = line;
            comment.clear();
            whole_section = false;
        } else if line.is_empty() {
            comment.clear();
        } else {
            let key = keys.next().unwrap();
            assert!(!comment.is_empty(), "{section} {line} is not documented");
            let marked = whole_section || comment.contains("(reload");
            let reloaded = RELOADED.iter().any(|r| layers::is_under(&key.full, r));
            assert_eq!(marked, reloaded, "{section} {line}");
        }
    }
    assert!(keys.next().is_none());
}

#[test]
fn later_layers_win() {
    let text = "[client]\nheaders = 7\nidle_timeout = \"1s\"\nhead_timeout = \"2s\"\n";
    let over = Sources {
        flags: vec![flag("--x", "client.head_timeout", "6s")],
        ..variables(&[("FANTAIL_CLIENT__IDLE_TIMEOUT", "4s"), ("FANTAIL_CLIENT__HEAD_TIMEOUT", "5s")])
    };
    let client = load_over(text, over).unwrap().client;
    assert_eq!(client.headers, 7);
    assert_eq!(client.idle_timeout, Duration::from_secs(4));
    assert_eq!(client.head_timeout, Duration::from_secs(6));
    assert_eq!(client.target_bytes, 8192);
}

#[test]
fn variables_take_the_type_of_their_key() {
    let config = Config::load(variables(&[
        ("FANTAIL_SERVER__LISTEN", "[::1]:0"),
        ("FANTAIL_ROUTES__LINES", r#"["a test", 'b,path_beg=/x test']"#),
        ("FANTAIL_CLIENT__HEADERS", "50"),
        ("FANTAIL_LOGGING__ACCESS", "false"),
        ("FANTAIL_PROXY__SIG_KEY", "123"),
        ("FANTAIL_REALM", r#"[{id = "a", keys = ["k"]}]"#),
    ]))
    .unwrap();
    assert_eq!(config.server.listen, [Address::Tcp("[::1]:0".parse().unwrap())]);
    assert_eq!(config.routes.lines, ["a test", "b,path_beg=/x test"]);
    assert_eq!(config.client.headers, 50);
    assert!(!config.logging.access);
    assert_eq!(config.proxy.sig_key, "123");
    assert_eq!(config.realms.iter().map(|r| &*r.id).collect::<Vec<_>>(), ["default", "a"]);
}

#[test]
fn variables_that_are_not_ours_are_passed_over() {
    let foreign = [
        ("FANTAIL_PORT", "tcp://10.0.0.1:7999"),
        ("FANTAIL_SERVICE_HOST", "10.0.0.1"),
        ("FANTAIL_PORT_7999_TCP_ADDR", "10.0.0.1"),
        ("HOME", "/root"),
    ];
    assert!(Config::load(variables(&foreign)).is_ok());
}

#[test]
fn wrong_variables_are_named() {
    for (name, text, expected) in [
        ("FANTAIL_CLIENT__IDLE_TIMOUT", "1s", "did you mean FANTAIL_CLIENT__IDLE_TIMEOUT?"),
        ("FANTAIL_CLIENT_IDLE_TIMEOUT", "1s", "did you mean FANTAIL_CLIENT__IDLE_TIMEOUT?"),
        ("FANTAIL_log__level", "info", "did you mean FANTAIL_LOGGING__LEVEL?"),
        ("FANTAIL_CLIENT__HEADERS", "many", "a whole number"),
        ("FANTAIL_PROXY__DEBUG", "yes", "true or false"),
        ("FANTAIL_REALM", "x", "write a list"),
        ("FANTAIL_CLIENT__HEADERS", "-1", "`headers`"),
        ("FANTAIL_REALM", "[{id = 1}]", "realm"),
    ] {
        let problems = Config::load(variables(&[(name, text)])).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert!(problems.to_string().starts_with(&format!("{name}: ")), "{problems}");
        assert!(problems.to_string().contains(expected), "{problems}");
    }
}

#[test]
fn every_problem_has_its_place() {
    let text = "\
[client]
idle_timout = \"1s\"
  headers = \"many\"
head_timeout = \"10\"
drain_timeout = \"1s\"

[clint]
[logging]
level = \"loud\"
format = \"xml\"
";
    let found = problems(text);
    let expected = [
        ("fantail.toml:2:1: ", "did you mean `idle_timeout`?"),
        ("fantail.toml:5:1: ", "it is in [server]"),
        ("fantail.toml:7:2: ", "did you mean [client]?"),
        ("fantail.toml:3:3: `headers`: ", "the default is `headers = 100`"),
        ("fantail.toml:4:1: `head_timeout`: ", "\"10\" is not a duration"),
        ("fantail.toml:10:1: `format`: ", "expected"),
        ("fantail.toml:9:1: `level`: ", "\"loud\" is no level"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (place, text) in expected {
        assert!(found.iter().any(|f| f.starts_with(place) && f.contains(text)), "{place} {text}: {found:#?}");
    }
}

#[test]
fn bad_files_are_refused() {
    for (text, expected) in [
        ("[client]\nheaders = \n", "fantail.toml:2:"),
        ("[client]\nheaders = 1\nheaders = 2\n", "fantail.toml:3:1: "),
        ("listen = []\n", "write it under [server]"),
        ("client = 1\n", "write [client]"),
        ("[realm]\nid = \"a\"\n", "write [[realm]]"),
        ("[server]\nlisten = []\n", "at least one address"),
        ("[server]\nlisten = [\"localhost:1\", \"127.0.0.1:1\"]\n", "there twice"),
        ("[client]\nhead_bytes = 0\n", "at least 256"),
        ("[client]\nbody_timeout = \"0s\"\n", "longer than"),
        ("[client]\nbody_bytes = 99999999999999999999\n", "fantail.toml:2:"),
        ("[control]\nlisten = \"unix:/x\"\n", "127.0.0.1:5561"),
        ("[proxy]\ncdn_loop = \"a\\r\\nb\"\n", "CDN-Loop"),
        ("[proxy]\norig_headers_need_mark = [\"a b\"]\n", "not a header's name"),
        ("[proxy]\nx_forwarded_for = \"appendix\"\n", "no rule"),
        ("[grip]\nlink_hosts = [\"http://a:80/\"]\n", "no place"),
        ("[[realm]]\nid = \"a b\"\n", "fantail.toml:1:1: realm: "),
        (
            "[[realm]]\nid = \"a\"\nkey = \"k\"\n",
            "fantail.toml:3:1: there is no `key` in [realm]: did you mean `keys`?",
        ),
        ("[[realm]]\nid = \"a\"\nkeys = [\"\"]\n", "is empty"),
        ("[[realm]]\nkeys = [\"k\"]\n", "missing field `id`"),
        ("[[realm]]\nid = \"a\"\n[[realm]]\nid = \"a\"\n", "fantail.toml:3:1: realm \"a\" is there twice"),
        ("[routes]\nfile = \"routes\"\nlines = [\"* test\"]\n", "remove one"),
    ] {
        let found = problems(text);
        assert!(found.iter().any(|f| f.contains(expected)), "{text}: {found:#?}");
        assert!(found.iter().all(|f| !f.contains('\n')), "{text}: {found:#?}");
    }
}

#[test]
fn secrets_are_in_no_problem() {
    let found = problems("[[realm]]\nid = \"a b\"\nkeys = [\"s3cret\"]\n[proxy]\nsig_key = [\"s3cret\"]\n");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(!found.concat().contains("s3cret"), "{found:#?}");
}

#[test]
fn a_missing_file_is_a_problem_only_when_named() {
    let named = Sources { file: Some("/nonexistent/fantail.toml".into()), ..Sources::default() };
    let problems = Config::load(named).unwrap_err().to_string();
    assert!(problems.starts_with("/nonexistent/fantail.toml: cannot be read"), "{problems}");
    assert_eq!(Config::load(Sources::default()).unwrap().file, None);
}

#[test]
fn an_open_control_port_needs_a_key() {
    let listen = |address: &str| format!("[control]\nlisten = \"{address}\"\n");
    for open in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
        let found = problems(&listen(open));
        assert!(found[0].contains("[[realm]]"), "{found:#?}");
        assert!(found[0].starts_with("fantail.toml:2:1: "), "{found:#?}");
        assert!(load(&format!("{}[[realm]]\nid = \"default\"\n", listen(open))).is_err());
        assert!(load(&format!("{}[[realm]]\nid = \"a\"\nkeys = [\"k\"]\n", listen(open))).is_err());
        assert!(load(&format!("{}[[realm]]\nid = \"default\"\nkeys = [\"k\"]\n", listen(open))).is_ok());
    }
    for loopback in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"] {
        assert!(load(&listen(loopback)).is_ok(), "{loopback}");
    }
}

#[test]
fn routes_of_a_higher_layer_replace_a_file() {
    let text = "[routes]\nfile = \"routes\"\n";
    let config = load(text).unwrap();
    assert_eq!(config.routes.file, Some(config.base.join("routes")));
    let lines = vec!["a test".to_owned()];
    let over = Sources { flags: vec![flag("--route", "routes.lines", lines.clone())], ..Sources::default() };
    let config = load_over(text, over).unwrap();
    assert_eq!((config.routes.file, config.routes.lines), (None, lines));
    let config =
        load_over("[routes]\nlines = [\"a test\"]\n", variables(&[("FANTAIL_ROUTES__FILE", "r")])).unwrap();
    assert_eq!(config.routes.file, Some(config.base.join("r")));
}

#[test]
fn rendering_is_toml_of_all_keys_without_secrets() {
    let text = "\
[proxy]
sig_key = \"s3cret\"
upstream_key = \"s3cret\"
[routes]
lines = ['* a:1', 'b,sig_key=s3cret,debug a:1', 'c,\"sig_key=s3 s3cret\",debug a:1', 'd,sig_key=\"s3 s3cret\" a:1']
[[realm]]
id = \"a\"
keys = [\"s3cret\", \"base64:s3cret\"]
";
    let rendered = load_over(text, variables(&[("FANTAIL_CLIENT__HEADERS", "5")])).unwrap().render();
    assert!(!rendered.contains("s3"), "{rendered}");
    assert!(rendered.contains("headers = 5  # FANTAIL_CLIENT__HEADERS\n"), "{rendered}");
    let table: toml::Table = rendered.parse().unwrap();
    for key in KEYS.iter() {
        assert!(table[key.section].get(key.name).is_some(), "{}", key.full);
    }
    let lines: Vec<_> =
        table["routes"]["lines"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    let expected = ["* a:1", "b,sig_key=***,debug a:1", "c,\"sig_key=***\",debug a:1", "d,sig_key=*** a:1"];
    assert_eq!(lines, expected);
    assert_eq!(table["realm"][0]["keys"].as_array().unwrap().len(), 2);
}

#[test]
fn debug_output_is_without_secrets() {
    let text = "\
[server]
data_dir = \"d\"
[proxy]
sig_key = \"s3cret\"
upstream_key = \"s3cret\"
[routes]
lines = ['b,sig_key=s3cret,header=Authorization:s3cret a:1']
[xmpp]
server = \"127.0.0.1:5347\"
domain = \"push.test\"
secret = \"s3cret\"
[[realm]]
id = \"a\"
keys = [\"s3cret\"]
";
    let mut sources = variables(&[("FANTAIL_PROXY__SIG_ISS", "iss"), ("OTHER", "s3cret")]);
    sources.flags.push(flag("--sig-key", "proxy.sig_key", "s3cret"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f.toml");
    std::fs::write(&file, text).unwrap();
    sources.file = Some(file);
    let config = Config::load(sources.clone()).unwrap();
    let snapshot = crate::snapshot::Snapshot::load(config.clone(), None).unwrap();
    for shown in [format!("{config:?}"), format!("{sources:?}"), format!("{snapshot:?}")] {
        assert!(!shown.contains("s3cret") && !shown.contains("115, 51, 99"), "{shown}");
    }
}

#[test]
fn a_reload_names_what_needs_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f.toml");
    std::fs::write(&file, "").unwrap();
    let old = Config::load(Sources { file: Some(file.clone()), ..Sources::default() }).unwrap();
    let text = "[server]\nshards = 3\n[client]\nbody_bytes = 1\nheaders = 9\nconnections = 5\n[grip]\nsubscriptions = 1\n\
                [routes]\nlines = [\"* test,sub=x\"]\n[[realm]]\nid = \"a\"\n";
    std::fs::write(&file, text).unwrap();
    let new = old.reload().unwrap();
    assert_eq!(new.grip.subscriptions, 1);
    assert_eq!(old.restart_needed(&new), ["server.shards", "client.connections"]);
    assert!(old.restart_needed(&old.reload().unwrap()).contains(&"server.shards"));
    assert!(new.restart_needed(&new).is_empty());
    std::fs::write(&file, "[server]\nshard = 3\n").unwrap();
    assert!(old.reload().is_err());
}

#[test]
fn a_component_is_whole_or_nothing() {
    assert!(load("[xmpp]\ndomain = \"push.test\"\n").unwrap().xmpp.is_none());
    let missing = problems("[xmpp]\nserver = \"127.0.0.1:5347\"\nopen_realms = [\"none\"]\n");
    for name in ["`domain` is needed", "`secret` is needed", "`data_dir` is needed", "no realm \"none\""] {
        assert!(missing.iter().any(|line| line.contains(name)), "{name}: {missing:?}");
    }
    let whole = "[server]\ndata_dir = \"d\"\n[xmpp]\nserver = \"localhost:5347\"\ndomain = \"Push.test\"\n\
                 secret = \"base64:aHVzaA==\"\nadmins = [\"Ops@Chat.test\"]\n";
    let config = load(whole).unwrap();
    let xmpp = config.xmpp.as_ref().unwrap();
    assert_eq!((xmpp.domain.as_str(), xmpp.admins[0].as_str()), ("push.test", "ops@chat.test"));
    assert_eq!(xmpp.secret, Secret::Bytes(b"hush".to_vec()));
    let part = |keys: &str| {
        let xmpp = load(&format!("{whole}{keys}")).unwrap().xmpp.unwrap();
        (xmpp.realm_queue_items, xmpp.realm_queue_bytes)
    };
    assert_eq!(part("queue_items = 200000\nqueue_bytes = 1\n"), (150_000, 1));
    assert_eq!(part("realm_queue_items = 5\n"), (5, 48 << 20));
    let of_realm = |keys: &str| load(&format!("{whole}{keys}")).unwrap().xmpp.unwrap().realm_subscriptions;
    assert_eq!((of_realm("subscriptions = 8\n"), of_realm("realm_subscriptions = 5\n")), (6, 5));
    let absences = |keys: &str| load(&format!("{whole}{keys}")).unwrap().xmpp.unwrap().realm_absences;
    assert_eq!((absences("absences = 8\n"), absences("realm_absences = 5\n"), absences("")), (6, 5, 75_000));
    let shown = format!("{}{xmpp:?}", config.render());
    assert!(shown.contains("secret = \"***\"") && !shown.contains("aHVzaA"), "{shown}");
    for (key, value) in [
        ("server", "\"5347\""),
        ("server", "\"a b:5347\""),
        ("domain", "\"user@push.test\""),
        ("secret", "\"base64:?\""),
        ("secret", "\"file:\""),
        ("admins", "[\"chat.test\"]"),
        ("admins", "[\"ops@chat.test/home\"]"),
        ("subscriptions", "0"),
        ("subscriptions_per_jid", "0"),
        ("absences", "0"),
        ("queue_items", "0"),
        ("queue_bytes", "0"),
        ("origin_requests", "0"),
        ("sender_stanzas", "0"),
    ] {
        assert_eq!(problems(&format!("[xmpp]\n{key} = {value}\n")).len(), 1, "{key} = {value}");
    }
}
