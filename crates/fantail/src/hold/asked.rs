//! What a request that is to be held asks for, as its origin and its route put it. Values only: subscribing is
//! the holds' own.

use fantail_proto::{filter::Filter, log};

use crate::hub::RealmId;

/// A new hold: who, and subscribed to what.
#[derive(Debug)]
pub struct Asked {
    pub realm: RealmId,
    pub subscriptions: Vec<Subscription>,
    /// What filters know of the subscriber.
    pub meta: Vec<(String, String)>,
    /// The route's, which filters leave out of channel names.
    pub prefix: String,
    /// The request's, when the log is to say who subscribes to what.
    pub uri: Option<Box<str>>,
    /// The route explains errors to clients.
    pub debug: bool,
}

/// One channel of a new hold.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// In full: with the route's prefix.
    pub channel: String,
    pub filters: Vec<Filter>,
    /// What the client has been given already, if its origin keeps track.
    pub prev_id: Option<String>,
    /// Without that: the newest items that it is to begin with, if the channel has a log.
    pub late: Option<log::Start>,
}

impl Subscription {
    /// A channel of the target's own.
    pub fn implicit(channel: &str) -> Self {
        Self { channel: channel.to_owned(), filters: Vec::new(), prev_id: None, late: None }
    }

    /// Where a log is to begin.
    pub(super) fn start(&self) -> Option<log::Start> {
        let prev_id = self.prev_id.as_deref().map(|id| log::Start::Id(id.into()));
        prev_id.or_else(|| self.late.clone())
    }
}
