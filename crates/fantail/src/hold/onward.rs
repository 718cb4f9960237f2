//! What the holds leave to others: sockets that live on or are to be closed, origins that are to be asked. Values
//! only.

use fantail_pin::Wire;

use super::{Asking, Fetch, GripLink, Question};
use crate::client::Client;

/// What the holds leave to others.
#[derive(Debug)]
pub enum Onward {
    /// A socket lives on.
    Released(Released),
    /// A socket is closed when its client has read everything.
    Closed(Socket),
    /// A WebSocket's origin is to be asked.
    Ask(Asking),
    /// A page is to be fetched for streams.
    Fetch(Box<Fetch>),
    /// An origin is to be asked about an item.
    Question(Box<Question>),
    /// A hold is gone, and its origin is to hear of it.
    Gone(GripLink),
}

/// A socket that is closed without losing what was written.
#[derive(Debug)]
pub struct Socket {
    pub wire: Wire,
    pub client: Client,
}

/// A socket whose hold has ended and that lives on.
#[derive(Debug)]
pub struct Released {
    pub wire: Wire,
    pub client: Client,
    /// Bytes to be read before those of the socket.
    pub unread: Vec<u8>,
    /// The first request in `unread` is one that was held, to be sent to its origin again.
    pub replay: Option<Replay>,
}

/// A held request that is asked again, and what its hold knew: `Grip-Last` names and ids.
#[derive(Debug)]
pub struct Replay {
    pub last_ids: Vec<(String, String)>,
    /// Who is to hear when it is gone.
    pub gone: Option<GripLink>,
    /// So often in a row has its origin been asked because an item came that does not fit what it said, the last time included.
    pub doubts: u8,
}
