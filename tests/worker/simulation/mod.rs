//! What holds whatever happens: random scripts of requests, cancels, nonsense, time, slow readers, device failures and ends, each
//! event held against a model. `WORKER_ORCD_SCRIPTS` says how many scripts are run; `WORKER_ORCD_SEED` runs one and prints it.

mod check;
mod dice;
mod model;
mod script;
mod seen;
mod wish;
mod world;

use std::panic::{catch_unwind, resume_unwind};

use seen::Seen;
use world::{Transcript, run_script};

/// Scripts that are run, unless somebody wants another number.
const SCRIPTS: u64 = 100_000;

/// So many of them come to every error and every exit.
const SCRIPTS_THAT_SEE_ALL: u64 = 20_000;

#[test]
fn whatever_happens_every_event_has_its_reason() {
    if let Some(seed) = number("WORKER_ORCD_SEED") {
        run_script(seed, Transcript::Print);
        return;
    }
    let scripts = number("WORKER_ORCD_SCRIPTS").unwrap_or(SCRIPTS);
    let mut seen = Seen::default();
    for seed in 0..scripts {
        match catch_unwind(|| run_script(seed, Transcript::None)) {
            Ok(more) => seen.add(&more),
            Err(panic) => {
                eprintln!("the script of seed {seed} fails; WORKER_ORCD_SEED={seed} prints it");
                resume_unwind(panic);
            }
        }
    }
    if scripts >= SCRIPTS_THAT_SEE_ALL {
        seen.assert_all();
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}
