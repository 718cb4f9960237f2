//! Webhooks: URLs that are subscribed to channels, what they are sent, and by whom they may be seen. What becomes of
//! failures is in `webhook_failures`, of the queue in `webhook_queue`, of addresses in `webhook_safety`.

use std::time::Duration;

use fantail_proto::webhook::signature::{Secret, signatures};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use tokio::time::Instant;

use crate::harness::{DEADLINE, Origin, Request, TestServer, answer, hold, stream_item};

/// A server that may post to loopback, with a folder for its queue, and with these keys set.
pub fn server(folder: &tempfile::TempDir, keys: &[(&str, &str)]) -> TestServer {
    TestServer::start(&["* test"], |options| {
        options.set("server.data_dir", &folder.path().to_string_lossy());
        options.set("webhooks.allow", "127.0.0.1");
        for (key, value) in keys {
            options.set(key, value);
        }
    })
}

pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// An endpoint that takes everything.
pub fn receiver() -> Origin {
    Origin::fixed(answer("200 OK", &[], "thanks"))
}

/// One request about webhooks: a JSON body, and a JSON answer if it is one.
pub fn ask(server: &TestServer, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let fields = [("Content-Type", "application/json"), ("Accept", "application/json")];
    let got = server.control(method, path, &fields, text.as_bytes());
    let value = serde_json::from_slice(&got.body).unwrap_or_else(|_| json!(got.text()));
    (got.status(), value)
}

/// Subscribes and returns what is said of the endpoint.
pub fn subscribe(server: &TestServer, channel: &str, wish: &Value) -> Value {
    let (status, endpoint) = ask(server, "POST", &format!("/channel/{channel}/hrq-subscriptions/"), wish);
    assert_eq!(status, 200, "{endpoint}");
    endpoint
}

/// The path of an endpoint.
pub fn of(channel: &str, url: &str) -> String {
    format!("/channel/{channel}/hrq-subscription/{}", utf8_percent_encode(url, NON_ALPHANUMERIC))
}

pub fn item(channel: &str, body: &str) -> Value {
    json!({ "channel": channel, "formats": { "http-request": { "body": body } } })
}

