//! WebSockets as values (RFC 6455, 7692): bytes that came in, events; what to send, bytes. Holds no
//! memory for a connection on which no message is half-way, and never touches a socket.
//!
//! - [`handshake`]: whether an upgrade request is in order, and the origin's answer to ours
//! - [`frame`]: one frame to send
//! - [`close`]: what a close frame says
//! - [`reader`]: the messages and control frames in received bytes
//! - [`deflate`]: permessage-deflate, agreed on and applied

pub mod close;
pub mod deflate;
mod extension;
pub mod frame;
pub mod handshake;
pub mod reader;
