//! The harness: the real binary ([`TestServer`]), an origin whose every byte the test decides ([`Origin`]),
//! and a client that reads strictly ([`Client`]). Waiting is always for something observable, with a
//! deadline.

mod client;
mod origin;
mod server;
mod wire;

pub use client::Client;
pub use origin::{Origin, Then, answer, hold};
pub use server::{JSON, TestServer, poll_item, stream_item};
pub use wire::{Framing, ReadError, find};
