//! Reads HTTP/1.1 messages from a socket, strictly: what a careful peer would refuse is an error here.
//! One reader for both sides: the client reads answers with it, the origin requests.

use std::{
    io::{ErrorKind, Read},
    net::TcpStream,
    time::Duration,
};

use tokio::time::Instant;

/// How long anything that must happen may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Why a message could not be read; `got` is what had arrived of it.
#[derive(Debug)]
pub enum ReadError {
    /// The peer sent FIN.
    Closed {
        got: Vec<u8>,
    },
    /// The peer sent RST.
    Reset {
        got: Vec<u8>,
    },
    TimedOut {
        got: Vec<u8>,
    },
    /// A strict reader refuses what arrived.
    Malformed(String),
}

impl ReadError {
    /// What had arrived.
    pub fn got(&self) -> &[u8] {
        match self {
            Self::Closed { got } | Self::Reset { got } | Self::TimedOut { got } => got,
            Self::Malformed(_) => &[],
        }
    }

    pub fn is_end(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Reset { .. })
    }
}

/// The head of a message: its first line and its fields, in their order.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub first_line: String,
    pub fields: Vec<(String, String)>,
}

impl Head {
    /// The value of a field that must not occur twice.
    pub fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} occurs {} times in {self:?}", all.len());
        all.first().copied()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// The fields whose names begin with `prefix`, any case.
    pub fn starting(&self, prefix: &str) -> Vec<&str> {
        let starts = |n: &str| n.get(..prefix.len()).is_some_and(|p| p.eq_ignore_ascii_case(prefix));
        self.fields.iter().filter(|(n, _)| starts(n)).map(|(n, _)| n.as_str()).collect()
    }

    /// The status of an answer.
    pub fn status(&self) -> u16 {
        self.first_line.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line")
    }

    pub fn reason(&self) -> &str {
        self.first_line.splitn(3, ' ').nth(2).unwrap_or("")
    }

    fn parse(raw: &[u8]) -> Result<Self, String> {
        let text: String = raw.iter().map(|b| char::from(*b)).collect();
        let mut lines = text.split("\r\n");
        let first_line = lines.next().unwrap_or_default().to_string();
        let mut fields = Vec::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                return Err(format!("a field without a colon: {line:?}"));
            };
            if name.is_empty() || !name.bytes().all(is_token_byte) {
                return Err(format!("a field name that is no token: {line:?}"));
            }
            if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
                return Err(format!("a control character in a value: {line:?}"));
            }
            fields.push((name.to_string(), value.trim_matches([' ', '\t']).to_string()));
        }
        if first_line.bytes().any(|b| b < 0x20) {
            return Err(format!("a control character in the first line: {first_line:?}"));
        }
        Ok(Self { first_line, fields })
    }
}

fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Where a message's body ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
    Close,
}

impl Framing {
    /// RFC 9112 section 6.3, without its lenience.
    pub fn of(head: &Head, default: Self) -> Result<Self, String> {
        let (lengths, codings) = (head.all("content-length"), head.all("transfer-encoding"));
        match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => Ok(default),
            ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Self::Chunked),
            ([n], []) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
                n.parse().map(Self::Length).map_err(|_| format!("length {n}"))
            }
            _ => Err(format!("ambiguous framing: {lengths:?} {codings:?}")),
        }
    }
}

/// A socket and what was read from it ahead of need.
#[derive(Debug)]
pub struct Wire {
    pub socket: TcpStream,
    pub ahead: Vec<u8>,
    pub patience: Duration,
}

impl Wire {
    pub fn new(socket: TcpStream) -> Self {
        socket.set_nodelay(true).expect("a live socket");
        Self { socket, ahead: Vec::new(), patience: DEADLINE }
    }

