//! Where things are: the worker's binary, the cache folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The worker's file name.
const WORKER: &str = "worker-orcd";

/// Names the worker's binary where `--worker` does not.
pub const WORKER_VARIABLE: &str = "WORKER_ORCD_BIN";

/// Names the model of golden files and tests where `--model` does not.
pub const TEST_MODEL_VARIABLE: &str = "WORKER_ORCD_TEST_MODEL";

/// A variable of the environment that is set and not empty.
pub fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// The user's cache folder for this project: `$XDG_CACHE_HOME/worker-orcd`, else `~/.cache/worker-orcd`.
///
/// # Errors
/// When neither XDG_CACHE_HOME nor HOME names an absolute path.
pub fn cache_folder() -> Result<PathBuf> {
    // The base directory specification says to ignore relative paths.
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    let base =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    Ok(base
        .context("there is no cache folder: set HOME or XDG_CACHE_HOME to an absolute path")?
        .join("worker-orcd"))
}

/// The worker's binary: `flag` (`--worker`), else `$WORKER_ORCD_BIN`, else the one beside this program, else the first on `$PATH`.
///
/// # Errors
/// When the named file is not there, or when there is none; the message says where was looked.
pub fn worker_binary(flag: Option<&Path>) -> Result<PathBuf> {
    let named = flag.map(|path| (path.to_owned(), "--worker"));
    if let Some((path, whence)) =
        named.or_else(|| variable(WORKER_VARIABLE).map(|path| (path, WORKER_VARIABLE)))
    {
        if !path.is_file() {
            bail!(
                "{whence} names {}, and there is no such file",
                path.display()
            );
        }
        return Ok(path);
    }
    let beside = std::env::current_exe()
        .ok()
        .as_deref()
        .map(beside)
        .unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = beside
        .iter()
        .cloned()
        .chain(on_path(&path))
        .find(|path| path.is_file())
    {
        return Ok(found);
    }
    let looked: Vec<_> = beside
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    bail!(
        "there is no {WORKER}: not at {}, nor on $PATH. Build it ({}), or name it with --worker FILE or {WORKER_VARIABLE}",
        looked.join(", nor at "),
        build_command(beside.last())
    )
}

/// What puts the worker beside this program, which cargo has built in one profile or another.
fn build_command(worker: Option<&PathBuf>) -> &'static str {
    let release = worker
        .and_then(|worker| worker.parent())
        .is_some_and(|folder| folder.ends_with("release"));
    if release {
        "cargo build --release"
    } else {
        "cargo build"
    }
}

/// Where the worker is when it was built together with `program`; tests and examples lie one folder deeper.
fn beside(program: &Path) -> Vec<PathBuf> {
    let Some(folder) = program.parent() else {
        return Vec::new();
    };
    let deeper = folder.ends_with("deps") || folder.ends_with("examples");
    let above = folder.parent().filter(|_| deeper);
    [Some(folder), above]
        .into_iter()
        .flatten()
        .map(|folder| folder.join(WORKER))
        .collect()
}

fn on_path(path: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(WORKER))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_find_the_worker_one_folder_up() {
        let found = beside(Path::new("/t/debug/examples/spawn"));
        assert_eq!(
            found,
            [
                PathBuf::from("/t/debug/examples/worker-orcd"),
                PathBuf::from("/t/debug/worker-orcd")
            ]
        );
        assert_eq!(
            beside(Path::new("/t/debug/orcd")),
            [PathBuf::from("/t/debug/worker-orcd")]
        );
    }
}
