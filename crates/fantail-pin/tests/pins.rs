//! What a table of pins does to real sockets: Unix pairs and loopback TCP, with both ways of fan-out.
//! Clocks are given, never waited for.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use bytes::Bytes;
use fantail_pin::{
    Brim, Event, FanOut, Form, ITEM_COST, KeepAlive, KeepAliveMode, Limits, Outcome, Pace, Payload, PinId,
    Pins, Received, Tally, io_uring_available,
};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::net::sockopt;

const LIMITS: Limits = Limits { queue_bytes: 1 << 20, send_timeout_ms: 10_000, pace: None };
const START_MS: u64 = 77_777;
/// More than any socket of these tests takes at once.
const FLOOD: usize = 1 << 20;

enum Peer {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Peer {
    /// Reads what is there, up to `limit` bytes. The flag says that the end was seen.
    fn read(&mut self, limit: usize) -> (Vec<u8>, bool) {
        let mut got = Vec::new();
        let mut buffer = vec![0; limit.min(1 << 16)];
        while got.len() < limit {
            let room = buffer.len().min(limit - got.len());
            let read = match self {
                Self::Unix(stream) => stream.read(&mut buffer[..room]),
                Self::Tcp(stream) => stream.read(&mut buffer[..room]),
            };
            match read {
                Ok(0) => return (got, true),
                Ok(n) => got.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        (got, false)
    }

    fn read_all(&mut self) -> Vec<u8> {
        self.read(usize::MAX).0
    }

    fn write(&mut self, bytes: &[u8]) {
        match self {
            Self::Unix(stream) => stream.write_all(bytes).unwrap(),
            Self::Tcp(stream) => stream.write_all(bytes).unwrap(),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }

    fn shutdown(&self, how: Shutdown) {
        match self {
            Self::Unix(stream) => stream.shutdown(how).unwrap(),
            Self::Tcp(stream) => stream.shutdown(how).unwrap(),
        }
    }
}

fn unix() -> (OwnedFd, Peer) {
    let (pinned, peer) = UnixStream::pair().unwrap();
    sockopt::set_socket_send_buffer_size(&pinned, 4096).unwrap();
    peer.set_nonblocking(true).unwrap();
    (pinned.into(), Peer::Unix(peer))
}

fn tcp() -> (OwnedFd, Peer) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    // Not below the segment size of the loopback: a smaller window opens only by timer.
    sockopt::set_socket_recv_buffer_size(&peer, 1 << 17).unwrap();
    peer.set_nonblocking(true).unwrap();
    let (pinned, _) = listener.accept().unwrap();
    sockopt::set_socket_send_buffer_size(&pinned, 4096).unwrap();
    pinned.set_nodelay(true).unwrap();
    (pinned.into(), Peer::Tcp(peer))
}

fn table(fan_out: FanOut) -> Pins<u32> {
    Pins::new(fan_out, LIMITS, START_MS).unwrap()
}

/// Every way of fan-out that this kernel allows.
fn ways() -> impl Iterator<Item = FanOut> {
    [Some(FanOut::Send), io_uring_available().then_some(FanOut::IoUring)].into_iter().flatten()
}

fn raw(bytes: impl Into<Bytes>) -> Payload {
    Payload { plain: bytes.into(), coded: Bytes::new() }
}

/// What has happened by now.
fn turn(pins: &mut Pins<u32>) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let before = events.len();
        let more = pins.turn(&mut events).unwrap();
        // What can be read is told again in each turn.
        let again = events.split_off(before);
        let news: Vec<_> = again.into_iter().filter(|event| !events.contains(event)).collect();
        let done = !more || news.is_empty();
        events.extend(news);
        if done {
            return events;
        }
    }
}

/// What happens next, as a shard waits for it.
fn wait(pins: &mut Pins<u32>) -> Vec<Event> {
    let epoll = pins.epoll().unwrap();
    wait_for(&mut [PollFd::new(&epoll, PollFlags::IN)]);
    turn(pins)
}

/// Whether a shard would be woken.
fn has_news(pins: &Pins<u32>) -> bool {
    let epoll = pins.epoll().unwrap();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&epoll, PollFlags::IN)], Some(&at_once)).unwrap() > 0
}

