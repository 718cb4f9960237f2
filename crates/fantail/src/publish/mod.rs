//! The path of a publisher: authenticate, decode, hand to the hub, answer. Here is what does not depend
//! on how a publish came in; it knows no HTTP but the value of `Authorization`.

pub mod answer;
pub mod http;
pub mod zeromq;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::http::HeaderValue;
use arc_swap::ArcSwap;
use fantail_proto::{
    item::{self, Item, ItemError},
    log::Durability,
};
use tokio::time::{Instant, timeout};

use crate::{
    hub::{Accepted, Broken, Hub, RealmId, Receipt, Receipts, Refused},
    log,
    metrics::Process,
    realm::Denied,
    snapshot::Snapshot,
    store::StoreError,
};

/// Where all ways of publishing meet.
#[derive(Debug)]
pub struct Publisher {
    hub: Arc<Hub>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    counts: Arc<Process>,
    patience: Duration,
}

impl Publisher {
    /// `patience` is `control.publish_timeout`.
    pub fn new(
        hub: Arc<Hub>,
        snapshot: Arc<ArcSwap<Snapshot>>,
        counts: Arc<Process>,
        patience: Duration,
    ) -> Self {
        Self { hub, snapshot, counts, patience }
    }

    /// Whether this `Authorization` may publish to the realm. That a realm does not exist and that the
    /// token is not one of its own are the same answer.
    pub fn authorize(&self, realm: &str, authorization: Option<&HeaderValue>) -> Result<RealmId, Denied> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.snapshot.load().realms.authorize(realm, authorization, now)
    }

    /// Decodes a publish and hands it to the hub, whole or not at all: accepted when this returns.
    /// Waits for a full mailbox, at most `control.publish_timeout`. `channel` is that of the URL.
    pub async fn publish(
        &self,
        realm: RealmId,
        body: &[u8],
        channel: Option<&str>,
        wanted: Wanted,
    ) -> Result<Published, Refusal> {
        let begun = Instant::now();
        let items = item::decode(body, channel)?;
        let count = items.len();
        let outcome = self.accept(realm, items, wanted).await;
        match &outcome {
            Ok(_) => self.counts.publish_latency.observe(begun.elapsed()),
            Err(_) => self.counts.items_refused.add(count as u64),
        }
        outcome
    }

    /// Refuses what is over a limit of items; for every way in.
    fn check(&self, realm: RealmId, items: &[Item]) -> Result<(), Refusal> {
        let snapshot = self.snapshot.load();
        let config = &snapshot.config;
        let (channel_bytes, hub) = (config.grip.channel_bytes, &config.hub);
        for Item { channel, id, prev_id, meta, stanza, .. } in items {
            if channel.len() > channel_bytes {
                return Err(Refusal::Channel(channel_bytes));
            }
            for (name, id) in [("id", id), ("prev-id", prev_id)] {
                if id.as_ref().is_some_and(|id| id.len() > hub.id_bytes) {
                    return Err(Refusal::Id(name, hub.id_bytes));
                }
            }
            if meta.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > hub.meta_bytes {
                return Err(Refusal::Meta(hub.meta_bytes));
            }
            let (Some(stanza), Some(xmpp)) = (stanza, &config.xmpp) else { continue };
            if stanza.bytes() > xmpp.stanza_bytes {
                return Err(Refusal::Stanza(xmpp.stanza_bytes));
            }
            let from = stanza.from.as_ref().filter(|from| from.domain() == xmpp.domain.domain());
            if from.is_some_and(|from| !snapshot.may_speak(realm, from)) {
                return Err(Refusal::From);
            }
        }
        Ok(())
    }

    /// Of a channel's name at most.
    pub fn channel_bytes(&self) -> usize {
        self.snapshot.load().config.grip.channel_bytes
    }

    /// Asks the origins of all holds of a realm again (spec 5.2).
    pub fn recover(&self, realm: RealmId) {
        self.hub.recover(realm);
    }

    async fn accept(&self, realm: RealmId, items: Vec<Item>, wanted: Wanted) -> Result<Published, Refusal> {
        self.check(realm, &items)?;
        for item in &items {
            tracing::debug!(channel = ?item.channel, "publish");
        }
        let Wanted { receipts, durability } = wanted;
        let names = if receipts { items.iter().map(Name::of).collect() } else { Vec::new() };
        let count = items.len();
        let accepted = self.hub.publish_within(realm, items, receipts, durability, self.patience).await?;
        self.count(count, &accepted);
        if let Some(kept) = accepted.kept {
            let patience = self.patience + self.hub.order_wait();
            // Whoever repeats such items waits for those who keep them, and only they may get them again.
            timeout(patience, kept.wait()).await.map_err(|_| Refusal::Slow)??;
        }
        if let Some(on_disk) = accepted.on_disk {
            // What was not delivered may be published again. The ids of the rest stay: whoever repeats them waits for the
            // disk again, and nobody gets them twice.
            timeout(self.patience, on_disk.wait()).await.map_err(|_| Refusal::Slow)??;
        }
        let pending = accepted.receipts.map(|receipts| Pending { names, receipts });
        Ok(Published { durability: accepted.durability, pending })
    }

    fn count(&self, items: usize, accepted: &Accepted) {
        let Accepted { duplicates, dropped, .. } = *accepted;
        self.counts.items_accepted.add((items - duplicates - dropped) as u64);
        self.counts.items_duplicate.add(duplicates as u64);
        self.counts.items_dropped.add(dropped as u64);
    }
}