    /// The machine at this end is gone from one moment to the next: its kernel sees nothing any more that comes, so it
    /// answers nothing. The socket must be kept: closing it would say so.
    pub fn vanish(&self) {
        const DROP_ALL: socket2::SockFilter = socket2::SockFilter::new(0x06, 0, 0, 0);
        socket2::SockRef::from(&self.socket).attach_filter(&[DROP_ALL]).expect("a live socket");
    }

    pub fn read_head(&mut self) -> Result<Head, ReadError> {
        let until = Instant::now() + self.patience;
        let end = loop {
            if let Some(at) = find(&self.ahead, b"\r\n\r\n") {
                break at;
            }
            self.fill(until)?;
        };
        let raw: Vec<u8> = self.ahead.drain(..end + 4).collect();
        Head::parse(&raw[..end]).map_err(ReadError::Malformed)
    }

    pub fn read_body(&mut self, framing: Framing) -> Result<Vec<u8>, ReadError> {
        match framing {
            Framing::None => Ok(Vec::new()),
            Framing::Length(n) => self.read_exact(n),
            Framing::Chunked => {
                let mut body = Vec::new();
                loop {
                    match self.read_chunk() {
                        Ok(Some(chunk)) => body.extend(chunk),
                        Ok(None) => return Ok(body),
                        Err(ReadError::Closed { .. }) => return Err(ReadError::Closed { got: body }),
                        Err(ReadError::Reset { .. }) => return Err(ReadError::Reset { got: body }),
                        Err(ReadError::TimedOut { .. }) => return Err(ReadError::TimedOut { got: body }),
                        Err(error) => return Err(error),
                    }
                }
            }
            Framing::Close => self.read_to_end(),
        }
    }

    /// One chunk's content; `None` is the last chunk, read whole with its empty trailer section.
    pub fn read_chunk(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        let until = Instant::now() + self.patience;
        let line = loop {
            if let Some(at) = find(&self.ahead, b"\r\n") {
                break at;
            }
            self.fill(until)?;
        };
        let size = std::str::from_utf8(&self.ahead[..line])
            .ok()
            .filter(|s| !s.is_empty() && s.len() <= 8 && s.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|s| usize::from_str_radix(s, 16).ok());
        let Some(size) = size else {
            let shown = String::from_utf8_lossy(&self.ahead[..self.ahead.len().min(80)]).into_owned();
            return Err(ReadError::Malformed(format!("chunk size: {shown:?}")));
        };
        while self.ahead.len() < line + 2 + size + 2 {
            self.fill(until)?;
        }
        let raw: Vec<u8> = self.ahead.drain(..line + 2 + size + 2).collect();
        if !raw.ends_with(b"\r\n") {
            return Err(ReadError::Malformed("a chunk without CRLF".into()));
        }
        Ok((size > 0).then(|| raw[line + 2..line + 2 + size].to_vec()))
    }

    pub fn read_exact(&mut self, n: usize) -> Result<Vec<u8>, ReadError> {
        let until = Instant::now() + self.patience;
        while self.ahead.len() < n {
            self.fill(until)?;
        }
        Ok(self.ahead.drain(..n).collect())
    }

    fn read_to_end(&mut self) -> Result<Vec<u8>, ReadError> {
        let until = Instant::now() + self.patience;
        loop {
            match self.fill(until) {
                Ok(()) => {}
                Err(ReadError::Closed { got }) => return Ok(got),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads once more; an error takes along what is there.
    pub fn fill(&mut self, until: Instant) -> Result<(), ReadError> {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(left)).expect("more than zero");
        let mut piece = [0; 16384];
        match self.socket.read(&mut piece) {
            Ok(0) => Err(ReadError::Closed { got: std::mem::take(&mut self.ahead) }),
            Ok(n) => {
                self.ahead.extend_from_slice(&piece[..n]);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(ReadError::TimedOut { got: self.ahead.clone() })
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
            Err(_) => Err(ReadError::Reset { got: std::mem::take(&mut self.ahead) }),
        }
    }
}

pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}
