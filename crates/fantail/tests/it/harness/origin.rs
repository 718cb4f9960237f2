//! An origin whose every byte the test decides. It records each request as it came; a closure answers.

use std::{
    collections::HashMap,
    fmt,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::wire::{DEADLINE, Framing, Head, ReadError, Wire};

/// A request as the origin read it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub head: Head,
    pub body: Vec<u8>,
    pub framing: Option<Framing>,
    /// Which of the origin's connections it came over, from 0.
    pub connection: usize,
}

impl Request {
    pub fn method(&self) -> &str {
        self.head.first_line.split(' ').next().unwrap_or("")
    }

    pub fn target(&self) -> &str {
        self.head.first_line.split(' ').nth(1).unwrap_or("")
    }
}

/// What the connection does after an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Then {
    Next,
    Close,
    Reset,
    /// Stays open and silent until the origin stops.
    Hang,
}

/// One request on one connection, its body not read yet.
#[derive(Debug)]
pub struct Exchange<'a> {
    pub request: Request,
    at: usize,
    wire: &'a mut Wire,
    seen: &'a Seen,
    stop: &'a Stop,
}

impl Exchange<'_> {
    pub fn read_body(&mut self) -> Result<Vec<u8>, ReadError> {
        let framing = Framing::of(&self.request.head, Framing::None).map_err(ReadError::Malformed)?;
        self.request.framing = Some(framing);
        self.request.body = self.wire.read_body(framing)?;
        if let Some(seen) = self.seen.requests.lock().expect("no panic holds it").get_mut(self.at) {
            *seen = self.request.clone();
        }
        Ok(self.request.body.clone())
    }

    /// False when the proxy has closed the connection.
    pub fn send(&mut self, raw: impl AsRef<[u8]>) -> bool {
        self.wire.socket.write_all(raw.as_ref()).is_ok()
    }

    /// The connection, when it is to be no HTTP any more.
    pub fn switch(&mut self) -> Wire {
        let mut wire = Wire::new(self.wire.socket.try_clone().expect("a live socket"));
        wire.ahead = std::mem::take(&mut self.wire.ahead);
        wire
    }

    /// Waits until the proxy closes this connection; false when it did not within the deadline.
    pub fn proxy_leaves(&mut self) -> bool {
        let until = Instant::now() + DEADLINE;
        loop {
            match self.wire.fill(until) {
                Ok(()) => {}
                Err(error) => return error.is_end(),
            }
        }
    }

    /// Waits for the origin to stop, or `time`. Paces an origin that is slow on purpose.
    pub fn pause(&self, time: Duration) {
        self.stop.wait(time);
    }
}

pub struct Origin {
    address: SocketAddr,
    seen: Arc<Seen>,
    stop: Arc<Stop>,
    /// Ends when the port is closed.
    accepting: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: Mutex<Vec<Request>>,
    more: Condvar,
    malformed: Mutex<Vec<String>>,
}

#[derive(Debug, Default)]
struct Stop {
    flag: AtomicBool,
    sockets: Mutex<HashMap<usize, TcpStream>>,
    gate: Mutex<()>,
    rung: Condvar,
}

impl Stop {
    fn wait(&self, time: Duration) {
        let guard = self.gate.lock().expect("no panic holds it");
        drop(self.rung.wait_timeout_while(guard, time, |()| !self.flag.load(SeqCst)));
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)
    }
}

