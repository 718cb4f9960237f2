//! Webhooks cannot be made to ask what strangers must not reach: a listener on loopback is a trap, and nobody may
//! fall into it, whatever a URL or a name server says.

use std::net::{SocketAddr, UdpSocket};

use serde_json::{Value, json};

use crate::{
    harness::{DEADLINE, Origin, TestServer, answer},
    keys::{Files, tls_origin},
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

const NO_ADDRESS: &str = "the name has no address that webhooks may go to";

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
    server.wait_until(DEADLINE, "it is on disk that there is no address", || {
        let dead = ask(&server, "GET", &format!("{}/dead-letters", of("c", &url)), &Value::Null).1;
        dead["dead_letters"][0]["cause"] == NO_ADDRESS
    });
    // Who subscribes does not learn which names there are in a network.
    let nobody = "http://nobody.example/";
    subscribe(&server, "d", &json!({ "url": nobody }));
    server.publish(&json!([item("d", "x")]));
    server.wait_metric("fantail_webhook_tries_total", &["result=\"name\""], 3.0);
    server.wait_until(DEADLINE, "it is dead", || {
        let dead = ask(&server, "GET", &format!("{}/dead-letters", of("d", nobody)), &Value::Null).1;
        dead["dead_letters"][0]["cause"] == NO_ADDRESS
    });
    assert!(trap.requests().is_empty());
}

