//! The path of a publisher: authenticate, decode, hand to the hub, answer.

pub mod http;
