//! A link of an origin's in a document: it leads nowhere, or to what can be asked for.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::links(data));
