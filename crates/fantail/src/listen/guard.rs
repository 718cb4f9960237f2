//! Stands between a client's socket and hyper: passes on only strictly well-formed requests.
