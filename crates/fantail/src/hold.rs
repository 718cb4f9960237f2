//! A shard's holds: streams and long-polls, their channels, and the delivery of items to them.
