//! `fantail publish` over ZeroMQ: one item to a PULL socket, as Pushpin's port 5560 is. ZeroMQ answers nothing: what
//! is known afterwards is that there was such a socket, and that it has taken the item's bytes.

use std::{io, path::Path};

use bytes::{Bytes, BytesMut};
use fantail_proto::zmtp::{self, Decoder, Event, Socket, Violation};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use crate::config::{Endpoint, Transport};

/// Why the item was not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsent {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no ZeroMQ PULL socket: {0}")]
    Violation(#[from] Violation),
}

/// The socket that a spec names, if it is one of ZeroMQ.
pub(super) fn endpoint(spec: &str) -> Option<Endpoint> {
    let zeromq = spec.starts_with("tcp://") || spec.starts_with("ipc://");
    Endpoint::parse(spec, Path::new("")).filter(|_| zeromq)
}

/// Connects, sends one message of one part, and waits until the other side has all of it.
pub(super) async fn push(to: &Endpoint, message: &[u8]) -> Result<(), Unsent> {
    match &to.place {
        Transport::Tcp(host, port) => {
            let host = if host == "*" { "127.0.0.1" } else { host };
            send(TcpStream::connect((host, *port)).await?, message).await
        }
        Transport::Ipc(path) => send(UnixStream::connect(path).await?, message).await,
    }
}

async fn send(mut stream: impl AsyncRead + AsyncWrite + Unpin, message: &[u8]) -> Result<(), Unsent> {
    stream.write_all(&zmtp::greeting()).await?;
    let mut greeting = [0; zmtp::GREETING_BYTES];
    stream.read_exact(&mut greeting).await?;
    zmtp::check_greeting(&greeting)?;
    stream.write_all(&Socket::Push.ready()).await?;
    let (mut decoder, mut input) = (Decoder::new(READY_MAX), BytesMut::new());
    let ready: Bytes = loop {
        match decoder.next(&mut input)? {
            Some(Event::Command(command)) => break command,
            Some(Event::Message(_)) => return Err(Violation::Ready.into()),
            None if stream.read_buf(&mut input).await? == 0 => {
                return Err(Unsent::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            None => {}
        }
    };
    Socket::Push.accept(&ready)?;
    stream.write_all(&zmtp::message(&[message])).await?;
    // The other side ends the connection behind the last byte; what it may say before is nothing to a PUSH socket.
    stream.shutdown().await?;
    let mut scrap = [0; 256];
    while stream.read(&mut scrap).await? > 0 {}
    Ok(())
}

/// A READY has two properties of some bytes each.
const READY_MAX: usize = 4096;