/// An operator has addresses that are public and yet not for tenants, or private and for some of them only.
#[test]
fn what_is_denied_is_so_although_it_is_allowed() {
    let (folder, endpoint, trap) = (
        folder(),
        receiver(),
        Origin::reborn(SocketAddr::from(([127, 0, 0, 2], 0)), |_| answer("200 OK", &[], "")),
    );
    let keys = [("webhooks.deny", "127.0.0.2"), ("webhooks.retry", "[]")];
    let server = start(&folder, "127.0.0.2 denied.example\n", "127.0.0.0/8", &keys);
    let (status, text) =
        ask(&server, "POST", "/channel/c/hrq-subscriptions/", &json!({ "url": format!("http://{trap}/") }));
    assert_eq!(status, 400, "{text}");
    let named = format!("http://denied.example:{}/", trap.address().port());
    subscribe(&server, "c", &json!({ "url": named }));
    subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    server.publish(&json!([item("c", "x")]));
    assert_eq!(death(&server, &named), NO_ADDRESS);
    assert_eq!(arrived(&endpoint, 1).len(), 1);
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

/// Name servers that are silent take no time from who is known, none from who needs none, and from other realms none at all:
/// names that are new are found there, and those that are known are looked up again.
#[test]
fn slow_names_delay_nobody() {
    let (folder, endpoint) = (folder(), receiver());
    let moved = Origin::reborn(SocketAddr::from(([127, 0, 0, 2], endpoint.address().port())), |_| {
        answer("200 OK", &[], "")
    });
    let Ok(_silent) = UdpSocket::bind("127.0.0.53:53") else {
        eprintln!("skipped: nobody may listen on port 53 here");
        return;
    };
    let server = TestServer::start(&["* test"], |options| {
        options
            .file("/etc/hosts", "127.0.0.1 good.example new.example\n")
            .file("/etc/resolv.conf", "nameserver 127.0.0.53\n");
        options.set("server.data_dir", &folder.path().to_string_lossy());
        options.set("webhooks.allow", "127.0.0.0/8").set("webhooks.timeout", "60s");
        options.set("webhooks.lookup_every", "1s");
        options.config("[[realm]]\nid = \"slow\"\nkeys = [\"a key\"]\n");
    });
    let slow = |path: &str, body: &Value| {
        let fields = [("Content-Type", "application/json"), ("Authorization", "Bearer a key")];
        let got = server.control("POST", &format!("/realm/slow{path}"), &fields, body.to_string().as_bytes());
        assert_eq!(got.status(), 200, "{}", got.text());
    };
    let port = endpoint.address().port();
    subscribe(&server, "good", &json!({ "url": format!("http://good.example:{port}/") }));
    subscribe(&server, "plain", &json!({ "url": format!("http://{endpoint}/") }));
    server.publish(&json!([item("good", "first")]));
    arrived(&endpoint, 1);
    for n in 0..200 {
        slow("/channel/slow/hrq-subscriptions/", &json!({ "url": format!("http://slow{n}.example/") }));
    }
    slow("/publish/", &json!({ "items": [item("slow", "x")] }));
    server.wait_metric("fantail_webhook_in_flight", &[], 200.0);
    subscribe(&server, "new", &json!({ "url": format!("http://new.example:{port}/") }));
    server.publish(&json!([item("good", "second"), item("plain", "third"), item("new", "fourth")]));
    arrived(&endpoint, 4);
    assert!(server.metric("fantail_webhook_in_flight", &[]) > 150.0);
    server.put_file("/etc/hosts", "127.0.0.2 good.example\n");
    server.wait_until(DEADLINE, "it is looked up again", || {
        server.publish(&json!([item("good", "moved")]));
        !moved.requests().is_empty()
    });
    assert!(server.metric("fantail_webhook_in_flight", &[]) > 150.0);
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

/// Over https the certificate must be good for the host, by the system's authorities or those that are named.
#[test]
fn certificates_of_endpoints_are_verified() {
    let (folder, files) = (folder(), Files::new());
    files.certificate("origin.example");
    let port = tls_origin(&files, None).port();
    let authority = files.path("origin.example.crt").display().to_string();
    let known: &[(&str, &str)] = &[("webhooks.ca_file", &authority)];
    for (keys, host, result) in [
        (known, "origin.example", "delivered"),
        (known, "other.example", "unreachable"),
        (&[], "origin.example", "unreachable"),
    ] {
        let folder = tempfile::tempdir_in(folder.path()).expect("a folder");
        let server = start(&folder, "127.0.0.1 origin.example other.example\n", "127.0.0.1", keys);
        subscribe(&server, "c", &json!({ "url": format!("https://{host}:{port}/") }));
        server.publish(&json!([item("c", "")]));
        let least = if result == "delivered" { 1.0 } else { 3.0 };
        server.wait_metric("fantail_webhook_tries_total", &[&format!("result=\"{result}\"")], least);
    }
}

/// Why the webhook of channel `c` to this URL was given up, when it is.
fn death(server: &TestServer, url: &str) -> String {
    let path = format!("{}/dead-letters", of("c", url));
    let cause = || ask(server, "GET", &path, &Value::Null).1["dead_letters"][0]["cause"].clone();
    server.wait_until(DEADLINE, "it is dead", || cause().is_string());
    cause().as_str().unwrap_or_default().to_owned()
}

/// What the owner, or who has published, has given for one host is not shown to another.
#[test]
fn a_redirect_takes_no_headers_of_the_endpoint_along() {
    let (folder, other) = (folder(), receiver());
    let to = format!("http://{other}/");
    let first = Origin::answering(move |request| match request.target() {
        "/" => answer("307 There", &[("Location", "/here")], ""),
        _ => answer("307 There", &[("Location", &to)], ""),
    });
    let server = start(&folder, "", "127.0.0.1", &[("webhooks.redirects", "2")]);
    let wish = json!({ "url": format!("http://{first}/"), "headers": { "X-Key": "of-the-first" } });
    subscribe(&server, "c", &wish);
    let mut news = item("c", "x");
    news["formats"]["http-request"]["headers"] = json!({ "authorization": "Bearer x", "Cookie": "a=b", "Proxy-Authorization": "Basic x", "X-Item": "1" });
    server.publish(&json!([news]));
    let request = arrived(&other, 1).remove(0);
    let secret = ["x-key", "authorization", "cookie", "proxy-authorization"];
    assert_eq!((request.body.as_slice(), request.head.field("x-item")), (&b"x"[..], Some("1")));
    assert_eq!(secret.map(|name| request.head.field(name)), [None; 4]);
    assert_eq!(first.requests().len(), 2);
    for request in first.requests() {
        assert!(secret.iter().all(|name| request.head.field(name).is_some()), "{request:?}");
    }
}

/// Where a redirect may not lead, in forms by which others were fooled. PORT is the trap's.
const LOCATIONS: [&str; 16] = [
    "http://127.0.0.1:PORT/",
    "http://localhost:PORT/",
    "http://127.1:PORT/",
    "http://2130706433:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://[::1]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[64:ff9b::7f00:1]:PORT/",
    "http://user@127.0.0.1:PORT/",
    "http://origin.example@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT#@origin.example/",
    "//127.0.0.1:PORT/",
    "http:127.0.0.1:PORT/",
    "http:\\\\127.0.0.1:PORT/",
    "https://127.0.0.1:PORT/",
    "file:///etc/passwd",
];

#[test]
fn no_form_of_a_redirect_reaches_loopback() {
    let (folder, trap) = (folder(), receiver());
    let port = trap.address().port().to_string();
    let elsewhere = Origin::reborn(SocketAddr::from(([127, 0, 0, 2], 0)), move |request| {
        let number = request.target().trim_start_matches('/').parse::<usize>();
        let to = number.ok().and_then(|number| LOCATIONS.get(number)).copied().unwrap_or("/");
        answer("308 There", &[("Location", &to.replace("PORT", &port))], "")
    });
    let hosts = "127.0.0.2 origin.example\n127.0.0.1 localhost\n";
    let keys = [("webhooks.redirects", "5"), ("webhooks.retry", "[]")];
    let server = start(&folder, hosts, "127.0.0.2", &keys);
    let base = format!("http://origin.example:{}", elsewhere.address().port());
    for number in 0..LOCATIONS.len() {
        subscribe(&server, "c", &json!({ "url": format!("{base}/{number}") }));
    }
    server.publish(&json!([item("c", "x")]));
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    for (number, form) in LOCATIONS.iter().enumerate() {
        let cause = death(&server, &format!("{base}/{number}"));
        assert!(cause.starts_with("the URL") || cause == NO_ADDRESS, "{form}: {cause}");
    }
    assert_eq!(elsewhere.requests().len(), LOCATIONS.len());
    assert!(trap.requests().is_empty());
}

/// Refused when they are subscribed: another parser might read another host, or it is an address that is not allowed.
const REFUSED: [&str; 76] = [
    // Loopback as it is, and with fewer parts, in octal, in hex, as one number, with too much in front.
    "http://127.0.0.1:PORT/",
    "HTTP://127.0.0.1:PORT",
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://2130706433:PORT/",
    "http://4294967297:PORT/",
    "http://017700000001:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://0177.0.0.01:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7f.0.0.1:PORT/",
    "http://0x7f.0x0.0x0.0x1:PORT/",
    "http://0x7F.1:PORT/",
    "http://127.000.000.001:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://127.0.0.1..:PORT/",
    "http://0:PORT/",
    "http://0.0.0.0:PORT/",
    "http://0x0:PORT/",
    // Other networks, and where clouds tell secrets.
    "http://10.1:PORT/",
    "http://192.168.257:PORT/",
    "http://10.0.0.1:PORT/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://0xa9fea9fe/latest/meta-data/",
    "http://0251.0376.0251.0376/latest/meta-data/",
    "http://[::ffff:a9fe:a9fe]/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://100.100.100.200/latest/meta-data/",
    "http://192.0.0.192/opc/v2/",
    // IPv6, and IPv4 inside of it: mapped, compatible, translated, NAT64, 6to4, Teredo, ISATAP.
    "http://[::1]:PORT/",
    "http://[0:0:0:0:0:0:0:1]:PORT/",
    "http://[::]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/",
    "http://[::ffff:0:127.0.0.1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[::7f00:1]:PORT/",
    "http://[64:ff9b::127.0.0.1]:PORT/",
    "http://[64:ff9b:1::7f00:1]:PORT/",
    "http://[2002:7f00:1::1]:PORT/",
    "http://[2001:0:7f00:1::]:PORT/",
    "http://[2001:0:808:808::80ff:fffe]:PORT/",
    "http://[2606:4700::5efe:127.0.0.1]:PORT/",
    "http://[fe80::1]:PORT/",
    "http://[fec0::1]:PORT/",
    "http://[ff02::1]:PORT/",
    // Zones.
    "http://[::1%25lo]:PORT/",
    "http://[::1%lo]:PORT/",
    "http://[fe80::1%25eth0]:PORT/",
    // A user, or what looks like one.
    "http://user@127.0.0.1:PORT/",
    "http://user:password@127.0.0.1:PORT/",
    "http://example.com@127.0.0.1:PORT/",
    "http://example.com:80@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT#@example.com/",
    "http://127.0.0.1:PORT\\@example.com/",
    "http://example.com\\@127.0.0.1:PORT/",
    // Digits and letters that some make plain ones of, and percent-encodings.
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://１２７.0.0.1:PORT/",
    "http://127。0。0。1:PORT/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/",
    "http://loca\u{ad}lhost:PORT/",
    "http://%31%32%37.0.0.1:PORT/",
    "http://127%2e0%2e0%2e1:PORT/",
    "http://localhost%00.example.com:PORT/",
    // Ports, white space, and schemes.
    "http://localhost:0/",
    "http://localhost:WRAPPED/",
    "http://localhost:+PORT/",
    "http://127.0.0.1\t:PORT/",
    " http://127.0.0.1:PORT/",
    "http://example.com:PORT/\r\nX: y",
    "http:127.0.0.1:PORT/",
    "http:///127.0.0.1:PORT/",
    "//127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/_x",
];

/// Taken, because a name may have any address tomorrow; judged whenever it is connected to.
const NAMES: [&str; 16] = [
    "http://localhost:PORT/",
    "http://localhost.:PORT/",
    "http://LOCALHOST:PORT/",
    "http://x.localhost:PORT/",
    "http://example.com:PORT/",
    "http://example.com:PORT?@127.0.0.1/",
    "http://127.0.0.1.nip.example:PORT/",
    "http://0x7f.0.0.1.nip.example:PORT/",
    "http://127-0-0-1.example:PORT/",
    "http://xn--bcher-kva.example:PORT/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://metadata/latest/",
    "http://instance-data/latest/",
    "http://six.example:PORT/",
    "http://mapped.example:PORT/",
    "http://nobody.example:PORT/",
];

#[test]
fn no_form_of_a_url_reaches_loopback() {
    let (folder, trap) = (folder(), receiver());
    let hosts = "127.0.0.1 localhost x.localhost example.com 127.0.0.1.nip.example 0x7f.0.0.1.nip.example\n\
                 127.0.0.1 127-0-0-1.example xn--bcher-kva.example\n\
                 169.254.169.254 metadata.google.internal metadata instance-data\n\
                 ::1 six.example\n::ffff:127.0.0.1 mapped.example\n";
    let server = start(&folder, hosts, "[]", &[("webhooks.retry", "[]")]);
    let port = trap.address().port();
    // What is left of it in 16 bits is the trap's.
    let wrapped = (u32::from(port) + (1 << 16)).to_string();
    let fill = |form: &str| form.replace("WRAPPED", &wrapped).replace("PORT", &port.to_string());
    for form in REFUSED {
        let (status, text) =
            ask(&server, "POST", "/channel/c/hrq-subscriptions/", &json!({ "url": fill(form) }));
        assert_eq!(status, 400, "{form}: {text}");
    }
    for form in NAMES {
        subscribe(&server, "c", &json!({ "url": fill(form) }));
    }
    server.publish(&json!([item("c", "x")]));
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    for form in NAMES {
        let cause = death(&server, &fill(form));
        assert_eq!(cause, NO_ADDRESS, "{form}");
    }
    assert!(trap.requests().is_empty());
    assert!(server.metric("fantail_webhook_tries_total", &["result=\"delivered\""]) < 0.5);
}
