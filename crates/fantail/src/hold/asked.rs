//! What a request that is to be held asks for, as its origin and its route put it. Values only: subscribing is
//! the holds' own.

use std::rc::Rc;

use fantail_proto::filter::Filter;

use crate::{hub::RealmId, stats::Presence};

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
    /// What who watches knows it by.
    pub presence: Option<Rc<Presence>>,
}

/// One channel of a new hold.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// In full: with the route's prefix.
    pub channel: String,
    pub filters: Vec<Filter>,
    /// What the client has been given already, if its origin keeps track.
    pub prev_id: Option<String>,
}

impl Subscription {
    /// A channel of the target's own.
    pub fn implicit(channel: &str) -> Self {
        Self { channel: channel.to_owned(), filters: Vec::new(), prev_id: None }
    }
}
