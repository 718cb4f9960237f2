//! Where channels and absent addresses go on in logs, on disk: a row each, of what was handed to the server and is not owed
//! any more. Rows are written together, once a second and at the end, and read at the start; what came behind them is sent
//! then. Fills nothing itself.

use std::{rc::Rc, sync::Arc};

use fantail_proto::log;
use hashbrown::HashMap;
use redb::TableDefinition;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Component, PLACES_EVERY, TARGET, Terms,
    gaps::Owed,
    questions,
    subscribers::{Place, Subscribers},
};
use crate::{
    hub::ChannelKey,
    store::{self, Store, StoreError, Work},
};

/// Before all that any log has.
pub(super) const BEGINNING: log::Place = log::Place { epoch: 0, position: 0 };

/// By address, which is empty for all, realm and channel: epoch and position.
const TABLE: TableDefinition<'_, (&str, &str, &str), (u64, u64)> = TableDefinition::new("gaps");

/// A change of one; without a place it goes.
#[derive(Debug)]
pub(super) struct Row {
    jid: Box<str>,
    realm: String,
    channel: Box<str>,
    through: Option<log::Place>,
}

impl Component {
    /// What was not handed over before the last process ended is owed to who is subscribed. Rows that are of no use are
    /// dropped, but for those of realms that are not configured. Blocks.
    pub(super) fn load_places(&self) -> Result<(), StoreError> {
        let (realms, log) = (Arc::clone(&self.snapshot.load().realms), self.hub.log());
        let (subscribers, mut outbox) = (self.subscribers.borrow(), self.outbox.borrow_mut());
        let (mut channels, mut useless) = (HashMap::new(), Vec::new());
        read(&self.store, |jid, realm_name, name, through| {
            let Some(realm) = realms.get(realm_name) else { return };
            let channel = ChannelKey { realm, name: name.into() };
            let is_of_use = if jid.is_empty() {
                let known = subscribers.wanted(realm, name) != (0, 0) && log.survives(realm, name);
                known && channels.insert(channel, through).is_none()
            } else {
                let known = subscribers.get(realm, name, jid).is_some();
                let kept = known && outbox.gaps.restore(Owed { channel, jid: Some(jid.into()) }, through);
                // Nobody knows how many items it has missed.
                self.counts.xmpp_dropped.add(u64::from(known && !kept));
                kept
            };
            if !is_of_use {
                let (jid, realm, channel) = (jid.into(), realm_name.to_owned(), name.into());
                useless.push(Row { jid, realm, channel, through: None });
            }
        })?;
        for channel in subscribers.channels().filter(|channel| log.survives(channel.realm, &channel.name)) {
            // Without a row nothing of the log was handed over: it began behind the first subscription.
            let through = channels.get(channel).copied().unwrap_or(BEGINNING);
            let end = log.end(channel.realm, &channel.name);
            let is_whole = end.epoch == through.epoch && end.position <= through.position;
            if !is_whole && end != BEGINNING {
                outbox.gaps.restore(Owed { channel: channel.clone(), jid: None }, through);
            }
        }
        if !useless.is_empty() {
            // The next start would find them again.
            self.store.submit(write(useless), Box::new(drop));
        }
        Ok(())
    }

    /// A channel that gets its first subscriber: nothing of what its log has by now is owed. To be written with the
    /// subscription.
    pub(super) fn begin(&self, place: &Place, terms: Terms) -> Option<Row> {
        let (realm, name, log) = (place.realm, place.channel.as_str(), self.hub.log());
        let is_first = !terms.is_empty() && self.subscribers.borrow().wanted(realm, name) == (0, 0);
        if !is_first || !log.survives(realm, name) {
            return None;
        }
        let through = log.end(realm, name);
        self.outbox.borrow_mut().gaps.begin(ChannelKey { realm, name: name.into() }, through);
        let realm = place.realm_name.clone();
        Some(Row { jid: "".into(), realm, channel: name.into(), through: Some(through) })
    }

