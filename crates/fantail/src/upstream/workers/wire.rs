//! One worker's connection, as ZMTP has it: the handshake, then messages both ways until one side ends it. What the
//! messages say, and who they are for, is the crew's.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fantail_proto::zmtp::{self, Decoder, Event, Socket, Violation};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{Bound, crew::Crew};

/// Accepts workers on one socket, until it is told to stop; then all of them are let go.
pub(super) async fn accept(
    crew: Arc<Crew>,
    socket: Socket,
    bound: Bound,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let accepting = async {
        match bound {
            Bound::Tcp(bound) => {
                let listener = TcpListener::from_std(bound)?;
                loop {
                    while connections.try_join_next().is_some() {}
                    match listener.accept().await {
                        Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                            // Whether small messages wait is no reason to refuse a worker.
                            drop(stream.set_nodelay(true));
                            connections.spawn(serve(Arc::clone(&crew), socket, stream));
                        }
                        accepted => pause(accepted.err()).await,
                    }
                }
            }
            Bound::Ipc(bound, _file) => {
                let listener = UnixListener::from_std(bound)?;
                loop {
                    while connections.try_join_next().is_some() {}
                    match listener.accept().await {
                        Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                            connections.spawn(serve(Arc::clone(&crew), socket, stream));
                        }
                        accepted => pause(accepted.err()).await,
                    }
                }
            }
        }
    };
    tokio::select! {
        ended = accepting => {
            let ended: io::Result<()> = ended;
            if let Err(error) = ended {
                tracing::error!(target: "fantail::workers", address = %crew.address(), %error, "cannot accept workers");
            }
        }
        // An error is a crew that is gone.
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

async fn pause(error: Option<io::Error>) {
    if let Some(error) = error {
        tracing::warn!(target: "fantail::workers", %error, "a worker was not accepted");
    }
    tokio::time::sleep(PAUSE).await;
}

#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("no handshake in time")]
    Late,
    #[error("it has sent a part of a message and not the rest")]
    Slow,
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(crew: Arc<Crew>, socket: Socket, mut stream: S) {
    let mut input = BytesMut::new();
    let mut decoder = Decoder::new(MAX_MESSAGE_BYTES);
    let shaken = timeout(HANDSHAKE_TIMEOUT, shake(&mut stream, socket, &mut decoder, &mut input)).await;
    let identity = match shaken.unwrap_or(Err(Ended::Late)) {
        Ok(identity) => identity,
        Err(error) => {
            return tracing::info!(target: "fantail::workers", address = %crew.address(), %error, "not a worker");
        }
    };
    if let Some(welcome) = crew.welcome(socket)
        && stream.write_all(&welcome).await.is_err()
    {
        return;
    }
    let mut seat = crew.join(socket, identity);
    let (mut reading, mut writing) = tokio::io::split(stream);
    let (answer, mut answers) = tokio::sync::mpsc::channel(ANSWERS);
    let read = async {
        // By when the message is to be whole of which a part has come.
        let mut due = None;
        loop {
            while let Some(event) = decoder.next(&mut input)? {
                due = None;
                match event {
                    Event::Message(frames) => crew.hear(socket, &frames),
                    // More than can be told at once are not answered.
                    Event::Command(command) => _ = zmtp::answer(&command).map(|pong| answer.try_send(pong)),
                }
            }
            let is_partial = !input.is_empty() || !decoder.is_between_messages();
            due = is_partial.then(|| due.unwrap_or_else(|| Instant::now() + MESSAGE_TIMEOUT));
            input.reserve(READ);
            let read = reading.read_buf(&mut input);
            let read = match due {
                Some(due) => timeout_at(due, read).await.map_err(|_| Ended::Slow)??,
                None => read.await?,
            };
            if read == 0 {
                return Err::<(), _>(Ended::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    };
    let mut unwritten = None;
    let write = async {
        loop {
            let message = tokio::select! {
                next = seat.out.recv() => {
                    // Who has the same name and has come later has taken the place.
                    let Some(next) = next else { return Ok::<(), Ended>(()) };
                    unwritten.insert(next).message.clone()
                }
                Some(pong) = answers.recv() => pong,
            };
            let written = writing.write(&message).await?;
            if written == 0 {
                return Err(Ended::Io(io::ErrorKind::WriteZero.into()));
            }
            unwritten = None;
            writing.write_all(&message[written..]).await?;
            crew.written();
        }
    };
    let ended = tokio::select! {
        ended = read => ended,
        ended = write => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(target: "fantail::workers", address = %crew.address(), %error, "a worker's connection has ended");
    }
    crew.leave(&mut seat, unwritten);
}

/// The greeting and the READY of both sides; the worker's identity.
async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    socket: Socket,
    decoder: &mut Decoder,
    input: &mut BytesMut,
) -> Result<Bytes, Ended> {
    stream.write_all(&zmtp::greeting()).await?;
    let mut greeting = [0; zmtp::GREETING_BYTES];
    stream.read_exact(&mut greeting).await?;
    zmtp::check_greeting(&greeting)?;
    stream.write_all(&socket.ready()).await?;
    loop {
        match decoder.next(input)? {
            Some(Event::Command(command)) => return Ok(socket.accept(&command)?.identity),
            Some(Event::Message(_)) => return Err(Violation::Ready.into()),
            None => {}
        }
        if stream.read_buf(input).await? == 0 {
            return Err(Ended::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// Of one message: a whole answer without credits, with some room for its head.
pub(super) const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Workers of one socket: each has a file.
const MAX_CONNECTIONS: usize = 1000;
/// A handshake is two small messages each way.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A message from its first byte on: what has come of it stays in memory so long at most.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Before trying again, when there are no more files or no more places.
const PAUSE: Duration = Duration::from_millis(100);
/// Pings of one worker that are answered together.
const ANSWERS: usize = 4;
/// One read.
const READ: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use fantail_proto::route::{Meeting, Protocol, Workers};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_of_a_message_is_not_kept_for_ever() {
        for (sent, ends) in [(&[0, 5, b'x'][..], true), (&[1, 1, b'x'], true), (&[0, 1, b'x'], false)] {
            let at = Meeting::Ipc("/nowhere".into());
            let crew = Crew::new(Workers { protocol: Protocol::Whole, at }, watch::channel(false).0);
            let (ours, mut theirs) = tokio::io::duplex(4096);
            for bytes in [&zmtp::greeting()[..], &Socket::Dealer.ready()[..], sent] {
                theirs.write_all(bytes).await.expect("there is room");
            }
            let served = timeout(2 * MESSAGE_TIMEOUT, serve(Arc::new(crew), Socket::Dealer, ours)).await;
            assert_eq!(served.is_ok(), ends, "{sent:?}");
        }
    }
}
