//! What a worker behind ZeroMQ sends: frames, and the packets in them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::zhttp(data));
