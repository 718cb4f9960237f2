//! Fantail's wire formats and decisions as values: bytes and the time come in, values go out.
//! No socket, clock, thread or runtime is reachable from here.
//!
//! The rooms, in reading order:
//!
//! - [`request`]: is this HTTP/1 request strictly well-formed, and where does it end?
//! - [`route`]: the routes grammar, and which route a request takes
//! - [`forward`]: what becomes of a request's headers on the way to the origin
//! - [`hop`]: which headers concern one connection only
//! - [`grip`]: what the origin's answer asks for (hold, channels, keep-alive, …)
//! - [`link`]: where an origin's links lead
//! - [`item`]: what a publisher sent
//! - [`duplicate`]: whether an id was seen lately
//! - [`log`]: the newest items of a channel, and what can be proven from them
//! - [`journal`]: the files that keep them
//! - [`sequence`]: which item follows which, and what comes too early
//! - [`recovery`]: how far a subscriber is, and what is done about a gap
//! - [`slow`]: what becomes of items for a subscriber that reads too slowly
//! - [`patch`]: an item that changes the origin's body instead of replacing it
//! - [`filter`]: whether a subscriber gets an item
//! - [`render`]: an item's bytes, once per transport
//! - [`reply`]: the head of a response that Fantail writes itself
//! - [`cors`]: what a response says to pages of other origins
//! - [`sockjs`]: SockJS: its paths, its frames, its ways to receive them
//! - [`jsonp`]: a script as a request, and its answer as a call
//! - [`query`]: names and values of a query or a form
//! - [`test_origin`]: what the built-in origin answers
//! - [`websocket`]: WebSockets: messages, instructions, and the way over HTTP
//! - [`session`]: what is said to and of a server that keeps sessions
//! - [`address`]: which addresses strangers must not be let to
//! - [`webhook`]: where webhooks may go, their signatures, and when they are tried again
//! - [`tnetstring`]: the values that Pushpin's ZeroMQ messages are made of
//! - [`zmtp`]: the bytes between ZeroMQ sockets
//! - [`zhttp`]: requests to workers behind ZeroMQ, and their responses
//! - [`xmpp`]: stanzas, and the stream of a component
//! - [`json`]: a borrowed JSON value, for the parsers above

pub mod address;
pub mod cors;
pub mod duplicate;
pub mod filter;
pub mod forward;
pub mod grip;
pub mod hop;
pub mod item;
pub mod journal;
pub mod json;
pub mod jsonp;
pub mod link;
pub mod log;
mod members;
mod params;
pub mod patch;
pub mod query;
pub mod recovery;
pub mod render;
pub mod reply;
pub mod request;
pub mod route;
pub mod sequence;
pub mod session;
pub mod slow;
pub mod sockjs;
pub mod test_origin;
pub mod tnetstring;
pub mod webhook;
pub mod websocket;
pub mod xmpp;
pub mod zhttp;
pub mod zmtp;
