//! The tenants: their ids and keys, and whether a token is one of theirs.
