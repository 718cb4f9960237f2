//! `[[log]]`: which channels have a log, and what it keeps.

use fantail_proto::{
    log::{Durability, Limits, Pattern},
    slow::Slow,
};
use serde::Deserialize;

use super::{
    DEFAULT_REALM,
    file::{Invalid, at_least, duration},
};

/// A kind of channels that have a log each.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// As written, for messages.
    pub text: String,
    pub pattern: Pattern,
    pub realm: String,
    /// Of one channel.
    pub limits: Limits,
    /// Of all its channels together.
    pub total_bytes: usize,
    pub storage: Storage,
    pub durability: Durability,
    /// What slow subscribers of its channels get; else their routes say it.
    pub slow: Option<Slow>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    Memory,
    Disk,
}

/// Why one cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(r#""{0}" is shorter than a second"#)]
    Short(String),
    #[error(r#""{0}" is no durability: write "accepted", "logged" or "synced""#)]
    Durability(String),
    #[error(r#"durability = "{0}" needs storage = "disk""#)]
    Volatile(String),
    #[error(r#""{0}" is nothing for slow subscribers: write "close", "repair" or "newest""#)]
    Slow(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    r#match: String,
    #[serde(default = "default_realm")]
    realm: String,
    #[serde(default = "default_items")]
    items: usize,
    #[serde(default = "default_bytes")]
    bytes: usize,
    #[serde(default = "default_age")]
    age: String,
    #[serde(default = "default_total_bytes")]
    total_bytes: usize,
    #[serde(default = "default_storage")]
    storage: Storage,
    durability: Option<String>,
    slow: Option<String>,
}

impl Section {
    pub(super) fn build(self) -> Result<Log, Invalid> {
        let age = duration(&self.age)?;
        if age.as_secs() == 0 {
            return Err(Fault::Short(self.age).into());
        }
        let durability = match (self.storage, self.durability.as_deref()) {
            (Storage::Memory, None) => Durability::Accepted,
            (Storage::Disk, None) => Durability::Logged,
            (storage, Some(text)) => match (storage, Durability::named(text)) {
                (_, None) => return Err(Fault::Durability(text.into()).into()),
                (Storage::Memory, Some(Durability::Logged | Durability::Synced)) => {
                    return Err(Fault::Volatile(text.into()).into());
                }
                (_, Some(durability)) => durability,
            },
        };
        let slow = self.slow.map(|text| Slow::named(&text).ok_or(Fault::Slow(text))).transpose()?;
        Ok(Log {
            pattern: Pattern::new(&self.r#match),
            text: self.r#match,
            realm: self.realm,
            limits: Limits {
                items: at_least(1, self.items)?,
                bytes: at_least(1, self.bytes)?,
                age_s: u32::try_from(age.as_secs()).unwrap_or(u32::MAX),
            },
            total_bytes: at_least(1, self.total_bytes)?,
            storage: self.storage,
            durability,
            slow,
        })
    }
}

fn default_realm() -> String {
    DEFAULT_REALM.into()
}

const fn default_items() -> usize {
    1000
}

const fn default_bytes() -> usize {
    1 << 20
}

fn default_age() -> String {
    "10m".into()
}

const fn default_total_bytes() -> usize {
    256 << 20
}

const fn default_storage() -> Storage {
    Storage::Memory
}
