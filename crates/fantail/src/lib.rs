//! Fantail: a reverse proxy that holds client connections open and a broker that pushes data through
//! them. A client asks; the origin says *hold this*; a publisher posts an item; every connection that
//! holds its channel gets it.
//!
//! The rooms, in reading order. The path of a client: [`listen`] → [`route`] → [`proxy`] → [`hub`] →
//! [`hold`]. The path of a publisher: [`publish`] → [`hub`]. `upstream` is a tool: one request in, one
//! response out. [`log`] serves the hub, [`webhook`] and [`xmpp`] hang on it. [`realm`] is the tenants, [`admin`] is
//! for operators; [`channel`], [`config`], [`metrics`], [`logging`], [`drain`], [`session`], [`stats`], [`store`], [`tcp`]
//! and [`error`] are the closets.

pub mod admin;
pub mod certificate;
pub mod channel;
pub mod cli;
pub mod client;
pub mod config;
pub mod drain;
pub mod error;
pub mod hold;
pub mod hub;
pub mod listen;
pub mod log;
pub mod logging;
pub mod metrics;
pub mod proxy;
pub mod publish;
pub mod realm;
pub mod route;
pub mod server;
pub mod session;
pub mod shard;
pub mod sign;
pub mod snapshot;
pub mod stats;
pub mod store;
pub mod tcp;
pub mod upstream;
pub mod webhook;
pub mod xmpp;
