//! What others want of the component: subscriptions made, ended and listed. Owns the questions and their answers; decides
//! nothing about a stanza.

use fantail_proto::xmpp::{answer::Condition, jid::Jid, pubsub::Shows};
use tokio::sync::{mpsc, oneshot};

use super::{
    Component, Place, Terms,
    subscribers::{self, Kept},
};
use crate::store::StoreError;

/// Where others leave what they want of the component.
#[derive(Clone, Debug)]
pub struct Desk(pub(super) mpsc::Sender<Order>);

#[derive(Debug)]
pub(super) enum Order {
    Subscribe {
        place: Place,
        jid: Jid,
        shows: Shows,
        done: oneshot::Sender<Result<(), Refused>>,
    },
    Unsubscribe {
        place: Place,
        jid: Jid,
        done: oneshot::Sender<Result<bool, Refused>>,
    },
    /// In the realm of the place, whatever its channel.
    Of {
        place: Place,
        jid: Jid,
        done: oneshot::Sender<Result<Vec<Subscription>, Refused>>,
    },
    List {
        place: Place,
        page: Page,
        done: oneshot::Sender<Vec<(String, Terms)>>,
    },
}

/// What an address gets of a channel.
#[derive(Clone, Debug)]
pub struct Subscription {
    pub place: Place,
    pub jid: Jid,
    pub terms: Terms,
}

/// Which subscribers of a channel, in the order of their addresses.
#[derive(Clone, Debug)]
pub enum Page {
    Only(Jid),
    Behind { after: Option<String>, most: usize },
}

/// Why a subscription is as it was before.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    #[error("there are {0} subscriptions, and no more are allowed (xmpp.subscriptions)")]
    Full(usize),
    #[error("the realm has {0} subscriptions, and may have no more (xmpp.realm_subscriptions)")]
    Crowded(usize),
    #[error("an address may have {0} subscriptions (xmpp.subscriptions_per_jid)")]
    TooMany(usize),
    #[error("the address is of the component's own domain")]
    Own,
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the server is stopping")]
    Stopping,
}

impl Desk {
    /// From now on the address gets the `xmpp-stanza` items of the channel.
    pub async fn subscribe(&self, place: Place, jid: Jid, shows: Shows) -> Result<(), Refused> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Subscribe { place, jid, shows, done }).await?;
        answer.await.unwrap_or(Err(Refused::Stopping))
    }

    /// Ends all that it gets of the channel. False when it was not subscribed.
    pub async fn unsubscribe(&self, place: Place, jid: Jid) -> Result<bool, Refused> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Unsubscribe { place, jid, done }).await?;
        answer.await.unwrap_or(Err(Refused::Stopping))
    }

    /// What an address is subscribed to in a realm: with any of its resources, if it names none.
    pub async fn of(&self, place: Place, jid: Jid) -> Result<Vec<Subscription>, Refused> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Of { place, jid, done }).await?;
        answer.await.unwrap_or(Err(Refused::Stopping))
    }

    pub async fn list(&self, place: Place, page: Page) -> Result<Vec<(String, Terms)>, Refused> {
        let (done, answer) = oneshot::channel();
        self.order(Order::List { place, page, done }).await?;
        answer.await.map_err(|_| Refused::Stopping)
    }

    async fn order(&self, order: Order) -> Result<(), Refused> {
        self.0.send(order).await.map_err(|_| Refused::Stopping)
    }
}

impl Component {
    pub(super) async fn obey(&self, order: Order) {
        // Who asked may have gone.
        match order {
            Order::Subscribe { place, jid, shows, done } => {
                let own = jid.domain() == self.config.domain.domain();
                let outcome = if own {
                    Err(Refused::Own)
                } else {
                    self.change(&place, &jid, |terms| terms.with_stanzas(shows)).await
                };
                drop(done.send(outcome.map(drop)));
            }
            Order::Unsubscribe { place, jid, done } => {
                let outcome = self.change(&place, &jid, |_| Terms::default()).await;
                drop(done.send(outcome.map(|before| !before.is_empty())));
            }
            Order::Of { place, jid, done } => drop(done.send(self.of(&place, &jid))),
            Order::List { place, page, done } => {
                let subscribers = self.subscribers.borrow();
                let Place { realm, channel, .. } = place;
                let found: Vec<_> = match &page {
                    Page::Only(jid) => {
                        let terms = subscribers.get(realm, &channel, jid.as_str());
                        terms.into_iter().map(|terms| (jid.to_string(), terms)).collect()
                    }
                    Page::Behind { after, most } => {
                        let page = subscribers.page(realm, &channel, after.as_deref(), *most);
                        page.map(|(jid, terms)| (jid.to_owned(), terms)).collect()
                    }
                };
                drop(done.send(found));
            }
        }
    }
}

impl Component {
    fn of(&self, place: &Place, jid: &Jid) -> Result<Vec<Subscription>, Refused> {
        let kept = subscribers::of(&self.store, jid.bare(), LOOKED_AT)?;
        let kept = kept
            .into_iter()
            .filter(|kept| kept.realm == place.realm_name && (jid.is_bare() || kept.jid == jid.as_str()));
        let of = |kept: Kept| {
            let place = Place { channel: kept.channel, ..place.clone() };
            Some(Subscription { place, jid: Jid::parse(&kept.jid).ok()?, terms: kept.terms })
        };
        Ok(kept.filter_map(of).collect())
    }
}

/// Subscriptions of one address that are looked at.
pub(super) const LOOKED_AT: usize = 10_000;

/// What a refusal is to an entity.
pub(super) fn condition(refused: &Refused) -> Condition {
    match refused {
        Refused::Full(_) | Refused::Crowded(_) | Refused::Stopping => Condition::ResourceConstraint,
        Refused::TooMany(_) => Condition::PolicyViolation,
        Refused::Own => Condition::BadRequest,
        Refused::Store(_) => Condition::InternalServerError,
    }
}
