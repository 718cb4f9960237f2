//! The control port over real sockets, byte by byte, with a hub that has one mailbox and no shard.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::{Limits, Phase, SEATS, State, serve};
use crate::{
    config::{self, Config, DEFAULT_REALM},
    hub::{Hub, RealmId, Receipt},
    logging::Output,
    metrics::{Counters, Process},
    publish::Publisher,
    realm::Realms,
    snapshot::Snapshot,
};

#[tokio::test]
async fn publishing_is_answered_as_documented() {
    let port = Port::open().await;
    let item = r#"{"items":[{"channel":"c","http-stream":{"content":"x"}}]}"#;
    let json = "Accept: application/json\r\n";
    for (target, headers, body, status, text) in [
        ("/publish", "", item, 200, "Published\n"),
        ("/publish/", "", item, 200, "Published\n"),
        ("/publish/", json, item, 200, "{\"message\":\"Published\"}\n"),
        ("/publish/", "Accept: application/json, */*\r\n", item, 200, "Published\n"),
        ("/publish/", "Authorization: Bearer whatever\r\n", item, 200, "Published\n"),
        ("/publish/?receipt=false", "", item, 200, "Published\n"),
        ("/publish/", "", r#"{"items":[]}"#, 200, "Published\n"),
        ("/recover", "", "", 200, "Updated\n"),
        ("/recover/", json, "ignored", 200, "{\"message\":\"Updated\"}\n"),
        ("/", json, "", 200, "Fantail API\n"),
        (
            "/publish/",
            "Accept: image/png\r\n",
            item,
            406,
            "Not Acceptable. Supported formats are text/plain and application/json.\n",
        ),
        ("/nowhere", "", "", 404, "Not Found\n"),
        ("/publish/c/", "", item, 404, "Not Found\n"),
        (
            "/publish/?receipts=true",
            "",
            item,
            400,
            "Invalid query: receipt=true and durability=accepted, logged or synced are known.\n",
        ),
        ("/publish/", "", "nonsense", 400, "Body is not valid JSON.\n"),
        ("/publish/", "", "[]", 400, "Invalid format.\n"),
        ("/publish/", "", "{}", 400, "Invalid format: object does not contain 'items'\n"),
    ] {
        let answer = port.post(target, headers, body).await;
        assert_eq!((answer.status, &*answer.body), (status, text), "{target} {headers} {body}");
        assert_eq!(answer.header("content-length"), Some(&*text.len().to_string()));
    }
}

#[tokio::test]
async fn another_method_is_told_which_one_it_should_be() {
    let port = Port::open().await;
    for (method, target, allowed) in [
        ("GET", "/publish", "POST"),
        ("OPTIONS", "/publish/", "POST"),
        ("PUT", "/recover", "POST"),
        ("DELETE", "/realm/a/publish/c/", "POST"),
        ("POST", "/metrics", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ] {
        let answer = port.request(method, target, "", "").await;
        assert_eq!(answer.status, 405);
        assert_eq!(answer.body, format!("Method not allowed: {method}.\n"));
        assert_eq!(answer.header("allow"), Some(allowed));
    }
}

#[tokio::test]
async fn one_bad_item_refuses_them_all() {
    let port = Port::open().await;
    port.hub.join(0, RealmId(0), "c");
    let long = format!(r#"{{"items":[{{"channel":"{}","http-stream":{{"content":""}}}}]}}"#, "x".repeat(33));
    let many = format!(
        r#"{{"items":[{}]}}"#,
        vec![r#"{"channel":"","http-stream":{"content":""}}"#; 10_001].join(",")
    );
    for body in [
        r#"{"items":[{"channel":"c","http-stream":{"content":"x"}},{"channel":1}]}"#,
        r#"{"items":[{"channel":"c","http-response":{"headers":{"X":"a\r\nSet-Cookie: b"},"body":""}}]}"#,
        r#"{"items":[{"channel":"c","http-response":{"headers":{"X\r\nY":"a"},"body":""}}]}"#,
        r#"{"items":[{"channel":"c","http-response":{"reason":"OK\r\nX: y","body":""}}]}"#,
        &*long,
        &*many,
    ] {
        let answer = port.post("/publish/", "", body).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(answer.body.starts_with("Invalid format: "), "{}", answer.body);
    }
    assert_eq!(port.mail(), [""; 0]);
    assert_eq!(port.process.publishes_invalid.get(), 6);
    assert_eq!(port.process.items_refused.get(), 1);
}

#[tokio::test]
async fn an_accepted_item_is_in_the_hub_when_the_answer_comes() {
    let port = Port::open().await;
    port.hub.join(0, RealmId(0), "c");
    let body = r#"{"items":[{"channel":"c","id":"1","http-stream":{"content":"x"}}]}"#;
    for _ in 0..2 {
        assert_eq!(port.post("/publish/", "", body).await.status, 200);
    }
    assert_eq!(port.mail(), ["0 c"]);
    assert_eq!((port.process.items_accepted.get(), port.process.items_duplicate.get()), (1, 1));
}

#[tokio::test]
async fn a_receipt_says_what_became_of_each_item() {
    let port = Port::open().await;
    port.hub.join(0, RealmId(0), "c");
    let hub = Arc::clone(&port.hub);
    let shard = tokio::spawn(async move {
        hub.mail(0).await;
        let mut batch = Vec::new();
        hub.take(0, &mut batch);
        batch[0].report(Receipt { delivered: 2, queued: 1, dropped_overflow: 3, ..Receipt::default() });
    });
    let items = ["c", "c", "nobody"]
        .map(|channel| format!(r#"{{"channel":"{channel}","id":"1","http-stream":{{"content":"x"}}}}"#));
    let answer =
        port.post("/publish/?receipt=true", "", &format!(r#"{{"items":[{}]}}"#, items.join(","))).await;
    shard.await.unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let zero = r#""delivered":0,"queued":0,"filtered":0,"recovered":0,"left_to_log":0,"passed_over":0,"dropped":{"gone":0,"overflow":0,"filter":0}"#;
    let some = r#""delivered":2,"queued":1,"filtered":0,"recovered":0,"left_to_log":0,"passed_over":0,"dropped":{"gone":0,"overflow":3,"filter":0}"#;
    let line = |channel, duplicate, counts| {
        format!(r#"{{"channel":"{channel}","id":"1","duplicate":{duplicate},"order":null,{counts}}}"#)
    };
    let lines = [line("c", false, some), line("c", true, zero), line("nobody", false, zero)].join(",");
    assert_eq!(answer.body, format!("{{\"message\":\"Published\",\"items\":[{lines}]}}\n"));
}

#[tokio::test]
async fn a_receipt_that_is_late_is_202_and_the_item_stays_accepted() {
    let port = Port::with(|options| options.receipt_timeout = Duration::from_millis(20)).await;
    port.hub.join(0, RealmId(0), "c");
    let item = r#"{"items":[{"channel":"c","id":"1","http-stream":{"content":"x"}}]}"#;
    let answer = port.post("/publish/?receipt=true", "", item).await;
    assert_eq!((answer.status, &*answer.body), (202, "{\"message\":\"Published\"}\n"));
    let mut batch = Vec::new();
    port.hub.take(0, &mut batch);
    assert_eq!(batch.len(), 1);
}

#[tokio::test]
async fn a_full_mailbox_is_waited_for_and_then_503() {
    let port = Port::with(|options| options.patience = Duration::from_millis(20)).await;
    port.hub.join(0, RealmId(0), "c");
    let body = r#"{"items":[{"channel":"c","http-stream":{"content":"x"}}]}"#;
    for _ in 0..MAILBOX {
        assert_eq!(port.post("/publish/", "", body).await.status, 200);
    }
    let answer = port.post("/publish/", "", body).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(port.mail().len(), MAILBOX);
    assert_eq!(port.process.publishes_overload.get(), 1);
    assert_eq!(port.post("/publish/", "", body).await.status, 200);
}

#[tokio::test]
async fn realms_are_apart_and_look_alike_from_outside() {
    let port = Port::open().await;
    for realm in 0..3 {
        port.hub.join(0, RealmId(realm), "c");
    }
    let body = r#"{"items":[{"channel":"c","http-stream":{"content":"x"}}]}"#;
    let nameless = r#"{"items":[{"http-stream":{"content":"x"}}]}"#;
    let a = port.realms.get("a").unwrap();
    let key = |key: &str| format!("Authorization: Bearer {key}\r\n");
    assert_eq!(port.post("/realm/a/publish/", &key(KEY_A), body).await.status, 200);
    assert_eq!(port.post("/realm/a/publish", &key(KEY_A), body).await.status, 200);
    assert_eq!(port.post("/realm/a/publish/%63/", &key(KEY_A), nameless).await.status, 200);
    assert_eq!(port.mail(), vec![format!("{} c", a.0); 3]);

    let refused = [
        port.post("/realm/a/publish/", &key(KEY_B), body).await,
        port.post("/realm/a/publish/c/", &key(KEY_B), nameless).await,
        port.post("/realm/b/publish/", &key(KEY_A), body).await,
        port.post("/realm/a/publish/", "", body).await,
        port.post("/realm/keyless/publish/", &key(KEY_A), body).await,
        port.post("/realm/unknown/publish/", &key(KEY_A), body).await,
        port.post("/realm/unknown/publish/", &key(KEY_A), "nonsense").await,
    ];
    for answer in refused {
        assert_eq!(
            (answer.status, answer.header("www-authenticate")),
            (401, Some("Bearer realm=\"fantail\""))
        );
        assert_eq!(answer.body, format!("{}\n", crate::realm::Denied));
    }
    assert_eq!(port.mail(), [""; 0]);
    assert_eq!(port.process.publishes_denied.get(), 7);
}

#[tokio::test]
async fn with_a_key_the_default_realm_wants_it() {
    let port = Port::with(|options| options.default_keys = vec![KEY_A.into()]).await;
    for (target, body) in
        [("/publish/", r#"{"items":[]}"#), ("/realm/default/publish/", r#"{"items":[]}"#), ("/recover/", "")]
    {
        assert_eq!(port.post(target, "", body).await.status, 401, "{target}");
        let key = format!("Authorization: Bearer {KEY_A}\r\n");
        assert_eq!(port.post(target, &key, body).await.status, 200, "{target}");
    }
}

#[tokio::test]
async fn web_pages_are_kept_out() {
    let port = Port::open().await;
    let page = "Origin: http://evil.example\r\n";
    assert_eq!(port.post("/publish/", page, r#"{"items":[]}"#).await.status, 403);
    assert_eq!(port.post("/recover/", page, "").await.status, 403);
    let rebound =
        port.exchange("GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(rebound.starts_with("HTTP/1.1 403 "), "{rebound}");
}

#[tokio::test]
async fn a_body_may_be_chunked_and_connections_are_kept() {
    let port = Port::open().await;
    port.hub.join(0, RealmId(0), "c");
    let body = r#"{"items":[{"channel":"c","http-stream":{"content":"x"}}]}"#;
    let (first, rest) = body.split_at(7);
    let chunked = format!(
        "POST /publish/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n",
        first.len(),
        rest.len()
    );
    let last = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answers = port.exchange(&format!("{chunked}{chunked}{last}")).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert!(answers.ends_with("\r\n\r\nok\n"));
    assert_eq!(port.mail(), ["0 c", "0 c"]);
}

#[tokio::test]
async fn expect_continue_is_answered_when_the_body_is_wanted() {
    let port = Port::open().await;
    let head = |target| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: [::1]:1\r\nContent-Length: 12\r\n\
             Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
    };
    let mut client = port.connect().await;
    client.write_all(head("/publish/").as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    soon(client.read_exact(&mut interim)).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(br#"{"items":[]}"#).await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 200 "));
    assert!(port.exchange(&head("/realm/unknown/publish/")).await.starts_with("HTTP/1.1 401 "));
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_the_refusal_arrives() {
    let port = Port::open().await;
    let head = format!("POST /publish/ HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(BODY));
    assert!(port.exchange(&head).await.starts_with("HTTP/1.1 431 "));
    let announced = port.post("/publish/", "", &" ".repeat(BODY + 1)).await;
    assert_eq!((announced.status, &*announced.body), (413, "Request body too large.\n"));
    let chunked = format!(
        "POST /publish/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Transfer-Encoding: chunked\r\n\r\n100000\r\n{}\r\n0\r\n\r\n",
        " ".repeat(0x10_0000)
    );
    let answer = port.exchange(&chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("Request body too large.\n"), "{answer}");
}

#[tokio::test]
async fn a_refused_body_that_still_arrives_does_not_reset_the_connection() {
    let port = Port::open().await;
    let mut client = port.connect().await;
    let head = "POST /publish/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 413 "));
    for _ in 0..3 {
        client.write_all(b"late").await.unwrap();
    }
}

#[tokio::test]
async fn a_slow_head_and_a_slow_body_are_timed_out() {
    let port = Port::with(|options| {
        options.head_timeout = Duration::from_millis(100);
        options.body_timeout = Duration::from_millis(100);
    })
    .await;
    let (mut reader, mut writer) = port.connect().await.into_split();
    let drip = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while writer.write_all(b"P").await.is_ok() {
            tick.tick().await;
        }
    });
    let mut answer = String::new();
    soon(reader.read_to_string(&mut answer)).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 408 ") && answer.ends_with("\r\n\r\nRequest head too slow.\n"),
        "{answer}"
    );
    drip.abort();

    let half = "POST /publish/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n{\"items\"";
    let answer = port.exchange(half).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.ends_with("Request body too slow.\n"), "{answer}");
    assert_eq!(port.process.publishes_cut.get(), 1);

    assert_eq!(port.exchange("").await, "", "an idle connection is closed without a word");
}

#[tokio::test]
async fn health_is_answered_when_publishers_have_all_seats() {
    let port = Port::with(|options| options.seats = 2).await;
    let mut seats = Vec::new();
    for _ in 0..2 {
        let mut seat = port.connect().await;
        seat.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut start = [0; 15];
        soon(seat.read_exact(&mut start)).await.unwrap();
        seats.push(seat);
    }
    let health = port.exchange("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(health.starts_with("HTTP/1.1 200 ") && health.contains("connection: close"), "{health}");
    let answer = port.post("/publish/", "", r#"{"items":[]}"#).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    drop(seats);
}

#[tokio::test]
async fn readiness_follows_the_phase_and_drain_ends_idle_connections() {
    let port = Port::open().await;
    for (phase, status, text) in [
        (None, 503, "starting\n"),
        (Some(Phase::Ready), 200, "ready\n"),
        (Some(Phase::Draining), 503, "draining\n"),
    ] {
        if let Some(phase) = phase {
            port.state.enter(phase);
        }
        let answer = port.request("GET", "/readyz", "", "").await;
        assert_eq!((answer.status, &*answer.body), (status, text));
    }
    let mut idle = port.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut start = [0; 15];
    soon(idle.read_exact(&mut start)).await.unwrap();
    port.drain.send(()).unwrap();
    assert!(rest(&mut idle).await.ends_with("ok\n"));
    drop(idle);
    soon(port.task).await.unwrap();
}

#[tokio::test]
async fn metrics_count_what_was_published_and_name_no_channel() {
    let port = Port::open().await;
    port.hub.join(0, RealmId(0), "secret");
    let body = r#"{"items":[{"channel":"secret","http-stream":{"content":"x"}}]}"#;
    assert_eq!(port.post("/publish/", "", body).await.status, 200);
    let page =
        port.request("GET", "/metrics", "Accept: application/openmetrics-text;version=1.0.0\r\n", "").await;
    assert_eq!(
        page.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    for line in [
        "fantail_items_total{result=\"accepted\"} 1",
        "fantail_publishes_total{result=\"accepted\"} 1",
        "fantail_publish_latency_seconds_count 1",
        "fantail_hub_channels 1",
        "fantail_connections{shard=\"1\"} 0",
    ] {
        assert!(page.body.lines().any(|l| l == line), "{line} is not in\n{}", page.body);
    }
    assert!(!page.body.contains("secret"));
    let plain = port.request("GET", "/metrics", "Accept: text/html, image/png\r\n", "").await;
    assert_eq!(
        (plain.status, plain.header("content-type")),
        (200, Some("text/plain; version=0.0.4; charset=utf-8"))
    );
}

/// A control port on loopback, and what is behind it.
struct Port {
    address: SocketAddr,
    hub: Arc<Hub>,
    realms: Arc<Realms>,
    process: Arc<Process>,
    state: Arc<State>,
    drain: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

struct Options {
    patience: Duration,
    default_keys: Vec<String>,
    seats: usize,
    head_timeout: Duration,
    body_timeout: Duration,
    receipt_timeout: Duration,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Port {
    async fn open() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            patience: SOON,
            default_keys: Vec::new(),
            seats: SEATS,
            head_timeout: SOON,
            body_timeout: SOON,
            receipt_timeout: SOON,
        };
        change(&mut options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = Config::default();
        config.realms = realms(options.default_keys);
        config.hub.mailbox_items = MAILBOX;
        config.grip.channel_bytes = 32;
        config.control.publish_timeout = options.patience;
        let hub = Arc::new(Hub::new(1, &config.hub));
        let process = Arc::new(Process::default());
        let log = Output::start(&config.logging, std::io::sink()).unwrap();
        let control = config.control.clone();
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::load(config, None).unwrap()));
        let realms = Arc::clone(&snapshot.load().realms);
        let publisher = Publisher::new(Arc::clone(&hub), snapshot, Arc::clone(&process), options.patience);
        let shards = vec![Arc::new(Counters::default()), Arc::new(Counters::default())];
        let publisher = Arc::new(publisher);
        let mut state =
            State::new(publisher, Arc::clone(&hub), shards, Arc::clone(&process), log, (&control, None));
        let endpoints = Arc::get_mut(&mut state.endpoints).unwrap();
        endpoints.body_timeout = options.body_timeout;
        endpoints.receipt_timeout = options.receipt_timeout;
        state.limits = Limits { seats: options.seats, head_timeout: options.head_timeout, ..state.limits };
        let state = Arc::new(state);
        let (drain, drained) = oneshot::channel();
        let drained = async move { drop(drained.await) };
        let task = tokio::spawn(serve(listener, Arc::clone(&state), drained));
        Self { address, hub, realms, process, state, drain, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// All that comes back until the connection is closed.
    async fn exchange(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        rest(&mut client).await
    }

    async fn post(&self, target: &str, headers: &str, body: &str) -> Answer {
        self.request("POST", target, headers, body).await
    }

    async fn request(&self, method: &str, target: &str, headers: &str, body: &str) -> Answer {
        let address = self.address;
        let length = body.len();
        let answer = self
            .exchange(&format!(
                "{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
                 Content-Length: {length}\r\n{headers}\r\n{body}"
            ))
            .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Answer { status: head[9..12].parse().unwrap(), head: head.into(), body: body.into() }
    }

    /// What waits in the hub's mailbox: realm and channel.
    fn mail(&self) -> Vec<String> {
        let mut batch = Vec::new();
        self.hub.take(0, &mut batch);
        batch.iter().map(|delivery| format!("{} {}", delivery.realm.0, delivery.channel)).collect()
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.into_iter().find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }
}

async fn rest(client: &mut TcpStream) -> String {
    let mut answer = String::new();
    soon(client.read_to_string(&mut answer)).await.unwrap();
    answer
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("this must not take long")
}

const SOON: Duration = Duration::from_secs(10);
const MAILBOX: usize = 4;
const BODY: usize = 1_000_000;
const KEY_A: &str = "key-of-realm-a-0123456789-0123456789";
const KEY_B: &str = "key-of-realm-b-0123456789-0123456789";

/// Realm `a` has a key, `b` another, `keyless` none.
fn realms(default_keys: Vec<String>) -> Vec<config::Realm> {
    let realm = |id: &str, keys: Vec<String>| config::Realm { keys, ..config::Realm::bare(id) };
    vec![
        realm(DEFAULT_REALM, default_keys),
        realm("a", vec![KEY_A.into()]),
        realm("b", vec![KEY_B.into()]),
        realm("keyless", Vec::new()),
    ]
}
