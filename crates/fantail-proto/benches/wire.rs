//! The costs of an item and of a hold before any socket: decode, render, coalesce, parse the instruct.
//! `cargo bench -p fantail-proto`.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fantail_proto::{
    forward::{Forward, Rules},
    grip::Instruct,
    item,
    render::{Chunk, Rendered},
    route::Route,
};
use http::{HeaderMap, HeaderName, HeaderValue};

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (name, count) in [("1 item", 1), ("100 items", 100)] {
        let body = publish(count);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| item::decode(black_box(&body), None)));
    }
}

fn render(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("render");
    let items = item::decode(&publish(1), None).expect("a valid publish");
    group.bench_function("1 item", |bencher| {
        bencher.iter_batched(|| items[0].clone(), Rendered::from, criterion::BatchSize::SmallInput);
    });
    let chunk = Chunk::new(&[b'x'; 64]);
    let chunks = [&chunk; 64];
    group.bench_function("64 chunks into one", |bencher| bencher.iter(|| Chunk::concat(black_box(&chunks))));
}

fn instruct(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("instruct");
    let lines = [
        ("content-type", "text/event-stream"),
        ("date", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("server", "origin"),
        ("grip-hold", "stream"),
        ("grip-channel", "updates; prev-id=41"),
        ("grip-keep-alive", r":\n\n; format=cstring; timeout=20"),
    ];
    let by_headers = headers(&lines);
    group.bench_function("headers", |bencher| {
        bencher.iter(|| Instruct::parse(200, "OK", black_box(&by_headers), Bytes::new()));
    });
    let by_json = headers(&[("content-type", "application/grip-instruct")]);
    let body = Bytes::from_static(
        br#"{"hold":{"mode":"stream","channels":[{"name":"updates","prev-id":"41"}]},"response":{"headers":{"Content-Type":"text/event-stream"},"body":"hi"}}"#,
    );
    group.bench_function("json", |bencher| {
        bencher.iter(|| Instruct::parse(200, "OK", black_box(&by_json), body.clone()));
    });
}

fn forward(criterion: &mut Criterion) {
    let lines = [
        ("host", "example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/130.0"),
        ("accept", "*/*"),
        ("accept-language", "en"),
        ("accept-encoding", "gzip, deflate, br"),
        ("referer", "https://example.com/"),
        ("cookie", "session=0123456789abcdef"),
        ("connection", "keep-alive"),
    ];
    let (client, route, rules) = (headers(&lines), Route::default(), Rules::default());
    let forward = Forward {
        trusted: false,
        websocket: false,
        tls: true,
        peer: None,
        signature: Some(HeaderValue::from_static("token")),
        last_ids: &[],
        route: &route,
        rules: &rules,
    };
    criterion.bench_function("forward", |bencher| {
        bencher.iter_batched_ref(
            || client.clone(),
            |headers| forward.apply(headers),
            criterion::BatchSize::SmallInput,
        );
    });
}

fn publish(count: usize) -> Vec<u8> {
    let item = r#"{"channel":"updates","id":"42","prev-id":"41","formats":{"http-response":{"code":200,"headers":{"Content-Type":"application/json"},"body":"{\"n\":42}\n"},"http-stream":{"content":"event: update\ndata: {\"n\":42}\n\n"},"ws-message":{"content":"{\"n\":42}"}}}"#;
    format!(r#"{{"items":[{}]}}"#, vec![item; count].join(",")).into_bytes()
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    lines.iter().copied().map(pair).collect()
}

criterion_group!(wire, decode, render, instruct, forward);
criterion_main!(wire);
