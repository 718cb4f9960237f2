//! Sends a request to its origin and reads the answer: relayed, or held.
