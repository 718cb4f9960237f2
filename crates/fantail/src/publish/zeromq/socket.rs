//! The connections of ZeroMQ sockets: bound or connected, the handshake, and then messages both ways. A peer is read
//! only when what it sent before has been taken, so a flood waits in its own queue. Knows no item.

use std::{
    fmt, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use fantail_proto::zmtp::{self, Decoder, Event, Socket, Violation};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Notify, broadcast::error::RecvError, mpsc},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Inputs, Role, interest::Interest, stats::Reader};
use crate::config::{Endpoint, Transport};

/// A bound socket. It goes to the runtime when peers are accepted.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(std::net::TcpListener),
    Ipc(std::os::unix::net::UnixListener, File),
}

/// The name of a socket, taken away when it is closed.
#[derive(Debug)]
pub(super) struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        // Somebody else has taken it away: as good.
        drop(std::fs::remove_file(&self.0));
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "tcp://{address}"),
                Err(_) => f.write_str("tcp"),
            },
            Self::Ipc(_, File(path)) => write!(f, "ipc://{}", path.display()),
        }
    }
}

impl Listener {
    pub(super) fn bind(endpoint: &Endpoint, mode: Option<u32>) -> io::Result<Self> {
        let listener = match (&endpoint.place, endpoint.address()) {
            (Transport::Ipc(path), _) => return bind_ipc(path, mode),
            (Transport::Tcp(..), Some(address)) => std::net::TcpListener::bind(address)?,
            (Transport::Tcp(..), None) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        if !address.ip().to_canonical().is_loopback() {
            tracing::warn!(%address, "whoever reaches this ZeroMQ socket may use it");
        }
        Ok(Self::Tcp(listener))
    }
}

fn bind_ipc(path: &Path, mode: Option<u32>) -> io::Result<Listener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    // One that nobody listens on is what a process left that was killed.
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    // As Pushpin makes its `rundir`.
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    let file = File(path.to_owned());
    if let Some(mode) = mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    listener.set_nonblocking(true)?;
    Ok(Listener::Ipc(listener, file))
}

