//! One connection to the control port: HTTP/1 with hyper, its time-outs, and a close that does not
//! take an answer away from who is still sending.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, Response, header::CONNECTION},
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

use super::Port;
use crate::metrics::Process;

/// What a connection may ask for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Seat {
    Ordinary,
    /// Only operators' endpoints, once.
    Reserved,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub head_bytes: usize,
    /// From accept, or the end of an answer, to the end of the next head.
    pub head_timeout: Duration,
    pub reserved_head_timeout: Duration,
}

impl Limits {
    pub(super) fn new(head_bytes: usize) -> Self {
        Self { head_bytes, head_timeout: HEAD_TIMEOUT, reserved_head_timeout: RESERVED_HEAD_TIMEOUT }
    }
}

/// Serves one connection to its end.
pub(super) async fn drive(
    socket: TcpStream,
    seat: Seat,
    port: Arc<Port>,
    mut stopping: watch::Receiver<bool>,
) {
    let _open = Open::count(Arc::clone(&port.state.process));
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let Limits { head_bytes, head_timeout, reserved_head_timeout } = port.state.limits;
    let head_timeout = if seat == Seat::Reserved { reserved_head_timeout } else { head_timeout };
    let answer = service_fn(move |request| {
        let port = Arc::clone(&port);
        async move { Ok::<_, std::convert::Infallible>(port.answer(seat, request).await) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_header_size(head_bytes)
        .serve_connection(TokioIo::new(socket), answer);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopping.wait_for(|stop| *stop) => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let parts = connection.into_parts();
    let late = ended.is_err_and(|error| error.is_timeout()) && !parts.read_buf.is_empty();
    close(parts.io.into_inner(), late).await;
}

/// Asks hyper to close the connection when `response` is written.
pub(super) fn close_after(response: &mut Response<Body>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// A socket closed with unread bytes is reset, and the reset may overtake the answer: so what the other
/// side still sends is read, for a moment. `late`: its head was not whole in time, and nobody told it.
async fn close(mut socket: TcpStream, late: bool) {
    let lingering = async {
        if late {
            socket.write_all(TIMEOUT).await?;
        }
        socket.shutdown().await?;
        let mut scrap = [0; 4096];
        while socket.read(&mut scrap).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // Gone, done or out of time: closed in any case.
    drop(timeout(LINGER, lingering).await);
}

/// Counts a connection while it lives.
struct Open(Arc<Process>);

impl Open {
    fn count(process: Arc<Process>) -> Self {
        process.control_connections.add(1);
        Self(process)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.control_connections.add(-1);
    }
}

/// Long enough that publishers can keep a connection between items, short enough to find the lost ones.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const RESERVED_HEAD_TIMEOUT: Duration = Duration::from_secs(2);
const LINGER: Duration = Duration::from_secs(1);
const TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 23\r\n\
    Connection: close\r\n\r\nRequest head too slow.\n";
