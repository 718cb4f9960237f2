//! Accepts connections on a shard's own sockets and serves requests with hyper until one is held.

pub mod guard;
