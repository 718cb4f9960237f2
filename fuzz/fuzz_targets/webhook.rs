//! A webhook's URL, its secret, or a block of addresses: what is read is written as the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| fantail_fuzz::webhook(text));
