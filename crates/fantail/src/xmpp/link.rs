//! The stream to the XMPP server: joining it, again when it is lost, and what goes in and out. Never says the secret.

use std::{io, net::IpAddr, pin::pin, rc::Rc, time::Duration};

use bytes::Bytes;
use fantail_proto::xmpp::{
    CLIENT,
    request::PING,
    stream::{self, Broken, Event, Reader},
    xml::Element,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{ANSWERS_WITHIN, Component, LAST_WORDS, TARGET, outbox::Hung};

/// Why a stream ended, or never was.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("the server reads nothing any more")]
    Hung,
    #[error("{0}")]
    Broken(#[from] Broken),
    #[error("the server has ended the stream: {0}")]
    Failed(String),
    #[error("the server has closed the stream")]
    Closed,
}

impl Lost {
    /// Trying again soon would be of no use: somebody has to change a configuration.
    fn advice(&self) -> Option<&'static str> {
        let Self::Failed(condition) = self else { return None };
        match condition.as_str() {
            "not-authorized" => Some("xmpp.secret is not what the server has for this component"),
            "host-unknown" | "host-gone" => Some(
                "the server has no component of the name xmpp.domain, or waits for it elsewhere than at xmpp.server",
            ),
            "unsupported-stanza-type" | "invalid-namespace" => {
                Some("xmpp.server is not where the server waits for components")
            }
            "conflict" => {
                Some("the server has another component of this name, or has not seen the last stream's end")
            }
            _ => None,
        }
    }

    /// What was written is at fault.
    fn blames(&self) -> bool {
        let Self::Failed(condition) = self else { return false };
        matches!(
            condition.as_str(),
            "bad-format"
                | "bad-namespace-prefix"
                | "improper-addressing"
                | "invalid-from"
                | "invalid-namespace"
                | "invalid-xml"
                | "not-well-formed"
                | "policy-violation"
                | "restricted-xml"
                | "undefined-condition"
                | "unsupported-stanza-type"
        )
    }

    /// Nobody has to change anything for it to pass.
    fn passes(&self) -> bool {
        matches!(self, Self::Failed(condition) if condition == "conflict")
    }
}

/// Stays joined until it is stopped and what waits is written, or cannot be for now.
pub(super) async fn keep(component: &Rc<Component>, mut stopped: watch::Receiver<bool>) {
    let mut links = pin!(join_again(component, stopped.clone()));
    tokio::select! {
        () = &mut links => return,
        _ = stopped.wait_for(|stop| *stop) => {}
    }
    component.close_lanes();
    let ending = async {
        tokio::select! {
            () = &mut links => {}
            () = sleep(ANSWERS_WITHIN) => {
                component.cut_lanes();
                links.await;
            }
        }
    };
    // A server that does not read, or is away, keeps nobody.
    _ = timeout(LAST_WORDS, ending).await;
}

