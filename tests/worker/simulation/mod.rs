//! What holds whatever happens: random scripts of requests, cancels, nonsense, time, slow readers, device failures and ends, each
//! event held against a model. `WORKER_ORCD_SCRIPTS` says how many scripts are run; `WORKER_ORCD_SEED` runs one and prints it.

mod check;
mod dice;
mod model;
mod script;
mod world;

use std::panic::{catch_unwind, resume_unwind};

use world::{Transcript, run_script};

/// Scripts that are run, unless somebody wants another number.
const SCRIPTS: u64 = 100_000;

#[test]
fn whatever_happens_every_event_has_its_reason() {
    if let Some(seed) = number("WORKER_ORCD_SEED") {
        return run_script(seed, Transcript::Print);
    }
    for seed in 0..number("WORKER_ORCD_SCRIPTS").unwrap_or(SCRIPTS) {
        if let Err(panic) = catch_unwind(|| run_script(seed, Transcript::None)) {
            eprintln!("the script of seed {seed} fails; WORKER_ORCD_SEED={seed} prints it");
            resume_unwind(panic);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}
