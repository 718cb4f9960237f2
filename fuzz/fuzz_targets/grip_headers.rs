//! An origin's header lines: whatever they say, no client gets a broken head.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::grip_headers(data));
