//! A publisher's request: what decodes also renders, whole and unbroken.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fantail_fuzz::items(data));
