//! `cargo fuzz` of `worker`: what is done with the bytes is in src/worker.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| worker_orcd_fuzz::worker::run(bytes));
