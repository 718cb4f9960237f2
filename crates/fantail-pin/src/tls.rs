//! TLS of one connection, from its handshake to its end: records in, plain bytes out, and back. It owns no socket and
//! waits for nothing: what it has to send, its owner sends, in order. Between calls it keeps no buffer but what is
//! not whole, not read or not sent yet, which for an idle connection is nothing.

use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CommonState, ServerConfig};

/// A client's socket, and what encrypts on it if anything does.
#[derive(Debug)]
pub struct Wire {
    pub socket: OwnedFd,
    pub tls: Option<Box<Tls>>,
}

impl From<OwnedFd> for Wire {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, tls: None }
    }
}

/// The server's side of one TLS connection.
///
/// Everything that is to be sent comes out of [`Self::encrypt`] or waits in [`Self::output`], in the order in which
/// the client must get it.
pub struct Tls {
    connection: UnbufferedServerConnection,
    /// Received, and not a whole record or handshake message yet.
    incoming: Vec<u8>,
    /// Decrypted, and not read yet.
    plain: Vec<u8>,
    /// Records to be sent.
    output: Vec<u8>,
    peer_closed: bool,
    closing: bool,
    /// An error was found: rustls is not asked again.
    failed: bool,
}

/// Why a TLS connection is of no more use. Where the client is to be told, [`Tls::output`] has the alert.
#[derive(Debug)]
pub enum TlsError {
    /// The client broke the protocol, or nothing could be agreed on.
    Protocol(rustls::Error),
    /// A message of the client is larger than any that TLS needs.
    TooLarge,
    /// These keys have encrypted all that they may (TLS 1.2), or the connection cannot be written to.
    Exhausted,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(error) => error.fmt(f),
            Self::TooLarge => f.write_str("a message is too large"),
            Self::Exhausted => f.write_str("nothing more can be encrypted"),
        }
    }
}

impl std::error::Error for TlsError {}

