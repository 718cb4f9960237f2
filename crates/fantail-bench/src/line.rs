//! A keep-alive connection with one request in flight at most; opened when there is something to ask,
//! and again after the server has closed it.

use std::net::SocketAddrV4;

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::answer::{self, Answer, Parsed};
use crate::error::Error;
use crate::socket::{self, EventFlags, Poller};

/// An answer longer than this is given up as malformed.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Line {
    to: SocketAddrV4,
    /// Names it in the poller's events.
    token: u64,
    socket: Option<OwnedFd>,
    request: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// A request is in flight.
    pub(crate) busy: bool,
    /// When it was asked.
    pub(crate) asked: u64,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome<'a> {
    Pending,
    /// With its bytes.
    Answered(Answer, &'a [u8]),
    /// The connection was refused or cut, or the answer makes no sense: its beginning.
    Failed(String),
}

impl Line {
    /// The low half of `token` is its number in the run, which chooses the source address.
    pub(crate) fn new(to: SocketAddrV4, token: u64) -> Self {
        let (request, input) = (Vec::new(), Vec::new());
        Self { to, token, socket: None, request, sent: 0, input, busy: false, asked: 0 }
    }

    /// Sends a request, now and as the socket takes it. A failure shows as an outcome.
    pub(crate) fn ask(&mut self, poller: &Poller, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Error> {
        self.request.clear();
        write(&mut self.request);
        self.input.clear();
        self.sent = 0;
        self.busy = true;
        self.asked = socket::now();
        if self.socket.is_none() {
            let index = (self.token & u64::from(u32::MAX)) as usize;
            let socket = socket::connect(self.to, index).map_err(Error::system("connect"))?;
            poller.add(&socket, self.token, EventFlags::IN | EventFlags::OUT)?;
            self.socket = Some(socket);
            return Ok(());
        }
        if self.flush().is_ok() && self.sent < self.request.len() {
            self.watch(poller, EventFlags::IN | EventFlags::OUT)?;
        }
        Ok(())
    }

    /// Goes on after an event.
    pub(crate) fn ready(&mut self, poller: &Poller, buffer: &mut [u8]) -> Result<Outcome<'_>, Error> {
        if self.busy && self.sent < self.request.len() {
            if let Err(errno) = self.flush() {
                return Ok(self.fail(&errno.to_string()));
            }
            if self.sent == self.request.len() {
                self.watch(poller, EventFlags::IN)?;
            }
        }
        let Some(socket) = &self.socket else { return Ok(Outcome::Pending) };
        let ended = match socket::recv(socket, buffer) {
            Ok(0) => true,
            Ok(taken) => {
                self.input.extend_from_slice(&buffer[..taken]);
                false
            }
            Err(Errno::AGAIN) => return Ok(Outcome::Pending),
            Err(_) => true,
        };
        if !self.busy {
            if ended {
                self.socket = None;
            }
            return Ok(Outcome::Pending);
        }
        match answer::parse(&self.input) {
            Parsed::Whole(answer) => {
                if answer.close || ended {
                    self.socket = None;
                }
                self.busy = false;
                Ok(Outcome::Answered(answer, &self.input[..answer.length]))
            }
            Parsed::Incomplete if !ended && self.input.len() < ANSWER_BYTES => Ok(Outcome::Pending),
            Parsed::Incomplete => Ok(self.fail("closed without a whole answer")),
            Parsed::Malformed => Ok(self.fail("not an answer that ends before its connection does")),
        }
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let Some(socket) = &self.socket else { return Ok(()) };
        match socket::send(socket, &self.request[self.sent..]) {
            Ok(sent) => self.sent += sent,
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn watch(&self, poller: &Poller, flags: EventFlags) -> Result<(), Error> {
        self.socket.as_ref().map_or(Ok(()), |socket| poller.modify(socket, self.token, flags))
    }

    fn fail(&mut self, why: &str) -> Outcome<'static> {
        self.socket = None;
        self.busy = false;
        let shown = &self.input[..self.input.len().min(120)];
        Outcome::Failed(format!("{why}: {}", String::from_utf8_lossy(shown)))
    }
}
