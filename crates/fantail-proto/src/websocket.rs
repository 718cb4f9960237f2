//! WebSockets as values (RFC 6455, 7692). Nothing here reads a socket or a clock, and no memory is held for a
//! connection on which nothing is half-way: bytes, answers and the time come in; messages, requests and
//! decisions go out.
//!
//! The files, in reading order:
//!
//! - [`handshake`]: whether an upgrade request is in order, and the origin's answer to ours
//! - [`frame`]: one frame to send
//! - [`close`]: what a close frame says
//! - [`reader`]: the messages and control frames in received bytes
//! - [`deflate`]: permessage-deflate, agreed on and applied
//! - [`events`]: bodies of `application/websocket-events`, both ways
//! - [`control`]: what a message from a GRIP origin is: data for the client, or an instruction
//! - [`over_http`]: one client's WebSocket as a series of POSTs to the origin

pub mod close;
pub mod control;
pub mod deflate;
pub mod events;
mod extension;
pub mod frame;
pub mod handshake;
pub mod over_http;
pub mod reader;
