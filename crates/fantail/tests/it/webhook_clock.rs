//! The machine's clock is set while the process lives: what owners say in seconds of Unix is judged by the clock as it is.

use std::fs;

use serde_json::json;

use crate::{
    harness::TestServer,
    webhook::{arrived, ask, folder, item, of, receiver, subscribe},
};

/// Where Debian has the library by which one process has another clock.
fn library() -> Option<String> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    let mut paths = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    paths.find(|path| path.exists()).map(|path| path.to_string_lossy().into_owned())
}

#[test]
fn the_clock_may_be_set_back() {
    let Some(library) = library() else {
        eprintln!("skipped: there is no libfaketime");
        return;
    };
    let (folder, endpoint) = (folder(), receiver());
    let clock = folder.path().join("clock");
    fs::write(&clock, "+1d").expect("a file");
    let server = TestServer::start(&["* test"], |options| {
        options.set("server.data_dir", &folder.path().to_string_lossy());
        options.set("webhooks.allow", "127.0.0.1");
        options.environment("LD_PRELOAD", &library).environment("FAKETIME_NO_CACHE", "1");
        options.environment("FAKETIME_TIMESTAMP_FILE", &clock.to_string_lossy());
        options.environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    });
    let url = format!("http://{endpoint}/");
    let now = || std::time::UNIX_EPOCH.elapsed().expect("now").as_secs();
    let ahead = subscribe(&server, "other", &json!({ "url": url }));
    assert!(ahead["created"].as_u64().is_some_and(|created| created > now() + 80_000), "{ahead}");
    fs::write(&clock, "+0").expect("a file");
    let shown = subscribe(&server, "c", &json!({ "url": url, "ttl": 3600 }));
    assert!(shown["created"].as_u64().is_some_and(|created| created.abs_diff(now()) < 600), "{shown}");
    let rotated = ask(&server, "POST", &format!("{}/secrets", of("c", &url)), &json!({ "overlap": 600 }));
    assert_eq!(rotated.0, 200, "{}", rotated.1);
    // Its hour is not over, and both secrets sign.
    server.publish(&json!([item("c", "x")]));
    let request = arrived(&endpoint, 1).remove(0);
    let signatures = request.head.field("webhook-signature").expect("signed");
    assert_eq!(signatures.split(' ').count(), 2, "{signatures}");
    assert_eq!(ask(&server, "GET", &of("c", &url), &json!(null)).0, 200);
}
