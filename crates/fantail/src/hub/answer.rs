//! What a publisher is told: that the hub has taken its items, and what is still to be waited for, or that it has not.

use fantail_proto::{item::Item, log::Durability};

use super::{Kept, Receipts};
use crate::log;

/// A publish that the hub has taken.
#[derive(Debug)]
pub struct Accepted {
    /// Items whose id was seen within `hub.id_ttl`; nothing else happened to them, unless they were still to be kept.
    pub duplicates: usize,
    /// Items that came before their predecessors and had no room to wait for them: the same.
    pub dropped: usize,
    /// If they were asked for.
    pub receipts: Option<Receipts>,
    /// What to wait for before the publisher is answered.
    pub kept: Option<Kept>,
    /// This, too: the logs have the items as was promised.
    pub on_disk: Option<log::Kept>,
    /// What can then be said of all of them.
    pub durability: Durability,
}

/// Nothing of the request was accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The items come back.
    #[error("a mailbox is full")]
    Full(Vec<Item>),
    /// The items come back.
    #[error("{0}")]
    Log(log::Refused, Vec<Item>),
}
