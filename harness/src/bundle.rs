//! `orcd bundle`: one folder with all that a machine with a card and without Rust needs to run the tests and the benches: programs, fixtures, and
//! `run.sh`, which writes what comes out into a folder.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::bench::record;
use crate::out;

/// Where the fixtures lie in the project.
const FIXTURES: &str = "tests/data/fixtures";

/// Flags of `orcd bundle`.
#[derive(Clone, Debug, Args)]
pub struct BundleArgs {
    /// The folder that is made; one that is there already must be empty
    #[arg(value_name = "OUT_DIR")]
    pub out: PathBuf,

    /// The project's folder
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub project: PathBuf,

    /// Features to build with
    #[arg(long, value_name = "LIST", default_value = "cuda")]
    pub features: String,

    /// Cargo's profile
    #[arg(long, value_name = "NAME", default_value = "release")]
    pub profile: String,

    /// Tests and benches to pack: all whose names begin so
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "cuda"
    )]
    pub tests: Vec<String>,

    /// Models of random weights that run.sh makes and measures there, one after another; see orcd synth
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "llama3-8b,llama3-1b,qwen2.5-0.5b,smollm2-135m,gpt-oss-20b"
    )]
    pub shapes: Vec<String>,

    /// A model file to pack too, for the tests that run on a real one
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,

    /// Pack these programs and build nothing: orcd and worker-orcd, all others are tests. Can be given several times
    #[arg(long, value_name = "FILE")]
    pub program: Vec<PathBuf>,
}

/// What cargo says of a target that it has built.
#[derive(Debug, Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// A program and its name in the bundle: "worker-orcd", "tests/cuda", "benches/cuda".
type Packed = (PathBuf, String);

/// Runs `orcd bundle`.
///
/// # Errors
/// When something does not build or cannot be copied.
pub fn run(args: &BundleArgs) -> Result<()> {
    let is_free = match fs::read_dir(&args.out) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => !args.out.exists(),
    };
    ensure!(
        is_free,
        "{} is there already and not empty",
        args.out.display()
    );
    let programs = match args.program.as_slice() {
        [] => built(args)?,
        given => given
            .iter()
            .map(|path| (path.clone(), given_name(path)))
            .collect(),
    };
    for needed in ["orcd", "worker-orcd"] {
        let there = programs.iter().any(|(_, name)| name == needed);
        ensure!(there, "{needed} is not among the programs");
    }
    for (from, name) in &programs {
        pack(from, &args.out.join(name))?;
    }
    copy_folder(&args.project.join(FIXTURES), &args.out.join("fixtures"))?;
    if let Some(model) = &args.model {
        copy(model, &args.out.join("model.gguf"))?;
    }
    let script = args.out.join("run.sh");
    let say = || format!("cannot write {}", script.display());
    fs::write(&script, run_script(&args.shapes)).with_context(say)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).with_context(say)?;
    out::print_line(&format!(
        "{}: {} programs, {}; run.sh runs them",
        args.out.display(),
        programs.len(),
        out::megabytes(size(&args.out)?)
    ))
}

fn given_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match &*name {
        "orcd" | "worker-orcd" => name.into_owned(),
        // cargo puts a hash behind a test's name
        _ => format!("tests/{}", name.split('-').next().unwrap_or(&name)),
    }
}

/// Builds the programs and asks cargo where they are.
fn built(args: &BundleArgs) -> Result<Vec<Packed>> {
    let run = Command::new("cargo")
        .args([
            "test",
            "--no-run",
            "--workspace",
            "--bins",
            "--tests",
            "--benches",
        ])
        .args(["--features", &args.features, "--profile", &args.profile])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(&args.project)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be run; name the programs with --program")?;
    ensure!(run.status.success(), "the programs do not build");
    let said = String::from_utf8_lossy(&run.stdout);
    let programs: Vec<Packed> = said
        .lines()
        .filter_map(|line| named(serde_json::from_str(line).ok()?, &args.tests))
        .collect();
    match programs.is_empty() {
        true => bail!("cargo has built no program"),
        false => Ok(programs),
    }
}

/// What a program is called in the bundle; `None` where it does not belong there.
fn named(artifact: Artifact, tests: &[String]) -> Option<Packed> {
    let Artifact { target, executable } = artifact;
    let from = executable?;
    let folder = match target.kind.first()?.as_str() {
        // The tests that are in a program's own sources lie in another folder than the program.
        "bin" if from.parent()?.file_name() != Some(OsStr::new("deps")) => {
            return Some((from, target.name));
        }
        "test" => "tests",
        "bench" => "benches",
        _ => return None,
    };
    let wanted = tests.iter().any(|begins| target.name.starts_with(begins));
    wanted.then(|| (from, format!("{folder}/{}", target.name)))
}

