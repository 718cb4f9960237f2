//! A broadcast to ten thousand pins allocates nothing, by `send` and by io_uring.
//! The only test of its binary: it counts every allocation of the process.
#![expect(unsafe_code, reason = "an allocator can only be replaced by an unsafe impl")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use fantail_pin::{FanOut, Form, Limits, Payload, PinId, Pins, Tally, io_uring_available};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator as it came, growth by the default `realloc`, which
// comes back here.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const PINS: usize = 10_000;
/// Each pin has a descriptor of its own, but four pins share a socket pair, so that ten thousand fit the hard
/// limit of descriptors that is common (20,000), beside what the test runner has open.
const PINS_OF_A_PAIR: usize = 4;

#[test]
fn a_broadcast_allocates_nothing_for_a_subscriber() {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    let ways = [Some(FanOut::Send), io_uring_available().then_some(FanOut::IoUring)];
    for way in ways.into_iter().flatten() {
        let limits = Limits { queue_bytes: 1 << 16, send_timeout_ms: 10_000, pace: None };
        let mut pins = Pins::new(way, limits, 0).unwrap();
        let (mut peers, ids) = pin_all(&mut pins);
        let payload = Payload { plain: Bytes::from(vec![b'x'; 64]), ..Payload::default() };
        let mut tally = Tally::default();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for targets in ids.chunks(1024) {
            pins.fan_out(targets, &payload, &mut tally);
        }
        let after = ALLOCATIONS.load(Ordering::Relaxed);
        assert_eq!(tally, Tally { sent: PINS as u64, bytes: 64 * PINS as u64, ..Tally::default() });
        assert_eq!(after - before, 0, "{way:?}");
        let mut got = [0; 64 * PINS_OF_A_PAIR];
        peers.iter_mut().for_each(|peer| peer.read_exact(&mut got).unwrap());
    }
}

fn pin_all(pins: &mut Pins<()>) -> (Vec<UnixStream>, Vec<PinId>) {
    let (mut peers, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..PINS / PINS_OF_A_PAIR {
        let (pinned, peer) = UnixStream::pair().unwrap();
        for _ in 0..PINS_OF_A_PAIR {
            let socket = pinned.try_clone().unwrap();
            ids.push(pins.insert(socket.into(), Form::Plain, ()).unwrap());
        }
        peers.push(peer);
    }
    (peers, ids)
}