/// Waits for that many requests, bodies included, and returns all there are.
pub fn arrived(origin: &Origin, n: usize) -> Vec<Request> {
    let until = Instant::now() + DEADLINE;
    loop {
        let requests = origin.requests();
        if requests.len() >= n && requests.iter().all(|request| request.framing.is_some()) {
            return requests;
        }
        assert!(Instant::now() < until, "{} requests, not {n}: {requests:#?}", requests.len());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

pub fn bodies(requests: &[Request]) -> Vec<String> {
    requests.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect()
}

/// Fails unless the request is signed with exactly these secrets.
fn check_signed(request: &Request, secrets: &Value) {
    let secrets: Vec<Secret> = secrets
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| Secret::parse(one["secret"].as_str().expect("text")).expect("a secret"))
        .collect();
    let field = |name| request.head.field(name).unwrap_or_else(|| panic!("{name}: {request:?}"));
    let time: u64 = field("webhook-timestamp").parse().expect("seconds");
    assert!(std::time::UNIX_EPOCH.elapsed().expect("now").as_secs().abs_diff(time) < 60);
    assert_eq!(field("webhook-signature"), signatures(&secrets, field("webhook-id"), time, &request.body));
}

/// As the one public client of Fanout Cloud does it.
#[test]
fn a_form_subscribes_and_delete_ends_it() {
    let (folder, endpoint) = (folder(), receiver());
    let server = server(&folder, &[]);
    let url = format!("http://{endpoint}/hook?a=b");
    let form = format!("url={}", utf8_percent_encode(&url, NON_ALPHANUMERIC));
    let kind = [("Content-Type", "application/x-www-form-urlencoded")];
    let got = server.control("POST", "/channel/a%20b/hrq-subscriptions/", &kind, form.as_bytes());
    assert_eq!((got.status(), got.text().as_str()), (200, "Subscribed\n"));
    let again =
        server.control("POST", "/realm/default/channel/a%20b/hrq-subscriptions", &kind, form.as_bytes());
    assert_eq!(again.status(), 200);
    server.publish(&json!([
        { "channel": "other", "formats": { "http-request": { "body": "never" } } },
        { "channel": "a b", "formats": { "http-stream": { "content": "never" } } },
        { "channel": "a b", "http-request": {
            "method": "PUT", "headers": { "ETag": "\"1\"", "Host": "never", "webhook-id": "never" }, "body-bin": "/wA=" } },
    ]));
    let request = arrived(&endpoint, 1).remove(0);
    assert_eq!((request.method(), request.target()), ("PUT", "/hook?a=b"));
    assert_eq!(request.head.field("host"), Some(endpoint.to_string().as_str()));
    assert_eq!(request.head.field("etag"), Some("\"1\""));
    assert_eq!(request.body, b"\xff\x00");
    assert!(request.head.field("user-agent").is_some_and(|agent| agent.starts_with("fantail/")));
    let (status, secrets) = ask(&server, "GET", &format!("{}/secrets/", of("a%20b", &url)), &Value::Null);
    assert_eq!(status, 200, "{secrets}");
    check_signed(&request, &secrets["secrets"]);
    let deleted = |path: String| server.control("DELETE", &path, &[], b"").status();
    assert_eq!(deleted(format!("/realm/default{}/", of("a%20b", &url))), 200);
    assert_eq!(deleted(format!("{}/", of("a%20b", &url))), 404);
    let receipt = server.receipts(&json!([item("a b", "never")]));
    assert_eq!(receipt[0]["queued"], 0);
    assert_eq!(endpoint.requests().len(), 1);
}

#[test]
fn without_a_folder_it_says_what_is_missing() {
    let server = TestServer::start(&["* test"], |_| {});
    let (status, text) =
        ask(&server, "POST", "/channel/c/hrq-subscriptions/", &json!({ "url": "http://1.1.1.1/" }));
    assert_eq!(status, 501);
    assert!(text.to_string().contains("server.data_dir"), "{text}");
    let (status, _) = ask(&server, "PUT", "/channel/c/hrq-subscriptions/", &Value::Null);
    assert_eq!(status, 405);
}

#[test]
fn realms_are_apart() {
    let (folder, one, two) = (folder(), receiver(), receiver());
    let config = format!(
        "[server]\ndata_dir = {:?}\n[webhooks]\nallow = [\"127.0.0.1\"]\n[[realm]]\nid = \"one\"\nkeys = [\"key-of-one\"]\n\
         webhook_endpoints = 1\n[[realm]]\nid = \"two\"\nkeys = [\"key-of-two\"]\n",
        folder.path()
    );
    let server = TestServer::start(&["* test"], |options| {
        options.config(config);
    });
    let ask = |method, path: &str, key: &str, body: &Value| {
        let authorization = format!("Bearer {key}");
        let fields = [("Content-Type", "application/json"), ("Authorization", authorization.as_str())];
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let got = server.control(method, path, &fields, text.as_bytes());
        (got.status(), got.text())
    };
    let path = |realm| format!("/realm/{realm}/channel/c/hrq-subscriptions/");
    let (first, second) =
        (json!({ "url": format!("http://{one}/") }), json!({ "url": format!("http://{two}/") }));
    assert_eq!(ask("POST", &path("one"), "key-of-two", &first).0, 401);
    assert_eq!(ask("POST", &path("none"), "key-of-two", &first).0, 401);
    assert_eq!(ask("POST", &path("one"), "key-of-one", &first).0, 200);
    assert_eq!(ask("POST", &path("one"), "key-of-one", &second).0, 403);
    assert_eq!(ask("POST", &path("two"), "key-of-two", &second).0, 200);
    assert_eq!(ask("GET", &path("one"), "key-of-two", &Value::Null).0, 401);
    let (_, list) = ask("GET", "/realm/two/hrq-subscriptions/", "key-of-two", &Value::Null);
    assert!(list.contains(&two.to_string()) && !list.contains(&one.to_string()), "{list}");
    let foreign = format!("/realm/two{}/", of("c", &format!("http://{one}/")));
    assert_eq!(ask("GET", &foreign, "key-of-two", &Value::Null).0, 404);
    assert_eq!(ask("DELETE", &foreign, "key-of-two", &Value::Null).0, 404);
    let items = json!({ "items": [item("c", "for two")] });
    assert_eq!(ask("POST", "/realm/two/publish/", "key-of-two", &items).0, 200);
    assert_eq!(bodies(&arrived(&two, 1)), ["for two"]);
    assert!(one.requests().is_empty());
}

#[test]
fn an_endpoint_gets_what_it_asked_for() {
    let (folder, endpoint) = (folder(), receiver());
    let server = server(&folder, &[]);
    let wish = json!({
        "url": format!("http://{endpoint}/"), "envelope": true, "description": "all of it",
        "headers": { "Authorization": "Bearer of-the-endpoint", "X-Own": "1" },
        "filters": ["skip-self", "var-subst"], "meta": { "user": "ann" },
    });
    let shown = subscribe(&server, "c", &wish);
    assert_eq!((&shown["description"], &shown["headers"]["X-Own"]), (&json!("all of it"), &json!("***")));
    let receipts = server.receipts(&json!([
        { "channel": "c", "meta": { "sender": "ann" }, "http-request": { "body": "her own" } },
        { "channel": "c", "http-request": { "headers": { "X-Own": "2" }, "body": "hello %(user)s" } },
        { "channel": "c", "id": "7", "http-stream": { "content": "line" } },
        { "channel": "c", "http-stream": { "action": "close" } },
    ]));
    let counted: Vec<_> = receipts.iter().map(|r| (r["queued"].clone(), r["filtered"].clone())).collect();
    assert_eq!(json!(counted), json!([[0, 1], [1, 0], [1, 0], [0, 0]]));
    let mut requests = arrived(&endpoint, 2);
    requests.sort_by_key(|request| request.body.len());
    assert_eq!(bodies(&requests[..1]), ["hello ann"]);
    assert_eq!(requests[0].head.field("x-own"), Some("1"));
    let envelope: Value = serde_json::from_slice(&requests[1].body).expect("JSON");
    assert_eq!(
        envelope,
        json!({ "channel": "c", "id": "7", "formats": { "http-stream": { "content": "line" } } })
    );
    for request in &requests {
        check_signed(request, &shown["secrets"]);
        assert_eq!(request.head.field("authorization"), Some("Bearer of-the-endpoint"));
    }
}

/// Secrets and what headers say are for the owner alone.
#[test]
fn secrets_are_rotated_and_kept() {
    let (folder, endpoint) = (folder(), receiver());
    let server = server(&folder, &[]);
    let url = format!("http://{endpoint}/");
    let wish = json!({ "url": url, "headers": { "X-Token": "of-header" }, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" });
    subscribe(&server, "c", &wish);
    let secrets = format!("{}/secrets", of("c", &url));
    let (status, two) = ask(&server, "POST", &secrets, &json!({ "signature": "ed25519", "overlap": 600 }));
    assert_eq!(status, 200, "{two}");
    assert!(two["secrets"][0]["public"].as_str().is_some_and(|public| public.starts_with("whpk_")));
    server.publish(&json!([item("c", "twice signed")]));
    check_signed(&arrived(&endpoint, 1)[0], &two["secrets"]);
    assert_eq!(endpoint.requests()[0].head.field("webhook-signature").expect("signed").split(' ').count(), 2);
    let (_, one) = ask(&server, "POST", &secrets, &json!({ "overlap": 0 }));
    assert_eq!(one["secrets"].as_array().map(Vec::len), Some(1));
    server.publish(&json!([item("c", "once signed")]));
    check_signed(&arrived(&endpoint, 2)[1], &one["secrets"]);
    assert_eq!(ask(&server, "POST", &secrets, &json!({ "secret": "whsec_c2hvcnQ=" })).0, 400);
    let (_, shown) = ask(&server, "GET", &of("c", &url), &Value::Null);
    let (_, list) = ask(&server, "GET", "/hrq-subscriptions", &Value::Null);
    let metrics = server.control("GET", "/metrics", &[], b"").text();
    let log = server.log().join("\n");
    for text in [shown.to_string(), list.to_string(), metrics, log] {
        assert!(!text.contains("of-header") && !text.contains("whs") && !text.contains("MfKQ9r8"), "{text}");
    }
}

#[test]
fn lists_come_in_pages() {
    let folder = folder();
    let server = server(&folder, &[]);
    for n in 0..25 {
        subscribe(&server, "c", &json!({ "url": format!("http://h{n}.example/") }));
    }
    subscribe(&server, "other", &json!({ "url": "http://h.example/" }));
    let pages = |path: &str| {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let (status, page) = ask(&server, "GET", &format!("{path}?limit=10{after}"), &Value::Null);
            assert_eq!(status, 200, "{page}");
            let endpoints = page["endpoints"].as_array().expect("a list");
            assert!(endpoints.len() <= 10);
            all.extend(endpoints.iter().map(|one| one["url"].as_str().expect("text").to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        all.sort();
        all.dedup();
        all.len()
    };
    assert_eq!((pages("/channel/c/hrq-subscriptions/"), pages("/hrq-subscriptions/")), (25, 26));
    assert_eq!(pages("/channel/none/hrq-subscriptions/"), 0);
    for bad in ["limit=0", "limit=1001", "limit=x", "after=x"] {
        assert_eq!(ask(&server, "GET", &format!("/hrq-subscriptions/?{bad}"), &Value::Null).0, 400, "{bad}");
    }
    assert!((server.metric("fantail_webhook_endpoints", &[]) - 26.0).abs() < 0.5);
}

#[test]
fn bad_requests_are_refused() {
    let folder = folder();
    let server = server(&folder, &[]);
    let post = |body: &Value| ask(&server, "POST", "/channel/c/hrq-subscriptions/", body);
    for bad in [
        json!({}),
        json!([]),
        json!({ "url": 1 }),
        json!({ "url": "http://h.example/", "surprise": 1 }),
        json!({ "url": "http://h.example/", "filters": ["http-check"] }),
        json!({ "url": "http://h.example/", "headers": { "Host": "x" } }),
        json!({ "url": "http://h.example/", "secret": "x" }),
        json!({ "url": "ftp://h.example/" }),
        json!({ "url": "http://user:password@h.example/" }),
        json!({ "url": "http://10.0.0.1/" }),
    ] {
        let (status, text) = post(&bad);
        assert_eq!(status, 400, "{bad}: {text}");
        assert!(!text.to_string().contains("user:password"), "{text}");
    }
    let raw = server.control(
        "POST",
        "/channel/c/hrq-subscriptions/",
        &[("Content-Type", "application/json")],
        b"{",
    );
    assert_eq!(raw.status(), 400);
    let form = server.control("POST", "/channel/c/hrq-subscriptions/", &[], b"uri=x");
    assert_eq!(form.status(), 400);
    assert_eq!(ask(&server, "PATCH", &of("c", "http://h.example/"), &json!({ "order": true })).0, 404);
    assert_eq!(ask(&server, "GET", "/hrq-subscriptions/", &Value::Null).1["endpoints"], json!([]));
}

#[test]
fn an_endpoint_can_be_changed_and_its_time_ends() {
    let (folder, endpoint) = (folder(), receiver());
    let server = server(&folder, &[]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url }));
    let (status, shown) = ask(&server, "PATCH", &of("c", &url), &json!({ "order": true, "ttl": 1 }));
    assert_eq!((status, &shown["order"]), (200, &json!(true)));
    server.wait_until(Duration::from_secs(20), "its time is over", || {
        ask(&server, "GET", &of("c", &url), &Value::Null).0 == 404
    });
    server.wait_until(Duration::from_secs(5), "nobody listens", || {
        server.metric("fantail_hub_channels", &[]) < 0.5
    });
    server.publish(&json!([item("c", "never")]));
    assert!(endpoint.requests().is_empty());
}

/// Who does not want to be subscribed is not.
#[test]
fn an_endpoint_is_asked_where_its_realm_wants_that() {
    let folder = folder();
    let willing = Origin::answering(|request| {
        let query = request.target().split_once('?').map_or("", |(_, query)| query).to_owned();
        let challenge = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("hub.challenge="))
            .unwrap_or("none")
            .to_owned();
        assert!(
            request.method() == "POST" || query.contains("hub.mode=subscribe&hub.topic=c%2Fd"),
            "{query}"
        );
        answer("200 OK", &[], challenge)
    });
    let other = receiver();
    let strict = Origin::answering(|request| {
        if request.head.field("authorization") != Some("Bearer of-the-endpoint") {
            return answer("401 No", &[], "");
        }
        assert!(request.head.field("user-agent").is_some_and(|agent| agent.starts_with("fantail/")));
        let challenge = request.target().rsplit_once("hub.challenge=").map_or("", |(_, value)| value);
        answer("200 OK", &[], challenge)
    });
    let config = format!(
        "[server]\ndata_dir = {:?}\n[webhooks]\nallow = [\"127.0.0.1\"]\nresponse_bytes = 0\n\
         [[realm]]\nid = \"default\"\nwebhook_verify = true\n",
        folder.path()
    );
    let server = TestServer::start(&["* test"], |options| {
        options.config(config);
    });
    let post =
        |url: String| ask(&server, "POST", "/channel/c%2Fd/hrq-subscriptions/", &json!({ "url": url }));
    let (status, text) = post(format!("http://{other}/"));
    assert_eq!(status, 400, "{text}");
    assert!(text.to_string().contains("challenge"), "{text}");
    assert_eq!(post(format!("http://{willing}/x")).0, 200);
    server.publish(&json!([item("c/d", "wanted")]));
    assert_eq!(bodies(&arrived(&willing, 2))[1], "wanted");
    assert_eq!(other.requests().len(), 1);
    // It needs what its owner has it told; and its URL is as long as it may be, but not the question.
    let mut long = format!("http://{strict}/");
    long.extend(std::iter::repeat_n('x', 2048 - long.len()));
    assert_eq!(post(long.clone()).0, 400);
    let wish = json!({ "url": long, "headers": { "Authorization": "Bearer of-the-endpoint" } });
    let (status, text) = ask(&server, "POST", "/channel/c%2Fd/hrq-subscriptions/", &wish);
    assert_eq!(status, 200, "{text}");
    assert_eq!(post(long).0, 200, "they are known already");
}

/// One publish, one id: a stream and a webhook get it, each in its own format.
#[test]
fn one_publish_reaches_a_stream_and_a_webhook() {
    let (folder, endpoint) = (folder(), receiver());
    let origin = Origin::answering(|_| hold("stream", "c", &[], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
        options.set("server.data_dir", &folder.path().to_string_lossy());
        options.set("webhooks.allow", "127.0.0.0/8");
    });
    let mut stream = server.stream("/");
    subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    let both = json!([{ "channel": "c", "id": "1", "formats": {
        "http-stream": { "content": "to the stream" }, "http-request": { "body": "to the webhook" } } }]);
    let receipt = server.receipts(&both);
    assert_eq!((&receipt[0]["delivered"], &receipt[0]["queued"]), (&json!(1), &json!(1)));
    stream.expect("to the stream");
    assert_eq!(bodies(&arrived(&endpoint, 1)), ["to the webhook"]);
    server.publish(&both);
    server.publish(&json!([stream_item("c", "end"), item("c", "end")]));
    stream.expect("end");
    assert_eq!(bodies(&arrived(&endpoint, 2)), ["to the webhook", "end"]);
}

#[test]
fn the_command_line_publishes_to_webhooks() {
    let (folder, endpoint) = (folder(), receiver());
    let server = server(&folder, &[]);
    subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    let spec = format!("http://{}", server.control);
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_fantail"))
            .args(["publish", "--spec", &spec])
            .args(arguments)
            .env_remove("GRIP_URL")
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
    };
    run(&["--format", "http-request", "--method", "PATCH", "-H", "X-A: b", "c", "from a terminal"]);
    let request = arrived(&endpoint, 1).remove(0);
    assert_eq!((request.method(), request.head.field("x-a")), ("PATCH", Some("b")));
    assert_eq!(bodies(&[request]), ["from a terminal"]);
}