/// Nothing in five seconds is a failure.
fn wait_for(fds: &mut [PollFd<'_>]) {
    let ready = poll(fds, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap();
    assert!(ready > 0, "nobody has anything to say");
}

fn expire(pins: &mut Pins<u32>, now_ms: u64) -> (Vec<Event>, u64) {
    let mut events = Vec::new();
    let mut kept_alive = 0;
    loop {
        kept_alive += pins.expire(now_ms, &mut events).sent;
        if pins.next_expiry_ms().is_none_or(|next| next > now_ms) {
            return (events, kept_alive);
        }
    }
}

fn fan_out(pins: &mut Pins<u32>, targets: &[PinId], payload: &Payload) -> Tally {
    let mut tally = Tally::default();
    pins.fan_out(targets, payload, &mut tally);
    tally
}

#[test]
fn each_pin_gets_the_payload_in_its_framing() {
    for way in ways() {
        let mut pins = table(way);
        let (socket, mut chunked_peer) = tcp();
        let chunked = pins.insert(socket, Form::Coded, 1).unwrap();
        let (socket, mut raw_peer) = unix();
        let plain = pins.insert(socket, Form::Plain, 2).unwrap();
        let payload = Payload { coded: Bytes::from_static(b"2\r\nhi\r\n"), plain: Bytes::from_static(b"hi") };
        let tally = fan_out(&mut pins, &[chunked, plain], &payload);
        assert_eq!(tally, Tally { sent: 2, bytes: 9, ..Tally::default() }, "{way:?}");
        assert_eq!(chunked_peer.read_all(), b"2\r\nhi\r\n");
        assert_eq!(raw_peer.read_all(), b"hi");
        assert_eq!((pins.get(chunked), pins.get(plain), pins.len()), (Some(&1), Some(&2), 2));
    }
}

#[test]
fn a_departed_client_is_reported_once() {
    for way in ways() {
        let mut pins = table(way);
        for (socket, peer) in [unix(), tcp()] {
            let id = pins.insert(socket, Form::Plain, 0).unwrap();
            assert_eq!(turn(&mut pins), []);
            drop(peer);
            assert_eq!(wait(&mut pins), [Event::Departed(id)]);
            assert_eq!(turn(&mut pins), []);
            assert_eq!(pins.write(id, &Bytes::from_static(b"x")), Outcome::Gone);
            assert_eq!(fan_out(&mut pins, &[id], &raw("x")).gone, 1);
            assert_eq!(pins.pending_events(), 0);
            assert!(pins.remove(id).is_some());
        }
    }
}

#[test]
fn a_departure_before_the_pin_is_noticed() {
    let mut pins = table(FanOut::Send);
    let (socket, peer) = tcp();
    drop(peer);
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    assert_eq!(wait(&mut pins), [Event::Departed(id)]);
}

#[test]
fn a_failed_write_is_remembered_for_the_owner() {
    for way in ways() {
        let mut pins = table(way);
        let (socket, peer) = unix();
        let id = pins.insert(socket, Form::Plain, 0).unwrap();
        drop(peer);
        let tally = fan_out(&mut pins, &[id], &raw("x"));
        assert_eq!(tally, Tally { gone: 1, ..Tally::default() }, "{way:?}");
        assert_eq!(pins.pending_events(), 1);
        let mut events = Vec::new();
        pins.drain_events(&mut events);
        assert_eq!(events, [Event::Departed(id)]);
        assert_eq!(turn(&mut pins), []);
    }
}

#[test]
fn stale_ids_are_harmless() {
    for way in ways() {
        let mut pins = table(way);
        let (socket, _first) = unix();
        let stale = pins.insert(socket, Form::Plain, 1).unwrap();
        assert_eq!(pins.remove(stale).unwrap().value, 1);
        let (socket, mut peer) = unix();
        let fresh = pins.insert(socket, Form::Plain, 2).unwrap();
        pins.set_deadline(stale, 0);
        assert_eq!(pins.write(stale, &Bytes::from_static(b"x")), Outcome::Gone);
        assert_eq!(pins.finish(stale, &Bytes::from_static(b"x")), Outcome::Gone);
        assert_eq!(fan_out(&mut pins, &[stale], &raw("x")).gone, 1);
        assert_eq!((pins.get(stale), pins.queue_len(stale)), (None, 0));
        assert!(pins.remove(stale).is_none());
        assert_eq!(expire(&mut pins, START_MS + 1000), (vec![], 0));
        assert_eq!(peer.read_all(), b"");
        assert_eq!(pins.ids().collect::<Vec<_>>(), [fresh]);
    }
}

#[test]
fn the_same_target_twice_gets_both_in_order() {
    for way in ways() {
        let mut pins = table(way);
        let (socket, mut peer) = unix();
        let id = pins.insert(socket, Form::Plain, 0).unwrap();
        assert_eq!(fan_out(&mut pins, &[id, id, id], &raw("ab")).sent, 3, "{way:?}");
        assert_eq!(peer.read_all(), b"ababab");
    }
}

#[test]
fn more_targets_than_one_batch() {
    for way in ways() {
        let mut pins = table(way);
        let (sockets, mut peers): (Vec<_>, Vec<_>) = (0..1300).map(|_| unix()).unzip();
        let ids: Vec<_> = sockets.into_iter().map(|s| pins.insert(s, Form::Plain, 0).unwrap()).collect();
        assert_eq!(fan_out(&mut pins, &ids, &raw("ab")).sent, 1300, "{way:?}");
        assert!(peers.iter_mut().all(|peer| peer.read_all() == b"ab"));
    }
}

#[test]
fn a_full_queue_ends_the_pin_and_only_it() {
    for way in ways() {
        let mut pins = table(way);
        let (socket, _stalled) = tcp();
        let stalled = pins.insert(socket, Form::Plain, 0).unwrap();
        let (socket, mut peer) = tcp();
        let neighbour = pins.insert(socket, Form::Plain, 0).unwrap();
        // One item may be longer than the whole queue if nothing waits before it.
        assert_eq!(pins.write(stalled, &vec![0; 2 * FLOOD].into()), Outcome::Queued);
        let tally = fan_out(&mut pins, &[stalled, neighbour], &raw("x"));
        assert_eq!(tally, Tally { overflow: 1, sent: 1, bytes: 1, ..Tally::default() }, "{way:?}");
        assert_eq!(turn(&mut pins), [Event::Overflow(stalled)]);
        assert_eq!(pins.write(stalled, &Bytes::from_static(b"x")), Outcome::Gone);
        assert_eq!(peer.read_all(), b"x");
        let unpinned = pins.remove(stalled).unwrap();
        assert!(unpinned.unsent > FLOOD && unpinned.unsent < 2 * FLOOD);
    }
}

/// A pin whose owner is asked stays as it is, whatever it is that does not fit.
#[test]
fn an_owner_may_be_asked_before_a_pin_ends() {
    for way in ways() {
        for (own, brim) in [
            (Brim::Ask, None),
            (Brim::AskAtOnce, None),
            (Brim::End, Some(Brim::Ask)),
            (Brim::Ask, Some(Brim::AskAtOnce)),
        ] {
            let mut pins = table(way);
            let (socket, mut peer) = tcp();
            let slow = pins.insert(socket, Form::Plain, 0).unwrap();
            pins.set_brim(slow, own);
            assert_eq!(pins.brim(slow), own);
            let (socket, mut neighbour_peer) = tcp();
            let neighbour = pins.insert(socket, Form::Plain, 0).unwrap();
            let send = |pins: &mut Pins<u32>, bytes: Vec<u8>| {
                let (mut tally, mut asked) = (Tally::default(), Vec::new());
                pins.fan_out_or_ask(&[slow, neighbour], &raw(bytes), brim, &mut tally, &mut asked);
                assert_eq!(tally.sent + tally.queued + asked.len() as u64, 2, "{way:?} {own:?} {brim:?}");
                asked
            };
            let at_once = brim.unwrap_or(own) == Brim::AskAtOnce;
            assert_eq!(pins.write(slow, &vec![1; FLOOD].into()), Outcome::Queued);
            assert!(pins.has_room(slow, 1));
            let asked = send(&mut pins, b"x".to_vec());
            assert_eq!(asked, if at_once { vec![slow] } else { vec![] }, "{way:?} {own:?} {brim:?}");
            assert!(!pins.has_room(slow, FLOOD));
            // There is room for the neighbour's, which takes it whole.
            assert_eq!(send(&mut pins, vec![2; FLOOD / 2 + 100_000]), [slow]);
            assert_eq!(turn(&mut pins), []);
            assert!(pins.tell_when_drained(slow));
            let mut events = Vec::new();
            while events.is_empty() {
                neighbour_peer.read_all();
                let got = peer.read_all();
                assert!(!got.contains(&2), "what was asked about was written");
                events = turn(&mut pins);
            }
            assert_eq!(events, [Event::Drained(slow)], "{way:?} {own:?} {brim:?}");
            assert_eq!(send(&mut pins, b"y".to_vec()), []);
            pins.overflow(slow);
            assert_eq!(turn(&mut pins), [Event::Overflow(slow)]);
        }
    }
}

#[test]
fn tiny_items_count_with_what_they_cost() {
    let mut pins = table(FanOut::Send);
    let (socket, _peer) = unix();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    while pins.write(id, &vec![0; 1024].into()) == Outcome::Sent {}
    let mut taken = 0;
    while pins.write(id, &Bytes::from_static(b"x")) == Outcome::Queued {
        taken += 1;
    }
    assert!(taken * ITEM_COST < LIMITS.queue_bytes && taken > LIMITS.queue_bytes / ITEM_COST / 2);
}

#[test]
fn finish_reports_when_the_tail_is_out() {
    for (socket, mut peer) in [unix(), tcp()] {
        let mut pins = table(FanOut::Send);
        let id = pins.insert(socket, Form::Plain, 9).unwrap();
        assert_eq!(pins.write(id, &Bytes::from_static(b"a")), Outcome::Sent);
        assert_eq!(pins.finish(id, &Bytes::from_static(b"z")), Outcome::Sent);
        assert_eq!(pins.write(id, &Bytes::from_static(b"x")), Outcome::Gone);
        assert_eq!(turn(&mut pins), [Event::Finished(id)]);
        assert_eq!(peer.read_all(), b"az");
        let unpinned = pins.remove(id).unwrap();
        assert_eq!((unpinned.value, unpinned.unsent), (9, 0));
    }
}

#[test]
fn finish_waits_for_the_queue_even_if_the_client_has_closed_its_sending_side() {
    for (socket, mut peer) in [unix(), tcp()] {
        let mut pins = table(FanOut::Send);
        let id = pins.insert(socket, Form::Plain, 0).unwrap();
        assert_eq!(pins.write(id, &vec![7; 2 * FLOOD].into()), Outcome::Queued);
        // The queue is over its limit; the tail is taken all the same.
        assert_eq!(pins.finish(id, &Bytes::from_static(b"the end")), Outcome::Queued);
        assert_eq!(fan_out(&mut pins, &[id], &raw("x")).gone, 1);
        peer.shutdown(Shutdown::Write);
        assert_eq!(turn(&mut pins), []);
        assert!(!has_news(&pins), "a closed sending side must not keep a shard busy");
        let mut got = Vec::new();
        let mut events = Vec::new();
        while events.is_empty() {
            got.extend(peer.read_all());
            events = turn(&mut pins);
        }
        assert_eq!(events, [Event::Finished(id)]);
        drop(pins.remove(id));
        let mut ended = false;
        while !ended {
            let (rest, end) = peer.read(FLOOD);
            got.extend(rest);
            ended = end;
        }
        assert_eq!(got.len(), 2 * FLOOD + 7);
        assert!(got.ends_with(b"\x07the end"));
    }
}

#[test]
fn a_queue_that_does_not_move_is_stalled() {
    let mut pins = table(FanOut::Send);
    let (socket, mut peer) = unix();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    assert_eq!(pins.write(id, &vec![0; FLOOD].into()), Outcome::Queued);
    let half = START_MS + u64::from(LIMITS.send_timeout_ms) / 2;
    assert_eq!(expire(&mut pins, half), (vec![], 0));
    assert!(!peer.read_all().is_empty());
    assert_eq!(turn(&mut pins), [], "what moves is not stalled");
    assert!(pins.queue_len(id) > 0);
    assert_eq!(expire(&mut pins, half + u64::from(LIMITS.send_timeout_ms)), (vec![], 0));
    let late = half + u64::from(LIMITS.send_timeout_ms) + 300;
    assert_eq!(expire(&mut pins, late), (vec![Event::Stalled(id)], 0));
    assert_eq!(expire(&mut pins, late + 100_000), (vec![], 0));
    assert_eq!((turn(&mut pins), pins.next_expiry_ms()), (vec![], None));
}

/// A client takes a little every five seconds: whether it is enough, the pace says.
#[test]
fn a_queue_that_moves_too_slowly_is_stalled() {
    for (bytes, enough) in [(100_000, false), (1_000, true)] {
        let limits = Limits { pace: Some(Pace { bytes, within_ms: 20_000 }), ..LIMITS };
        let mut pins = Pins::new(FanOut::Send, limits, START_MS).unwrap();
        let (socket, mut peer) = unix();
        let id = pins.insert(socket, Form::Plain, 0).unwrap();
        assert_eq!(pins.write(id, &vec![0; FLOOD].into()), Outcome::Queued);
        let mut ended = None;
        for seconds in (5..40).step_by(5) {
            let (events, _) = expire(&mut pins, START_MS + seconds * 1000);
            if !events.is_empty() {
                ended = Some((seconds, events));
                break;
            }
            assert!(!peer.read_all().is_empty());
            assert_eq!(turn(&mut pins), []);
        }
        assert!(pins.queue_len(id) > 0);
        let wanted = (!enough).then(|| (25, vec![Event::Stalled(id)]));
        assert_eq!(ended, wanted, "{bytes} bytes in 20 s");
    }
}

#[test]
fn an_emptied_queue_is_not_stalled() {
    let mut pins = table(FanOut::Send);
    let (socket, mut peer) = unix();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    assert_eq!(pins.write(id, &vec![0; 1 << 16].into()), Outcome::Queued);
    while pins.queue_len(id) > 0 {
        peer.read_all();
        assert_eq!(turn(&mut pins), []);
    }
    assert_eq!(expire(&mut pins, START_MS + 60_000), (vec![], 0));
}

#[test]
fn the_poller_tells_when_a_full_socket_takes_more() {
    for (socket, mut peer) in [unix(), tcp()] {
        let mut pins = table(FanOut::Send);
        let id = pins.insert(socket, Form::Plain, 0).unwrap();
        assert_eq!(pins.write(id, &vec![0; FLOOD].into()), Outcome::Queued);
        let epoll = pins.epoll().unwrap();
        let mut got = 0;
        while got < FLOOD {
            let poller = PollFd::new(&epoll, PollFlags::IN);
            wait_for(&mut [poller, PollFd::from_borrowed_fd(peer.as_fd(), PollFlags::IN)]);
            assert_eq!(turn(&mut pins), []);
            got += peer.read(1 << 14).0.len();
        }
        assert_eq!(pins.queue_len(id), 0);
    }
}

#[test]
fn a_turn_flushes_a_part_and_says_that_there_is_more() {
    let mut pins = table(FanOut::Send);
    let (socket, mut peer) = unix();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    while pins.write(id, &vec![0; 1024].into()) == Outcome::Sent {}
    for _ in 0..150 {
        assert_eq!(pins.write(id, &Bytes::from_static(b"x")), Outcome::Queued);
    }
    let mut turns = 0;
    loop {
        peer.read_all();
        let more = pins.turn(&mut Vec::new()).unwrap();
        turns += 1;
        if pins.queue_len(id) == 0 {
            break;
        }
        assert!(more, "an edge-triggered waiter is not woken again for a socket that stays writable");
    }
    assert!(turns > 1);
    assert!(!has_news(&pins));
}

#[test]
fn a_deadline_comes_once_and_never_early() {
    let mut pins = table(FanOut::Send);
    let (socket, mut peer) = unix();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    pins.set_deadline(id, 20_000);
    assert_eq!(pins.next_expiry_ms(), Some(START_MS + 20_000));
    assert_eq!(expire(&mut pins, START_MS + 19_999), (vec![], 0));
    assert_eq!(expire(&mut pins, START_MS + 20_000), (vec![Event::Due(id)], 0));
    assert_eq!(expire(&mut pins, START_MS + 90_000), (vec![], 0));
    assert_eq!(pins.finish(id, &Bytes::from_static(b"late")), Outcome::Sent);
    assert_eq!(peer.read_all(), b"late");
}

fn kept_alive(mode: KeepAliveMode) -> (Pins<u32>, PinId, Peer) {
    let mut pins = table(FanOut::Send);
    let (socket, peer) = unix();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    let keep_alive = KeepAlive { payload: raw("."), every_ms: 20_000, mode };
    pins.set_keep_alive(id, Rc::new(keep_alive), 5_000);
    (pins, id, peer)
}

/// The tenths of seconds after the start at which a keep-alive comes, if the pin is written to at `writes`.
fn beats(mode: KeepAliveMode, writes: &[u64], seconds: u64) -> Vec<u64> {
    let (mut pins, id, mut peer) = kept_alive(mode);
    let mut beats = Vec::new();
    for tenth in 0..=seconds * 10 {
        let (events, sent) = expire(&mut pins, START_MS + tenth * 100);
        assert_eq!(events, []);
        assert_eq!(peer.read_all().len() as u64, sent);
        beats.extend((sent > 0).then_some(tenth));
        if writes.contains(&tenth) {
            assert_eq!(pins.write(id, &Bytes::from_static(b"x")), Outcome::Sent);
            assert_eq!(peer.read_all(), b"x");
        }
    }
    beats
}

/// A period of 20 s is less than a second shorter.
fn is_period(tenths: u64) -> bool {
    (191..=200).contains(&tenths)
}

#[test]
fn an_idle_keep_alive_counts_from_the_last_write() {
    let alone = beats(KeepAliveMode::Idle, &[], 70);
    assert_eq!((alone[0], alone.len()), (50, 4));
    assert!(alone.windows(2).all(|pair| is_period(pair[1] - pair[0])), "{alone:?}");
    let [first, second] = beats(KeepAliveMode::Idle, &[30, 300, 490], 70)[..] else { panic!("two beats") };
    assert!(is_period(first - 30) && is_period(second - 490), "{first} {second}");
}

#[test]
fn an_interval_keep_alive_does_not_mind_writes() {
    let alone = beats(KeepAliveMode::Interval, &[], 70);
    assert_eq!((alone[0], alone.len()), (50, 4));
    assert!(alone.windows(2).all(|pair| is_period(pair[1] - pair[0])), "{alone:?}");
    assert_eq!(beats(KeepAliveMode::Interval, &[30, 300, 490], 70), alone);
}

#[test]
fn a_late_interval_beats_once_and_is_back_on_its_cadence() {
    let (mut pins, _, mut peer) = kept_alive(KeepAliveMode::Interval);
    assert_eq!(expire(&mut pins, START_MS + 52_000), (vec![], 1));
    assert_eq!(expire(&mut pins, START_MS + 60_000), (vec![], 0));
    assert_eq!(expire(&mut pins, START_MS + 65_000), (vec![], 1));
    assert_eq!(peer.read_all(), b"..");
}

/// Each beat is spread anew, and so are those of pins that were written to together.
#[test]
fn keep_alives_do_not_come_together() {
    let mut pins = table(FanOut::Send);
    let keep_alive = Rc::new(KeepAlive { payload: raw("."), every_ms: 20_000, mode: KeepAliveMode::Idle });
    let (sockets, mut peers): (Vec<_>, Vec<_>) = (0..100).map(|_| unix()).unzip();
    let insert = |socket| pins.insert(socket, Form::Plain, 0).unwrap();
    let ids: Vec<_> = sockets.into_iter().map(insert).collect();
    for &id in &ids {
        pins.set_keep_alive(id, Rc::clone(&keep_alive), 19_000);
    }
    assert_eq!(fan_out(&mut pins, &ids, &raw("x")).sent, 100);
    for round in 1..=3 {
        let mut ticks = 0;
        let mut all = 0;
        for tenth in 191 * round..=200 * round {
            let (_, sent) = expire(&mut pins, START_MS + tenth * 100);
            assert!(sent < 50, "{sent} of 100 at once in round {round}");
            ticks += u64::from(sent > 0);
            all += sent;
        }
        assert!(ticks >= 8 && all == 100, "{all} beats in {ticks} ticks of round {round}");
    }
    assert!(peers.iter_mut().all(|peer| peer.read_all() == b"x..."));
}

#[test]
fn no_keep_alive_behind_a_queue_or_after_the_end() {
    for mode in [KeepAliveMode::Idle, KeepAliveMode::Interval] {
        let (mut pins, id, mut peer) = kept_alive(mode);
        assert_eq!(pins.write(id, &vec![0; 1 << 18].into()), Outcome::Queued);
        let queued = pins.queue_len(id);
        assert_eq!(expire(&mut pins, START_MS + 9_000), (vec![], 0));
        assert_eq!(pins.queue_len(id), queued);
        assert_eq!(pins.finish(id, &Bytes::new()), Outcome::Queued);
        while turn(&mut pins).is_empty() {
            peer.read_all();
        }
        assert_eq!(expire(&mut pins, START_MS + 99_000), (vec![], 0));
    }
}

#[test]
fn many_timers_at_once_are_spread_over_calls() {
    let mut pins = table(FanOut::Send);
    let (first, _peer) = unix();
    let ids: Vec<_> =
        (0..1500).map(|n| pins.insert(first.try_clone().unwrap(), Form::Plain, n).unwrap()).collect();
    for &id in &ids {
        pins.set_deadline(id, 1000);
    }
    let mut events = Vec::new();
    pins.expire(START_MS + 1000, &mut events);
    assert!(events.len() < ids.len() && pins.next_expiry_ms().is_some_and(|next| next <= START_MS + 1000));
    pins.expire(START_MS + 1000, &mut events);
    assert_eq!(events.len(), ids.len());
    assert_eq!(pins.next_expiry_ms(), None);
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize),
    FanOut(Vec<usize>, usize),
    Read(usize, usize),
    Turn,
}

const READERS: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![0..200usize, 1000..20_000usize];
    prop_oneof![
        2 => (0..READERS, len()).prop_map(|(pin, len)| Step::Write(pin, len)),
        4 => (prop::collection::vec(0..READERS, 0..6), len()).prop_map(|(pins, len)| Step::FanOut(pins, len)),
        3 => (0..READERS, 1..30_000usize).prop_map(|(pin, len)| Step::Read(pin, len)),
        2 => Just(Step::Turn),
    ]
}

