//! Dead letters on disk: those of each endpoint, and how old those of each realm are. Owns their tables and limits; why a
//! delivery was given up is for others to say.

use bytes::Bytes;
use redb::{ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};

use super::{Death, Page, Said, join, numbers, parse, split};
use crate::webhook::endpoint::Id;

/// By endpoint and number.
const DEAD: TableDefinition<'_, (u128, u64), &[u8]> = TableDefinition::new("dead");
/// How many dead letters an endpoint has, and their bytes: counting them each time one comes would take as long as there
/// are many.
const SIZES: TableDefinition<'_, u128, (u64, u64)> = TableDefinition::new("dead-size");
/// Their bytes in a realm.
const REALMS: TableDefinition<'_, u32, u64> = TableDefinition::new("dead-realm");
/// And in all.
const ALL: TableDefinition<'_, (), u64> = TableDefinition::new("dead-all");
/// By realm, number and endpoint: those of a realm in the order in which they were published.
const AGES: TableDefinition<'_, (u32, u64, u128), ()> = TableDefinition::new("dead-age");

/// How many are kept; the oldest are forgotten first.
#[derive(Clone, Copy, Debug)]
pub(in crate::webhook) struct Keep {
    /// Of one endpoint.
    pub(in crate::webhook) letters: u64,
    pub(in crate::webhook) bytes: u64,
    /// Of all endpoints of a realm.
    pub(in crate::webhook) realm_bytes: u64,
    /// Of all.
    pub(in crate::webhook) all_bytes: u64,
}

impl Keep {
    /// How many of letters of one endpoint that die together are kept, by their sizes, newest first.
    pub(in crate::webhook) fn newest(&self, sizes: impl Iterator<Item = usize>) -> usize {
        let (mut count, mut bytes) = (0, 0);
        let fits = |size: &usize| {
            (count, bytes) = (count + 1, bytes + *size as u64);
            count <= self.letters && bytes <= self.bytes.min(self.realm_bytes)
        };
        sizes.take_while(fits).count()
    }
}

impl Page {
    /// Dead letters of an endpoint from a number on, oldest first, without their bodies.
    pub(in crate::webhook) fn dead(
        &self,
        id: Id,
        from: u64,
        most: usize,
    ) -> Result<Vec<(u64, Death, Said)>, redb::Error> {
        let table = self.0.open_table(DEAD)?;
        let mut found = Vec::new();
        for row in table.range((id.0, from)..=(id.0, u64::MAX))? {
            let (key, row) = row?;
            let said = |rest| {
                split(rest).and_then(|(head, body)| Some(Said { head: parse(head)?, bytes: body.len() }))
            };
            if let Some((death, letter)) =
                split(row.value()).and_then(|(head, rest)| Some((parse(head)?, said(rest)?)))
            {
                found.push((key.value().1, death, letter));
            }
            if found.len() == most {
                break;
            }
        }
        Ok(found)
    }
}

/// Makes the tables. Those of a file from before realms, or all, had a limit are filled.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), redb::Error> {
    let mut tables = Tables::open(tx)?;
    if tables.realms.is_empty()? {
        for row in tables.dead.iter()? {
            let (key, row) = row?;
            let (id, seq) = key.value();
            tables.ages.insert((Id(id).realm(), seq, id), ())?;
            add(&mut tables.realms, Id(id).realm(), row.value().len() as u64)?;
        }
    }
    let rows = tables.realms.iter()?;
    let all = rows.map(|row| Ok(row?.1.value())).sum::<Result<u64, redb::Error>>()?;
    tables.all.insert((), all)?;
    Ok(())
}

/// Keeps one, and lets go of others for which there is no room then.
pub(super) fn bury(
    tx: &WriteTransaction,
    id: Id,
    seq: u64,
    letter: &Bytes,
    death: &Death,
    keep: Keep,
) -> Result<(), redb::Error> {
    if keep.letters == 0 {
        return Ok(());
    }
    let mut tables = Tables::open(tx)?;
    let row = join(&serde_json::to_vec(death).unwrap_or_default(), letter);
    tables.take(id, seq)?;
    let (mut count, mut bytes) = tables.size(id)?;
    (count, bytes) = (count + 1, bytes + row.len() as u64);
    tables.dead.insert((id.0, seq), &*row)?;
    tables.sizes.insert(id.0, (count, bytes))?;
    tables.ages.insert((id.realm(), seq, id.0), ())?;
    let mut realm_bytes = add(&mut tables.realms, id.realm(), row.len() as u64)?;
    let all = tables.sum()? + row.len() as u64;
    tables.all.insert((), all)?;
    while count > keep.letters || bytes > keep.bytes {
        let oldest = tables.dead.range(numbers(id))?.next().transpose()?.map(|(key, _)| key.value().1);
        let Some(gone) = oldest.map(|oldest| tables.take(id, oldest)).transpose()?.flatten() else { break };
        (count, bytes) = (count.saturating_sub(1), bytes.saturating_sub(gone.len() as u64));
        realm_bytes = realm_bytes.saturating_sub(gone.len() as u64);
    }
    while realm_bytes > keep.realm_bytes {
        let Some(gone) = tables.take_oldest(id.realm())? else { break };
        realm_bytes = realm_bytes.saturating_sub(gone.len() as u64);
    }
    while tables.sum()? > keep.all_bytes {
        let Some(largest) = tables.largest()? else { break };
        if tables.take_oldest(largest)?.is_none() {
            break;
        }
    }
    Ok(())
}

