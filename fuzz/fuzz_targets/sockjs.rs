//! What a client of SockJS asks for and says: what is read is merged and read again as it was.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::sockjs(data));
