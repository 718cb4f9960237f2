//! One request to an origin, one answer: connections, TLS, reuse, time-outs.
