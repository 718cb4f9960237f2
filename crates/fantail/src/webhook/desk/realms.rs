//! Which channels the hub is told of: those of the realms that are configured, by their endpoints on disk.

use std::{collections::HashMap, sync::Arc};

use super::{Desk, lost};
use crate::{
    hub::{Hub, Outpost, RealmId},
    realm::Realms,
    webhook::{book::Page, endpoint::Id},
};

/// Joins the channels of realms that a configuration has, but not of those that the one before it had. Returns the numbers on
/// disk of all that have any.
pub(in crate::webhook) fn join(
    hub: &Hub,
    page: &Page,
    realms: &Realms,
    before: Option<&Realms>,
) -> Result<HashMap<RealmId, u32>, redb::Error> {
    let (place, mut numbers) = (hub.place(Outpost::Webhooks), HashMap::new());
    for (name, number) in page.realms()? {
        let Some(realm) = realms.get(&name) else { continue };
        numbers.insert(realm, number);
        if before.is_none_or(|before| before.get(&name).is_none()) {
            page.channels(Id::of_realm(number), |channel| _ = hub.join(place, realm, channel))?;
        }
    }
    Ok(numbers)
}

impl Desk {
    /// Takes note of a reload, if there was one: before anything that a realm publishes which it has added.
    pub(super) fn see_realms(&mut self, page: &Page) -> Result<(), redb::Error> {
        let realms = Arc::clone(&self.snapshot.load().realms);
        if !Arc::ptr_eq(&realms, &self.seen) {
            self.numbers.extend(join(&self.hub, page, &realms, Some(&self.seen))?);
            self.seen = realms;
        }
        Ok(())
    }

    /// Joins or leaves a channel, as there are endpoints of it on disk: asked after every change, and only here.
    pub(super) fn look(&mut self, realm: &str, channel: &str, number: u32) {
        let found = Page::open(&self.store).map_err(lost).and_then(|page| {
            let some = page.some(Id::of_channel(number, self.salt.0, channel), Some(channel), 1)?;
            self.counts.webhook_endpoints.set(i64::try_from(page.endpoints()?).unwrap_or(i64::MAX));
            Ok(!some.is_empty())
        });
        let Some(id) = self.snapshot.load().realms.get(realm) else { return };
        // Interest that nobody has costs a read for each item; without that which somebody has, items would be lost.
        let has_some = found.unwrap_or_else(|error| {
            tracing::error!(%error, "webhook endpoints cannot be read: there may be some");
            true
        });
        if has_some {
            self.numbers.insert(id, number);
            self.hub.join(self.place, id, channel);
        } else {
            self.hub.leave(self.place, id, channel, None);
        }
    }
}