/// What a publisher asks for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    pub receipts: bool,
    /// At least.
    pub durability: Durability,
}

/// A publish that was accepted.
#[derive(Debug)]
pub struct Published {
    /// Of all items.
    pub durability: Durability,
    /// If they were asked for.
    pub pending: Option<Pending>,
}

/// Receipts of an accepted publish that are still on their way.
#[derive(Debug)]
pub struct Pending {
    names: Vec<Name>,
    receipts: Receipts,
}

impl Pending {
    /// Ready when every shard has delivered every item; `None` when the process stops first.
    pub async fn wait(self) -> Option<Vec<(Name, Receipt)>> {
        Some(self.names.into_iter().zip(self.receipts.wait().await?).collect())
    }
}

/// By what its publisher knows an item.
#[derive(Debug)]
pub struct Name {
    pub channel: String,
    pub id: Option<String>,
}

impl Name {
    fn of(item: &Item) -> Self {
        Self { channel: item.channel.clone(), id: item.id.clone() }
    }
}

/// Why nothing of a publish was accepted. The text is for the publisher.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Item(#[from] ItemError),
    #[error("Invalid format: 'channel' is longer than {0} bytes")]
    Channel(usize),
    #[error("Invalid format: '{0}' is longer than {1} bytes")]
    Id(&'static str, usize),
    #[error("Invalid format: 'meta' has more than {0} bytes")]
    Meta(usize),
    #[error("Invalid format: the content of 'xmpp-stanza', as it is sent, has more than {0} bytes")]
    Stanza(usize),
    #[error("Invalid format: the content of 'xmpp-stanza' has a 'from' that is routed to another realm")]
    From,
    #[error("Too many items wait for delivery.")]
    Full,
    /// Something that was to be on disk is not.
    #[error("Not kept: {0}")]
    Broken(#[from] Broken),
    #[error("Not kept in time.")]
    Slow,
    #[error(transparent)]
    Log(log::Refused),
}

impl Refusal {
    /// It may work in a moment.
    pub const fn is_overload(&self) -> bool {
        matches!(self, Self::Full | Self::Broken(_) | Self::Slow | Self::Log(log::Refused::Disk(_)))
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full(_) => Self::Full,
            Refused::Log(refused, _) => Self::Log(refused),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Log(log::Refused::Disk(error))
    }
}
