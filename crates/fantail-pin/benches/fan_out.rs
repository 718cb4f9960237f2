//! One broadcast to a thousand Unix sockets whose readers keep up, by `send` and by io_uring.
#![expect(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fantail_pin::{FanOut, Form, Limits, Payload, Pins, Tally, io_uring_available};

const PINS: usize = 1000;
const ITEM: usize = 71;

fn fan_out(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fan_out");
    group.throughput(Throughput::Elements(PINS as u64));
    let payload = Payload { plain: vec![b'x'; ITEM].into(), ..Payload::default() };
    let ways = [Some(FanOut::Send), io_uring_available().then_some(FanOut::IoUring)];
    for way in ways.into_iter().flatten() {
        let limits = Limits { queue_bytes: 1 << 16, send_timeout_ms: 10_000, pace: None };
        let mut pins = Pins::new(way, limits, 0).unwrap();
        let (sockets, mut peers): (Vec<_>, Vec<_>) = (0..PINS).map(|_| UnixStream::pair().unwrap()).unzip();
        let ids: Vec<_> =
            sockets.into_iter().map(|s| pins.insert(s.into(), Form::Plain, ()).unwrap()).collect();
        peers.iter().for_each(|peer| peer.set_nonblocking(true).unwrap());
        group.bench_function(format!("{way:?}"), |bencher| {
            bencher.iter_batched_ref(
                || peers.iter_mut().for_each(read_all),
                |()| {
                    let mut tally = Tally::default();
                    pins.fan_out(&ids, &payload, &mut tally);
                    assert_eq!(tally.sent, PINS as u64);
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn read_all(peer: &mut UnixStream) {
    let mut buffer = [0; 4096];
    while peer.read(&mut buffer).is_ok_and(|read| read == buffer.len()) {}
}

criterion_group!(benches, fan_out);
criterion_main!(benches);
