//! Models of real size for tests on a card: from a folder, or written by `orcd synth`.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use worker_orcd::device::cuda::driver::Context;

use super::say;

/// A folder where `SHAPE.gguf` lies, or is written to.
const FOLDER: &str = "WORKER_ORCD_TEST_MODELS";

/// The `orcd` that writes what the folder lacks.
const ORCD: &str = "WORKER_ORCD_TEST_ORCD";

/// The card, for one test at a time: they look at its memory.
pub struct FirstCard {
    context: Context,
    _turn: MutexGuard<'static, ()>,
}

impl FirstCard {
    /// `None`, loudly, where there is none.
    pub fn open() -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        match Context::open(0) {
            Ok(context) => Some(Self {
                context,
                _turn: turn,
            }),
            Err(e) => {
                say(&format!("SKIP: {e}"));
                None
            }
        }
    }

    /// Bytes that nobody uses, by the driver's word.
    pub fn free_bytes(&self) -> u64 {
        self.context.memory().expect("the driver answers").0
    }
}

/// The model of a shape that `orcd synth` knows; `None`, loudly, where it is neither found nor written.
pub fn large_model(shape: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(FOLDER).map(PathBuf::from);
    let orcd = std::env::var_os(ORCD);
    if folder.is_none() && orcd.is_none() {
        say(&format!(
            "SKIP: no {shape}; name a folder of models in {FOLDER}, or an orcd that writes them in {ORCD}"
        ));
        return None;
    }
    let folder = folder.unwrap_or_else(|| std::env::temp_dir().join("worker-orcd-models"));
    let path = folder.join(format!("{shape}.gguf"));
    if !path.is_file() {
        let Some(orcd) = orcd else {
            say(&format!("SKIP: there is no {}", path.display()));
            return None;
        };
        write_model(Path::new(&orcd), shape, &path);
    }
    Some(path)
}

/// Under another name first, so that what is there is whole.
fn write_model(orcd: &Path, shape: &str, path: &Path) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let status = Command::new(orcd)
        .args(["synth", shape])
        .arg(&part)
        .status()
        .expect("orcd runs");
    assert!(status.success(), "orcd synth {shape}: {status}");
    std::fs::rename(&part, path).expect("renamed");
}
