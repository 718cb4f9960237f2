use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    convert::Infallible,
    future::{Future, pending},
    task::Waker,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Body as _, Frame, Incoming},
    rt::Read,
    server::conn::http1,
    service::service_fn,
};
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { head_bytes: 1000, headers: 10, target_bytes: 100, body_bytes: 5000 };
const GET: &[u8] = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &[u8] = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n123456789";
const NEXT: &[u8] = b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n";

/// A socket that gives and takes at most `most` bytes at a time, and at random none for now.
#[derive(Debug)]
struct Dribble {
    input: VecDeque<u8>,
    eof: bool,
    output: Vec<u8>,
    vectored: bool,
    most: usize,
    random: u64,
}

impl Dribble {
    /// With `most` 0 it is never pending while there is input.
    fn new(input: &[u8], most: usize, seed: u64) -> Self {
        let input = input.iter().copied().collect();
        Self { input, eof: false, output: Vec::new(), vectored: false, most, random: seed }
    }

    /// Bytes that may pass now, `None` for pending.
    fn allowed(&mut self) -> Option<usize> {
        if self.most == 0 {
            return Some(usize::MAX);
        }
        // Knuth's MMIX generator; its high bits are the good ones.
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let allowed = (self.random >> 33) as usize % (self.most + 1);
        Some(allowed).filter(|n| *n > 0)
    }
}

