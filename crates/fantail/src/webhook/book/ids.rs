//! Ids of items, on disk: their digests, a row for each batch, in the commit of its webhooks. What they mean, and when they
//! are over, is for others to say.

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::Page;

/// By the next number that was free: when, in Unix milliseconds, and digests of 16 bytes each.
const IDS: TableDefinition<'_, u64, (u64, &[u8])> = TableDefinition::new("ids");

impl Page {
    /// The rows, oldest first: number, time and digests.
    pub(in crate::webhook) fn ids(
        &self,
        mut each: impl FnMut(u64, u64, Vec<u128>),
    ) -> Result<(), redb::Error> {
        for row in self.0.open_table(IDS)?.iter()? {
            let (number, row) = row?;
            let (at, digests) = row.value();
            let digests = digests.as_chunks().0.iter().copied().map(u128::from_le_bytes);
            each(number.value(), at, digests.collect());
        }
        Ok(())
    }
}

/// Makes the table.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), redb::Error> {
    tx.open_table(IDS)?;
    Ok(())
}

/// Adds a row, and removes those before `first`, some at a time: the next goes on with it.
pub(super) fn note(
    tx: &WriteTransaction,
    number: u64,
    at: u64,
    digests: &[u128],
    first: u64,
) -> Result<(), redb::Error> {
    let mut table = tx.open_table(IDS)?;
    let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
    table.insert(number, (at, &*bytes))?;
    for _ in 0..REMOVED_AT_ONCE {
        if table.first()?.is_none_or(|(oldest, _)| oldest.value() >= first) {
            break;
        }
        table.pop_first()?;
    }
    Ok(())
}

/// Rows: publishers wait for the commit that does it.
pub(super) const REMOVED_AT_ONCE: usize = 1000;
