//! An item as a log keeps it: what is read is written the same way again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::item_record(data));
