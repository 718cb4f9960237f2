//! An item's way inside: accepted by the hub, taken by a shard, written to its streams. The sockets are
//! Unix pairs, which are emptied between rounds; run with `cargo bench -p fantail`.

use std::{
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fantail::{
    client::{Connections, Crowd},
    config,
    hold::{Asked, Holds, Subscription},
    hub::{Hub, RealmId},
    log::Log,
    metrics::Counters,
};
use fantail_pin::{FanOut, Form};
use fantail_proto::{
    item::{HttpStream, Item},
    log::{Durability, Limits, Pattern},
    slow::Slow,
};

const STREAMS: usize = 1000;

fn hub(shards: usize) -> Arc<Hub> {
    let config = config::Config::load(config::Sources::default()).expect("the defaults are good");
    Arc::new(Hub::new(shards, &config.hub))
}

/// With a log in memory for each channel.
fn logging_hub(shards: usize) -> Arc<Hub> {
    let rule = config::Log {
        text: "*".into(),
        pattern: Pattern::new("*"),
        realm: "default".into(),
        limits: Limits { items: 1000, bytes: 1 << 20, age_s: 600 },
        total_bytes: 256 << 20,
        storage: config::Storage::Memory,
        durability: Durability::Accepted,
        slow: None,
    };
    let log = Log::new(None, Arc::default());
    log.configure(&[rule], |_| Some(RealmId(0))).expect("no disk");
    let config = config::Config::load(config::Sources::default()).expect("the defaults are good");
    Arc::new(Hub::with_log(shards, &config.hub, Arc::new(log)))
}

fn item() -> Item {
    let content = Bytes::from_static(&[b'x'; 64]);
    Item { channel: "c".into(), stream: Some(HttpStream::Send(content)), ..Item::default() }
}

fn holds(hub: &Arc<Hub>, fan_out: FanOut) -> (Holds, Vec<UnixStream>) {
    let counters = Arc::new(Counters::default());
    let connections = Connections::new(Crowd::new(STREAMS, 0), Arc::clone(&counters));
    let config = config::Config::load(config::Sources::default()).expect("the defaults are good");
    let mut holds = Holds::new(Arc::clone(hub), 0, fan_out, &config, counters).expect("an epoll");
    let mut clients = Vec::new();
    for _ in 0..STREAMS {
        let (ours, theirs) = UnixStream::pair().expect("descriptors for all streams");
        theirs.set_nonblocking(true).expect("a socket");
        let subscriptions = vec![Subscription::implicit("c")];
        let (meta, prefix) = (Vec::new(), String::new());
        let (uri, next, gone, presence) = (None, None, None, None);
        let (realm, debug, continues) = (RealmId(0), false, false);
        let (slow, events) = (Slow::Close, false);
        let asked = Asked {
            begin: Bytes::new(),
            realm,
            subscriptions,
            meta,
            prefix,
            uri,
            debug,
            next,
            continues,
            gone,
            presence,
            slow,
            events,
            trail: None,
            session: None,
            again: None,
        };
        let id = holds.reserve_stream(asked, Form::Coded, true).expect("room for a pin");
        let client = connections.take(None).expect("no limit for an address");
        holds.attach_stream(id, OwnedFd::from(ours), client, Vec::new(), None);
        clients.push(theirs);
    }
    (holds, clients)
}

fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("hub: publish an item and take it");
    for (name, hub) in [("without a log", hub(2)), ("with a log in memory", logging_hub(2))] {
        hub.join(0, RealmId(0), "c");
        let mut batch = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| {
                hub.publish(RealmId(0), vec![item()], false).expect("room");
                hub.take(0, &mut batch);
                batch.clear();
            });
        });
    }
    group.finish();
}

fn deliver(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard: deliver to 1000 streams");
    group.throughput(Throughput::Elements(STREAMS as u64));
    for fan_out in [FanOut::Send, FanOut::IoUring] {
        if fan_out == FanOut::IoUring && !fantail_pin::io_uring_available() {
            continue;
        }
        let hub = hub(1);
        let (mut holds, mut clients) = holds(&hub, fan_out);
        let mut sink = [0; 4096];
        group.bench_function(format!("{fan_out:?}"), |b| {
            b.iter_batched(
                || {
                    for client in &mut clients {
                        // Empty or not, the next item then fits.
                        while client.read(&mut sink).is_ok_and(|read| read == sink.len()) {}
                    }
                    hub.publish(RealmId(0), vec![item()], false).expect("room");
                },
                |()| {
                    hub.take(0, holds.batch());
                    holds.begin();
                    while holds.step() {}
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, publish, deliver);
criterion_main!(benches);
