//! `cargo fuzz` of `gguf`: what is done with the bytes is in src/gguf.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| worker_orcd_fuzz::gguf::run(bytes));
