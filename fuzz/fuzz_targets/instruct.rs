//! An origin's JSON body: whatever it says, no client gets a broken head.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::instruct(data));
