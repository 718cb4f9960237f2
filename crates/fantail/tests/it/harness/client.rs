//! A client: raw bytes out, strictly read answers in. It fails the test when an answer does not come in
//! time or is not well-formed; the `try_` forms return the reason instead.

use std::{
    io::Write,
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use tokio::time::Instant;

use super::wire::{DEADLINE, Framing, Head, ReadError, Wire, find};

#[derive(Debug)]
pub struct Client {
    wire: Wire,
    /// The methods whose answers are due: HEAD answers have no body.
    due: std::collections::VecDeque<String>,
    framing: Framing,
    /// Content of a chunk that was asked for in part.
    content: Vec<u8>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    pub head: Head,
    pub framing: Framing,
    pub body: Vec<u8>,
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&address, DEADLINE).expect("the server accepts"))
    }

    /// From an address of our own.
    pub fn connect_from(from: IpAddr, address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)
            .expect("a socket");
        socket.bind(&SocketAddr::new(from, 0).into()).expect("an address of this machine");
        socket.connect(&address.into()).expect("the server accepts");
        Self::over(socket.into())
    }

    fn over(socket: TcpStream) -> Self {
        Self {
            wire: Wire::new(socket),
            due: std::collections::VecDeque::new(),
            framing: Framing::None,
            content: Vec::new(),
        }
    }

    pub fn vanish(&self) {
        self.wire.vanish();
    }

    /// Writes bytes as they are. A server that has closed is no failure: the answer tells.
    pub fn send(&mut self, raw: impl AsRef<[u8]>) -> &mut Self {
        let raw = raw.as_ref();
        let word = raw.split(|b| *b == b' ').next().unwrap_or_default();
        if !word.is_empty() && word.len() < 12 && word.iter().all(u8::is_ascii_uppercase) {
            self.due.push_back(String::from_utf8_lossy(word).into_owned());
        }
        self.send_part(raw)
    }

    /// Writes bytes that do not begin a request.
    pub fn send_part(&mut self, raw: impl AsRef<[u8]>) -> &mut Self {
        if let Err(error) = self.wire.socket.write_all(raw.as_ref()) {
            let closed = [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset];
            assert!(closed.contains(&error.kind()), "writing: {error}");
        }
        self
    }

    pub fn get(&mut self, target: &str) -> &mut Self {
        self.request("GET", target, &[], b"")
    }

    /// A request with a `Host` of `fantail.example` unless `fields` has one, and a length if it has a body.
    pub fn request(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> &mut Self {
        let mut raw = format!("{method} {target} HTTP/1.1\r\n");
        if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            raw.push_str("Host: fantail.example\r\n");
        }
        for (name, value) in fields {
            raw.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            raw.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        raw.push_str("\r\n");
        let mut raw = raw.into_bytes();
        raw.extend_from_slice(body);
        self.send(raw)
    }

    /// The head of the next final answer; interim ones (1xx) are skipped.
    pub fn head(&mut self) -> Head {
        self.try_head().unwrap_or_else(|e| panic!("no answer: {e:?}"))
    }

    pub fn try_head(&mut self) -> Result<Head, ReadError> {
        let head = loop {
            let head = self.wire.read_head()?;
            if !head.first_line.starts_with("HTTP/1.") {
                return Err(ReadError::Malformed(head.first_line));
            }
            if head.status() >= 200 || head.status() == 101 {
                break head;
            }
        };
        self.content.clear();
        let method = self.due.pop_front().unwrap_or_default();
        let bodyless = method == "HEAD" || matches!(head.status(), 101 | 204 | 304);
        let framing = Framing::of(&head, Framing::Close).map_err(ReadError::Malformed)?;
        self.framing = if bodyless { Framing::None } else { framing };
        Ok(head)
    }

    /// The next head as it is, 1xx included.
    pub fn interim(&mut self) -> Head {
        self.wire.read_head().unwrap_or_else(|e| panic!("no answer: {e:?}"))
    }

    pub fn response(&mut self) -> Response {
        self.try_response().unwrap_or_else(|e| panic!("no whole answer: {e:?}"))
    }

    pub fn try_response(&mut self) -> Result<Response, ReadError> {
        let head = self.try_head()?;
        let body = self.wire.read_body(self.framing)?;
        Ok(Response { head, framing: self.framing, body })
    }

    /// The head of a 101 and the connection behind it, or the answer when it is another.
    pub fn switch(mut self) -> Result<(Head, Wire), Response> {
        let head = self.head();
        if head.status() == 101 {
            return Ok((head, self.wire));
        }
        let body = self.wire.read_body(self.framing).unwrap_or_else(|e| panic!("no whole answer: {e:?}"));
        Err(Response { head, framing: self.framing, body })
    }

    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Reads content, whatever the framing, until `expected` bytes of it are there.
    pub fn content(&mut self, expected: usize) -> Vec<u8> {
        self.try_content(expected).unwrap_or_else(|e| panic!("no content: {e:?}"))
    }

    pub fn try_content(&mut self, expected: usize) -> Result<Vec<u8>, ReadError> {
        if self.framing != Framing::Chunked {
            return self.wire.read_exact(expected);
        }
        while self.content.len() < expected {
            match self.wire.read_chunk() {
                Ok(Some(chunk)) => self.content.extend(chunk),
                Ok(None) => return Err(ReadError::Closed { got: std::mem::take(&mut self.content) }),
                Err(error) => return Err(self.cut(error)),
            }
        }
        Ok(self.content.drain(..expected).collect())
    }

    /// The error, with all content that arrived before it, that of a chunk cut short included.
    fn cut(&mut self, error: ReadError) -> ReadError {
        let mut content = std::mem::take(&mut self.content);
        let raw = error.got();
        content.extend(find(raw, b"\r\n").map_or(&[][..], |at| &raw[at + 2..]));
        match error {
            ReadError::Closed { .. } => ReadError::Closed { got: content },
            ReadError::Reset { .. } => ReadError::Reset { got: content },
            ReadError::TimedOut { .. } => ReadError::TimedOut { got: content },
            malformed @ ReadError::Malformed(_) => malformed,
        }
    }

    /// Fails unless the next content is exactly this.
    pub fn expect(&mut self, content: &str) -> &mut Self {
        let got = self.content(content.len());
        assert_eq!(String::from_utf8_lossy(&got), content);
        self
    }

    /// One chunk; `None` at the clean end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        assert!(self.content.is_empty(), "unread content: {:?}", String::from_utf8_lossy(&self.content));
        self.wire.read_chunk().unwrap_or_else(|e| panic!("no chunk: {e:?}"))
    }

    /// The clean end of a held stream.
    pub fn expect_end(&mut self) -> &mut Self {
        match self.framing {
            Framing::Chunked => assert_eq!(self.chunk(), None),
            _ => self.expect_closed(),
        }
        self
    }

    /// Fails unless the server closes without another byte.
    pub fn expect_closed(&mut self) {
        let until = Instant::now() + self.wire.patience;
        match self.wire.fill(until) {
            Err(error) if error.is_end() => {
                let got = String::from_utf8_lossy(error.got());
                assert!(got.is_empty(), "bytes before the close: {got:?}");
            }
            other => {
                panic!("not closed: {other:?} {:?}", String::from_utf8_lossy(&self.wire.ahead));
            }
        }
    }

    /// Everything up to the close or reset, as raw bytes.
    pub fn rest(&mut self) -> Vec<u8> {
        let until = Instant::now() + self.wire.patience;
        loop {
            match self.wire.fill(until) {
                Ok(()) => {}
                Err(ReadError::Closed { got } | ReadError::Reset { got }) => return got,
                Err(error) => panic!("not closed: {error:?}"),
            }
        }
    }

    /// Waits up to `time` for a byte or the close. Paces a client that is slow on purpose.
    pub fn hears_within(&mut self, time: Duration) -> bool {
        !self.wire.ahead.is_empty()
            || !matches!(self.wire.fill(Instant::now() + time), Err(ReadError::TimedOut { .. }))
    }

    /// Sends FIN; still reads.
    pub fn finish_sending(&mut self) {
        self.wire.socket.shutdown(Shutdown::Write).expect("a live socket");
    }

    /// Leaves with RST.
    pub fn reset(self) {
        socket2::SockRef::from(&self.wire.socket).set_linger(Some(Duration::ZERO)).expect("a live socket");
    }

    /// A small receive buffer, so that a client that does not read is noticed soon.
    pub fn narrow(&mut self) -> &mut Self {
        socket2::SockRef::from(&self.wire.socket).set_recv_buffer_size(131_072).expect("a live socket");
        self
    }
}
