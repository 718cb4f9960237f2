//! The processes of a run, and what is done to them. Owns both: they end with it.

use std::fs::File;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::dice::Dice;
use super::history::{Fault, What};
use super::subscriber::Arena;
use super::wire::Wire;
use super::{Failure, Trial};
use crate::socket::{self, SECOND};

#[derive(Debug)]
pub(crate) struct Processes<'a> {
    options: &'a Trial,
    heads: &'a Path,
    server: Process,
    origin: Process,
}

/// Killed when it is dropped.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).ok_or(Failure::NotReady(""))?;
        kill_process(pid, signal)
            .map_err(|errno| Failure::Io { what: "signal a process", error: errno.into() })
    }

    fn ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)) | Err(_))
    }

    fn wait(&mut self) -> Result<(), Failure> {
        self.0.wait().map(drop).map_err(Failure::io("wait for a process"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl<'a> Processes<'a> {
    pub(crate) fn start(options: &'a Trial, heads: &'a Path) -> Result<Self, Failure> {
        let processes =
            Self { options, heads, server: start_server(options)?, origin: start_origin(options, heads)? };
        processes.await_both("")?;
        Ok(processes)
    }

    /// One fault after another, for so many seconds; each ends before the next.
    pub(crate) fn torment(&mut self, arena: &Arena, dice: &mut Dice) -> Result<(), Failure> {
        let faults: Vec<Fault> =
            self.options.faults.iter().copied().filter(|fault| *fault != Fault::Cut).collect();
        let end = socket::now() + self.options.seconds * SECOND;
        while socket::now() < end {
            arena.pause(800 + dice.below(1500));
            self.look(arena)?;
            let Some(fault) = dice.one_of(&faults) else { continue };
            arena.recorder.note(What::Fault { fault, s: None, on: true });
            self.commit(fault, arena, dice)?;
            arena.recorder.note(What::Fault { fault, s: None, on: false });
        }
        Ok(())
    }

    /// Starts a server that has ended by itself, which is a fault of its own.
    pub(crate) fn look(&mut self, arena: &Arena) -> Result<(), Failure> {
        if self.server.ended() {
            arena.recorder.note(What::Died);
            self.server = start_server(self.options)?;
            self.await_both(" after it ended by itself")?;
        }
        Ok(())
    }

    fn commit(&mut self, fault: Fault, arena: &Arena, dice: &mut Dice) -> Result<(), Failure> {
        match fault {
            Fault::Kill | Fault::Restart => {
                self.server.signal(if fault == Fault::Kill { Signal::KILL } else { Signal::TERM })?;
                self.server.wait()?;
                arena.pause(dice.below(1500));
                self.server = start_server(self.options)?;
                self.await_both(" after it was killed")?;
            }
            Fault::Stop => {
                self.server.signal(Signal::STOP)?;
                arena.pause(300 + dice.below(2500));
                self.server.signal(Signal::CONT)?;
            }
            Fault::OriginKill => {
                self.origin.signal(Signal::KILL)?;
                self.origin.wait()?;
                arena.pause(dice.below(1500));
                self.origin = start_origin(self.options, self.heads)?;
                self.await_both(" after its origin was killed")?;
            }
            Fault::OriginStop => {
                self.origin.signal(Signal::STOP)?;
                arena.pause(300 + dice.below(2500));
                self.origin.signal(Signal::CONT)?;
            }
            Fault::Cut | Fault::Stall => {}
        }
        Ok(())
    }

    /// Until a client's request goes through to the origin, and publishers can connect.
    fn await_both(&self, when: &'static str) -> Result<(), Failure> {
        let deadline = socket::now() + START_SECONDS * SECOND;
        while socket::now() < deadline {
            let answer = Wire::connect(self.options.sub.0).ok().and_then(|mut wire| {
                wire.send(b"GET /up HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
                wire.answer(2, || false)
            });
            if answer.is_some_and(|answer| answer.body == b"up\n")
                && TcpStream::connect(self.options.publish.0).is_ok()
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(Failure::NotReady(when))
    }
}

fn start_server(options: &Trial) -> Result<Process, Failure> {
    let log = match &options.log {
        None => Stdio::null(),
        Some(path) => {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(Failure::io("open the server's log"))?.into()
        }
    };
    let (program, arguments) = options.server.split_first().ok_or(Failure::NotReady(""))?;
    let errors = if options.log.is_some() { Stdio::inherit() } else { Stdio::null() };
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
    child.map(Process).map_err(Failure::io("start the server"))
}

fn start_origin(options: &Trial, heads: &Path) -> Result<Process, Failure> {
    let program = std::env::current_exe().map_err(Failure::io("find this program"))?;
    let child = Command::new(program)
        .args(["origin", "--listen", &options.origin.0.to_string(), "--heads"])
        .arg(heads)
        .stdin(Stdio::null())
        .spawn();
    child.map(Process).map_err(Failure::io("start the origin"))
}

const START_SECONDS: u64 = 30;