/// Takes one out: what it says.
pub(super) fn dig(tx: &WriteTransaction, id: Id, seq: u64) -> Result<Option<Vec<u8>>, redb::Error> {
    let row = Tables::open(tx)?.take(id, seq)?;
    Ok(row.as_deref().and_then(split).map(|(_, letter)| letter.to_vec()))
}

/// Forgets all of an endpoint.
pub(super) fn forget(tx: &WriteTransaction, id: Id) -> Result<(), redb::Error> {
    let mut tables = Tables::open(tx)?;
    let rows = tables.dead.range(numbers(id))?;
    let all: Vec<u64> = rows.map(|row| Ok(row?.0.value().1)).collect::<Result<_, redb::Error>>()?;
    for seq in all {
        tables.take(id, seq)?;
    }
    Ok(())
}

struct Tables<'t> {
    dead: Table<'t, (u128, u64), &'static [u8]>,
    sizes: Table<'t, u128, (u64, u64)>,
    realms: Table<'t, u32, u64>,
    ages: Table<'t, (u32, u64, u128), ()>,
    all: Table<'t, (), u64>,
}

impl<'t> Tables<'t> {
    fn open(tx: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            dead: tx.open_table(DEAD)?,
            sizes: tx.open_table(SIZES)?,
            realms: tx.open_table(REALMS)?,
            ages: tx.open_table(AGES)?,
            all: tx.open_table(ALL)?,
        })
    }

    /// Takes a row out of all tables.
    fn take(&mut self, id: Id, seq: u64) -> Result<Option<Vec<u8>>, redb::Error> {
        let (mut count, mut bytes) = self.size(id)?;
        let Some(row) = self.dead.remove((id.0, seq))?.map(|row| row.value().to_vec()) else {
            return Ok(None);
        };
        self.ages.remove((id.realm(), seq, id.0))?;
        let realm = self.realms.get(id.realm())?.map_or(0, |row| row.value());
        match realm.saturating_sub(row.len() as u64) {
            0 => drop(self.realms.remove(id.realm())?),
            left => drop(self.realms.insert(id.realm(), left)?),
        }
        let all = self.sum()?.saturating_sub(row.len() as u64);
        self.all.insert((), all)?;
        (count, bytes) = (count.saturating_sub(1), bytes.saturating_sub(row.len() as u64));
        match count {
            0 => drop(self.sizes.remove(id.0)?),
            _ => drop(self.sizes.insert(id.0, (count, bytes))?),
        }
        Ok(Some(row))
    }

    /// Takes out that of a realm which was published before all others.
    fn take_oldest(&mut self, realm: u32) -> Result<Option<Vec<u8>>, redb::Error> {
        let all = (realm, 0, 0)..=(realm, u64::MAX, u128::MAX);
        let oldest = self.ages.range(all)?.next().transpose()?.map(|(key, _)| key.value());
        Ok(oldest.map(|(_, seq, of)| self.take(Id(of), seq)).transpose()?.flatten())
    }

    /// The realm with the most bytes.
    fn largest(&self) -> Result<Option<u32>, redb::Error> {
        let mut largest = None;
        for row in self.realms.iter()? {
            let (realm, bytes) = row?;
            largest = largest.max(Some((bytes.value(), realm.value())));
        }
        Ok(largest.map(|(_, realm)| realm))
    }

    /// Bytes in all.
    fn sum(&self) -> Result<u64, redb::Error> {
        Ok(self.all.get(())?.map_or(0, |row| row.value()))
    }

    /// Dead letters of an endpoint, and their bytes.
    fn size(&self, id: Id) -> Result<(u64, u64), redb::Error> {
        if let Some(size) = self.sizes.get(id.0)? {
            return Ok(size.value());
        }
        // It had some before they were counted, or has none.
        self.dead.range(numbers(id))?.try_fold((0, 0), |(count, bytes), row| {
            let (_, row) = row?;
            Ok((count + 1, bytes + row.value().len() as u64))
        })
    }
}

/// The sum.
fn add(realms: &mut Table<'_, u32, u64>, realm: u32, bytes: u64) -> Result<u64, redb::Error> {
    let sum = realms.get(realm)?.map_or(0, |row| row.value()) + bytes;
    realms.insert(realm, sum)?;
    Ok(sum)
}
