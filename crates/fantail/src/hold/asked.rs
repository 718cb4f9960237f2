//! What a request that is to be held asks for, as its origin and its route put it. Values only: subscribing is
//! the holds' own.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use fantail_proto::{filter::Filter, link::Place, log, slow::Slow};

use super::Replay;
use crate::{hub::RealmId, route::Route, stats::Presence};

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
    /// Where to go on: of a stream, or of a response that is not held and is continued elsewhere.
    pub next: Option<GripLink>,
    /// It is the latter: its link is followed at once.
    pub continues: bool,
    /// Who is to hear when the hold is gone.
    pub gone: Option<GripLink>,
    /// Where filters ask from, if there are any that do.
    pub trail: Option<Rc<Trail>>,
    /// Whose it is, for the server that keeps sessions.
    pub session: Option<String>,
    /// Its response is a stream of events: a client of it comes back with the id that it has last.
    pub events: bool,
    /// What its client is sent before anything else.
    pub begin: Bytes,
    /// What it gets of channels that do not say it themselves when it is slow: the route's.
    pub slow: Slow,
    /// It was held before, and its origin has been told this.
    pub again: Option<Box<Replay>>,
}

/// Where the links in a request's answers are followed from.
#[derive(Debug)]
pub struct Trail {
    pub route: Arc<Route>,
    /// Which of the route's targets gave the first of them.
    pub target: usize,
    /// Where the request went: what is beside it takes its route.
    pub home: Place,
    pub debug: bool,
}

/// A link of an origin's.
#[derive(Clone, Debug)]
pub struct GripLink {
    pub trail: Rc<Trail>,
    pub place: Place,
    /// So often it is followed without a cause. 0: never.
    pub timeout_ms: u32,
}

impl GripLink {
    /// Whether both go in one round.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let path =
            |link: &Self| (link.place.authority().to_owned(), link.place.path().to_owned(), link.timeout_ms);
        Arc::ptr_eq(&self.trail.route, &other.trail.route) && path(self) == path(other)
    }
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
