//! Stopping in order, within a deadline.
