//! From the hub to the disk: for whom an item is, and what it says to them.

use std::{collections::HashMap, rc::Rc, sync::Arc};

use fantail_proto::{filter, render::Rendered, webhook::envelope::envelope};
use http::header::CONTENT_TYPE;

use super::{Desk, unix_ms};
use crate::{
    channel::ChannelKey,
    hub::{Broken, Delivery, RealmId, Receipt},
    webhook::{
        book::{Change, Death, Head, Letter, Page},
        endpoint::{Endpoint, Id},
    },
};

impl Desk {
    /// Takes a batch of items, or goes on with one. Their publishers are answered when they are on disk. False: there is none.
    pub(super) fn take(&mut self) -> bool {
        if self.pending.is_empty() {
            let mut batch = Vec::new();
            self.hub.take(self.place, &mut batch);
            self.pending.extend(in_turn(batch));
        }
        if self.pending.is_empty() {
            return false;
        }
        let page = Page::open(&self.store).and_then(|page| {
            self.see_realms(&page)?;
            Ok(page)
        });
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                let broken = Broken(error.to_string().into());
                self.pending.drain(..).for_each(|delivery| delivery.kept(&Err(broken.clone())));
                return true;
            }
        };
        let (mut changes, mut to, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        let mut digests = Vec::new();
        let mut known = HashMap::new();
        let mut looked = 0;
        self.overflowed = 0;
        while looked < LOOKED_AT_ONCE
            && let Some(delivery) = self.pending.pop_front()
        {
            let digest = self.digest(&delivery);
            if digest.is_some_and(|digest| self.ids.had(digest, delivery.inherited, self.clock.now())) {
                looked += 1;
                kept.push(delivery);
                continue;
            }
            let before = changes.len();
            let outcome = self.endpoints(&page, &delivery, &mut known).and_then(|endpoints| {
                looked += 1 + endpoints.len();
                self.address(&page, &delivery, &endpoints, &mut changes)
            });
            match outcome {
                Ok((seq, ids)) => {
                    if !ids.is_empty() {
                        to.push((seq, ids));
                    }
                    digests.extend(digest.filter(|_| changes.len() > before));
                    kept.push(delivery);
                }
                Err(broken) => delivery.kept(&Err(broken)),
            }
        }
        if changes.is_empty() {
            kept.iter().for_each(|delivery| delivery.kept(&Ok(())));
            return true;
        }
        let (ids, row) = self.ids.note(self.next, digests, (unix_ms(), self.clock.now())).unzip();
        changes.extend(ids);
        self.write(changes, (to, row), move |outcome| {
            let outcome = outcome.map_err(|error| Broken(error.to_string().into()));
            kept.iter().for_each(|delivery: &Arc<Delivery>| delivery.kept(&outcome));
        });
        true
    }

    /// What stands for an item after the end of the process, if it has an id.
    fn digest(&self, delivery: &Delivery) -> Option<u128> {
        let number = *self.numbers.get(&delivery.realm)?;
        self.ids.digest(number, &delivery.channel, delivery.item.id.as_deref())
    }

    /// The endpoints of an item's channel, read once for all items of it at hand.
    fn endpoints(
        &self,
        page: &Page,
        delivery: &Delivery,
        known: &mut HashMap<ChannelKey, Rc<Vec<(Id, Endpoint)>>>,
    ) -> Result<Rc<Vec<(Id, Endpoint)>>, Broken> {
        let (realm, channel) = (delivery.realm, &delivery.channel);
        let Some(number) = self.numbers.get(&realm).copied() else { return Ok(Rc::default()) };
        let key = ChannelKey { realm, name: channel.clone() };
        if let Some(known) = known.get(&key) {
            return Ok(Rc::clone(known));
        }
        let range = Id::of_channel(number, self.salt.0, channel);
        let found = page.some(range, Some(channel), usize::MAX);
        let found = Rc::new(found.map_err(|error| Broken(error.to_string().into()))?);
        known.insert(key, Rc::clone(&found));
        Ok(found)
    }

    fn refused(&self) -> Broken {
        self.counts.webhook_refused.add(1);
        Broken("too many webhooks of the realm wait for delivery.".into())
    }

    /// Finds the endpoints that get an item, and their places in the queue.
    fn address(
        &mut self,
        page: &Page,
        delivery: &Delivery,
        endpoints: &[(Id, Endpoint)],
        changes: &mut Vec<Change>,
    ) -> Result<(u64, Vec<Id>), Broken> {
        let Some(number) = self.numbers.get(&delivery.realm).copied() else { return Ok((0, Vec::new())) };
        let channel = &*delivery.channel;
        let plain = plain(&delivery.item);
        let wraps = plain.is_none();
        let letter = match plain {
            None if endpoints.iter().any(|(_, endpoint)| endpoint.envelope) => {
                wrapped(channel, &delivery.item)
            }
            plain => plain,
        };
        let mut receipt = Receipt::default();
        let mut meant = Vec::new();
        let now = self.clock.unix();
        for (id, endpoint) in endpoints.iter().filter(|_| letter.is_some()) {
            if (wraps && !endpoint.envelope) || endpoint.has_expired(now) {
                continue;
            }
            match self.verdict(page, *id, endpoint, &delivery.item) {
                Pick::Take => meant.push((*id, endpoint.ordered)),
                Pick::Disabled => self.counts.webhook_dropped_disabled.add(1),
                Pick::Filtered => receipt.filtered += 1,
                Pick::Unfit => receipt.dropped_filter += 1,
            }
        }
        self.counts.webhook_filtered.add(receipt.filtered + receipt.dropped_filter);
        let Some(letter) = letter.filter(|_| !meant.is_empty()) else {
            delivery.report(receipt);
            return Ok((0, Vec::new()));
        };
        let (seq, ids) = self.place(number, letter, meant, &mut receipt, changes)?;
        delivery.report(receipt);
        Ok((seq, ids))
    }

    /// Takes places for a letter. An endpoint without room has a dead letter of it; if the realm has none, nobody has it.
    fn place(
        &mut self,
        realm: u32,
        mut letter: Letter,
        meant: Vec<(Id, bool)>,
        receipt: &mut Receipt,
        changes: &mut Vec<Change>,
    ) -> Result<(u64, Vec<Id>), Broken> {
        let bytes = letter.body.len();
        let is_for_some = meant.iter().any(|(id, _)| self.lines.endpoint_has_room(*id, bytes));
        if is_for_some && !(self.lines.realm_has_room(realm, 1) && self.letters.has_room(realm, bytes)) {
            return Err(self.refused());
        }
        let seq = self.number();
        letter.head.id =
            format!("msg_{:016x}{seq:016x}", self.salt.0 >> 64 ^ self.salt.0 & u128::from(u64::MAX));
        let letter = letter.encode();
        let (mut ids, mut full) = (Vec::with_capacity(meant.len()), Vec::new());
        for (id, ordered) in meant {
            if self.lines.endpoint_has_room(id, letter.len()) {
                self.lines.reserve(id, ordered, letter.len());
                ids.push(id);
            } else {
                full.push(id);
            }
        }
        if !ids.is_empty() && !self.lines.realm_has_room(realm, 0) {
            ids.into_iter().for_each(|id| self.lines.release(id, letter.len()));
            return Err(self.refused());
        }
        let now = self.clock.unix_ms();
        for id in full {
            receipt.dropped_overflow += 1;
            self.counts.webhook_dead_overflow.add(1);
            // Each is a copy on disk.
            self.overflowed += letter.len();
            if self.overflowed > OVERFLOW_BYTES {
                continue;
            }
            let death = Death { at: now, cause: "the endpoint's queue is full".into(), tries: 0 };
            let keep = self.keep();
            changes.push(Change::Dead { id, seq, letter: Some(letter.clone()), death, last: false, keep });
        }
        receipt.queued = ids.len() as u64;
        if !ids.is_empty() {
            ids.iter().for_each(|_| self.letters.expect(seq, realm));
            self.letters.weigh(seq, letter.len());
            changes.push(Change::Queue { seq, letter, to: ids.clone(), due: now });
        }
        Ok((seq, ids))
    }

    fn verdict(&self, page: &Page, id: Id, endpoint: &Endpoint, item: &Rendered) -> Pick {
        if endpoint.disabled.is_some() {
            return Pick::Disabled;
        }
        let filters = endpoint.filters();
        if filters.is_empty() && item.written_for.request.is_none() {
            return Pick::Take;
        }
        if !filter::suits(item.written_for.request.as_deref(), &filters) {
            return Pick::Unfit;
        }
        let subscribed = |channel: &str| {
            let other = Id::new(id.realm(), self.salt.0, channel, &endpoint.url);
            page.endpoint(other).is_ok_and(|found| found.is_some())
        };
        if filter::passes(&filters, &endpoint.meta, &item.meta, subscribed) {
            Pick::Take
        } else {
            Pick::Filtered
        }
    }
}

