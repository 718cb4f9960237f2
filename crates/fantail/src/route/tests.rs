use std::{sync::mpsc::channel, time::Duration};

use super::*;
use crate::config;

/// The default configuration with other routes and realms.
pub(crate) fn config(base: PathBuf, lines: &[&str], realms: Vec<config::Realm>) -> Config {
    let mut config = Config::default();
    config.routes.lines = lines.iter().map(|line| (*line).to_owned()).collect();
    config.realms = realms;
    config.base = base;
    config
}

fn load(config: &Config) -> Result<Routes, Vec<String>> {
    let realms = Realms::load(config, None).expect("the realms are good");
    Routes::load(config, &realms, true).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn realm(id: &str) -> config::Realm {
    config::Realm::bare(id)
}

#[test]
fn what_a_route_names() {
    let lines = [
        "* test",
        "a,realm=r,sig_key=own test",
        "b,sig_iss=me test",
        "c,no_grip test",
        "d,sig_iss=me,sig_key=own test",
    ];
    let routes = load(&config(PathBuf::new(), &lines, vec![realm("r")])).expect("good routes");
    let host = |host| {
        let asked = Asked { host, path: "/", tls: false, ws: false, id: None };
        Arc::clone(routes.find(asked).expect("each host has a route"))
    };
    assert_eq!((host("other").realm, host("a").realm), (RealmId(0), RealmId(1)));
    assert_eq!(host("other").identities, [None]);
    assert!(host("c").signer.is_none());
    let iss_and_key = |name| {
        let token = host(name).signer.as_ref().expect("signed").token(0).expect("a secret signs");
        let body = token.to_str().unwrap().split('.').nth(1).unwrap().to_owned();
        let keys =
            ["changeme", "own"].map(|key| crate::sign::Verifier::load(key, "".as_ref()).unwrap().unwrap());
        let own = keys[1].verify(token.as_bytes(), 0);
        assert_ne!(own, keys[0].verify(token.as_bytes(), 0), "{name}");
        let body = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, body).unwrap();
        (String::from_utf8(body).unwrap().contains("\"me\""), own)
    };
    assert_eq!(iss_and_key("other"), (false, false));
    assert_eq!(iss_and_key("a"), (false, true));
    assert_eq!(iss_and_key("b"), (true, false));
    assert_eq!(iss_and_key("d"), (true, true));
}

#[test]
fn errors_name_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes");
    let mut config = config(folder.path().to_owned(), &["* test", "*,oops test"], Vec::new());
    assert!(load(&config).unwrap_err()[0].starts_with("routes.lines:2: unknown parameter"));
    config.routes.file = Some("routes".into());
    let file = path.display().to_string();
    assert!(load(&config).unwrap_err()[0].starts_with(&format!("{file}: No such file")));
    std::fs::write(&path, "\n* test\n* test\na,oops test\n").unwrap();
    let errors = load(&config).unwrap_err();
    assert!(errors[0].starts_with(&format!("{file}:3: the same condition")), "{errors:?}");
    assert!(errors[1].starts_with(&format!("{file}:4: unknown")), "{errors:?}");
    std::fs::write(
        &path,
        "*,realm=x,sig_key=file:none a:1,client_cert=c,client_key=k\nb,sig_key=base64:! a:1\n",
    )
    .unwrap();
    let errors = load(&config).unwrap_err();
    let starts = [
        ":1: realm=\"x\": there is no such realm",
        ":1: sig_key: ",
        ":1: client_cert=",
        ":1: client_key=",
        ":2: sig_key: what follows base64:",
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:?}");
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.starts_with(&format!("{file}{start}")), "{error}");
    }
}

#[test]
fn paths_in_a_file_are_relative_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let sub = folder.path().join("sub");
    std::fs::create_dir(&sub).unwrap();
    std::fs::write(sub.join("key"), "6b6579").unwrap();
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    std::fs::write(sub.join("cert.pem"), pem("CERTIFICATE")).unwrap();
    std::fs::write(sub.join("key.pem"), pem("PRIVATE KEY")).unwrap();
    std::fs::write(
        sub.join("routes"),
        "*,sig_key=file:key a:1 b:1,ssl,client_cert=cert.pem,client_key=key.pem\n",
    )
    .unwrap();
    let mut config = config(folder.path().to_owned(), &[], Vec::new());
    config.routes.file = Some("sub/routes".into());
    let routes = load(&config).expect("the files are beside the routes");
    let identity = (sub.join("cert.pem"), sub.join("key.pem"));
    assert_eq!(routes.routes()[0].identities, [None, Some(identity)]);
    std::fs::write(sub.join("cert.pem"), "no certificate").unwrap();
    assert!(load(&config).unwrap_err()[0].contains("client_cert="));
}

#[test]
fn a_change_is_seen_however_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let real = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes");
    std::fs::write(real.path().join("one"), "1").unwrap();
    std::os::unix::fs::symlink(real.path().join("one"), &path).unwrap();
    let (tell, told) = channel();
    let read = path.clone();
    let watch = Watch::new(&path, move || drop(tell.send(std::fs::read_to_string(&read).ok()))).unwrap();
    let next = || told.recv_timeout(Duration::from_secs(20)).expect("the change is told");

    std::fs::write(real.path().join("one"), "2").unwrap();
    assert_eq!(next().as_deref(), Some("2"), "behind a link");
    std::fs::write(folder.path().join("new"), "3").unwrap();
    std::fs::rename(folder.path().join("new"), &path).unwrap();
    assert_eq!(next().as_deref(), Some("3"), "renamed over");
    std::fs::write(&path, "4").unwrap();
    assert_eq!(next().as_deref(), Some("4"), "in place, after a rename");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(next(), None, "gone");
    for content in ["5", "6", "7"] {
        std::fs::write(&path, content).unwrap();
    }
    assert_eq!(next().as_deref(), Some("7"), "changes in a row are one");
    drop(watch);
    std::fs::write(&path, "8").unwrap();
    assert!(told.recv().is_err(), "a watch that is dropped says no more");
}
