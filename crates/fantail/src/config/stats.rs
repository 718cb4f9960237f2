//! The section `[stats]`: what is told of clients, and where. Opens nothing.

use std::{path::Path, time::Duration};

use serde::Deserialize;

use super::{
    Address,
    file::{Invalid, address, at_least, duration},
    zeromq::{Endpoint, optional},
};

/// Who watches clients, and what they are told.
#[derive(Clone, Debug)]
pub struct Stats {
    pub socket: Option<Endpoint>,
    pub format: StatsFormat,
    pub connections: bool,
    pub connection_ttl: Duration,
    pub subscription_ttl: Duration,
    pub report_every: Duration,
    /// 0: nothing is counted in blocks.
    pub block_bytes: u64,
    pub prometheus: Option<Address>,
    pub prometheus_prefix: String,
}

/// How packets are written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum StatsFormat {
    TNetString,
    Json,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    socket: String,
    format: StatsFormat,
    connections: bool,
    connection_ttl: String,
    subscription_ttl: String,
    report_every: String,
    block_bytes: u64,
    prometheus: String,
    prometheus_prefix: String,
}

impl Section {
    pub(super) fn build(self, base: &Path) -> Result<Stats, Invalid> {
        let time = |text: &str| {
            let time = duration(text)?;
            at_least(1, time.as_secs()).map(|_| time)
        };
        let prometheus = Some(self.prometheus).filter(|text| !text.is_empty());
        if !self.prometheus_prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(Invalid::Prefix(self.prometheus_prefix));
        }
        Ok(Stats {
            socket: optional(&self.socket, base)?,
            format: self.format,
            connections: self.connections,
            connection_ttl: time(&self.connection_ttl)?,
            subscription_ttl: time(&self.subscription_ttl)?,
            report_every: time(&self.report_every)?,
            block_bytes: self.block_bytes,
            prometheus: prometheus.map(|text| address(&text, base)).transpose()?,
            prometheus_prefix: self.prometheus_prefix,
        })
    }
}
