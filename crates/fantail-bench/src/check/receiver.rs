//! The endpoints of a run: URLs that are subscribed to channels, and the server behind them, which turns some webhooks
//! away while there are faults. Owns both; notes what comes and judges nothing.

use std::io;
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread::{self, Scope};
use std::time::Duration;

use super::Failure;
use super::dice::Dice;
use super::history::{Class, What};
use super::origin::{channel_name, channel_of};
use super::payload;
use super::subscriber::Arena;
use super::wire::{Filled, Wire};
use crate::request::{self, Parsed};

/// Endpoints of a channel.
pub(crate) const ENDPOINTS: u16 = 4;

/// Takes webhooks at `address` on threads of `scope`, until the run is over.
pub(crate) fn listen<'s, 'e: 's>(
    scope: &'s Scope<'s, 'e>,
    arena: &'e Arena,
    address: SocketAddrV4,
    phase: &'e AtomicU32,
    mut dice: Dice,
) -> Result<(), Failure> {
    let listener = TcpListener::bind(address).map_err(Failure::io("listen for webhooks"))?;
    listener.set_nonblocking(true).map_err(Failure::io("listen for webhooks"))?;
    scope.spawn(move || {
        while !arena.stopped() {
            match listener.accept() {
                Ok((stream, _)) => {
                    let dice = Dice::new(dice.below(u64::MAX));
                    scope.spawn(move || drop(serve(arena, stream, phase, dice)));
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    });
    Ok(())
}

/// Subscribes all endpoints of a channel, which are numbered from `first`, and says so.
pub(crate) fn subscribe(
    arena: &Arena,
    ch: u16,
    class: Class,
    at: SocketAddrV4,
    first: u16,
) -> Result<(), Failure> {
    for w in first..first + ENDPOINTS {
        let answer = Wire::connect(arena.publishers).ok().and_then(|mut wire| {
            let form = format!("url=http://{at}/{w}");
            let head = format!(
                "POST /channel/{}/hrq-subscriptions/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
                channel_name(class, ch),
                form.len()
            );
            wire.send(head.as_bytes()).ok()?;
            wire.answer(ANSWER_SECONDS, || false)
        });
        if answer.is_none_or(|answer| answer.status != 200) {
            return Err(Failure::NotReady(", and takes no endpoint of webhooks"));
        }
        arena.recorder.note(What::EndpointOk { w, ch });
    }
    Ok(())
}

fn serve(arena: &Arena, stream: TcpStream, phase: &AtomicU32, mut dice: Dice) -> io::Result<()> {
    let mut wire = Wire::accepted(stream)?;
    loop {
        let body = match request::parse(&wire.input) {
            Parsed::Whole(body) => body,
            Parsed::Malformed => return Ok(()),
            Parsed::Incomplete if arena.stopped() || wire.fill() == Filled::End => return Ok(()),
            Parsed::Incomplete => continue,
        };
        let bytes: Vec<u8> = wire.input.drain(..body.end).collect();
        let head = String::from_utf8_lossy(&bytes[..body.start]).into_owned();
        let text = String::from_utf8_lossy(&bytes[body]).into_owned();
        // At the end everything is taken.
        let whim = if phase.load(SeqCst) == 0 { dice.below(40) } else { u64::MAX };
        let taken = whim > 4;
        note(arena, &head, &text, taken);
        match whim {
            // It hears of the webhook and says nothing.
            0 => return Ok(()),
            1 => arena.pause(300),
            _ => {}
        }
        let status = if taken { "200 OK" } else { "500 No" };
        wire.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
    }
}

/// An answer that is on its way may be lost, but what is noted as taken was taken.
fn note(arena: &Arena, head: &str, text: &str, taken: bool) {
    let w = head.split(' ').nth(1).and_then(|path| path.strip_prefix('/')?.parse().ok()).unwrap_or(u16::MAX);
    let mut names = head.lines().filter_map(|line| line.split_once(':'));
    let name = names.find(|(name, _)| name.eq_ignore_ascii_case("webhook-id"));
    let name = name.map_or("", |(_, value)| value.trim()).to_owned();
    let read = payload::read(text);
    let id = read.map(|(_, id)| id);
    let ch = read.and_then(|(channel, _)| channel_of(channel)).map_or(u16::MAX, |(_, ch)| ch);
    arena.recorder.note(What::Webhook { w, ch, id, name, taken });
}

const ANSWER_SECONDS: u64 = 10;
