//! A file of logs: nothing is read that was not written, and nothing of it is passed over.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::journal(data));
