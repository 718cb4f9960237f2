//! Black-box tests of the `fantail` binary: real sockets, a scripted origin, a file a behaviour. The
//! numbers in the tests' comments are the checks of the compatibility specification.
#![expect(unreachable_pub, reason = "a test binary has no users; pub says what a module offers")]

mod cli;
mod corpus;
mod cross_origin;
mod departure;
mod descriptors;
mod docs;
mod drain;
mod early;
mod fills;
mod filters;
mod harness;
mod inquiries;
mod jsonp;
mod keys;
mod limits;
mod links;
mod logs;
mod long_poll;
mod many;
mod metrics;
mod origin_faults;
mod proxying;
mod publishing;
mod pushpin;
mod recovery;
mod routes;
mod security;
mod sequence;
mod sharing;
mod slow;
mod smuggling;
mod soak;
mod sockjs;
mod stream;
mod tls;
mod webhook;
mod webhook_failures;
mod webhook_queue;
mod webhook_safety;
mod websocket_hostile;
mod websocket_native;
mod websocket_over_http;
mod websocket_publish;
mod websocket_trust;
