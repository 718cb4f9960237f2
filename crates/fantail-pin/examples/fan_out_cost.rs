//! What one delivery costs this process in CPU time, in one run: a bare loop of `send` to sockets
//! that a poller watches, and the table's two ways
//! of fan-out. Another process holds the other ends of N loopback TCP connections and reads; a round begins
//! when the one before has arrived everywhere, and the three take turns, so that they see the same machine.
//!
//! `cargo run --release -p fantail-pin --example fan_out_cost -- [CONNECTIONS [ROUNDS [BYTES]]]`
#![expect(clippy::unwrap_used, reason = "a measurement has nobody to report an error to")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use fantail_pin::{FanOut, Form, Limits, Payload, PinId, Pins, Tally, io_uring_available};
use rustix::event::epoll;
use rustix::net::{SendFlags, send};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, address, connections, bytes] = args.as_slice()
        && role == "read"
    {
        return read(address.parse().unwrap(), connections.parse().unwrap(), bytes.parse().unwrap());
    }
    let number = |at: usize, default| args.get(at).map_or(default, |text| text.parse().unwrap());
    measure(number(0, 5000), number(1, 200), number(2, 71));
}

fn measure(connections: usize, rounds: usize, bytes: usize) {
    let payload = Payload { plain: vec![b'x'; bytes].into(), ..Payload::default() };
    let mut rivals = vec![Rival::bare(connections, bytes), Rival::table(FanOut::Send, connections, bytes)];
    if io_uring_available() {
        rivals.push(Rival::table(FanOut::IoUring, connections, bytes));
    }
    for round in 0..rounds {
        // Who comes first in a round is at an advantage of some percent.
        for turn in 0..rivals.len() {
            let at = (round + turn) % rivals.len();
            rivals[at].round(&payload);
        }
    }
    println!("{connections} connections, {rounds} rounds, {bytes} bytes: median CPU µs per delivery");
    let floor = rivals[0].median() / connections as f64;
    for rival in &mut rivals {
        let own = rival.median() / connections as f64;
        println!("{:<18} {own:.3}  {:.3} of the bare loop", rival.name, own / floor);
    }
}

struct Rival {
    name: String,
    way: Way,
    reader: Reader,
    costs: Vec<f64>,
}

enum Way {
    Bare { sockets: Vec<OwnedFd>, _poller: OwnedFd },
    Table { pins: Box<Pins<()>>, ids: Vec<PinId> },
}

impl Rival {
    fn bare(connections: usize, bytes: usize) -> Self {
        let (sockets, reader) = connect(connections, bytes);
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for socket in &sockets {
            epoll::add(&poller, socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
        }
        let way = Way::Bare { sockets, _poller: poller };
        Self { name: "bare loop of send".to_owned(), way, reader, costs: Vec::new() }
    }

    fn table(way: FanOut, connections: usize, bytes: usize) -> Self {
        let (sockets, reader) = connect(connections, bytes);
        let limits = Limits { queue_bytes: 1 << 16, send_timeout_ms: 10_000, pace: None };
        let mut pins = Box::new(Pins::new(way, limits, 0).unwrap());
        let ids = sockets.into_iter().map(|s| pins.insert(s, Form::Plain, ()).unwrap()).collect();
        Self { name: format!("{way:?}"), way: Way::Table { pins, ids }, reader, costs: Vec::new() }
    }

    fn round(&mut self, payload: &Payload) {
        let cost = match &mut self.way {
            Way::Bare { sockets, .. } => cost(|| {
                for socket in sockets {
                    assert_eq!(
                        send(socket, &payload.plain, SendFlags::NOSIGNAL).unwrap(),
                        payload.plain.len()
                    );
                }
            }),
            Way::Table { pins, ids } => cost(|| {
                let mut tally = Tally::default();
                for targets in ids.chunks(1024) {
                    pins.fan_out(targets, payload, &mut tally);
                }
                assert_eq!(tally.sent, ids.len() as u64);
            }),
        };
        self.costs.push(cost);
        self.reader.wait();
    }

    fn median(&mut self) -> f64 {
        self.costs.sort_by(f64::total_cmp);
        self.costs[self.costs.len() / 2]
    }
}

/// The process at the other end; it writes a byte when a round has arrived everywhere.
struct Reader(Child);

impl Reader {
    fn wait(&mut self) {
        self.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn connect(connections: usize, bytes: usize) -> (Vec<OwnedFd>, Reader) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["read", &address, &connections.to_string(), &bytes.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let sockets = (0..connections).map(|_| {
        let (socket, _) = listener.accept().unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.into()
    });
    (sockets.collect(), Reader(child))
}

fn read(address: SocketAddr, connections: usize, bytes: usize) {
    let mut streams: Vec<_> = (0..connections).map(|_| TcpStream::connect(address).unwrap()).collect();
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for (at, stream) in streams.iter().enumerate() {
        epoll::add(&poller, stream, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN).unwrap();
    }
    let mut events = Vec::with_capacity(512);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut missing = connections * bytes;
        while missing > 0 {
            events.clear();
            epoll::wait(&poller, rustix::buffer::spare_capacity(&mut events), None).unwrap();
            for event in &events {
                match streams[event.data.u64() as usize].read(&mut buffer).unwrap() {
                    0 => return,
                    got => missing -= got,
                }
            }
        }
        let mut stdout = std::io::stdout();
        if stdout.write_all(&[1]).and_then(|()| stdout.flush()).is_err() {
            return;
        }
    }
}

/// Microseconds of this thread's CPU, the kernel's work for it included.
fn cost(work: impl FnOnce()) -> f64 {
    let before = clock_gettime(ClockId::ThreadCPUTime);
    work();
    let after = clock_gettime(ClockId::ThreadCPUTime);
    (after.tv_sec - before.tv_sec) as f64 * 1e6 + (after.tv_nsec - before.tv_nsec) as f64 / 1e3
}
