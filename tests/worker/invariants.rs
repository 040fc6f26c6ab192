//! Random scripts of all that can happen to a worker. A failing seed is printed and can be run alone.

use worker_orcd::sampling::uniform;

use crate::script::{self, Dice};

/// Scripts that are run, unless `WORKER_ORCD_SCRIPTS` says how many.
const SCRIPTS: u64 = 1500;

/// Random choices, from a seed alone.
struct Seeded {
    seed: u64,
    thrown: u64,
}

impl Dice for Seeded {
    fn throw(&mut self, sides: usize) -> usize {
        self.thrown += 1;
        (uniform(self.seed, self.thrown) * sides as f64) as usize
    }
}

#[test]
fn every_accepted_request_has_exactly_one_end() {
    let scripts =
        std::env::var("WORKER_ORCD_SCRIPTS").map_or(SCRIPTS, |n| n.parse().expect("a number"));
    for seed in 0..scripts {
        let run = std::panic::catch_unwind(|| script::run(&mut Seeded { seed, thrown: 0 }));
        if let Err(panic) = run {
            eprintln!("the script of seed {seed} fails");
            std::panic::resume_unwind(panic);
        }
    }
}
