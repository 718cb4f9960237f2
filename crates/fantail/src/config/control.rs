//! The section `[control]`: as it is written, and as the program uses it.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;

use super::file::{Invalid, MIN_HEAD, at_least, socket_address, time_limit};

/// Where publishers post.
#[derive(Clone, Debug)]
pub struct Control {
    pub listen: SocketAddr,
    pub open: bool,
    /// Names in lower case, without a port, that it may be asked by. None: any, but on loopback.
    pub hosts: Vec<String>,
    pub head_bytes: usize,
    pub body_bytes: usize,
    pub publish_timeout: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    listen: String,
    open: bool,
    hosts: Vec<String>,
    head_bytes: usize,
    body_bytes: usize,
    publish_timeout: String,
}

impl Section {
    pub(super) fn build(self) -> Result<Control, Invalid> {
        if self.listen.starts_with("unix:") {
            return Err(Invalid::Control(self.listen));
        }
        Ok(Control {
            listen: socket_address(&self.listen).map_err(|why| match why {
                Invalid::Address(text) => Invalid::Control(text),
                other => other,
            })?,
            open: self.open,
            hosts: self.hosts.into_iter().map(name).collect::<Result<_, _>>()?,
            head_bytes: at_least(MIN_HEAD, self.head_bytes)?,
            body_bytes: at_least(1, self.body_bytes)?,
            publish_timeout: time_limit(&self.publish_timeout)?,
        })
    }
}

fn name(text: String) -> Result<String, Invalid> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || !text.chars().all(fits) {
        return Err(Invalid::ControlHost(text));
    }
    Ok(text.to_ascii_lowercase())
}
