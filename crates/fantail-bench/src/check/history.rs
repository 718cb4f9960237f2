//! What happened in a run: events with the time of one clock, a line of JSON each. Owns their form and their file;
//! judges nothing.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::socket;

/// An item's name on its channel: who published it, and its number there, from 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Id {
    pub(crate) publisher: u16,
    pub(crate) number: u32,
}

/// What a channel's subscribers are promised.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    /// Whoever is connected gets it; nothing is repaired.
    Plain,
    /// The origin has every item, and repairs.
    Origin,
    /// The server's log repairs; what was acknowledged may be lost with the process.
    Accepted,
    /// What was acknowledged survives the process.
    Logged,
    /// And the machine.
    Synced,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Transport {
    Stream,
    Poll,
    Websocket,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// The server: SIGKILL, and started again.
    Kill,
    /// The server: SIGTERM, and started again.
    Restart,
    /// The server: SIGSTOP, then SIGCONT.
    Stop,
    /// The same to the origin.
    OriginKill,
    OriginStop,
    /// A subscriber leaves without a word, and comes back.
    Cut,
    /// A subscriber does not read.
    Stall,
}

/// Nanoseconds of the monotonic clock.
pub(crate) type Time = u64;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Event {
    pub(crate) t: Time,
    #[serde(flatten)]
    pub(crate) what: What,
}

/// `s` is a logical subscriber: it survives its connections. `ch` is a channel.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub(crate) enum What {
    Channel {
        ch: u16,
        class: Class,
    },
    Subscriber {
        s: u16,
        tr: Transport,
        chs: Vec<u16>,
    },
    /// An attempt to publish; `at` is the item's place in its request. A marker is published after the last fault.
    PubInvoke {
        ch: u16,
        id: Id,
        request: u32,
        at: u16,
        marker: bool,
    },
    PubOk {
        request: u32,
    },
    /// An answer that is not 2xx. Neither of both: nobody knows.
    PubFail {
        request: u32,
    },
    /// `after`: the last item that the subscriber has.
    SubInvoke {
        s: u16,
        ch: u16,
        after: Option<Id>,
    },
    /// From now on it must miss nothing.
    SubOk {
        s: u16,
        ch: u16,
    },
    /// Without `id`: what arrived was never published by anybody here.
    Recv {
        s: u16,
        ch: u16,
        id: Option<Id>,
    },
    /// The subscriber knows that it may have missed something.
    Gap {
        s: u16,
        ch: u16,
    },
    Disc {
        s: u16,
    },
    Fault {
        fault: Fault,
        s: Option<u16>,
        on: bool,
    },
    /// An endpoint of webhooks is subscribed: from now on it must get everything.
    EndpointOk {
        w: u16,
        ch: u16,
    },
    /// A webhook arrived, by the name in `webhook-id`. `taken`: it was answered with 2xx.
    Webhook {
        w: u16,
        ch: u16,
        id: Option<Id>,
        name: String,
        taken: bool,
    },
    /// The server ended by itself.
    Died,
    /// All faults are over, and whatever is still to come has had its time.
    Quiesce,
}

/// Takes the events of all threads; those of one thread stay in their order.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    pub(crate) fn note(&self, what: What) {
        self.note_at(socket::now(), what);
    }

    pub(crate) fn note_at(&self, t: Time, what: What) {
        self.0.lock().expect("no panic holds it").push(Event { t, what });
    }

    /// When something was received last.
    pub(crate) fn last_receipt(&self) -> Time {
        let events = self.0.lock().expect("no panic holds it");
        let last =
            events.iter().rev().find(|event| matches!(event.what, What::Recv { .. } | What::Webhook { .. }));
        last.map_or(0, |event| event.t)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().expect("no panic holds it").len()
    }

    /// Looks at what has happened since there were so many.
    pub(crate) fn since<T>(&self, count: usize, look: impl FnOnce(&[Event]) -> T) -> T {
        look(&self.0.lock().expect("no panic holds it")[count..])
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().expect("no panic holds it"))
    }
}

pub(crate) fn write(path: &Path, history: &[Event]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for event in history {
        serde_json::to_writer(&mut file, event)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

pub(crate) fn read(path: &Path) -> io::Result<Vec<Event>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

impl Class {
    pub(crate) const ALL: [Self; 5] = [Self::Plain, Self::Origin, Self::Accepted, Self::Logged, Self::Synced];

    /// Whether a subscriber can come back and go on where it was.
    pub(crate) const fn resumes(self) -> bool {
        !matches!(self, Self::Plain)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Origin => "origin",
            Self::Accepted => "accepted",
            Self::Logged => "logged",
            Self::Synced => "synced",
        }
    }
}

impl Transport {
    pub(crate) const ALL: [Self; 3] = [Self::Stream, Self::Poll, Self::Websocket];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Poll => "poll",
            Self::Websocket => "websocket",
        }
    }
}

impl Fault {
    /// Takes with it what the server had only in memory.
    pub(crate) const fn forgets(self) -> bool {
        matches!(self, Self::Kill | Self::Restart)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.publisher, self.number)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no id")]
pub(crate) struct NoId;

impl FromStr for Id {
    type Err = NoId;

    fn from_str(text: &str) -> Result<Self, NoId> {
        let (publisher, number) = text.split_once('.').ok_or(NoId)?;
        Ok(Self {
            publisher: publisher.parse().map_err(|_| NoId)?,
            number: number.parse().map_err(|_| NoId)?,
        })
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for Id {
    type Error = NoId;

    fn try_from(text: String) -> Result<Self, NoId> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let id = Id { publisher: 1, number: 2 };
        let events = [
            What::Channel { ch: 3, class: Class::Synced },
            What::Subscriber { s: 1, tr: Transport::Websocket, chs: vec![3] },
            What::PubInvoke { ch: 3, id, request: 4, at: 0, marker: true },
            What::SubInvoke { s: 1, ch: 3, after: Some(id) },
            What::Recv { s: 1, ch: 3, id: None },
            What::Webhook { w: 1, ch: 3, id: Some(id), name: "msg_1".into(), taken: true },
            What::Fault { fault: Fault::OriginKill, s: None, on: true },
            What::Quiesce,
        ];
        let history: Vec<_> = events.into_iter().zip(1..).map(|(what, t)| Event { t, what }).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), &history).unwrap();
        assert_eq!(read(file.path()).unwrap(), history);
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(
            text.contains(
                r#"{"t":3,"what":"pub_invoke","ch":3,"id":"1.2","request":4,"at":0,"marker":true}"#
            )
        );
    }
}
