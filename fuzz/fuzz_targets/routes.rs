//! A routes file: any text is a table or a list of errors with lines.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| fantail_fuzz::routes(text));
