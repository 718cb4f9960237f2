//! Webhooks cannot be made to ask what strangers must not reach: a listener on loopback is a trap, and nobody may
//! fall into it, whatever a URL or a name server says.

use std::net::{SocketAddr, UdpSocket};

use serde_json::{Value, json};

use crate::{
    harness::{DEADLINE, Origin, TestServer, answer},
    webhook::{arrived, ask, folder, item, of, receiver, subscribe},
};

/// A server for which names have the addresses of these lines, as `/etc/hosts` has them.
fn start(folder: &tempfile::TempDir, hosts: &str, allow: &str, keys: &[(&str, &str)]) -> TestServer {
    TestServer::start(&["* test"], |options| {
        options.file("/etc/hosts", hosts);
        options.set("server.data_dir", &folder.path().to_string_lossy());
        options.set("webhooks.allow", allow).set("webhooks.retry", r#"["50ms", "50ms"]"#);
        for (key, value) in keys {
            options.set(key, value);
        }
    })
}

#[test]
fn names_of_private_addresses_lead_nowhere() {
    let (folder, trap) = (folder(), receiver());
    let hosts = "127.0.0.1 localhost loopback.example\n10.0.0.1 private.example\n0.0.0.0 unspecified.example\n\
                 169.254.169.254 metadata.example\n::1 six.example\n::ffff:127.0.0.1 mapped.example\n";
    let server = start(&folder, hosts, "[]", &[]);
    let port = trap.address().port();
    let names = ["localhost", "loopback", "private", "unspecified", "metadata", "six", "mapped"];
    for name in names {
        let host = if name == "localhost" { name.to_owned() } else { format!("{name}.example") };
        subscribe(&server, "c", &json!({ "url": format!("http://{host}:{port}/") }));
    }
    server.publish(&json!([item("c", "x")]));
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    server.wait_metric("fantail_webhook_tries_total", &["result=\"forbidden\""], 21.0);
    let url = format!("http://loopback.example:{port}/");
    let dead = ask(&server, "GET", &format!("{}/dead-letters", of("c", &url)), &Value::Null).1;
    assert_eq!(dead["dead_letters"][0]["cause"], "the address is loopback");
    assert!(trap.requests().is_empty());
}

/// What is connected to is what was judged: a name that changes its mind is judged anew.
#[test]
fn a_name_that_flips_is_judged_again() {
    let (folder, trap) = (folder(), receiver());
    // 127.0.0.2 is allowed, and nobody listens there; 127.0.0.1 is the trap.
    let server = start(&folder, "127.0.0.2 flip.example\n", "127.0.0.2", &[("webhooks.lookup_every", "0s")]);
    subscribe(&server, "c", &json!({ "url": format!("http://flip.example:{}/", trap.address().port()) }));
    server.publish(&json!([item("c", "x")]));
    server.wait_metric("fantail_webhook_tries_total", &["result=\"unreachable\""], 3.0);
    server.put_file("/etc/hosts", "127.0.0.1 flip.example\n");
    server.wait_until(DEADLINE, "the other address is judged", || {
        server.publish(&json!([item("c", "x")]));
        server.metric("fantail_webhook_tries_total", &["result=\"forbidden\""]) > 2.5
    });
    assert!(trap.requests().is_empty());
}

/// Name servers that are silent take no time from who is known, and none from who needs none.
#[test]
fn slow_names_delay_nobody() {
    let (folder, endpoint) = (folder(), receiver());
    let Ok(_silent) = UdpSocket::bind("127.0.0.53:53") else {
        eprintln!("skipped: nobody may listen on port 53 here");
        return;
    };
    let server = TestServer::start(&["* test"], |options| {
        options
            .file("/etc/hosts", "127.0.0.1 good.example\n")
            .file("/etc/resolv.conf", "nameserver 127.0.0.53\n");
        options.set("server.data_dir", &folder.path().to_string_lossy());
        options.set("webhooks.allow", "127.0.0.1").set("webhooks.timeout", "60s");
    });
    subscribe(
        &server,
        "good",
        &json!({ "url": format!("http://good.example:{}/", endpoint.address().port()) }),
    );
    subscribe(&server, "plain", &json!({ "url": format!("http://{endpoint}/") }));
    server.publish(&json!([item("good", "first")]));
    arrived(&endpoint, 1);
    for n in 0..100 {
        subscribe(&server, "slow", &json!({ "url": format!("http://slow{n}.example/") }));
    }
    server.publish(&json!([item("slow", "x")]));
    server.wait_metric("fantail_webhook_in_flight", &[], 100.0);
    server.publish(&json!([item("good", "second"), item("plain", "third")]));
    arrived(&endpoint, 3);
    assert!(server.metric("fantail_webhook_in_flight", &[]) > 99.0);
}

/// A redirect is a failure, unless it is to be followed, and then it is judged like the first address.
#[test]
fn redirects_lead_to_no_private_address() {
    let (folder, trap) = (folder(), receiver());
    let to = format!("http://{trap}/");
    let port = trap.address().port();
    let elsewhere = Origin::reborn(SocketAddr::from(([127, 0, 0, 2], 0)), move |request| {
        let to = match request.target() {
            "/trap" => to.clone(),
            "/path" => "/end".to_owned(),
            "/loop" => "/loop".to_owned(),
            "/odd" => format!("http://0x7f.1:{port}/"),
            _ => return answer("200 OK", &[], ""),
        };
        answer("307 There", &[("Location", &to)], "")
    });
    let base = format!("http://origin.example:{}", elsewhere.address().port());
    let table = [
        ("0", "/trap", "redirect"),
        ("3", "/trap", "forbidden"),
        ("3", "/path", "delivered"),
        ("3", "/loop", "redirect"),
        ("3", "/odd", "name"),
    ];
    for (redirects, path, result) in table {
        let folder = tempfile::tempdir_in(folder.path()).expect("a folder");
        let keys = [("webhooks.redirects", redirects), ("webhooks.retry", "[]")];
        let server = start(&folder, "127.0.0.2 origin.example\n", "127.0.0.2", &keys);
        subscribe(&server, "c", &json!({ "url": format!("{base}{path}") }));
        server.publish(&json!([item("c", "x")]));
        server.wait_metric("fantail_webhook_tries_total", &[&format!("result=\"{result}\"")], 1.0);
    }
    assert!(trap.requests().is_empty());
}

/// Forms of URLs by which others were fooled: refused when they are subscribed, or nothing is reached.
#[test]
fn no_form_of_a_url_reaches_loopback() {
    let (folder, trap) = (folder(), receiver());
    let hosts = "127.0.0.1 localhost x.localhost example.com 127.0.0.1.nip.example\n";
    let server = start(&folder, hosts, "[]", &[]);
    let port = trap.address().port();
    let hosts = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "127.000.000.001",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[::1%25lo]",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "x.localhost",
        "user@127.0.0.1",
        "example.com@127.0.0.1",
        "127.0.0.1#@example.com",
        "127.0.0.1\\\\@example.com",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "%31%32%37.0.0.1",
        "example.com",
        "127.0.0.1.nip.example",
        "[fe80::1]",
        "[fd00::1]",
    ];
    let mut refused = 0;
    for host in hosts {
        let wish = json!({ "url": format!("http://{host}:{port}/") });
        let (status, text) = ask(&server, "POST", "/channel/c/hrq-subscriptions/", &wish);
        assert!(matches!(status, 200 | 400), "{host}: {text}");
        refused += usize::from(status == 400);
    }
    assert!(refused > 25, "{refused}");
    server.publish(&json!([item("c", "x")]));
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    assert!(trap.requests().is_empty());
    assert!(server.metric("fantail_webhook_tries_total", &["result=\"delivered\""]) < 0.5);
}