impl Tls {
    /// A connection whose client has said nothing yet.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            plain: Vec::new(),
            output: Vec::new(),
            peer_closed: false,
            closing: false,
            failed: false,
        })
    }

    /// Whether no application data may be sent yet.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// What was agreed on.
    #[must_use]
    pub fn agreed(&self) -> &CommonState {
        &self.connection
    }

    /// Takes what the socket had, and decrypts it in place as far as its records are whole. Answers of the protocol
    /// itself are in [`Self::output`] then.
    ///
    /// # Errors
    /// As [`TlsError`]; what came before in order can still be read.
    pub fn receive(&mut self, bytes: &mut [u8]) -> Result<(), TlsError> {
        if self.incoming.is_empty() {
            let used = self.process(bytes)?;
            self.incoming.extend_from_slice(&bytes[used..]);
        } else {
            self.incoming.extend_from_slice(bytes);
            self.process_incoming()?;
        }
        if self.incoming.len() > MOST_INCOMING {
            self.failed = true;
            return Err(TlsError::TooLarge);
        }
        Ok(())
    }

    /// Moves decrypted bytes to `out` and says how many; 0 if there are none.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let some = out.len().min(self.plain.len());
        out[..some].copy_from_slice(&self.plain[..some]);
        if some == self.plain.len() {
            self.plain = Vec::new();
        } else {
            self.plain.drain(..some);
        }
        some
    }

    /// All that was decrypted and not read.
    pub fn take_plain(&mut self) -> Vec<u8> {
        mem::take(&mut self.plain)
    }

    /// Bytes that were decrypted and not read.
    #[must_use]
    pub const fn plain_len(&self) -> usize {
        self.plain.len()
    }

    /// Whether the client has said that it sends no more (RFC 8446, 6.1).
    #[must_use]
    pub const fn peer_has_closed(&self) -> bool {
        self.peer_closed
    }

    /// Appends to `out` what waited to be sent, and then `plain` as records.
    ///
    /// # Errors
    /// [`TlsError::Exhausted`]: nothing can be sent any more, or nothing yet. `out` is as it was.
    pub fn encrypt(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        if !self.may_write() {
            return Err(TlsError::Exhausted);
        }
        let start = out.len();
        out.append(&mut self.take_output());
        let state = self.connection.process_tls_records(&mut self.incoming).state;
        let encrypted = match state {
            Ok(ConnectionState::WriteTraffic(mut writer)) => {
                append(out, sealed_len(plain.len()), |room| writer.encrypt(plain, room))
            }
            _ => Err(TlsError::Exhausted),
        };
        if encrypted.is_err() {
            self.failed = true;
            out.truncate(start);
        }
        encrypted
    }

    /// Encrypts `plain` behind [`Self::output`].
    ///
    /// # Errors
    /// As [`Self::encrypt`].
    pub fn write(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        let mut output = self.take_output();
        let written = self.encrypt(plain, &mut output);
        self.output = output;
        written
    }

    /// Has the client told, behind all else, that nothing more comes (`close_notify`), if it can be told.
    pub fn close(&mut self) {
        if mem::replace(&mut self.closing, true) || !self.may_write() {
            return;
        }
        if let Ok(ConnectionState::WriteTraffic(mut writer)) =
            self.connection.process_tls_records(&mut self.incoming).state
        {
            // Keys that are exhausted have said it already.
            append(&mut self.output, SMALL_RECORD, |room| writer.queue_close_notify(room)).ok();
        }
    }

    /// What is to be sent before anything that is encrypted from now on.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The first `len` bytes of [`Self::output`] have been sent.
    pub fn sent(&mut self, len: usize) {
        if len >= self.output.len() {
            self.output = Vec::new();
        } else {
            self.output.drain(..len);
        }
    }

    /// [`Self::output`], for an owner that sends it later.
    pub fn take_output(&mut self) -> Vec<u8> {
        mem::take(&mut self.output)
    }

    /// Whether application data may be sent. What the protocol itself has to send before is in `output` then.
    fn may_write(&mut self) -> bool {
        !self.failed
            && (self.is_ready() || (self.process_incoming().is_ok() && !self.failed && self.is_ready()))
    }

    fn is_ready(&mut self) -> bool {
        matches!(
            self.connection.process_tls_records(&mut self.incoming).state,
            Ok(ConnectionState::WriteTraffic(_))
        )
    }

    /// As [`Self::process`], of what was received before.
    fn process_incoming(&mut self) -> Result<(), TlsError> {
        let mut incoming = mem::take(&mut self.incoming);
        let used = self.process(&mut incoming)?;
        if used < incoming.len() {
            incoming.drain(..used);
            self.incoming = incoming;
        }
        Ok(())
    }

    /// Goes through whole records and says how many bytes they were. rustls remembers where in the bytes that it was
    /// given before a handshake message begins, so what is left must be given again, first, each time.
    fn process(&mut self, bytes: &mut [u8]) -> Result<usize, TlsError> {
        if self.failed {
            return Err(TlsError::Exhausted);
        }
        let mut used = 0;
        loop {
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(&mut bytes[used..]);
            let mut over = discard;
            let goes_on = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        self.plain.extend_from_slice(record.payload);
                        over += record.discard;
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(&mut self.output, SMALL_RECORD, |room| data.encode(room))?;
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    true
                }
                // Early data is never offered, so it never comes.
                Ok(_) => false,
                Err(error) => {
                    used += over;
                    self.take_alert(&mut bytes[used..]);
                    return Err(TlsError::Protocol(error));
                }
            };
            used += over;
            if !goes_on {
                return Ok(used);
            }
        }
    }

    /// After an error: what the client is to be told about it. `bytes` are those that are left. rustls is asked once:
    /// when it has nothing more to say it reads on, and fails again on what it has refused.
    fn take_alert(&mut self, bytes: &mut [u8]) {
        self.failed = true;
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = self.connection.process_tls_records(bytes).state
        {
            append(&mut self.output, SMALL_RECORD, |room| data.encode(room)).ok();
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("incoming", &self.incoming.len())
            .field("plain", &self.plain.len())
            .field("output", &self.output.len())
            .field("peer_closed", &self.peer_closed)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

/// At most so many bytes come of encrypting `len`, but for what the protocol itself sends with them.
pub(crate) const fn sealed_len(len: usize) -> usize {
    len.saturating_add(len.div_ceil(RECORD_BYTES).saturating_mul(RECORD_COST))
}

/// What rustls says about room that is too small, in both of its forms.
trait Room {
    fn required(&self) -> Option<usize>;
}

impl Room for EncodeError {
    fn required(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(size) => Some(size.required_size),
            Self::AlreadyEncoded => None,
        }
    }
}

impl Room for EncryptError {
    fn required(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(size) => Some(size.required_size),
            Self::EncryptExhausted => None,
        }
    }
}

/// Lets `write` fill room at the end of `out`: `guess` bytes, or as many as it says that it needs.
fn append<E: Room>(
    out: &mut Vec<u8>,
    guess: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), TlsError> {
    let start = out.len();
    out.resize(start + guess, 0);
    let mut written = write(&mut out[start..]);
    if let Err(error) = &written
        && let Some(required) = error.required()
    {
        out.resize(start + required, 0);
        written = write(&mut out[start..]);
    }
    out.truncate(start + written.as_ref().map_or(0, |written| *written));
    written.map(drop).map_err(|_| TlsError::Exhausted)
}

/// Plain bytes in a record (RFC 8446, 5.1).
const RECORD_BYTES: usize = 1 << 14;
/// A record's header, explicit nonce and tag: the most that TLS 1.2 needs, and over what TLS 1.3 does.
const RECORD_COST: usize = 5 + 8 + 16;
/// An alert or a key update as a record.
const SMALL_RECORD: usize = 64;
/// The largest handshake message that rustls reads, with the records that it may come in.
const MOST_INCOMING: usize = 2 * (64 << 10);