impl AsyncRead for Dribble {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.input.is_empty() {
            return if self.eof { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let Some(allowed) = self.allowed() else { return Poll::Pending };
        let some = allowed.min(buf.remaining()).min(self.input.len());
        let bytes: Vec<u8> = self.input.drain(..some).collect();
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Dribble {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(allowed) = self.allowed() else { return Poll::Pending };
        let some = allowed.min(buf.len());
        self.output.extend_from_slice(&buf[..some]);
        Poll::Ready(Ok(some))
    }
    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.allowed().is_some() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn is_write_vectored(&self) -> bool {
        self.vectored
    }
}

fn guard(input: &[u8]) -> Guard<Dribble> {
    Guard::new(Dribble::new(input, 0, 0), Vec::new(), LIMITS, 200)
}

/// One read of hyper's, of at most `room` bytes.
fn read(guard: &mut Guard<Dribble>, room: usize) -> Poll<io::Result<Vec<u8>>> {
    let mut bytes = vec![0; room];
    let mut buf = hyper::rt::ReadBuf::new(&mut bytes);
    let mut cx = Context::from_waker(Waker::noop());
    ready!(Pin::new(guard).poll_read(&mut cx, buf.unfilled()))?;
    Poll::Ready(Ok(buf.filled().to_vec()))
}

fn released(guard: &mut Guard<Dribble>) -> Vec<u8> {
    match read(guard, 8192) {
        Poll::Ready(Ok(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_next_head_waits_until_the_last_is_answered() {
    let mut guard = guard(&[GET, NEXT].concat());
    let state = guard.state();
    assert_eq!(released(&mut guard), GET);
    assert!(read(&mut guard, 8192).is_pending());
    assert_eq!(state.wait(), Wait::Nothing);
    state.message_done();
    assert!(matches!(state.wait(), Wait::Request(_)));
    assert_eq!(released(&mut guard), NEXT);
}

#[test]
fn an_early_answer_counts_when_the_body_has_arrived() {
    let mut guard = guard(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx");
    let state = guard.state();
    released(&mut guard);
    state.message_done();
    assert!(read(&mut guard, 8192).is_pending());
    assert!(matches!(state.wait(), Wait::Body(_)));
    guard.socket.input.extend([b"y", NEXT].concat());
    assert_eq!(released(&mut guard), [b"y", NEXT].concat());
}

#[test]
fn a_departure_is_seen_while_a_head_is_held_back() {
    let mut guard = guard(&[GET, NEXT].concat());
    released(&mut guard);
    guard.socket.eof = true;
    assert_eq!(released(&mut guard), b"");
    let (_, unread) = guard.into_parts();
    assert_eq!(unread, NEXT);
}

/// As hyper does at the end of each turn.
fn flush(guard: &mut Guard<Dribble>) -> Poll<io::Result<()>> {
    hyper::rt::Write::poll_flush(Pin::new(guard), &mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_flush_sees_a_departure_while_a_message_is_answered() {
    let mut guard = guard(GET);
    let state = guard.state();
    guard.socket.eof = true;
    assert!(matches!(flush(&mut guard), Poll::Ready(Ok(()))), "nothing is answered yet");
    assert_eq!(released(&mut guard), GET);
    guard.socket.input.extend(NEXT);
    assert!(matches!(flush(&mut guard), Poll::Ready(Err(_))));
    assert_eq!(guard.held, NEXT, "what came before the departure is not lost");
    state.message_done();
    assert_eq!(released(&mut guard), NEXT);
}

#[test]
fn a_flush_keeps_to_the_bound_and_to_what_is_watched() {
    let mut guard = guard(GET);
    let state = guard.state();
    released(&mut guard);
    state.watch_later();
    guard.socket.input.extend([b'x'; 100_000]);
    assert!(flush(&mut guard).is_ready());
    assert!(matches!(state.wait(), Wait::Unwatched(_)));
    assert_eq!(guard.socket.input.len(), 100_000, "nobody needs it yet");
    state.watch();
    assert!(flush(&mut guard).is_ready());
    assert!(guard.held.len() < READ_AHEAD_BYTES + SCRATCH_BYTES);
    assert!(guard.socket.input.len() > 50_000);
}

#[test]
fn read_ahead_is_bounded() {
    let mut guard = guard(&[GET, &[b'x'; 100_000]].concat());
    released(&mut guard);
    assert!(read(&mut guard, 8192).is_pending());
    assert!(guard.held.len() < READ_AHEAD_BYTES + SCRATCH_BYTES);
    assert!(guard.socket.input.len() > 50_000);
}

#[test]
fn a_socket_that_is_watched_later_is_read_for_requests_only() {
    let mut guard = guard(GET);
    let state = guard.state();
    state.watch_later();
    assert_eq!(released(&mut guard), GET);
    guard.socket.input.extend(NEXT);
    assert!(read(&mut guard, 8192).is_pending());
    assert!(matches!(state.wait(), Wait::Unwatched(_)));
    assert_eq!(guard.socket.input.len(), NEXT.len(), "nobody needs it yet");
    state.watch();
    assert!(read(&mut guard, 8192).is_pending());
    assert_eq!(state.wait(), Wait::Nothing);
    assert!(guard.socket.input.is_empty(), "a departure behind it would not show");
    state.message_done();
    assert_eq!(released(&mut guard), NEXT);
}

/// Whoever found the socket empty is woken by it from then on: there is nothing more to put off.
#[test]
fn a_socket_that_was_waited_for_is_watched() {
    let mut guard = guard(&GET[..9]);
    let state = guard.state();
    state.watch_later();
    assert!(read(&mut guard, 8192).is_pending());
    guard.socket.input.extend(&GET[9..]);
    assert_eq!(released(&mut guard), GET);
    assert!(read(&mut guard, 8192).is_pending());
    assert_eq!(state.wait(), Wait::Nothing);
}

#[test]
fn a_refused_head_is_not_released() {
    let mut guard = guard(b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n");
    let state = guard.state();
    assert!(read(&mut guard, 8192).is_pending());
    assert_eq!(state.refused(), Some(Refusal::LineEnd));
    assert_eq!(state.wait(), Wait::Nothing);
}

#[test]
fn a_refused_body_fails_after_its_good_bytes() {
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxy".as_slice();
    let mut guard = guard(&[head, b"z"].concat());
    assert_eq!(released(&mut guard), head);
    assert!(matches!(read(&mut guard, 8192), Poll::Ready(Err(_))));
    assert_eq!(guard.state().refused(), Some(Refusal::ChunkEnd));
    assert!(matches!(read(&mut guard, 8192), Poll::Ready(Err(_))));
}

#[test]
fn nothing_follows_an_upgrade() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\ny".as_slice();
    let mut guard = guard(&[head, NEXT].concat());
    let state = guard.state();
    assert_eq!(released(&mut guard), head);
    assert!(state.upgrade());
    state.message_done();
    assert!(read(&mut guard, 8192).is_pending());
    guard.socket.eof = true;
    assert_eq!(released(&mut guard), b"");
    assert_eq!(guard.into_parts().1, NEXT);
}

#[test]
fn received_bytes_come_first() {
    let mut guard = Guard::new(Dribble::new(&GET[9..], 0, 0), GET[..9].to_vec(), LIMITS, 200);
    assert_eq!(released(&mut guard), GET);
}

#[test]
fn what_is_waited_for() {
    let mut guard = guard(b"");
    let state = guard.state();
    assert!(read(&mut guard, 100).is_pending());
    assert!(matches!(state.wait(), Wait::Request(_)));
    guard.socket.input.extend(b"POST / HTTP/1.1\r\n");
    assert!(read(&mut guard, 100).is_pending());
    let Wait::Head(since) = state.wait() else { panic!("{:?}", state.wait()) };
    guard.socket.input.extend(b"Host: a\r\n");
    assert!(read(&mut guard, 100).is_pending());
    assert_eq!(state.wait(), Wait::Head(since), "the time runs from the first byte");
    guard.socket.input.extend(b"Content-Length: 2\r\n\r\n");
    released(&mut guard);
    assert_eq!(state.wait(), Wait::Nothing, "until somebody reads the body");
    assert!(read(&mut guard, 100).is_pending());
    assert!(matches!(state.wait(), Wait::Body(_)));
    guard.socket.input.extend(b"xy");
    released(&mut guard);
    assert_eq!(state.wait(), Wait::Nothing);
}

#[test]
fn a_record_is_the_message_without_expect() {
    let head = |expect| format!("POST / HTTP/1.1\r\nHost: a\r\n{expect}Content-Length: 100\r\n\r\n");
    let body = [b'x'; 100];
    let mut guard = guard(&[head("exPect: 100-continue\r\n").as_bytes(), &body[1..]].concat());
    let state = guard.state();
    released(&mut guard);
    assert_eq!(state.take_record(), None, "not whole");
    guard.socket.input.extend(b"x");
    released(&mut guard);
    assert_eq!(state.take_record(), Some([head("").as_bytes(), &body].concat()));
    assert_eq!(state.take_record(), None, "taken");

    let large = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200\r\n\r\n{}", "x".repeat(200));
    guard.socket.input.extend(large.as_bytes());
    state.message_done();
    assert_eq!(released(&mut guard), large.as_bytes());
    assert_eq!(state.take_record(), None, "too large");
    guard.socket.input.extend(GET);
    state.message_done();
    released(&mut guard);
    assert_eq!(state.take_record().as_deref(), Some(GET));
}

/// Everything that hyper gets, and how it ended.
fn drain(guard: &mut Guard<Dribble>, room: usize) -> (Vec<u8>, Option<Refusal>) {
    let state = guard.state();
    let (mut all, mut idle) = (Vec::new(), 0);
    while idle < 100 {
        match read(guard, room) {
            Poll::Ready(Ok(bytes)) => {
                all.extend(bytes);
                idle = 0;
            }
            Poll::Ready(Err(_)) => break,
            Poll::Pending => idle += 1,
        }
        if matches!(guard.stage, Stage::Between) {
            state.message_done();
        }
    }
    (all, state.refused())
}

fn messages() -> impl Strategy<Value = Vec<u8>> {
    let message = prop_oneof![
        Just(GET.to_vec()),
        Just(POST.to_vec()),
        Just(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: u\r\n\r\n"
                .to_vec()
        ),
        Just(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd".to_vec()),
        Just(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n".to_vec()),
        Just(b"GET / HTTP/1.1\nHost: a\r\n\r\n".to_vec()),
    ];
    proptest::collection::vec(message, 1..6).prop_map(|messages| messages.concat())
}

/// Serves two pipelined requests: the first is answered with `size` bytes before its body is read, the
/// second parks. What the socket has got when the driver may take it, and what was not read.
///
/// hyper goes to the next request when a body ends, even with a response in its buffer.
fn park(socket: Dribble, size: usize) -> (Vec<u8>, Vec<u8>) {
    let later = socket.random.is_multiple_of(2);
    let guard = Guard::new(socket, Vec::new(), LIMITS, 200);
    let state = guard.state();
    if later {
        state.watch_later();
    }
    let parked = Rc::new(Cell::new(false));
    let body = Rc::new(RefCell::new(None));
    let service = service_fn(|request: Request<Incoming>| {
        let (state, parked, body) = (Rc::clone(&state), Rc::clone(&parked), Rc::clone(&body));
        async move {
            if request.uri().path() == "/2" {
                parked.set(true);
                pending::<()>().await;
            }
            body.replace(Some(request.into_body()));
            // The earliest time: the next request can park while the response is unwritten.
            state.message_done();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; size]))))
        }
    });
    let mut connection = http1::Builder::new().half_close(true).serve_connection(guard, service);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Some(body) = body.borrow_mut().as_mut() {
            let frame: Poll<Option<Result<Frame<Bytes>, hyper::Error>>> = Pin::new(body).poll_frame(&mut cx);
            assert!(!matches!(frame, Poll::Ready(Some(Err(_)))), "{frame:?}");
        }
        assert!(Pin::new(&mut connection).poll(&mut cx).is_pending());
        if parked.get() && state.flushed() {
            let parts = connection.into_parts();
            assert!(parts.read_buf.is_empty(), "a held request's successor is in hyper");
            let (socket, held) = parts.io.into_parts();
            assert_eq!(state.written(), socket.output.len() as u64);
            return (socket.output, [held, socket.input.into()].concat());
        }
    }
    panic!("never parked and flushed");
}

proptest! {
    #[test]
    fn any_split_releases_the_same_bytes(
        input in messages(),
        most in 1..40_usize,
        seed in any::<u64>(),
        room in 1..100_usize,
    ) {
        let mut whole = guard(&input);
        let expected = drain(&mut whole, 8192);
        let mut split = Guard::new(Dribble::new(&input, most, seed), Vec::new(), LIMITS, 200);
        if seed.is_multiple_of(2) {
            split.state().watch_later();
        }
        prop_assert_eq!(drain(&mut split, room), expected);
    }

    #[test]
    fn flushed_means_that_hyper_holds_no_byte(
        most in 1..50_usize,
        seed in any::<u64>(),
        size in 1..3000_usize,
        vectored in any::<bool>(),
    ) {
        let tail = b"GET /3 HTTP/1.1\r\nHo";
        let mut socket = Dribble::new(&[POST, NEXT, tail].concat(), most, seed);
        socket.vectored = vectored;
        let (output, unread) = park(socket, size);
        let head = output.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        prop_assert_eq!(output.len() - head, size);
        prop_assert!(unread == tail, "{:?}", unread);
    }
}