impl Origin {
    /// As [`Self::scripted`], at an address that was another's.
    pub fn reborn(address: SocketAddr, answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).expect("its last owner has left");
        Self::listening(listener, answering(answer))
    }

    /// Reads each request whole and sends what `answer` returns; the connection stays open.
    pub fn answering(answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::scripted(answering(answer))
    }

    /// The same answer to everything.
    pub fn fixed(answer: Vec<u8>) -> Self {
        Self::answering(move |_| answer.clone())
    }

    /// Sends these bytes for each request, then closes.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::scripted(move |exchange| {
            exchange.send(&bytes);
            Then::Close
        })
    }

    /// `script` gets each request after its head.
    pub fn scripted(script: impl Fn(&mut Exchange<'_>) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::listening(listener, script)
    }

    fn listening(
        listener: TcpListener,
        script: impl Fn(&mut Exchange<'_>) -> Then + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("a bound socket");
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(Stop::default()));
        let (its_seen, its_stop) = (seen.clone(), stop.clone());
        let script = Arc::new(script);
        let accepting = thread::spawn(move || {
            for (connection, socket) in listener.incoming().enumerate() {
                let Ok(socket) = socket else { return };
                if stop.flag.load(SeqCst) {
                    return;
                }
                let copy = socket.try_clone().expect("a live socket");
                stop.sockets.lock().expect("no panic holds it").insert(connection, copy);
                let (seen, stop, script) = (seen.clone(), stop.clone(), script.clone());
                thread::spawn(move || {
                    let mut wire = Wire::new(socket);
                    wire.patience = Duration::from_secs(600);
                    let then = serve(connection, &mut wire, &seen, &stop, &*script);
                    stop.sockets.lock().expect("no panic holds it").remove(&connection);
                    if then == Then::Reset {
                        drop(socket2::SockRef::from(&wire.socket).set_linger(Some(Duration::ZERO)));
                    }
                });
            }
        });
        Self { address, seen: its_seen, stop: its_stop, accepting: Mutex::new(Some(accepting)) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was asked so far, bodies included once they were read.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.requests.lock().expect("no panic holds it").clone()
    }

    /// Forgets the requests so far, for an origin that gets more of them than memory should hold.
    pub fn forget(&self) {
        self.seen.requests.lock().expect("no panic holds it").clear();
    }

    /// Waits for that many requests, and returns all there are.
    pub fn wait_requests(&self, n: usize) -> Vec<Request> {
        let requests = self.seen.requests.lock().expect("no panic holds it");
        let (requests, late) = self
            .seen
            .more
            .wait_timeout_while(requests, DEADLINE, |r| r.len() < n)
            .expect("no panic holds it");
        assert!(!late.timed_out(), "{} requests, not {n}: {requests:#?}", requests.len());
        requests.clone()
    }

    /// The only request, once it is there.
    pub fn request(&self) -> Request {
        let mut requests = self.wait_requests(1);
        assert_eq!(requests.len(), 1, "{requests:#?}");
        requests.remove(0)
    }

    /// What a strict origin could not read, one line a request.
    pub fn malformed(&self) -> Vec<String> {
        self.seen.malformed.lock().expect("no panic holds it").clone()
    }

    /// Closes the port and every connection.
    pub fn stop(&self) {
        if self.stop.flag.swap(true, SeqCst) {
            return;
        }
        self.stop.rung.notify_all();
        drop(TcpStream::connect(self.address));
        let accepting = self.accepting.lock().expect("no panic holds it").take();
        drop(accepting.map(thread::JoinHandle::join));
        for socket in self.stop.sockets.lock().expect("no panic holds it").values() {
            drop(socket.shutdown(std::net::Shutdown::Both));
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
    }
}

fn answering(
    answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
) -> impl Fn(&mut Exchange<'_>) -> Then + Send + Sync + 'static {
    move |exchange| {
        if exchange.read_body().is_err() {
            return Then::Close;
        }
        let raw = answer(&exchange.request);
        exchange.send(raw);
        Then::Next
    }
}

fn serve(
    connection: usize,
    wire: &mut Wire,
    seen: &Seen,
    stop: &Stop,
    script: &(dyn Fn(&mut Exchange<'_>) -> Then + Send + Sync),
) -> Then {
    loop {
        let head = match wire.read_head() {
            Ok(head) => head,
            Err(ReadError::Malformed(why)) => {
                seen.malformed.lock().expect("no panic holds it").push(why);
                return Then::Close;
            }
            Err(_) => return Then::Close,
        };
        let request = Request { head, connection, ..Request::default() };
        let at = {
            let mut requests = seen.requests.lock().expect("no panic holds it");
            requests.push(request.clone());
            requests.len() - 1
        };
        seen.more.notify_all();
        match script(&mut Exchange { request, at, wire, seen, stop }) {
            Then::Next => {}
            Then::Hang => {
                stop.wait(Duration::from_secs(600));
                return Then::Close;
            }
            end => return end,
        }
    }
}

/// An answer with a length.
pub fn answer(status: &str, fields: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut raw = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in fields {
        raw.push_str(&format!("{name}: {value}\r\n"));
    }
    raw.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let mut raw = raw.into_bytes();
    raw.extend_from_slice(body);
    raw
}

/// An answer that holds the request: `mode` is `stream` or `response`.
pub fn hold(mode: &str, channel: &str, more: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut fields = vec![("Content-Type", "text/plain"), ("Grip-Hold", mode), ("Grip-Channel", channel)];
    fields.extend_from_slice(more);
    answer("200 OK", &fields, body)
}
