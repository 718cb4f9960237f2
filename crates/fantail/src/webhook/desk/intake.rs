//! From the hub to the disk: for whom an item is, and what it says to them.

use std::sync::Arc;

use fantail_proto::{filter, render::Rendered, webhook::envelope::envelope};
use http::header::CONTENT_TYPE;

use super::Desk;
use crate::{
    hub::{Broken, Delivery, Receipt},
    webhook::{
        book::{Change, Death, Head, Letter, Page},
        endpoint::{Endpoint, Id},
    },
};

impl Desk {
    /// Takes a batch of items. Their publishers are answered when they are on disk.
    pub(super) fn take(&mut self) {
        let mut batch = Vec::new();
        self.hub.take(self.place, &mut batch);
        let page = match Page::open(&self.store) {
            Ok(page) => page,
            Err(error) => {
                return batch
                    .iter()
                    .for_each(|delivery| delivery.kept(&Err(Broken(error.to_string().into()))));
            }
        };
        let (mut changes, mut to, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for delivery in batch {
            match self.address(&page, &delivery, &mut changes) {
                Ok((seq, ids)) => {
                    if !ids.is_empty() {
                        to.push((seq, ids));
                    }
                    kept.push(delivery);
                }
                Err(broken) => delivery.kept(&Err(broken)),
            }
        }
        if changes.is_empty() {
            return kept.iter().for_each(|delivery| delivery.kept(&Ok(())));
        }
        self.write(changes, to, move |outcome| {
            let outcome = outcome.map_err(|error| Broken(error.to_string().into()));
            kept.iter().for_each(|delivery: &Arc<Delivery>| delivery.kept(&outcome));
        });
    }

    /// Finds the endpoints that get an item, and their places in the queue.
    fn address(
        &mut self,
        page: &Page,
        delivery: &Delivery,
        changes: &mut Vec<Change>,
    ) -> Result<(u64, Vec<Id>), Broken> {
        let Some(number) = self.numbers.get(&delivery.realm).copied() else { return Ok((0, Vec::new())) };
        let channel = &*delivery.channel;
        let range = Id::of_channel(number, self.salt.0, channel);
        let failed = |error: redb::Error| Broken(error.to_string().into());
        let endpoints = page.some(range, Some(channel), usize::MAX).map_err(failed)?;
        let plain = plain(&delivery.item);
        let wrapped = if plain.is_none() && endpoints.iter().any(|(_, endpoint)| endpoint.envelope) {
            wrapped(channel, &delivery.item)
        } else {
            None
        };
        let mut receipt = Receipt::default();
        let mut meant = Vec::new();
        for (id, endpoint) in endpoints {
            let wanted = plain.is_some() || (endpoint.envelope && wrapped.is_some());
            match self.verdict(page, id, &endpoint, &delivery.item) {
                _ if !wanted || endpoint.has_expired(self.clock.unix()) => {}
                Pick::Take => meant.push((id, endpoint.ordered)),
                Pick::Disabled => self.counts.webhook_dropped_disabled.add(1),
                Pick::Filtered => receipt.filtered += 1,
                Pick::Unfit => receipt.dropped_filter += 1,
            }
        }
        self.counts.webhook_filtered.add(receipt.filtered + receipt.dropped_filter);
        let Some(mut letter) = plain.or(wrapped).filter(|_| !meant.is_empty()) else {
            delivery.report(receipt);
            return Ok((0, Vec::new()));
        };
        if !self.lines.realm_has_room(number, meant.len()) {
            self.counts.webhook_refused.add(1);
            return Err(Broken("too many webhooks of the realm wait for delivery.".into()));
        }
        let seq = self.number();
        letter.head.id =
            format!("msg_{:016x}{seq:016x}", self.salt.0 >> 64 ^ self.salt.0 & u128::from(u64::MAX));
        let letter = letter.encode();
        let now = self.clock.unix_ms();
        let mut ids = Vec::with_capacity(meant.len());
        for (id, ordered) in meant {
            if self.lines.endpoint_has_room(id) {
                self.lines.reserve(id, ordered);
                ids.push(id);
                continue;
            }
            receipt.dropped_overflow += 1;
            self.counts.webhook_dead_overflow.add(1);
            let death = Death { at: now, cause: "the endpoint's queue is full".into(), tries: 0 };
            let keep = self.config.dead_letters;
            changes.push(Change::Dead { id, seq, letter: Some(letter.clone()), death, last: false, keep });
        }
        receipt.queued = ids.len() as u64;
        delivery.report(receipt);
        if !ids.is_empty() {
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
