//! What a component's server sends, and stanzas that are published.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::xmpp(data));
