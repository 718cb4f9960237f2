//! WebSockets as values. Nothing here reads a socket or a clock: bytes, answers and the time come in,
//! messages, requests and decisions go out.
//!
//! The files, in reading order:
//!
//! - [`events`]: bodies of `application/websocket-events`, both ways
//! - [`control`]: what a message from a GRIP origin is: data for the client, or an instruction
//! - [`over_http`]: one client's WebSocket as a series of POSTs to the origin

pub mod control;
pub mod events;
pub mod over_http;
