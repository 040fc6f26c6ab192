//! `cargo fuzz` of `template`: what is done with the bytes is in src/template.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| worker_orcd_fuzz::template::run(bytes));