    pub(super) async fn keep_places(self: Rc<Self>) {
        let mut every = interval(PLACES_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            every.tick().await;
            match self.write_places().await {
                Ok(()) => failed = false,
                Err(_) if failed => {}
                Err(error) => {
                    failed = true;
                    tracing::warn!(target: TARGET, %error, "where subscribers go on is not on disk");
                }
            }
        }
    }

    /// Writes down what was handed over since the last time, and what was asked; what the disk does not take now is written
    /// the next time.
    pub(super) async fn write_places(&self) -> Result<(), StoreError> {
        let changes = self.outbox.borrow_mut().gaps.changes();
        let rows: Vec<Row> = changes.iter().filter_map(|(owed, through)| self.row(owed, *through)).collect();
        let questions = self.outbox.borrow_mut().questions.rows();
        if rows.is_empty() && questions.is_empty() {
            return Ok(());
        }
        let asked: Vec<_> = questions.iter().map(|(bare, _)| bare.clone()).collect();
        let (places, questions) = (write(rows), questions::write(questions));
        let both = Box::new(|transaction: &_| places(transaction).and_then(|()| questions(transaction)));
        let outcome = self.store.write(both).await;
        if outcome.is_err() {
            let mut outbox = self.outbox.borrow_mut();
            outbox.gaps.take_back(changes);
            outbox.questions.take_back(asked);
        }
        outcome
    }

    fn row(&self, Owed { channel, jid }: &Owed, through: Option<log::Place>) -> Option<Row> {
        let subscribers = self.subscribers.borrow();
        let known = is_known(&subscribers, channel, jid.as_deref());
        if jid.is_none()
            && known
            && (through.is_none() || !self.hub.log().survives(channel.realm, &channel.name))
        {
            // It has begun again, or there is nothing to come back to.
            return None;
        }
        Some(Row {
            jid: jid.clone().unwrap_or_default(),
            realm: subscribers.realm_name(channel.realm).to_owned(),
            channel: channel.name.clone(),
            through: through.filter(|_| known),
        })
    }
}

fn is_known(subscribers: &Subscribers, channel: &ChannelKey, jid: Option<&str>) -> bool {
    match jid {
        None => subscribers.wanted(channel.realm, &channel.name) != (0, 0),
        Some(jid) => subscribers.get(channel.realm, &channel.name, jid).is_some(),
    }
}

/// Both, in one commit.
pub(super) fn with(row: Option<Row>, work: Work) -> Work {
    let Some(row) = row else { return work };
    let place = write(vec![row]);
    Box::new(move |transaction| work(transaction).and_then(|()| place(transaction)))
}

fn write(rows: Vec<Row>) -> Work {
    Box::new(move |transaction| {
        let mut table = transaction.open_table(TABLE)?;
        for Row { jid, realm, channel, through } in &rows {
            let key = (&**jid, realm.as_str(), &**channel);
            match through {
                Some(place) => drop(table.insert(key, (place.epoch, place.position))?),
                None => drop(table.remove(key)?),
            }
        }
        Ok(())
    })
}

/// Calls `each` for what is on disk: address, realm, channel. Blocks.
pub(super) fn read(
    store: &Store,
    mut each: impl FnMut(&str, &str, &str, log::Place),
) -> Result<(), StoreError> {
    let mut read = || -> Result<(), redb::Error> {
        let transaction = store.read().map_err(|error| redb::Error::Corrupted(error.to_string()))?;
        let Some(table) = store::made(transaction.open_table(TABLE))? else { return Ok(()) };
        for row in redb::ReadableTable::iter(&table)? {
            let (key, place) = row?;
            let ((jid, realm, channel), (epoch, position)) = (key.value(), place.value());
            each(jid, realm, channel, log::Place { epoch, position });
        }
        Ok(())
    };
    Ok(read()?)
}