async fn join_again(component: &Rc<Component>, mut stopped: watch::Receiver<bool>) {
    let mut failures = 0;
    while !*stopped.borrow() {
        let mut joined = None;
        let Err(lost) = Link::open(component, stopped.clone(), &mut joined).await else { return };
        let given_up = joined.is_some() && lost.blames() && component.outbox.borrow_mut().blame();
        component.part();
        if given_up || joined.is_some_and(|joined: Instant| joined.elapsed() >= STEADY) {
            failures = 0;
        }
        let server = &component.config.server;
        match lost.advice() {
            Some(advice) => {
                component.counts.xmpp_denied.add(1);
                tracing::error!(target: TARGET, server, %lost, "not joined: {advice}");
            }
            None => {
                component.counts.xmpp_unreached.add(1);
                tracing::warn!(target: TARGET, server, %lost, "no stream to the XMPP server");
            }
        }
        let pause = if lost.advice().is_some() && !lost.passes() {
            SLOW + jitter(SLOW)
        } else {
            let pause = (FIRST * 2_u32.saturating_pow(failures)).min(SLOW);
            pause / 2 + jitter(pause / 2)
        };
        failures = (failures + 1).min(MOST_DOUBLINGS);
        tokio::select! {
            () = sleep(pause) => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    }
}

/// A stream that is being joined, or is.
struct Link {
    read: OwnedReadHalf,
    reader: Reader,
    buffer: Vec<u8>,
    /// What of the buffer is not used yet.
    unread: std::ops::Range<usize>,
}

impl Link {
    /// Joins, and goes on until the stream is lost; `Ok` when it was stopped. `at` is when it has joined.
    async fn open(
        component: &Rc<Component>,
        stopped: watch::Receiver<bool>,
        at: &mut Option<Instant>,
    ) -> Result<(), Lost> {
        let socket = timeout(PATIENCE, TcpStream::connect(&component.config.server));
        let socket = socket.await.map_err(|_| Lost::Silent(PATIENCE))??;
        socket.set_nodelay(true)?;
        let elsewhere = is_elsewhere(socket.peer_addr()?.ip());
        let options = SockRef::from(&socket);
        options.set_tcp_keepalive(&TcpKeepalive::new().with_time(QUIET).with_interval(QUIET))?;
        options.set_tcp_user_timeout(Some(STALL))?;
        let (read, mut write) = socket.into_split();
        let mut link = Self { read, reader: Reader::default(), buffer: vec![0; BUFFER], unread: 0..0 };
        let joined = timeout(PATIENCE, link.join(component, &mut write));
        joined.await.map_err(|_| Lost::Silent(PATIENCE))??;
        *at = Some(Instant::now());
        component.counts.xmpp_joined.add(1);
        component.counts.xmpp_connected.set(1);
        component.outbox.borrow_mut().join();
        component.doubt_presences();
        let domain = component.config.domain.as_str();
        tracing::info!(target: TARGET, server = component.config.server, domain, "joined the XMPP server");
        if elsewhere {
            tracing::warn!(
                target: TARGET,
                "the stream is not encrypted and leaves this machine: who is in between can read it, and publish as an admin"
            );
        }
        let lost = tokio::select! {
            lost = link.read_on(component) => lost,
            written = write_on(component, &mut write, stopped) => match written {
                Ok(()) => {
                    // What is not read would reset the connection, and the server lose what it has not read.
                    link.read_on(component).await;
                    return Ok(());
                }
                Err(lost) => match timeout(PARTING, link.read_on(component)).await {
                    // The server has said why it does not take more.
                    Ok(said @ Lost::Failed(_)) => said,
                    _ => lost,
                },
            },
        };
        if let Lost::Broken(broken) = &lost {
            let complaint = stream::complaint(broken.condition());
            // It may be deaf, too.
            drop(timeout(QUIET, write.write_all(complaint.as_bytes())).await);
        }
        Err(lost)
    }

    async fn join(&mut self, component: &Component, write: &mut OwnedWriteHalf) -> Result<(), Lost> {
        write.write_all(stream::opening(component.config.domain.as_str()).as_bytes()).await?;
        loop {
            match self.next().await? {
                Event::Open { id } => {
                    let proof = stream::handshake(&id, &component.secret.0);
                    write.write_all(proof.as_bytes()).await?;
                }
                Event::Accepted => return Ok(()),
                Event::Failed(condition) => return Err(Lost::Failed(condition)),
                Event::Closed => return Err(Lost::Closed),
                Event::Stanza(_) | Event::Excess(..) => {}
            }
        }
    }

    async fn read_on(&mut self, component: &Rc<Component>) -> Lost {
        loop {
            match self.next().await {
                Ok(Event::Stanza(stanza)) => component.receive(stanza, self.reader.bytes()),
                Ok(Event::Excess(head, excess)) => component.receive_excess(&head, excess),
                Ok(Event::Failed(condition)) => return Lost::Failed(condition),
                Ok(Event::Closed) => return Lost::Closed,
                Ok(Event::Open { .. } | Event::Accepted) => {}
                Err(lost) => return lost,
            }
        }
    }

    async fn next(&mut self) -> Result<Event, Lost> {
        loop {
            let mut rest = &self.buffer[self.unread.clone()];
            let event = self.reader.read(&mut rest)?;
            self.unread.start = self.unread.end - rest.len();
            if let Some(event) = event {
                return Ok(event);
            }
            match self.read.read(&mut self.buffer).await? {
                0 => return Err(Lost::Closed),
                read => self.unread = 0..read,
            }
        }
    }
}

/// Writes what waits; `Ok` when it was stopped, all is written, and the server has read it.
async fn write_on(
    component: &Component,
    write: &mut OwnedWriteHalf,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Lost> {
    let ready = component.outbox.borrow().ready();
    // What the server has to read before the end: what is said later waits for nobody.
    let mut last = None;
    loop {
        let stops = *stopped.borrow();
        let wire = if last.is_none() { component.wire() } else { Bytes::new() };
        if !wire.is_empty() {
            timeout(STALL, write.write_all(&wire)).await.map_err(|_| Lost::Silent(STALL))??;
            component.outbox.borrow_mut().written();
        }
        let echo = component.outbox.borrow_mut().echo(stops && wire.is_empty());
        let echo = echo.map_err(|Hung| Lost::Hung)?;
        if let Some(id) = &echo {
            let domain = component.config.domain.as_str();
            let ping = Element::new(CLIENT, "iq").with("type", "get").with("id", id);
            let ping = ping.with("from", domain).with("to", domain).containing(Element::new(PING, "ping"));
            let ping = ping.to_xml(CLIENT);
            timeout(STALL, write.write_all(ping.as_bytes())).await.map_err(|_| Lost::Silent(STALL))??;
        }
        if !wire.is_empty() || echo.is_some() {
            continue;
        }
        if last.is_none() && component.outbox.borrow().has_turns() {
            // Much that waits is for nobody who is there: others have their turn meanwhile.
            tokio::task::yield_now().await;
            continue;
        }
        if stops && last.is_none() && component.is_idle() {
            // Published before that, and perhaps not taken yet.
            if component.take() {
                continue;
            }
            last = component.outbox.borrow().end();
        }
        if last.is_some_and(|last| component.outbox.borrow().is_acknowledged(last)) {
            write.write_all(stream::CLOSING.as_bytes()).await?;
            return Ok(write.shutdown().await?);
        }
        let due = component.outbox.borrow().due();
        tokio::select! {
            () = ready.notified() => {}
            () = sleep_until(due) => {}
            _ = stopped.wait_for(|stop| *stop), if !stops => {}
        }
    }
}

fn is_elsewhere(server: IpAddr) -> bool {
    !server.to_canonical().is_loopback()
}

/// A random time up to `most`.
fn jitter(most: Duration) -> Duration {
    let mut random = [0];
    // Without random numbers there is no jitter.
    _ = aws_lc_rs::rand::fill(&mut random);
    most * u32::from(random[0]) / 256
}

/// To connect, and to join.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between attempts begin with this and double.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause, and the least after a refusal that only people can change.
const SLOW: Duration = Duration::from_mins(1);
const MOST_DOUBLINGS: u32 = 6;
/// A stream that has lasted for so long was a good one.
const STEADY: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_secs(30);
/// For the server's reason to end a stream that cannot be written.
const PARTING: Duration = Duration::from_secs(1);
/// What is written and not acknowledged by the server's kernel for so long.
const STALL: Duration = Duration::from_secs(30);
const BUFFER: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_this_machine_is_told_of() {
        for (server, leaves) in [
            ("127.0.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("10.0.0.1", true),
            ("fe80::1", true),
        ] {
            assert_eq!(is_elsewhere(server.parse().unwrap()), leaves, "{server}");
        }
    }
}
