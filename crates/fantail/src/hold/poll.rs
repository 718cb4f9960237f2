//! A held long-poll: what it is answered with, by an item or when its time is up (spec 3.6, 3.7).

use std::time::SystemTime;

use bytes::Bytes;
use fantail_proto::{
    grip::Reply,
    item::{Response, ResponseBody},
    patch, reply,
};

/// What a long-poll keeps while it waits.
#[derive(Debug)]
pub struct Poll {
    /// The origin's answer: sent when the time is up, and what items are laid over.
    pub reply: Reply,
    /// The request as it came, to be read again when the origin is asked once more.
    pub request: Vec<u8>,
    /// What the client had sent behind it.
    pub unread: Vec<u8>,
    pub shape: Shape,
    /// For `Grip-Last` when the request is replayed: a channel as the origin named it, and its prev-id.
    pub last_ids: Vec<(String, String)>,
    pub answered: bool,
}

/// How the client must be answered.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// HTTP/1.1, or HTTP/1.0.
    pub http11: bool,
    /// Head only.
    pub head: bool,
    pub keep_alive: bool,
}
