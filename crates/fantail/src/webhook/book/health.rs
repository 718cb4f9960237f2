//! How endpoints do, on disk: since when they fail, and what has become of the last try. Owns these tables; what follows
//! from it is for others to say.

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::{ENDPOINTS, Page};
use crate::webhook::endpoint::Id;

/// Endpoints that fail: since when, in Unix milliseconds, and how often.
const HEALTH: TableDefinition<'_, u128, (u64, u32)> = TableDefinition::new("health");
/// Of endpoints that fail, or were disabled: when the last try failed, until when the endpoint wants to be left alone,
/// and why it failed.
const FAULTS: TableDefinition<'_, u128, (u64, u64, &str)> = TableDefinition::new("faults");

/// The last try of an endpoint that failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::webhook) struct LastFault {
    /// Unix milliseconds, as all times here.
    pub(in crate::webhook) at: u64,
    /// What it asked for with Retry-After, or the end of its rest; 0: neither.
    pub(in crate::webhook) paused_until: u64,
    /// For its owner.
    pub(in crate::webhook) why: String,
}

impl Page {
    pub(in crate::webhook) fn health(&self, id: Id) -> Result<Option<(u64, u32)>, redb::Error> {
        Ok(self.0.open_table(HEALTH)?.get(id.0)?.map(|row| row.value()))
    }

    /// Since when an endpoint fails, and how often it did: those that do.
    pub(in crate::webhook) fn failing(
        &self,
        mut each: impl FnMut(Id, (u64, u32)),
    ) -> Result<(), redb::Error> {
        for row in self.0.open_table(HEALTH)?.iter()? {
            let (id, health) = row?;
            each(Id(id.value()), health.value());
        }
        Ok(())
    }

    pub(in crate::webhook) fn last_fault(&self, id: Id) -> Result<Option<LastFault>, redb::Error> {
        Ok(self.0.open_table(FAULTS)?.get(id.0)?.map(|row| {
            let (at, paused_until, why) = row.value();
            LastFault { at, paused_until, why: why.to_owned() }
        }))
    }

    /// Until when endpoints want to be left alone.
    pub(in crate::webhook) fn pauses(&self, mut each: impl FnMut(Id, u64)) -> Result<(), redb::Error> {
        for row in self.0.open_table(FAULTS)?.iter()? {
            let (id, fault) = row?;
            each(Id(id.value()), fault.value().1);
        }
        Ok(())
    }
}

/// Makes the tables.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), redb::Error> {
    tx.open_table(HEALTH)?;
    tx.open_table(FAULTS)?;
    Ok(())
}

/// A try has failed; nothing is kept of one to an endpoint that is gone.
pub(super) fn fails(
    tx: &WriteTransaction,
    id: Id,
    (since, failures): (u64, u32),
    last: &LastFault,
) -> Result<(), redb::Error> {
    if tx.open_table(ENDPOINTS)?.get(id.0)?.is_some() {
        tx.open_table(HEALTH)?.insert(id.0, (since, failures))?;
        tx.open_table(FAULTS)?.insert(id.0, (last.at, last.paused_until, &*last.why))?;
    }
    Ok(())
}

/// It is not tried any more, but its owner is still to learn why.
pub(super) fn rests(tx: &WriteTransaction, id: Id) -> Result<(), redb::Error> {
    tx.open_table(HEALTH)?.remove(id.0)?;
    Ok(())
}

/// It does well, or begins anew, or is gone.
pub(super) fn is_well(tx: &WriteTransaction, id: Id) -> Result<(), redb::Error> {
    tx.open_table(HEALTH)?.remove(id.0)?;
    tx.open_table(FAULTS)?.remove(id.0)?;
    Ok(())
}