/// Accepts peers; dropping it ends them all.
pub(super) async fn accept(inputs: Arc<Inputs>, role: Role, listener: Listener) {
    let ended: io::Result<()> = async {
        let mut peers = JoinSet::new();
        let (tcp, ipc, _file) = match listener {
            Listener::Tcp(listener) => (Some(TcpListener::from_std(listener)?), None, None),
            Listener::Ipc(listener, file) => (None, Some(UnixListener::from_std(listener)?), Some(file)),
        };
        loop {
            let accepted = match (&tcp, &ipc) {
                (Some(tcp), _) => tcp.accept().await.map(|(stream, _)| prepared(stream)),
                (None, Some(ipc)) => ipc.accept().await.map(|(stream, _)| Box::new(stream) as Stream),
                (None, None) => return Ok(()),
            };
            while peers.try_join_next().is_some() {}
            match accepted {
                Ok(stream) if peers.len() < MAX_PEERS => {
                    peers.spawn(serve(Arc::clone(&inputs), role, stream));
                }
                Ok(_) => {
                    inputs.counts.zeromq_peers_refused.add(1);
                    inputs.complain(|| {
                        tracing::warn!(socket = role.name(), "more than {MAX_PEERS} ZeroMQ peers")
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, socket = role.name(), "a ZeroMQ peer was not accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
    .await;
    if let Err(error) = ended {
        tracing::error!(%error, socket = role.name(), "a ZeroMQ socket has failed");
    }
}

/// Keeps a connection to an endpoint, as well as that goes; never returns.
pub(super) async fn connect(inputs: Arc<Inputs>, role: Role, endpoint: Endpoint) {
    loop {
        match dial(&endpoint).await {
            Ok(stream) => serve(Arc::clone(&inputs), role, stream).await,
            Err(error) => inputs.complain(|| tracing::warn!(%endpoint, %error, "ZeroMQ: not connected")),
        }
        sleep(RECONNECT).await;
    }
}

async fn dial(endpoint: &Endpoint) -> io::Result<Stream> {
    let connected = async {
        Ok(match &endpoint.place {
            Transport::Ipc(path) => Box::new(UnixStream::connect(path).await?) as Stream,
            Transport::Tcp(host, port) => prepared(TcpStream::connect((host.as_str(), *port)).await?),
        })
    };
    timeout(HANDSHAKE_TIMEOUT, connected).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Found to be dead after a minute, as Pushpin does (spec 5.1).
fn prepared(stream: TcpStream) -> Stream {
    let keep_alive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(5))
        .with_retries(6);
    // Neither is worth a refusal.
    drop((stream.set_nodelay(true), SockRef::from(&stream).set_tcp_keepalive(&keep_alive)));
    Box::new(stream)
}

type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// Why a peer is gone.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("no handshake in time")]
    Late,
    #[error("it is too far behind")]
    Behind,
    #[error("it has sent a part of a message and not the rest")]
    Slow,
    #[error("it does not take what it is told")]
    Stalled,
    #[error("it sends what is no subscription, or too many")]
    Wish,
}

/// Counts a peer while it is there.
struct Present<'i>(&'i Inputs);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.counts.zeromq_peers.add(-1);
    }
}

async fn serve(inputs: Arc<Inputs>, role: Role, stream: Stream) {
    inputs.counts.zeromq_peers.add(1);
    let _present = Present(&inputs);
    let ended = converse(&inputs, role, stream).await;
    match ended {
        Err(Ended::Io(error)) => tracing::debug!(%error, socket = role.name(), "a ZeroMQ peer has left"),
        Err(error) => {
            inputs.counts.zeromq_peers_refused.add(1);
            inputs.complain(|| tracing::warn!(%error, socket = role.name(), "a ZeroMQ peer is disconnected"));
        }
        Ok(()) => {}
    }
}

async fn converse(inputs: &Arc<Inputs>, role: Role, mut stream: Stream) -> Result<(), Ended> {
    let mut input = BytesMut::new();
    let mut decoder = Decoder::new(inputs.config.message_bytes);
    let shaken = shake(&mut stream, role.socket(), &mut decoder, &mut input);
    timeout(HANDSHAKE_TIMEOUT, shaken).await.map_err(|_| Ended::Late)??;
    let (mut reading, writing) = tokio::io::split(stream);
    let (say, said) = mpsc::channel(SAID);
    // What is told to a peer that is not a publisher.
    let (reader, packets) = match (role, &inputs.board, &inputs.sessions) {
        (Role::Stats, Some(board), _) => {
            let (reader, packets) = board.join();
            (Some(reader), Some(packets))
        }
        (Role::Session, _, Some(sessions)) => (None, Some(sessions.join())),
        _ => (None, None),
    };
    let gone = Notify::new();
    let mut read = pin!(async {
        // By when the message is to be whole of which a part has come.
        let mut due = None;
        loop {
            loop {
                let messages = decode(&mut decoder, &mut input, &say)?;
                if messages.is_empty() {
                    break;
                }
                due = None;
                hear(inputs, role, &messages, (&say, reader.as_deref())).await?;
            }
            let is_partial = !input.is_empty() || !decoder.is_between_messages();
            due = is_partial.then(|| due.unwrap_or_else(|| Instant::now() + MESSAGE_TIMEOUT));
            let read = tokio::select! {
                biased;
                () = gone.notified() => 0,
                read = read_by(&mut reading, &mut input, due) => read?,
            };
            if read == 0 {
                return Err(Ended::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    });
    let interest = (role == Role::Sub).then_some(&inputs.interest);
    let writer = async {
        match packets {
            Some(packets) => tell(writing, said, reader.as_deref(), packets).await,
            None => write(writing, said, interest).await,
        }
    };
    let ended = tokio::select! {
        ended = &mut read => return ended,
        ended = writer => ended,
    };
    // What it has said is heard to its end.
    gone.notify_one();
    drop(read.await);
    ended
}

/// The next messages of what was read, a batch of them at most.
fn decode(
    decoder: &mut Decoder,
    input: &mut BytesMut,
    say: &mpsc::Sender<Bytes>,
) -> Result<Vec<Vec<Bytes>>, Ended> {
    let mut messages = Vec::new();
    while messages.len() < BATCH {
        match decoder.next(input)? {
            Some(Event::Message(frames)) => messages.push(frames),
            // Pings beyond what can be said at once are not answered.
            Some(Event::Command(command)) => _ = zmtp::answer(&command).map(|pong| say.try_send(pong)),
            None => break,
        }
    }
    Ok(messages)
}

async fn hear(
    inputs: &Arc<Inputs>,
    role: Role,
    messages: &[Vec<Bytes>],
    (say, reader): (&mpsc::Sender<Bytes>, Option<&Reader>),
) -> Result<(), Ended> {
    match role {
        Role::Pull | Role::Sub => inputs.publish(role, messages).await,
        Role::Stats => {
            let heard = |message: &Vec<Bytes>| reader.is_some_and(|reader| reader.hear(message));
            if !messages.iter().all(heard) {
                return Err(Ended::Wish);
            }
        }
        Role::Session => {
            for answer in messages.iter().filter_map(|frames| frames.last()) {
                inputs.sessions.iter().for_each(|sessions| sessions.answered(answer));
            }
        }
        Role::Command => {
            for frames in messages {
                // The way back ends with an empty frame (REQ's envelope); the request is behind it.
                let Some((request, envelope)) = frames.split_last() else { continue };
                if let Some(answer) = inputs.command(request).await {
                    let mut frames: Vec<&[u8]> = envelope.iter().map(|frame| &frame[..]).collect();
                    frames.push(&answer);
                    // The writer ends only with the connection.
                    _ = say.send(zmtp::message(&frames)).await;
                }
            }
        }
    }
    Ok(())
}

/// Writes packets to a peer, as fast as it takes them.
async fn tell(
    mut writing: tokio::io::WriteHalf<Stream>,
    mut said: mpsc::Receiver<Bytes>,
    reader: Option<&Reader>,
    mut packets: mpsc::Receiver<Bytes>,
) -> Result<(), Ended> {
    loop {
        let packet = tokio::select! {
            Some(said) = said.recv() => {
                writing.write_all(&said).await?;
                continue;
            }
            packet = packets.recv() => packet,
        };
        let Some(packet) = packet else { return Ok(()) };
        let mut out = BytesMut::from(&packet[..]);
        // What has come together goes together.
        while out.len() < READ
            && let Ok(packet) = packets.try_recv()
        {
            out.extend_from_slice(&packet);
        }
        writing.write_all(&out).await?;
        reader.iter().for_each(|reader| reader.taken(out.len()));
    }
}

async fn write(
    mut writing: tokio::io::WriteHalf<Stream>,
    mut said: mpsc::Receiver<Bytes>,
    interest: Option<&Interest>,
) -> Result<(), Ended> {
    let mut changes = None;
    if let Some(interest) = interest
        && let Some(feed) = interest.join().await
    {
        write_in_time(&mut writing, &feed.topics).await?;
        changes = Some(feed.changes);
        drop(feed.turn);
    }
    let mut out = BytesMut::new();
    loop {
        writing.write_all(&out).await?;
        out.clear();
        let change = async {
            match &mut changes {
                Some(changes) => changes.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(bytes) = said.recv() => out.extend_from_slice(&bytes),
            change = change => match change {
                Ok(bytes) => out.extend_from_slice(&bytes),
                Err(RecvError::Lagged(_)) => return Err(Ended::Behind),
                Err(RecvError::Closed) => return Ok(()),
            },
        }
        // What has come together goes together.
        while out.len() < READ
            && let Some(Ok(bytes)) = changes.as_mut().map(tokio::sync::broadcast::Receiver::try_recv)
        {
            out.extend_from_slice(&bytes);
        }
    }
}

async fn read_by<R: AsyncRead + Unpin>(
    reading: &mut R,
    input: &mut BytesMut,
    due: Option<Instant>,
) -> Result<usize, Ended> {
    input.reserve(READ);
    let read = reading.read_buf(input);
    match due {
        Some(due) => timeout_at(due, read).await.map_err(|_| Ended::Slow)?,
        None => read.await,
    }
    .map_err(Ended::Io)
}

/// Writes all to a peer that takes it in the time that its length has.
async fn write_in_time<W: AsyncWrite + Unpin>(writing: &mut W, bytes: &[u8]) -> Result<(), Ended> {
    let by = TOPICS_TIMEOUT + Duration::from_secs((bytes.len() / TOPICS_PER_SECOND) as u64);
    timeout(by, writing.write_all(bytes)).await.map_err(|_| Ended::Stalled)?.map_err(Ended::Io)
}

/// The greeting and the READY of both sides.
async fn shake(
    stream: &mut Stream,
    socket: Socket,
    decoder: &mut Decoder,
    input: &mut BytesMut,
) -> Result<(), Ended> {
    stream.write_all(&zmtp::greeting()).await?;
    let mut greeting = [0; zmtp::GREETING_BYTES];
    stream.read_exact(&mut greeting).await?;
    zmtp::check_greeting(&greeting)?;
    stream.write_all(&socket.ready()).await?;
    loop {
        match decoder.next(input)? {
            Some(Event::Command(command)) => return Ok(socket.accept(&command).map(drop)?),
            Some(Event::Message(_)) => return Err(Violation::Ready.into()),
            None => {}
        }
        if stream.read_buf(input).await? == 0 {
            return Err(Ended::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// Of one socket: each peer has a file.
const MAX_PEERS: usize = 1000;
/// A handshake is two small messages each way.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Before accepting again, when there are no more files.
const PAUSE: Duration = Duration::from_millis(100);
const RECONNECT: Duration = Duration::from_millis(500);
/// A message from its first byte on: what has come of it stays in memory so long at most.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// For all topics, which other peers wait for, beside a second for each so many bytes.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(30);
const TOPICS_PER_SECOND: usize = 64 << 10;
/// Answers to one peer that may wait to be written.
const SAID: usize = 16;
/// Messages that are published together.
const BATCH: usize = 256;
/// One read, and one write.
const READ: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_of_a_message_is_not_kept_for_ever() {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let mut input = BytesMut::new();
        let due = Instant::now() + MESSAGE_TIMEOUT;
        theirs.write_all(b"part").await.expect("there is room");
        assert!(matches!(read_by(&mut ours, &mut input, Some(due)).await, Ok(4)));
        assert!(matches!(read_by(&mut ours, &mut input, Some(due)).await, Err(Ended::Slow)));
        assert!(timeout(2 * MESSAGE_TIMEOUT, read_by(&mut ours, &mut input, None)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_topics_slowly_leaves_its_turn() {
        let (mut ours, mut theirs) = tokio::io::duplex(1000);
        let reads = async {
            let mut read = [0; 1000];
            loop {
                sleep(TOPICS_TIMEOUT / 4).await;
                theirs.read_exact(&mut read).await.expect("there is something");
            }
        };
        let (few, many) = (vec![0; 3000], vec![0; 2 * TOPICS_PER_SECOND]);
        let writes = async {
            let in_time = write_in_time(&mut ours, &few).await;
            let began = Instant::now();
            let late = write_in_time(&mut ours, &many).await;
            (in_time, late, began.elapsed())
        };
        let (in_time, late, took) = tokio::select! {
            written = writes => written,
            () = reads => return,
        };
        assert!(matches!((in_time, late), (Ok(()), Err(Ended::Stalled))));
        assert_eq!(took.as_secs(), (TOPICS_TIMEOUT + Duration::from_secs(2)).as_secs());
    }
}
