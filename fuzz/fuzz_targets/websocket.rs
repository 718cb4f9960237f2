//! What a WebSocket peer sends: any bytes, in any pieces, are the same events and the same end.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::websocket(data));
