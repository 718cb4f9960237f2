//! An origin's `application/websocket-events`: refused, or events that can be written and read again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::events(data));
