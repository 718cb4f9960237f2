//! The section `[sockjs]`.

use std::time::Duration;

use serde::Deserialize;

use super::file::{Invalid, at_least, time_limit};

/// Of SockJS sessions.
#[derive(Clone, Debug)]
pub struct SockJs {
    /// Of one shard, at once.
    pub sessions: usize,
    pub heartbeat: Duration,
    pub disconnect_timeout: Duration,
    pub stream_bytes: usize,
    /// The client's script, for frames of old browsers.
    pub url: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    sessions: usize,
    heartbeat: String,
    disconnect_timeout: String,
    stream_bytes: usize,
    url: String,
}

impl Section {
    pub(super) fn build(self) -> Result<SockJs, Invalid> {
        Ok(SockJs {
            sessions: self.sessions,
            heartbeat: time_limit(&self.heartbeat)?,
            disconnect_timeout: time_limit(&self.disconnect_timeout)?,
            stream_bytes: at_least(1, self.stream_bytes)?,
            url: self.url,
        })
    }
}
