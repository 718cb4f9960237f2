//! A client's connection, and what comes over it: a head, then chunks, bytes or frames. Reads wait a moment only, so that
//! whoever reads can look at the clock and leave.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use crate::answer::{self, Parsed};
use crate::socket::{self, SECOND};

#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    pub(crate) input: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Filled {
    More,
    Nothing,
    End,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// Whether the connection can be used again.
    pub(crate) stays: bool,
}

impl Wire {
    pub(crate) fn connect(to: SocketAddrV4) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(2))?;
        Self::accepted(stream)
    }

    pub(crate) fn accepted(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(MOMENT))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { stream, input: Vec::new() })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads what is there.
    pub(crate) fn fill(&mut self) -> Filled {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Filled::End,
            Ok(taken) => {
                self.input.extend_from_slice(&buffer[..taken]);
                Filled::More
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                Filled::Nothing
            }
            Err(_) => Filled::End,
        }
    }

    /// The status of a response whose head is complete within so many seconds; what follows stays in `input`.
    pub(crate) fn head(&mut self, seconds: u64, leave: impl Fn() -> bool) -> Option<u16> {
        let deadline = socket::now() + seconds * SECOND;
        loop {
            if let Some(end) = memchr::memmem::find(&self.input, b"\r\n\r\n") {
                let status = str::from_utf8(self.input.get(9..12)?).ok()?.parse().ok();
                self.input.drain(..end + 4);
                return status;
            }
            if self.fill() == Filled::End || socket::now() > deadline || leave() {
                return None;
            }
        }
    }

    /// A whole answer within so many seconds.
    pub(crate) fn answer(&mut self, seconds: u64, leave: impl Fn() -> bool) -> Option<Answer> {
        let deadline = socket::now() + seconds * SECOND;
        loop {
            match answer::parse(&self.input) {
                Parsed::Whole(whole) => {
                    let bytes: Vec<u8> = self.input.drain(..whole.length).collect();
                    let start = memchr::memmem::find(&bytes, b"\r\n\r\n")? + 4;
                    let head = bytes[..start].to_ascii_lowercase();
                    let body = &bytes[start..];
                    let body = if memchr::memmem::find(&head, b"transfer-encoding: chunked").is_some() {
                        let mut chunks = Chunks::default();
                        chunks.input.extend_from_slice(body);
                        chunks.take()?
                    } else {
                        body.to_vec()
                    };
                    return Some(Answer { status: whole.status, body, stays: !whole.close });
                }
                Parsed::Malformed => return None,
                Parsed::Incomplete => {}
            }
            if self.fill() == Filled::End || socket::now() > deadline || leave() {
                return None;
            }
        }
    }
}

/// The content of a chunked body as it comes.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    pub(crate) input: Vec<u8>,
    pub(crate) ended: bool,
}

impl Chunks {
    /// What is whole. `None`: it is no chunked body.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        let (mut content, mut used) = (Vec::new(), 0);
        while !self.ended {
            let rest = &self.input[used..];
            let Some(line) = memchr::memmem::find(rest, b"\r\n") else { break };
            let size = usize::from_str_radix(str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
            let end = (line + 2).checked_add(size)?;
            let Some(chunk) = rest.get(line + 2..end) else { break };
            match rest.get(end..end + 2) {
                Some(b"\r\n") => {}
                None => break,
                Some(_) => return None,
            }
            content.extend_from_slice(chunk);
            used += end + 2;
            self.ended = size == 0;
        }
        self.input.drain(..used);
        Some(content)
    }
}

/// How long one read waits.
const MOMENT: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_in_pieces() {
        let body = b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n";
        for size in 1..body.len() {
            let (mut chunks, mut content) = (Chunks::default(), Vec::new());
            for piece in body.chunks(size) {
                chunks.input.extend_from_slice(piece);
                content.extend(chunks.take().unwrap());
            }
            assert_eq!(content, b"abc0123456789");
            assert!(chunks.ended);
        }
        for wrong in ["x\r\nabc\r\n", "3\r\nabcde", "-1\r\n"] {
            let mut chunks = Chunks { input: wrong.into(), ..Chunks::default() };
            assert_eq!(chunks.take(), None, "{wrong:?}");
        }
    }
}