/// Content that differs from item to item, so that a swap or a gap shows.
fn content(item: usize, len: usize) -> Bytes {
    (0..len).map(|at| (item * 31 + at * 7) as u8).collect()
}

fn readers_get_what_was_written(way: FanOut, steps: &[Step]) {
    let limits = Limits { queue_bytes: 64 << 20, ..LIMITS };
    let mut pins = Pins::new(way, limits, START_MS).unwrap();
    let (sockets, mut peers): (Vec<_>, Vec<_>) =
        (0..READERS).map(|n| if n % 2 == 0 { unix() } else { tcp() }).unzip();
    let ids: Vec<_> = sockets.into_iter().map(|s| pins.insert(s, Form::Plain, 0).unwrap()).collect();
    let (mut sent, mut got) = (vec![Vec::new(); READERS], vec![Vec::new(); READERS]);
    for (item, step) in steps.iter().enumerate() {
        match step {
            Step::Write(pin, len) => {
                let bytes = content(item, *len);
                sent[*pin].extend_from_slice(&bytes);
                assert!(matches!(pins.write(ids[*pin], &bytes), Outcome::Sent | Outcome::Queued));
            }
            Step::FanOut(to, len) => {
                let bytes = content(item, *len);
                to.iter().for_each(|&pin| sent[pin].extend_from_slice(&bytes));
                let targets: Vec<_> = to.iter().map(|&pin| ids[pin]).collect();
                let tally = fan_out(&mut pins, &targets, &raw(bytes));
                assert_eq!(tally.sent + tally.queued, targets.len() as u64);
            }
            Step::Read(pin, len) => got[*pin].extend(peers[*pin].read(*len).0),
            Step::Turn => assert_eq!(turn(&mut pins), []),
        }
    }
    while ids.iter().any(|&id| pins.queue_len(id) > 0) {
        peers.iter_mut().zip(&mut got).for_each(|(peer, got)| got.extend(peer.read_all()));
        assert_eq!(turn(&mut pins), []);
    }
    for ((id, peer), (got, sent)) in ids.iter().zip(&mut peers).zip(got.iter_mut().zip(&sent)) {
        drop(pins.remove(*id));
        let mut ended = false;
        while !ended {
            let (rest, end) = peer.read(FLOOD);
            got.extend(rest);
            ended = end;
        }
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn order_and_completeness(steps in prop::collection::vec(step(), 1..120)) {
        for way in ways() {
            readers_get_what_was_written(way, &steps);
        }
    }
}

fn read(pins: &mut Pins<u32>, id: PinId) -> Vec<u8> {
    let mut buffer = [0; 64];
    match pins.read(id, &mut buffer) {
        Received::Bytes(read) => buffer[..read].to_vec(),
        Received::Nothing => Vec::new(),
    }
}

#[test]
fn what_a_client_sends_is_read_up_to_its_end() {
    for (socket, mut peer) in [unix(), tcp()] {
        let mut pins = table(FanOut::Send);
        let id = pins.reserve(Form::Plain, 0).unwrap();
        pins.set_reading(id, true);
        assert_eq!(read(&mut pins, id), b"", "no socket yet");
        pins.attach(id, socket);
        assert_eq!(turn(&mut pins), []);
        peer.write(b"hello");
        peer.shutdown(Shutdown::Write);
        assert_eq!(wait(&mut pins), [Event::Readable(id)], "data goes before the departure");
        assert_eq!(pins.write(id, &Bytes::from_static(b"x")), Outcome::Sent);
        assert_eq!(read(&mut pins, id), b"hello");
        assert_eq!(turn(&mut pins), [Event::Readable(id)]);
        assert_eq!(read(&mut pins, id), b"");
        assert_eq!(turn(&mut pins), [Event::Departed(id)]);
        assert_eq!(read(&mut pins, id), b"");
        assert_eq!(pins.write(id, &Bytes::from_static(b"x")), Outcome::Gone);
        assert!(pins.remove(id).is_some());
    }
}

/// At once if the socket takes it; what it does not take follows as it is read.
#[test]
fn what_has_waited_goes_out_with_the_socket() {
    for (len, (socket, mut peer)) in [(4, unix()), (4, tcp()), (FLOOD, unix()), (FLOOD, tcp())] {
        let mut pins = table(FanOut::Send);
        let id = pins.reserve(Form::Plain, 0).unwrap();
        let (first, second) = (content(1, len), content(2, len));
        assert_eq!(pins.write_patiently(id, &first), Outcome::Queued);
        assert_eq!(pins.write_patiently(id, &second), Outcome::Queued);
        assert!(pins.tell_when_drained(id));
        pins.attach(id, socket);
        assert_eq!(pins.queue_len(id) > 0, len == FLOOD);
        let (mut got, mut events) = (Vec::new(), Vec::new());
        while got.len() < 2 * len {
            got.extend(peer.read_all());
            pins.drain_events(&mut events);
            events.extend(turn(&mut pins));
        }
        assert!(got == [first, second].concat());
        assert_eq!(events, [Event::Drained(id)]);
        assert!(!has_news(&pins), "watched as one for which nothing waits");
        peer.shutdown(Shutdown::Both);
        assert_eq!(wait(&mut pins), [Event::Departed(id)]);
    }
}

/// What has waited for a socket is an end that is noticed, like any other.
#[test]
fn a_socket_that_comes_too_late_is_a_departure() {
    let mut pins = table(FanOut::Send);
    let (socket, peer) = unix();
    let id = pins.reserve(Form::Plain, 0).unwrap();
    pins.write(id, &Bytes::from_static(b"late"));
    drop(peer);
    pins.attach(id, socket);
    assert_eq!(turn(&mut pins), [Event::Departed(id)]);
    assert!(pins.remove(id).is_some());
}

#[test]
fn a_pause_leaves_bytes_to_the_kernel() {
    let mut pins = table(FanOut::Send);
    let (socket, mut peer) = unix();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    pins.set_reading(id, false);
    peer.write(b"later");
    assert!(!has_news(&pins));
    pins.set_reading(id, true);
    assert_eq!(wait(&mut pins), [Event::Readable(id)]);
    assert_eq!(read(&mut pins, id), b"later");
    assert!(!has_news(&pins));
    drop(peer);
    assert_eq!(wait(&mut pins), [Event::Readable(id)]);
    assert_eq!(read(&mut pins, id), b"");
    assert_eq!(turn(&mut pins), [Event::Departed(id)]);
}

#[test]
fn a_reset_ends_a_pin_that_pauses() {
    let mut pins = table(FanOut::Send);
    let (socket, peer) = tcp();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    pins.set_reading(id, false);
    assert_eq!(pins.write(id, &Bytes::from_static(b"never read")), Outcome::Sent);
    wait_for(&mut [PollFd::new(&peer.as_fd(), PollFlags::IN)]);
    // A close with bytes unread is a reset.
    drop(peer);
    assert_eq!(wait(&mut pins), [Event::Departed(id)]);
}

#[test]
fn a_full_queue_ends_with_the_farewell() {
    for way in ways() {
        let mut pins: Pins<u32> =
            Pins::new(way, Limits { queue_bytes: 2 * FLOOD, send_timeout_ms: 10_000, pace: None }, START_MS)
                .unwrap();
        pins.set_farewell(Bytes::from_static(b"bye"));
        let (socket, mut peer) = unix();
        let id = pins.insert(socket, Form::Plain, 0).unwrap();
        pins.set_reading(id, true);
        let flood = raw(vec![b'x'; FLOOD]);
        assert_eq!(fan_out(&mut pins, &[id, id], &flood).queued, 2);
        assert_eq!(fan_out(&mut pins, &[id, id], &flood), Tally { overflow: 1, gone: 1, ..Tally::default() });
        assert_eq!(turn(&mut pins), [Event::Overflow(id)]);
        let mut got = Vec::new();
        let mut events = Vec::new();
        while events.is_empty() {
            got.extend(peer.read_all());
            events = turn(&mut pins);
        }
        assert_eq!(events, [Event::Finished(id)]);
        got.extend(peer.read_all());
        assert_eq!(got.len(), 2 * FLOOD + 3);
        assert!(got.ends_with(b"xbye"), "{way:?}: whole items, then the farewell");
    }
}

#[test]
fn a_drained_queue_is_told_to_who_reads() {
    let mut pins = table(FanOut::Send);
    let (socket, mut peer) = unix();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    pins.set_reading(id, false);
    assert_eq!(fan_out(&mut pins, &[id], &raw(vec![b'x'; FLOOD])).queued, 1);
    let mut events = Vec::new();
    while events.is_empty() {
        assert!(pins.queue_len(id) > 0);
        peer.read_all();
        events = turn(&mut pins);
    }
    assert_eq!(events, [Event::Drained(id)]);
    assert_eq!(pins.queue_len(id), 0);
}

#[test]
fn a_pause_right_after_a_read_does_not_lose_what_comes_next() {
    let mut pins = table(FanOut::Send);
    let (socket, mut peer) = unix();
    let id = pins.insert(socket, Form::Plain, 0).unwrap();
    pins.set_reading(id, true);
    peer.write(b"first");
    let epoll = pins.epoll().unwrap();
    let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&outer, &epoll, epoll::EventData::new_u64(0), epoll::EventFlags::IN | epoll::EventFlags::ET)
        .unwrap();
    let woken = || {
        let mut events = Vec::with_capacity(1);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&outer, rustix::buffer::spare_capacity(&mut events), Some(&at_once)).unwrap() > 0
    };
    assert!(woken());
    // As a shard does: turns until there is no more, each event acted on at once.
    let mut events = Vec::new();
    loop {
        let more = pins.turn(&mut events).unwrap();
        for _ in events.drain(..) {
            read(&mut pins, id);
            pins.set_reading(id, false);
        }
        if !more {
            break;
        }
    }
    peer.write(b"second");
    pins.set_reading(id, true);
    assert!(woken(), "nobody would read it");
}
