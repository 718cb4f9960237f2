//! Webhooks as values: where one may go, how it is signed, when it is tried again, and what is sent of an item.
//! Nothing here resolves a name or looks at a clock.

pub mod envelope;
pub mod retry;
pub mod signature;
pub mod target;
