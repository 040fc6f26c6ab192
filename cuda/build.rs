//! Builds the CUDA kernels when the `cuda` feature is on; otherwise does nothing, so that a machine without a toolkit builds the rest.
//!
//! Every `cuda/*.cu` becomes one fat binary in OUT_DIR, which the library embeds. `WORKER_ORCD_CUDA_ARCHS` says for which cards: compute
//! capabilities without the dot, separated by commas ("90a,80"); "ptx" adds code that newer cards translate when they load it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Ampere (A100; RTX 30), Ada (RTX 40), Hopper, Blackwell (B200; RTX 50), and what comes after them.
const ARCHS: &str = "80,86,89,90a,100,120,ptx";

/// What `cu13` toolkit from PyPI is needed, for the message where there is none.
const PIP_LINE: &str = "python3 -m pip install nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85";

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    for name in ["NVCC", "CUDA_HOME", "VIRTUAL_ENV", "WORKER_ORCD_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // "debug" or "release", for what is said of measured speed
    let profile = std::env::var("PROFILE").unwrap_or_default();
    println!("cargo::rustc-env=WORKER_ORCD_PROFILE={profile}");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(problem) = build() {
        println!("cargo::error={problem}");
    }
}

fn build() -> Result<(), String> {
    let nvcc = find_nvcc().ok_or_else(|| {
        format!("no nvcc: it is looked for in NVCC, CUDA_HOME, PATH and Python's packages. `{PIP_LINE}` installs one that suffices")
    })?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
    let archs = std::env::var("WORKER_ORCD_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.to_owned());
    let targets = archs
        .split(',')
        .map(|arch| target(arch.trim()))
        .collect::<Result<Vec<_>, _>>()?;
    for source in sources()? {
        compile(&nvcc, &source, &targets, &out)?;
    }
    println!("cargo::rustc-env=WORKER_ORCD_CUDA_ARCHS_BUILT={archs}");
    Ok(())
}

/// nvcc's option for one architecture.
fn target(arch: &str) -> Result<String, String> {
    if arch == "ptx" {
        return Ok("-gencode=arch=compute_80,code=compute_80".to_owned());
    }
    let number: String = arch.chars().take_while(char::is_ascii_digit).collect();
    match number.parse::<u32>() {
        Ok(n) if n >= 80 => Ok(format!("-gencode=arch=compute_{arch},code=sm_{arch}")),
        Ok(_) => Err(format!(
            "WORKER_ORCD_CUDA_ARCHS names {arch}: cards before compute capability 8.0 (Ampere) are not supported"
        )),
        Err(_) => Err(format!(
            "WORKER_ORCD_CUDA_ARCHS names {arch:?}: it takes compute capabilities without the dot, such as 90a, and ptx"
        )),
    }
}

fn sources() -> Result<Vec<PathBuf>, String> {
    let listing = std::fs::read_dir("cuda").map_err(|e| format!("cuda/ cannot be read: {e}"))?;
    let mut files: Vec<PathBuf> = listing
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    files.sort();
    Ok(files)
}

fn compile(nvcc: &Path, source: &Path, targets: &[String], out: &Path) -> Result<(), String> {
    let name = source.file_stem().unwrap_or_default();
    let to = out.join(name).with_extension("fatbin");
    // -fmad=false: where a product and a sum are rounded once, the code says so, and every instance of a kernel gives the same bits
    let run = Command::new(nvcc)
        .args([
            "-fatbin",
            "-O3",
            "-std=c++17",
            "-fmad=false",
            "--compress-mode=size",
        ])
        .args(targets)
        .arg("-o")
        .arg(&to)
        .arg(source)
        .output()
        .map_err(|e| format!("{} cannot be run: {e}", nvcc.display()))?;
    if run.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr);
    let first = said.lines().take(20).collect::<Vec<_>>().join(" | ");
    Err(format!(
        "{} on {}: {first}",
        nvcc.display(),
        source.display()
    ))
}

/// NVCC, then CUDA_HOME, then PATH, then a toolkit that pip installed for the Python on the PATH.
fn find_nvcc() -> Option<PathBuf> {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return Some(PathBuf::from(nvcc));
    }
    let in_home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join("nvcc"));
    in_home
        .into_iter()
        .chain(in_path)
        .chain(in_python())
        .find(|nvcc| nvcc.is_file())
}

fn in_python() -> Option<PathBuf> {
    let python = match std::env::var_os("VIRTUAL_ENV") {
        Some(venv) => Path::new(&venv).join("bin/python3"),
        None => PathBuf::from("python3"),
    };
    let asks =
        "import nvidia, os; print(os.path.join(list(nvidia.__path__)[0], 'cu13', 'bin', 'nvcc'))";
    let run = Command::new(python).args(["-c", asks]).output().ok()?;
    let said = String::from_utf8(run.stdout).ok()?;
    Some(PathBuf::from(said.trim()))
}
