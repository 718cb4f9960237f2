//! WebSockets that are passed on to an origin's own server (spec 7.8): its handshake, and the task that carries
//! frames between it and the hold while both live. Messages are the hold's; this knows bytes and frames.

use std::{future::poll_fn, io, pin::Pin, rc::Rc, time::Duration};

use bytes::Bytes;
use fantail_proto::{
    forward, hop,
    websocket::{
        handshake,
        reader::{Reader, Role},
    },
};
use http::{HeaderName, HeaderValue, Method, Request, header};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf},
    time::timeout,
};

use super::{
    Exchange,
    ask::Ask,
    errand::trail,
    upgrade::{Opening, Tried},
};
use crate::{
    client::Place,
    error::Fault,
    hold::{Far, Link},
    shard::Shard,
    upstream::{Peer, Switched, Unanswered, Upload, Wire},
};

/// A connection that has become a WebSocket.
pub(super) struct Connected {
    link: Rc<Link>,
    wire: Box<Wire>,
    /// What the origin has said already.
    unread: Bytes,
    place: Place,
}

/// Asks an origin's own server.
pub(super) async fn open(exchange: &Exchange, ask: &Ask, target: usize, to: &Peer) -> Result<Tried, Fault> {
    let address = || ask.route().rule.targets[target].address.to_string();
    let place = exchange.shard().connections.second().ok_or(Fault::Full)?;
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).expect("the system's generator works: TLS depends on it, too");
    let key = handshake::key(random);
    let config = &exchange.snapshot.config;
    let request = request(ask, key.clone());
    let (mut head, wire, unread) = match exchange.shard().upstream.switch(to, request, &config.origin).await {
        Ok(Switched::Yes { head, wire, unread }) => (head, wire, unread),
        Ok(Switched::No(response)) => {
            let (head, download) = response.into_parts();
            return Ok(Tried::Refused { head, ready: Bytes::new(), download: Some(download) });
        }
        Err(Unanswered { failure, .. }) if failure.is_unreached() => return Ok(Tried::Unreached(failure)),
        Err(Unanswered { failure, .. }) => return Err(Fault::Upstream { target: address(), failure }),
    };
    let offered = handshake::Offered { grip: !ask.route().rule.no_grip, deflate: false };
    let agreed = handshake::check_answer(head.status, &head.headers, &key, offered)
        .map_err(|mismatch| Fault::NotOpened { target: address(), why: mismatch.to_string() })?;
    let chained = head.headers.remove(header::SEC_WEBSOCKET_EXTENSIONS).filter(|_| ask.is_trusted());
    hop::strip(&mut head.headers);
    for name in HANDSHAKE {
        head.headers.remove(name);
    }
    let speaks_grip = !ask.is_trusted() && !ask.route().rule.no_grip;
    if speaks_grip {
        forward::hide_grip(&mut head.headers);
    }
    let trail = trail(exchange, ask.route(), target, (ask.host(), ask.path_and_query()));
    let takes_parts = matches!(to, Peer::Server(_));
    let link = Link::new(config.websocket.buffer_bytes as usize, takes_parts, trail.map(Rc::new));
    Ok(Tried::Open(Opening {
        far: Far::Native(Rc::clone(&link)),
        headers: head.headers,
        grip: agreed.grip.filter(|_| speaks_grip),
        extensions: chained,
        actions: Vec::new(),
        link: Some(Connected { link, wire, unread, place }),
        channels: Vec::new(),
    }))
}

fn request(ask: &Ask, key: HeaderValue) -> Box<Request<Upload>> {
    let mut request = Box::new(Request::new(Upload::Empty));
    *request.method_mut() = Method::GET;
    *request.uri_mut() = ask.request().uri().clone();
    let mut headers = ask.request().headers().clone();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_KEY, key);
    headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    if !ask.route().rule.no_grip {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static("grip"));
    }
    *request.headers_mut() = headers;
    request
}

impl Connected {
    /// Starts the task that carries frames, until one side is gone. When that is the client, the origin has
    /// `patience` to take what waits for it and to answer a close.
    pub(super) fn start(self, shard: &Rc<Shard>, patience: Duration) {
        let shard = Rc::clone(shard);
        tokio::task::spawn_local(async move {
            let Self { link, wire, unread, place: _place } = self;
            let (reading, writing) = tokio::io::split(*wire);
            let ended = tokio::select! {
                ended = read(&shard, &link, reading, unread) => ended,
                ended = write(&shard, &link, writing) => ended,
                () = late(&link, patience) => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(target: "fantail::websocket", %error, "an origin's connection ended");
            }
            shard.holds(|holds| holds.unlinked(&link));
        });
    }
}

/// Reads the origin as fast as the client takes it.
async fn read(shard: &Shard, link: &Link, mut wire: ReadHalf<Wire>, unread: Bytes) -> io::Result<()> {
    let mut reader = Reader::new(Role::Client, false);
    let mut hear = |bytes: &mut [u8]| {
        let heard = shard.holds(|holds| holds.hear_link(link, &mut reader, bytes));
        heard.map_err(io::Error::other)
    };
    hear(&mut Vec::from(unread))?;
    loop {
        while shard.holds(|holds| holds.is_behind(link)) {
            link.drained().await;
        }
        let read = poll_fn(|cx| {
            // Lent for the time of one read, so that an idle connection has no buffer.
            let mut scratch = shard.scratch.borrow_mut();
            scratch.resize(SCRATCH, 0);
            let mut buffer = ReadBuf::new(&mut scratch);
            std::task::ready!(Pin::new(&mut wire).poll_read(cx, &mut buffer))?;
            let filled = buffer.filled_mut();
            let read = filled.len();
            std::task::Poll::Ready(hear(filled).map(|()| read))
        });
        if read.await? == 0 {
            return Ok(());
        }
    }
}

/// An origin that takes nothing has as long as a client that does not.
async fn write(shard: &Shard, link: &Link, mut wire: WriteHalf<Wire>) -> io::Result<()> {
    let patience = shard.snapshot.load().config.client.send_timeout;
    while let Some(bytes) = link.next().await {
        let mut left = &bytes[..];
        while !left.is_empty() {
            let written = timeout(patience, wire.write(left)).await??;
            left = &left[written..];
        }
        timeout(patience, wire.flush()).await??;
        shard.holds(|holds| holds.link_has_room(link));
    }
    wire.shutdown().await?;
    if link.is_closed() {
        // It is for the origin to end the connection (RFC 6455 section 7.1.1), and for the reader to see it.
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn late(link: &Link, patience: Duration) {
    link.left().await;
    tokio::time::sleep(patience).await;
}

/// One read of an origin.
const SCRATCH: usize = 64 << 10;
/// Of the origin's handshake, not of the client's.
const HANDSHAKE: [HeaderName; 3] =
    [header::SEC_WEBSOCKET_ACCEPT, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
