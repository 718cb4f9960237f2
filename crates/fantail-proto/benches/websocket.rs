//! The costs of a WebSocket before any socket: a client's message, an item's frame, masks, compression.
//! `cargo bench -p fantail-proto --bench websocket`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fantail_proto::websocket::{
    deflate::{Deflater, Inflater},
    frame::{self, Frame, Opcode},
    reader::{FRAGMENTS_MAX, Limits, Reader, Role},
};

const LIMITS: Limits = Limits { message: 1 << 20, fragments: FRAGMENTS_MAX };
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const ITEM: &str = r#"{"type":"update","id":"5f3c9a1e","room":"general","from":"alice","text":"The quick brown fox jumps over the lazy dog","at":"2026-11-23T22:38:22Z","seen":["alice","bob","carol"],"reactions":{"like":3}}"#;

fn read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read");
    let sizes =
        [("32 bytes of text", 32, false), ("16 KiB of text", 16 << 10, false), ("item, deflated", 0, true)];
    for (name, len, deflated) in sizes {
        let (mut sent, mut inflater, mut deflater) = (Vec::new(), Inflater::new(), Deflater::new());
        if deflated {
            let payload = deflater.deflate(ITEM.as_bytes()).expect("text shrinks");
            Frame::deflated(Opcode::Text, payload).append_masked(KEY, &mut sent);
        } else {
            Frame::new(Opcode::Text, &vec![b'x'; len]).append_masked(KEY, &mut sent);
        }
        let (mut buffer, mut reader) = (sent.clone(), Reader::new(Role::Server, true));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                buffer.copy_from_slice(&sent);
                reader.read(&mut &mut buffer[..], &LIMITS, &mut inflater)
            });
        });
    }
    group.finish();
    criterion.bench_function("read 100,000 fragments of a byte", |bencher| {
        let mut flood = Vec::new();
        Frame::new(Opcode::Text, b"x").append_masked(KEY, &mut flood);
        let mut flood = flood.repeat(100_000);
        flood.chunks_mut(7).skip(1).for_each(|frame| frame[0] = 0);
        flood[0] = 1;
        bencher.iter_batched_ref(
            || (flood.clone(), Reader::new(Role::Server, false), Inflater::new()),
            |(flood, reader, inflater)| {
                for received in flood.chunks_mut(16 << 10) {
                    black_box(reader.read(&mut &mut received[..], &LIMITS, inflater)).ok();
                }
            },
            criterion::BatchSize::LargeInput,
        );
    });
}

fn encode(criterion: &mut Criterion) {
    let frame = Frame::new(Opcode::Text, ITEM.as_bytes());
    criterion.bench_function("encode an item", |bencher| bencher.iter(|| black_box(frame).to_bytes()));
}

fn mask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mask");
    for (name, len) in [("16 KiB", 16 << 10), ("1 MiB", 1 << 20)] {
        let mut payload = vec![b'x'; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |bencher| bencher.iter(|| frame::mask(black_box(KEY), &mut payload)));
    }
}

fn deflate(criterion: &mut Criterion) {
    let mut deflater = Deflater::new();
    criterion.bench_function("deflate an item", |bencher| {
        bencher.iter(|| deflater.deflate(black_box(ITEM.as_bytes())).map(<[u8]>::len));
    });
}

criterion_group!(websocket, read, encode, mask, deflate);
criterion_main!(websocket);
