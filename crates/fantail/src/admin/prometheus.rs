//! An address of its own for Prometheus, with Pushpin's metrics under Pushpin's names (spec 9.10), whatever is asked
//! for. Everything else that is counted is at the control port's `/metrics`.

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    config::{Address, UnixSocket},
    metrics::{Counters, Process},
    stats::Stats,
};

/// Where Prometheus asks. It goes to the runtime when it is served.
#[derive(Debug)]
pub enum Door {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, UnixSocket),
}

/// What is counted, and what its names begin with.
#[derive(Debug)]
pub struct Page {
    pub prefix: String,
    pub shards: Vec<Arc<Counters>>,
    pub process: Arc<Process>,
    pub stats: Arc<Stats>,
}

impl Door {
    /// # Errors
    /// It cannot be bound.
    pub fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                tracing::info!(address = %listener.local_addr()?, "prometheus");
                Ok(Self::Tcp(listener))
            }
            Address::Unix(socket) => {
                let path = &socket.path;
                let is_socket =
                    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
                // One that nobody listens on is what a process left that was killed.
                if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
                    std::fs::remove_file(path)?;
                }
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                if let Some(mode) = socket.mode {
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
                }
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, socket.clone()))
            }
        }
    }

    /// Answers until it is dropped.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub async fn serve(self, page: Arc<Page>) -> io::Result<()> {
        let (tcp, unix) = match self {
            Self::Tcp(listener) => (Some(TcpListener::from_std(listener)?), None),
            Self::Unix(listener, _) => (None, Some(UnixListener::from_std(listener)?)),
        };
        let mut open = JoinSet::new();
        loop {
            let accepted = match (&tcp, &unix) {
                (Some(tcp), _) => tcp.accept().await.map(|(stream, _)| Box::new(stream) as Stream),
                (None, Some(unix)) => unix.accept().await.map(|(stream, _)| Box::new(stream) as Stream),
                (None, None) => return Ok(()),
            };
            while open.try_join_next().is_some() {}
            match accepted {
                Ok(stream) if open.len() < MOST_OPEN => {
                    let page = Arc::clone(&page);
                    // Who is late, or leaves, is not answered.
                    open.spawn(async move { drop(timeout(PATIENCE, answer(stream, &page)).await) });
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "Prometheus is not accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Page {
    fn text(&self) -> String {
        let sum = |read: fn(&Counters) -> u64| self.shards.iter().map(|shard| read(shard)).sum::<u64>();
        let requests = sum(|shard| shard.requests.get());
        let sent = sum(|shard| {
            let whole = [&shard.delivered_stream, &shard.delivered_poll, &shard.delivered_websocket];
            whole.into_iter().map(|count| count.get()).sum::<u64>() + shard.queued.get()
        });
        let connected = u64::try_from(self.stats.connected.get()).unwrap_or(0);
        let received = self.process.items_accepted.get();
        let mut text = String::new();
        for (name, kind, help, value) in [
            ("request_received", "counter", "Number of requests received", requests),
            ("connection_connected", "gauge", "Number of concurrent connections", connected),
            (
                "connection_minute",
                "counter",
                "Number of minutes clients have been connected",
                self.stats.minutes.get(),
            ),
            ("message_received", "counter", "Number of messages received by the publish API", received),
            ("message_sent", "counter", "Number of messages sent to clients", sent),
        ] {
            let name = format!("{}{name}", self.prefix);
            text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        text
    }
}

type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// One request, whatever it is, and one answer.
async fn answer(mut stream: Stream, page: &Page) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = page.text();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    stream.write_all((head + &text).as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread bytes would take the answer away.
    let mut scrap = [0; 1024];
    while stream.read(&mut scrap).await? > 0 {}
    Ok(())
}

/// Pushpin's.
const MOST_OPEN: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);
const HEAD_BYTES: usize = 8192;
/// Before accepting again, when there are no more files.
const PAUSE: Duration = Duration::from_millis(100);
