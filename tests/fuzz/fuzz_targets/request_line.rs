//! `cargo fuzz` of `request_line`: what is done with the bytes is in src/request_line.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| worker_orcd_fuzz::request_line::run(bytes));
