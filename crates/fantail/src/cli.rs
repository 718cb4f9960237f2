//! The command line: `serve`, `check` and `publish`.
