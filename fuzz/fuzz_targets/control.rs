//! An origin's WebSocket message: any has a verdict, and what it instructs can be done.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::control(data));
