//! Any bytes are a request, the beginning of one, or refused, however they are split; and what is
//! accepted is accepted by hyper's parser with the same length.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::request(data));
