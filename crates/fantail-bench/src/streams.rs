//! The held connections of a run: opened with one request each, then read for ever. A connection counts
//! as held when its response begins with status 200, a WebSocket's with 101. What arrives on it is handed on, not understood.

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::error::Error;
use crate::options::Target;
use crate::socket::{self, Event, EventFlags, Poller, READ_BYTES, SECOND};

/// "HTTP/1.1 200": enough of a response to know whether it is a hold.
const STATUS_BYTES: usize = 12;

/// For life, and told once: half the price of being told as long as it is so.
const WATCHED: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);
/// Until the request is sent.
const WATCHED_TO_SEND: EventFlags = WATCHED.union(EventFlags::OUT);
const ENDED: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);

#[derive(Debug)]
pub(crate) struct Streams<'a> {
    target: &'a Target,
    request: Vec<u8>,
    /// The status of a hold.
    wanted: &'static [u8],
    list: Vec<Stream>,
    buffer: Vec<u8>,
    /// Held at this moment.
    pub(crate) open: usize,
    /// Refused, cut or never connected.
    pub(crate) failed: usize,
    /// The beginning of the first answer that was not a hold.
    refusal: Option<String>,
}

#[derive(Debug)]
struct Stream {
    socket: Option<OwnedFd>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Connecting,
    /// With the beginning of the answer so far.
    Asked(Vec<u8>),
    Held,
}

impl<'a> Streams<'a> {
    pub(crate) fn new(target: &'a Target, websocket: bool) -> Self {
        let (request, wanted): (_, &[u8]) =
            if websocket { (target.handshake(), b" 101") } else { (target.request(), b" 200") };
        Self {
            target,
            request,
            wanted,
            list: Vec::new(),
            buffer: vec![0; READ_BYTES],
            open: 0,
            failed: 0,
            refusal: None,
        }
    }

    /// Opens connections until `count` are held or have failed, or the time is up. Returns the seconds
    /// that it took. An error if none is held.
    pub(crate) fn open_up_to(&mut self, poller: &Poller, count: usize) -> Result<f64, Error> {
        let start = socket::now();
        let deadline = start + self.target.timeout * SECOND;
        let mut events = Vec::new();
        while self.open + self.failed < count && socket::now() < deadline {
            self.open_more(poller, count)?;
            poller.wait(&mut events, 10)?;
            for event in &events {
                self.ready(poller, event)?;
            }
        }
        let seconds = (socket::now() - start) as f64 / 1e9;
        self.failed = count - self.open;
        if self.open == 0 {
            return Err(Error::NothingHeld { refusal: self.refusal.take() });
        }
        if let Some(refusal) = self.refusal.take() {
            eprintln!("fantail-bench: the first refusal: {refusal}");
        }
        Ok(seconds)
    }

    /// Begins to open connections, as many as may be opening at once and up to `count` in all.
    pub(crate) fn open_more(&mut self, poller: &Poller, count: usize) -> Result<(), Error> {
        while self.list.len() < count && self.list.len() - self.open - self.failed < self.target.opening {
            self.start(poller)?;
        }
        Ok(())
    }

    /// Gives the second half of the connections away, from one poller to another.
    pub(crate) fn split(&mut self, from: &Poller, to: &Poller) -> Result<Self, Error> {
        let list = self.list.split_off(self.list.len() / 2);
        for (token, socket) in
            (0..).zip(&list).filter_map(|(token, stream)| Some((token, stream.socket.as_ref()?)))
        {
            from.remove(socket)?;
            to.add(socket, token, WATCHED)?;
        }
        let open = list.iter().filter(|stream| matches!(stream.phase, Phase::Held)).count();
        self.open -= open;
        Ok(Self {
            target: self.target,
            request: self.request.clone(),
            wanted: self.wanted,
            list,
            buffer: vec![0; READ_BYTES],
            open,
            failed: 0,
            refusal: None,
        })
    }

    /// Reads whatever comes for so long; connections may end meanwhile.
    pub(crate) fn rest(&mut self, poller: &Poller, nanoseconds: u64) -> Result<(), Error> {
        let (end, mut events) = (socket::now() + nanoseconds, Vec::new());
        while socket::now() < end {
            poller.wait(&mut events, 50)?;
            for event in &events {
                self.ready(poller, event)?;
            }
        }
        Ok(())
    }

    /// Goes on with the connection of an event. Returns its index and what arrived on it once held.
    pub(crate) fn ready(&mut self, poller: &Poller, event: &Event) -> Result<Option<(usize, &[u8])>, Error> {
        let (token, flags) = (event.data.u64(), event.flags);
        let index = token as usize;
        let Some(Stream { socket: Some(socket), phase }) = self.list.get_mut(index) else { return Ok(None) };
        if matches!(phase, Phase::Connecting) {
            match socket::send(socket, &self.request) {
                Ok(sent) if sent == self.request.len() => {
                    *phase = Phase::Asked(Vec::new());
                    poller.modify(socket, token, WATCHED)?;
                }
                Ok(_) | Err(_) => self.lose(index),
            }
            return Ok(None);
        }
        let taken = match socket::recv(socket, &mut self.buffer) {
            Err(Errno::AGAIN) => return Ok(None),
            Ok(0) | Err(_) => {
                self.lose(index);
                return Ok(None);
            }
            Ok(taken) => taken,
        };
        // The poller tells of each arrival once: what may be left is asked for.
        if taken == self.buffer.len() || flags.intersects(ENDED) {
            poller.modify(socket, token, WATCHED)?;
        }
        if let Phase::Asked(start) = phase {
            start.extend_from_slice(&self.buffer[..taken]);
            if start.len() < STATUS_BYTES {
                return Ok(None);
            }
            if !start[..STATUS_BYTES].ends_with(self.wanted) {
                let shown = &start[..start.len().min(200)];
                self.refusal.get_or_insert_with(|| String::from_utf8_lossy(shown).into_owned());
                self.lose(index);
                return Ok(None);
            }
            *phase = Phase::Held;
            self.open += 1;
        }
        Ok(Some((index, &self.buffer[..taken])))
    }

    fn start(&mut self, poller: &Poller) -> Result<(), Error> {
        let index = self.list.len();
        let socket = socket::connect(self.target.sub.0, index).ok();
        let mut phase = Phase::Connecting;
        match &socket {
            Some(socket) => {
                // On loopback a connection mostly stands when `connect` returns, whatever that says.
                if socket::send(socket, &self.request) == Ok(self.request.len()) {
                    phase = Phase::Asked(Vec::new());
                }
                let asked = matches!(phase, Phase::Asked(_));
                poller.add(socket, index as u64, if asked { WATCHED } else { WATCHED_TO_SEND })?;
            }
            None => self.failed += 1,
        }
        self.list.push(Stream { socket, phase });
        Ok(())
    }

    fn lose(&mut self, index: usize) {
        let Some(stream) = self.list.get_mut(index) else { return };
        stream.socket = None;
        if matches!(stream.phase, Phase::Held) {
            self.open -= 1;
        }
        self.failed += 1;
    }
}
