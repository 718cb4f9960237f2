//! The section `[webhooks]`: as it is written, and as the program uses it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use fantail_proto::{
    address::{self, Block, Range},
    webhook::retry::Schedule,
};
use serde::Deserialize;

use super::file::{Invalid, at_least, at_most, duration, path, time_limit};

/// How webhooks are delivered, and within which limits.
#[derive(Clone, Debug)]
pub struct Webhooks {
    pub concurrency: usize,
    pub realm_concurrency: usize,
    pub endpoint_concurrency: usize,
    pub connect_timeout: Duration,
    pub timeout: Duration,
    pub response_bytes: usize,
    pub redirects: usize,
    pub retry: Schedule,
    pub disable_after: Duration,
    pub queue_items: usize,
    pub realm_queue_items: usize,
    pub endpoint_queue_items: usize,
    pub queue_bytes: usize,
    pub realm_queue_bytes: usize,
    pub endpoint_queue_bytes: usize,
    pub channel_endpoints: usize,
    pub dead_letters: usize,
    pub dead_letter_bytes: u64,
    pub realm_dead_letter_bytes: u64,
    pub all_dead_letter_bytes: u64,
    pub endpoints: u64,
    pub secret_overlap: Duration,
    /// Empty: none.
    pub notices: String,
    pub allow: Vec<Block>,
    pub deny: Vec<Block>,
    pub lookup_every: Duration,
    pub ca_file: Option<PathBuf>,
}

impl Webhooks {
    /// Why no webhook may go to an address. What is denied is so although it is allowed.
    pub fn forbids(&self, ip: IpAddr) -> Option<Range> {
        let denied = self.deny.iter().any(|block| block.contains(ip));
        if denied { Some(Range::Denied) } else { address::forbidden(ip, &self.allow) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    concurrency: usize,
    realm_concurrency: usize,
    endpoint_concurrency: usize,
    connect_timeout: String,
    timeout: String,
    response_bytes: usize,
    redirects: usize,
    retry: Vec<String>,
    disable_after: String,
    queue_items: usize,
    realm_queue_items: usize,
    endpoint_queue_items: usize,
    queue_bytes: usize,
    realm_queue_bytes: usize,
    endpoint_queue_bytes: usize,
    channel_endpoints: usize,
    dead_letters: usize,
    dead_letter_bytes: u64,
    realm_dead_letter_bytes: u64,
    all_dead_letter_bytes: u64,
    endpoints: u64,
    secret_overlap: String,
    notices: String,
    allow: Vec<String>,
    deny: Vec<String>,
    lookup_every: String,
    ca_file: String,
}

impl Section {
    pub(super) fn build(self, base: &Path) -> Result<Webhooks, Invalid> {
        let block = |text: String| Block::parse(&text).ok_or(Invalid::Block(text));
        let blocks = |texts: Vec<String>| texts.into_iter().map(block).collect::<Result<_, _>>();
        let delays = self.retry.iter().map(|text| duration(text)).collect::<Result<Vec<_>, _>>()?;
        at_most(MAX_RETRIES, delays.len())?;
        let concurrency = at_most(MAX_CONCURRENCY, at_least(LEAST_CONCURRENCY, self.concurrency)?)?;
        Ok(Webhooks {
            concurrency,
            realm_concurrency: match self.realm_concurrency {
                0 => concurrency / 4 * 3,
                own => at_least(LEAST_CONCURRENCY, own)?,
            },
            endpoint_concurrency: at_least(1, self.endpoint_concurrency)?,
            connect_timeout: time_limit(&self.connect_timeout)?,
            timeout: time_limit(&self.timeout)?,
            response_bytes: self.response_bytes,
            redirects: at_most(MAX_REDIRECTS, self.redirects)?,
            retry: Schedule::new(delays),
            disable_after: time_limit(&self.disable_after)?,
            queue_items: at_least(1, self.queue_items)?,
            realm_queue_items: at_least(1, self.realm_queue_items)?,
            endpoint_queue_items: at_least(1, self.endpoint_queue_items)?,
            queue_bytes: self.queue_bytes,
            realm_queue_bytes: self.realm_queue_bytes,
            endpoint_queue_bytes: self.endpoint_queue_bytes,
            channel_endpoints: at_least(1, self.channel_endpoints)?,
            dead_letters: self.dead_letters,
            dead_letter_bytes: self.dead_letter_bytes,
            realm_dead_letter_bytes: self.realm_dead_letter_bytes,
            all_dead_letter_bytes: self.all_dead_letter_bytes,
            endpoints: self.endpoints,
            secret_overlap: duration(&self.secret_overlap)?,
            notices: self.notices,
            allow: blocks(self.allow)?,
            deny: blocks(self.deny)?,
            lookup_every: duration(&self.lookup_every)?,
            ca_file: path(&self.ca_file, base),
        })
    }
}

/// Each class of endpoints has a part of it.
const LEAST_CONCURRENCY: usize = 8;
/// Each has a socket and some kilobytes.
const MAX_CONCURRENCY: usize = 65_536;
const MAX_REDIRECTS: usize = 10;
const MAX_RETRIES: usize = 100;
