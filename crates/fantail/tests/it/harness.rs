//! The harness: the real binary ([`TestServer`]), an origin whose every byte the test decides ([`Origin`]),
//! and a client that reads strictly ([`Client`]). Waiting is always for something observable, with a
//! deadline.

mod client;
mod origin;
mod server;
pub mod tls;
pub mod websocket;
mod wire;

pub use client::{Client, Response};
pub use origin::{Origin, Request, Then, answer, hold};
pub use server::{JSON, Options, TestServer, poll_item, stream_item};
pub use websocket::{Said, WebSocket};
pub use wire::{DEADLINE, Framing, Head, ReadError, find};
