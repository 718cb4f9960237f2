//! The current routes: read from a file or the configuration, replaced whole on reload.
