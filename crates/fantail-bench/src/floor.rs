//! `floor`: the least that a server can do for a delivery. Every connection to one port is a held
//! stream, whatever it asks; every POST to the other is sent to all of them, one `send` each. It has no
//! channels, no origin and no queue: what a socket does not take is lost, and the generator says so.

use std::os::fd::{AsRawFd, OwnedFd};

use memchr::{memchr, memmem};
use rustix::io::Errno;

use crate::error::Error;
use crate::options::Floor;
use crate::report::Report;
use crate::request::{self, Parsed};
use crate::socket::{self, EventFlags, Poller, READ_BYTES};

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
const ACCEPTED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Serves until it is killed. Its addresses are the first line that it prints.
pub(crate) fn run(options: &Floor) -> Result<Report, Error> {
    socket::reserve_descriptors(0)?;
    let (clients, sub) = socket::listen(options.listen.0).map_err(Error::system("listen for clients"))?;
    let (publishers, publ) =
        socket::listen(options.pub_listen.0).map_err(Error::system("listen for publishers"))?;
    println!("clients {sub} publishers {publ}");
    let poller = Poller::new()?;
    let (client_token, publisher_token) = (token(&clients), token(&publishers));
    poller.add(&clients, client_token, EventFlags::IN)?;
    poller.add(&publishers, publisher_token, EventFlags::IN)?;
    let mut connections = Connections { poller, list: Vec::new() };
    let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    loop {
        connections.poller.wait(&mut events, -1)?;
        for event in &events {
            match event.data.u64() {
                ready if ready == client_token => connections.accept(&clients, || Role::Asking)?,
                ready if ready == publisher_token => {
                    connections.accept(&publishers, || Role::Publisher(Vec::new()))?;
                }
                ready => connections.ready(ready as usize, &mut buffer),
            }
        }
    }
}

struct Connections {
    poller: Poller,
    /// By descriptor: small numbers, given again when closed.
    list: Vec<Option<Connection>>,
}

struct Connection {
    socket: OwnedFd,
    role: Role,
}

enum Role {
    Asking,
    Held,
    /// With what has been read of the next request.
    Publisher(Vec<u8>),
}

impl Connections {
    fn accept(&mut self, listener: &OwnedFd, role: impl Fn() -> Role) -> Result<(), Error> {
        loop {
            let socket = match socket::accept(listener) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(Error::System { what: "accept", errno }),
            };
            self.poller.add(&socket, token(&socket), EventFlags::IN)?;
            let slot = token(&socket) as usize;
            if self.list.len() <= slot {
                self.list.resize_with(slot + 1, || None);
            }
            self.list[slot] = Some(Connection { socket, role: role() });
        }
    }

    fn ready(&mut self, slot: usize, buffer: &mut [u8]) {
        let Some(Some(Connection { socket, role })) = self.list.get_mut(slot) else { return };
        let taken = match socket::recv(socket, buffer) {
            Err(Errno::AGAIN) => return,
            Ok(0) | Err(_) => {
                self.list[slot] = None;
                return;
            }
            Ok(taken) => taken,
        };
        match role {
            Role::Asking => {
                if socket::send(socket, HEAD) == Ok(HEAD.len()) {
                    *role = Role::Held;
                } else {
                    self.list[slot] = None;
                }
            }
            Role::Held => {}
            Role::Publisher(input) => {
                input.extend_from_slice(&buffer[..taken]);
                let input = std::mem::take(input);
                self.publish(slot, input);
            }
        }
    }

    /// Sends what `input` has of whole requests to all, answers each, and keeps the rest of it.
    fn publish(&mut self, slot: usize, mut input: Vec<u8>) {
        let keep = loop {
            let (answer, keep) = match take_request(&mut input) {
                Request::Incomplete => break true,
                Request::Malformed => (REFUSED, false),
                Request::Message(chunk) => {
                    self.deliver(&chunk);
                    (ACCEPTED, true)
                }
            };
            let Some(Some(publisher)) = self.list.get(slot) else { return };
            if socket::send(&publisher.socket, answer) != Ok(answer.len()) || !keep {
                break false;
            }
        };
        match self.list.get_mut(slot) {
            Some(Some(Connection { role: Role::Publisher(rest), .. })) if keep => *rest = input,
            Some(publisher) => *publisher = None,
            None => {}
        }
    }

    fn deliver(&self, chunk: &[u8]) {
        for connection in self.list.iter().flatten() {
            if matches!(connection.role, Role::Held) {
                socket::send(&connection.socket, chunk).ok();
            }
        }
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Request {
    Incomplete,
    /// The chunk to send.
    Message(Vec<u8>),
    Malformed,
}

/// Takes one publish request off the front. Its message is the text of the body from the first `@` up to
/// the characters `\n`, a line feed, or the end.
fn take_request(input: &mut Vec<u8>) -> Request {
    let range = match request::parse(input) {
        Parsed::Incomplete => return Request::Incomplete,
        Parsed::Whole(range) if !range.is_empty() => range,
        Parsed::Whole(_) | Parsed::Malformed => return Request::Malformed,
    };
    let body = &input[range.clone()];
    let message = &body[memchr(b'@', body).unwrap_or(0)..];
    let stop = memmem::find(message, b"\\n").or_else(|| memchr(b'\n', message)).unwrap_or(message.len());
    let mut chunk = format!("{:x}\r\n", stop + 1).into_bytes();
    chunk.extend_from_slice(&message[..stop]);
    chunk.extend_from_slice(b"\n\r\n");
    input.drain(..range.end);
    Request::Message(chunk)
}

fn token(socket: &OwnedFd) -> u64 {
    u64::from(socket.as_raw_fd().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_off_whole() {
        let one = b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n{\"@1:2\\n\"";
        let mut input = [&one[..], &one[..20]].concat();
        assert_eq!(take_request(&mut input), Request::Message(b"5\r\n@1:2\n\r\n".to_vec()));
        assert_eq!((take_request(&mut input), input.len()), (Request::Incomplete, 20));
        assert_eq!(take_request(&mut b"POST / HTTP/1.1\r\n\r\n".to_vec()), Request::Malformed);
    }
}
