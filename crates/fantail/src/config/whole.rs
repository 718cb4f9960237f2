//! What is wrong with a configuration as a whole: values that are good, but not together. Reads no file.

use super::{DEFAULT_REALM, Parts, Place, Problem, Storage, layers::Layers};

/// What no single value shows to be wrong.
pub(super) fn check(parts: &Parts, layers: &Layers) -> Vec<Problem> {
    let mut problems = Vec::new();
    if parts.server.listen.is_empty() && parts.server.tls_listen.is_empty() {
        let reason = "no server ports configured: write at least one address".into();
        problems.push(Problem { place: layers.place("server.listen"), reason });
    }
    for (n, realm) in parts.realms.iter().enumerate() {
        if parts.realms.iter().take(n).any(|earlier| earlier.id == realm.id) {
            let reason = format!("realm \"{}\" is there twice: write it once, with all its keys", realm.id);
            problems.push(Problem { place: layers.place(&format!("realm.{n}")), reason });
        }
    }
    let protected = parts.realms.iter().any(|realm| realm.id == DEFAULT_REALM && !realm.keys.is_empty());
    let address = parts.control.listen;
    if !address.ip().to_canonical().is_loopback() && !protected && !parts.control.open {
        let reason = format!(
            "{address} is not a loopback address, and anyone who can reach it could publish: give the realm \
             \"default\" a key ([[realm]] id = \"default\" keys = [\"base64:…\"], 32 random bytes or more), \
             listen on 127.0.0.1, or let them (control.open = true)"
        );
        problems.push(Problem { place: layers.place("control.listen"), reason });
    }
    let client = &parts.client;
    if client.send_timeout > client.lost_timeout {
        let reason = "it is longer than `client.lost_timeout`, after which such a client is closed anyway: raise that, too";
        problems.push(Problem { place: layers.place("client.send_timeout"), reason: reason.into() });
    }
    problems.extend(tls(parts, layers));
    problems.extend(logs(parts, layers));
    problems.extend(xmpp(parts, layers));
    if parts.routes.file.is_some() && layers.place("routes.lines") != Place::Default {
        let reason = "`file` and `lines` are both set, and only one can be used: remove one".into();
        problems.push(Problem { place: layers.place("routes.lines"), reason });
    }
    problems
}

fn logs(parts: &Parts, layers: &Layers) -> Vec<Problem> {
    let known = |id: &str| id == DEFAULT_REALM || parts.realms.iter().any(|realm| realm.id == id);
    let mut problems = Vec::new();
    for (n, log) in parts.logs.iter().enumerate() {
        let place = || layers.place(&format!("log.{n}"));
        if !known(&log.realm) {
            let reason = format!("log \"{}\": there is no realm \"{}\"", log.text, log.realm);
            problems.push(Problem { place: place(), reason });
        }
        if log.storage == Storage::Disk && parts.server.data_dir.is_none() {
            let reason =
                format!("log \"{}\": storage = \"disk\" needs a folder: set `server.data_dir`", log.text);
            problems.push(Problem { place: place(), reason });
        }
    }
    problems
}

fn tls(parts: &Parts, layers: &Layers) -> Option<Problem> {
    let tls = &parts.tls;
    let problem = |key, reason: &str| Some(Problem { place: layers.place(key), reason: reason.into() });
    match (&tls.cert_file, &tls.key_file) {
        (Some(_), None) => problem("tls.cert_file", "it needs the `key_file` that belongs to it"),
        (None, Some(_)) => problem("tls.key_file", "it needs the `cert_file` that belongs to it"),
        (None, None) if tls.folder.is_none() && !parts.server.tls_listen.is_empty() => problem(
            "server.tls_listen",
            "TLS needs a certificate: set `tls.cert_file` and `tls.key_file` (--cert, --key), or `tls.folder`",
        ),
        _ => None,
    }
}

fn xmpp(parts: &Parts, layers: &Layers) -> Vec<Problem> {
    let xmpp = &parts.xmpp;
    if xmpp.server.is_none() {
        return Vec::new();
    }
    let missing = [
        (
            xmpp.domain.is_none(),
            "domain",
            "the component's own address, as the server's configuration has it",
        ),
        (xmpp.secret.is_none(), "secret", "what the server's configuration has for this component"),
        (parts.server.data_dir.is_none(), "data_dir", "a folder for subscriptions (`server.data_dir`)"),
    ];
    let missing = missing.into_iter().filter(|(is_missing, ..)| *is_missing).map(|(_, key, what)| Problem {
        place: layers.place("xmpp.server"),
        reason: format!("with `xmpp.server`, `{key}` is needed: {what}"),
    });
    let is_realm = |id: &String| id == DEFAULT_REALM || parts.realms.iter().any(|realm| realm.id == *id);
    let unknown = xmpp.open_realms.iter().filter(|id| !is_realm(id)).map(|id| Problem {
        place: layers.place("xmpp.open_realms"),
        reason: format!("there is no realm \"{id}\" in the configuration"),
    });
    missing.chain(unknown).collect()
}
