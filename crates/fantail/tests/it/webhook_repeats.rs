//! Items that their publishers repeat after the process has ended: each gets its webhook, and no second one.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use serde_json::{Value, json};

use crate::{
    harness::{DEADLINE, Origin, TestServer, Then, answer, hold},
    webhook::{arrived, bodies, folder, item, receiver, server, subscribe},
};

/// The channel "logged" has a log on disk; whoever asks for a page holds it.
fn logging(origin: &Origin, data: &Path, keys: &[(&str, &str)]) -> TestServer {
    let config = "[[log]]\nmatch = \"logged\"\nstorage = \"disk\"\ndurability = \"logged\"\n";
    TestServer::start(&[&format!("* {origin}")], |options| {
        options.set("server.data_dir", &data.to_string_lossy()).set("webhooks.allow", "127.0.0.1");
        options.set("webhooks.timeout", "1h").config(config);
        keys.iter().for_each(|(key, value)| _ = options.set(key, value));
    })
}

fn named(channel: &str, id: &str) -> Value {
    let mut item = item(channel, id);
    item["id"] = id.into();
    item["formats"]["http-stream"] = json!({ "content": format!("{id};") });
    item
}

/// What its log has, and webhooks have not, when the process is killed, they get when it is repeated. Connections do not.
#[test]
fn what_only_the_log_has_is_posted_when_it_comes_again() {
    let folder = folder();
    let origin = Origin::answering(|_| hold("stream", "logged", &[], ""));
    let is_silent = Arc::new(AtomicBool::new(true));
    let silent = Arc::clone(&is_silent);
    let endpoint = Origin::scripted(move |exchange| {
        drop(exchange.read_body());
        if silent.load(SeqCst) {
            return Then::Hang;
        }
        exchange.send(answer("200 OK", &[], ""));
        Then::Next
    });
    let first = logging(&origin, folder.path(), &[("webhooks.realm_queue_items", "1")]);
    subscribe(&first, "logged", &json!({ "url": format!("http://{endpoint}/") }));
    let mut stream = first.stream("/");
    first.publish(&json!([named("logged", "1")]));
    let (status, text) = first.try_publish(&json!([named("logged", "2")]));
    assert_eq!(status, 503, "{text}");
    stream.expect("1;2;");
    arrived(&endpoint, 1);
    first.kill();
    is_silent.store(false, SeqCst);
    let second = logging(&origin, folder.path(), &[]);
    let mut stream = second.stream("/");
    second.publish(&json!([named("logged", "1"), named("logged", "2")]));
    second.publish(&json!([named("logged", "2")]));
    second.publish(&json!([named("logged", "3")]));
    stream.expect("3;");
    let got = || bodies(&endpoint.requests()).into_iter().collect::<BTreeSet<_>>();
    second.wait_until(DEADLINE, "all are there", || got().len() == 3);
    second.wait_metric("fantail_webhook_queue", &[], 0.0);
    let requests = endpoint.requests();
    let ids: BTreeSet<_> = requests.iter().filter_map(|request| request.head.field("webhook-id")).collect();
    assert_eq!(ids.len(), 3, "each is one webhook, also the one that was under way: {requests:#?}");
}

/// Who got no answer, although the webhook was on disk, is answered without another, with a log or without.
#[test]
fn what_is_on_disk_is_no_second_webhook() {
    let (folder, endpoint) = (folder(), receiver());
    let origin = Origin::answering(|_| hold("stream", "logged", &[], ""));
    for channel in ["logged", "other"] {
        let folder = tempfile::tempdir_in(folder.path()).expect("a folder");
        endpoint.forget();
        let mut server = logging(&origin, folder.path(), &[]);
        subscribe(&server, channel, &json!({ "url": format!("http://{endpoint}/") }));
        for n in 1..=3 {
            let items: Value = (1..=n).map(|id| named(channel, &id.to_string())).collect();
            server.publish(&items);
            server.wait_metric("fantail_webhook_queue", &[], 0.0);
            assert_eq!(bodies(&arrived(&endpoint, n)).len(), n, "{channel}");
            if n == 2 {
                assert!(server.terminate().success());
            } else {
                server.kill();
            }
            server = logging(&origin, folder.path(), &[]);
        }
    }
}

/// Items of a publish that found room are known by their ids, although the rest was refused.
#[test]
fn what_was_kept_of_a_refused_publish_is_no_second_webhook() {
    let folder = folder();
    let closed = Arc::new(Mutex::new(()));
    let gate = Arc::clone(&closed);
    let endpoint = Origin::scripted(move |exchange| {
        drop(exchange.read_body());
        drop(gate.lock());
        exchange.send(answer("200 OK", &[], ""));
        Then::Next
    });
    let keys = [("webhooks.realm_queue_items", "2"), ("webhooks.timeout", "1h")];
    let server = server(&folder, &keys);
    subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    let all = json!([named("c", "1"), named("c", "2"), named("c", "3")]);
    let stands = closed.lock().expect("nobody panics");
    for _ in 0..2 {
        let (status, text) = server.try_publish(&all);
        assert_eq!(status, 503, "{text}");
    }
    drop(stands);
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    server.publish(&all);
    server.publish(&all);
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    assert_eq!(bodies(&endpoint.requests()), ["1", "2", "3"]);
}

/// A realm that a reload adds has its webhooks from the first item that it may publish.
#[test]
fn a_realm_of_a_reload_has_its_webhooks() {
    const REALM: &str = "[[realm]]\nid = \"r\"\nkeys = [\"the-key-of-r\"]\n";
    let (folder, endpoint) = (folder(), receiver());
    let start = |config: &str| {
        TestServer::start(&["* test"], |options| {
            options.set("server.data_dir", &folder.path().to_string_lossy());
            options.set("webhooks.allow", "127.0.0.1").config(config);
        })
    };
    let post = |server: &TestServer, path: &str, body: &Value| {
        let fields = [("Content-Type", "application/json"), ("Authorization", "Bearer the-key-of-r")];
        server.control("POST", path, &fields, body.to_string().as_bytes()).status()
    };
    let first = start(REALM);
    let wish = json!({ "url": format!("http://{endpoint}/") });
    assert_eq!(post(&first, "/realm/r/channel/c/hrq-subscriptions/", &wish), 200);
    assert!(first.terminate().success());
    let second = start("");
    let publish = || post(&second, "/realm/r/publish/", &json!({ "items": [item("c", "x")] }));
    assert_eq!(publish(), 401);
    std::fs::write(second.folder.path().join("fantail.toml"), REALM).expect("its configuration");
    second.wait_until(DEADLINE, "it may publish", || publish() == 200);
    assert_eq!(bodies(&arrived(&endpoint, 1)), ["x"]);
}

/// An id is another item's again after `hub.id_ttl`, also if it was used before a restart.
#[test]
fn an_id_is_free_when_its_time_is_over() {
    let (folder, endpoint) = (folder(), receiver());
    let keys = [("hub.id_ttl", "1s")];
    let first = server(&folder, &keys);
    subscribe(&first, "c", &json!({ "url": format!("http://{endpoint}/") }));
    first.publish(&json!([named("c", "1")]));
    first.kill();
    let second = server(&folder, &keys);
    second.wait_until(DEADLINE, "it is another", || {
        second.publish(&json!([named("c", "1")]));
        endpoint.requests().len() == 2
    });
}