/// Items of all realms, of each one in its turn: who publishes much waits for itself.
fn in_turn(batch: Vec<Arc<Delivery>>) -> impl Iterator<Item = Arc<Delivery>> {
    let mut counts: HashMap<RealmId, usize> = HashMap::new();
    let mut turns: Vec<(usize, Arc<Delivery>)> = Vec::with_capacity(batch.len());
    for delivery in batch {
        let count = counts.entry(delivery.realm).or_default();
        turns.push((*count, delivery));
        *count += 1;
    }
    // Stable: a realm's items keep their order.
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, delivery)| delivery)
}

/// Endpoints that are looked at for items before the desk does something else: some ten milliseconds.
const LOOKED_AT_ONCE: usize = 10_000;
/// Dead letters of endpoints without room, of one batch; what is over it is only counted.
const OVERFLOW_BYTES: usize = 16 << 20;

/// What becomes of an item for one endpoint.
enum Pick {
    Take,
    Disabled,
    Filtered,
    /// Its content was written for other filters.
    Unfit,
}

/// What the item says to webhooks.
fn plain(item: &Rendered) -> Option<Letter> {
    let request = item.request.as_ref()?;
    let headers = request.headers.iter();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let head = Head {
        id: String::new(),
        method: request.method.as_str().to_owned(),
        headers: headers.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
        item: item.id.clone(),
    };
    Some(Letter { head, body: request.body.clone() })
}

/// The whole item, for who asked for that.
fn wrapped(channel: &str, item: &Rendered) -> Option<Letter> {
    let body = envelope(channel, item)?.into();
    let headers = vec![(CONTENT_TYPE.as_str().to_owned(), "application/json".to_owned())];
    Some(Letter {
        head: Head { id: String::new(), method: "POST".into(), headers, item: item.id.clone() },
        body,
    })
}

#[cfg(test)]
mod tests {
    use fantail_proto::{item::Item, log::Place};

    use super::*;

    #[test]
    fn realms_have_their_turns() {
        let place = Place { epoch: 1, position: 1 };
        let delivery = |realm: u32, channel: &str| {
            Arc::new(Delivery::of_log(RealmId(realm), channel, Item::default().into(), place))
        };
        let batch =
            vec![delivery(1, "a"), delivery(1, "b"), delivery(1, "c"), delivery(2, "d"), delivery(2, "e")];
        let order: Vec<String> = in_turn(batch).map(|delivery| delivery.channel.to_string()).collect();
        assert_eq!(order, ["a", "d", "b", "e", "c"]);
    }
}