/// Copies a program without what only a debugger reads, where `strip` is there.
fn pack(from: &Path, to: &Path) -> Result<()> {
    make_folder(to)?;
    let strip = Command::new("strip").arg("-o").arg(to).arg(from).output();
    match strip {
        Ok(run) if run.status.success() => Ok(()),
        Ok(_) | Err(_) => copy(from, to),
    }
}

fn make_folder(of: &Path) -> Result<()> {
    let folder = of.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_folder(to)?;
    let say = || format!("cannot copy {} to {}", from.display(), to.display());
    fs::copy(from, to).with_context(say)?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let say = || format!("cannot read {}", from.display());
    for entry in fs::read_dir(from).with_context(say)? {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).with_context(say)?;
        match path.is_dir() {
            true => copy_folder(&path, &to.join(name))?,
            false => copy(&path, &to.join(name))?,
        }
    }
    Ok(())
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += match meta.is_dir() {
            true => size(&entry.path())?,
            false => meta.len(),
        };
    }
    Ok(bytes)
}

/// What runs everything: tests first, then the benches, model by model.
fn run_script(shapes: &[String]) -> String {
    SCRIPT
        .replace("@COMMIT@", &record::commit().unwrap_or_default())
        .replace("@SHAPES@", &shapes.join(" "))
}

const SCRIPT: &str = r#"#!/bin/sh
# Runs the tests and the benches of this bundle: sh run.sh [tests] [bench]; both where none is named. What they say goes to $OUT/log.txt too
# (default: results), records to $OUT/records, charts to $OUT/charts. DEVICE (cuda:0), SHAPES, BENCH_FLAGS and SCRATCH (a folder for models)
# can be set. The exit code is 1 when anything failed.
cd "$(dirname "$0")" || exit 1
here=$PWD
OUT=${OUT:-$here/results}
SCRATCH=${SCRATCH:-${TMPDIR:-/tmp}}
DEVICE=${DEVICE:-cuda:0}
SHAPES=${SHAPES-@SHAPES@}
export WORKER_ORCD_BIN="$here/worker-orcd" WORKER_ORCD_TEST_ORCD="$here/orcd"
export WORKER_ORCD_TEST_FIXTURES="$here/fixtures"
[ -f model.gguf ] && export WORKER_ORCD_TEST_MODEL="$here/model.gguf"
mkdir -p "$OUT" && rm -f "$OUT/failed"

failed() { echo "FAILED: $1"; echo "$1" >> "$OUT/failed"; }

run_tests() {
    for test in tests/*; do
        [ -x "$test" ] || continue
        echo "== $test"
        "./$test" --test-threads=1 || failed "$test"
    done
}

bench() {
    name=$1
    file=$2
    echo "== bench $name"
    # the flags are several words
    ./orcd bench all --model "$file" --device "$DEVICE" --records "$OUT/records" --commit "@COMMIT@" $BENCH_FLAGS || failed "bench $name"
}

run_benches() {
    [ -f model.gguf ] && bench model.gguf "$here/model.gguf"
    for shape in $SHAPES; do
        file=$SCRATCH/$shape.gguf
        [ -f "$file" ] || ./orcd synth "$shape" "$file" || { failed "synth $shape"; continue; }
        bench "$shape" "$file"
        rm -f "$file"
    done
    ./orcd bench report --records "$OUT/records" --out "$OUT/charts" || failed report
}

run() {
    for what in "${@:-tests bench}"; do
        for one in $what; do
            case $one in
                tests) run_tests ;;
                bench) run_benches ;;
                *) failed "there is no $one; tests and bench can be run" ;;
            esac
        done
    done
}

run "$@" 2>&1 | tee "$OUT/log.txt"
[ ! -f "$OUT/failed" ]
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_go_where_the_script_looks_for_them() {
        let tests = ["cuda".to_owned()];
        let name = |line: &str| {
            let artifact = serde_json::from_str(line).unwrap();
            named(artifact, &tests).map(|(_, name)| name)
        };
        let bin = r#"{"target":{"name":"orcd","kind":["bin"]},"executable":"/t/release/orcd"}"#;
        assert_eq!(name(bin).as_deref(), Some("orcd"));
        let own =
            r#"{"target":{"name":"orcd","kind":["bin"]},"executable":"/t/release/deps/orcd-1"}"#;
        assert_eq!(name(own), None);
        let test = r#"{"target":{"name":"cuda_process","kind":["test"]},"executable":"/t/release/deps/cuda_process-1"}"#;
        assert_eq!(name(test).as_deref(), Some("tests/cuda_process"));
        let other =
            r#"{"target":{"name":"gguf","kind":["test"]},"executable":"/t/release/deps/gguf-1"}"#;
        assert_eq!(name(other), None);
        let library = r#"{"target":{"name":"x","kind":["lib"]},"executable":null}"#;
        assert_eq!(name(library), None);
        assert_eq!(given_name(Path::new("/x/cuda-0a1b")), "tests/cuda");
        assert_eq!(given_name(Path::new("/x/worker-orcd")), "worker-orcd");
    }
}
