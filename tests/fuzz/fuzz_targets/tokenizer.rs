//! `cargo fuzz` of `tokenizer`: what is done with the bytes is in src/tokenizer.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| worker_orcd_fuzz::tokenizer::run(bytes));
