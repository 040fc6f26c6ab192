//! `orcd synth`: random weights in the exact shape and mix of types of a model that people run, to measure speed with.
//!
//! What a model says depends on its weights; how fast it says it does not. The file is written piece by piece under a
//! temporary name and appears under its own by a rename, whole or not at all. The same shape and seed give the same bytes.

mod gguf;
mod kind;
mod noise;
mod shape;
mod tensors;
mod vocabulary;

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::out;
use crate::progress::Meter;

pub use kind::Kind;
pub use shape::{SHAPES, Shape};

use noise::Noise;
use tensors::Tensor;

/// Flags of `orcd synth`.
#[derive(Clone, Debug, Args)]
pub struct SynthArgs {
    /// Whose shape
    #[arg(value_parser = named())]
    pub shape: &'static Shape,

    /// The file to write
    #[arg(value_name = "OUT.gguf")]
    pub file: PathBuf,

    /// Layers, where it is not to have as many as the model [1 to 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub layers: Option<u32>,

    /// Where chance begins: the same seed gives the same file
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Replace the file where it is there already
    #[arg(long)]
    pub force: bool,
}

impl SynthArgs {
    fn refuse_to_replace(&self) -> Result<()> {
        if !self.force && fs::symlink_metadata(&self.file).is_ok() {
            bail!(
                "{} is there already; --force replaces it, another name keeps it",
                self.file.display()
            );
        }
        Ok(())
    }
}

fn named() -> impl clap::builder::TypedValueParser<Value = &'static Shape> {
    use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
    let names = SHAPES
        .iter()
        .map(|shape| PossibleValue::new(shape.name).help(shape.about));
    PossibleValuesParser::new(names).try_map(|name| Shape::by_name(&name).ok_or("no such shape"))
}

/// Runs `orcd synth`.
///
/// # Errors
/// When the file is there already, or cannot be written.
pub fn run(args: &SynthArgs) -> Result<()> {
    let layers = args.layers.unwrap_or(args.shape.layers);
    let plan = Plan::new(args.shape, layers);
    plan.write(args)?;
    out::print_line(&args.file.display().to_string())
}

/// A file in the making: everything but the weights.
pub struct Plan {
    name: &'static str,
    header: Vec<u8>,
    tensors: Vec<Tensor>,
    bytes: u64,
}

/// Weights are made and written in pieces of about this size.
const PIECE_BYTES: usize = 1 << 20;

impl Plan {
    /// A model of this shape with so many layers.
    pub fn new(shape: &'static Shape, layers: u32) -> Self {
        let tensors = tensors::tensors(shape, layers);
        let header = gguf::header(&shape.keys(layers), &tensors);
        let data: u64 = tensors.iter().map(|t| gguf::aligned(t.bytes())).sum();
        let bytes = header.len() as u64 + data;
        Plan {
            name: shape.name,
            header,
            tensors,
            bytes,
        }
    }

    /// Its beginning: keys, and where each tensor will be.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// How large the file will be.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many tensors of each type it will have, in the order in which they first come.
    pub fn kinds(&self) -> Vec<(Kind, usize)> {
        let mut counts: Vec<(Kind, usize)> = Vec::new();
        for tensor in &self.tensors {
            match counts.iter_mut().find(|(kind, _)| *kind == tensor.kind) {
                Some((_, count)) => *count += 1,
                None => counts.push((tensor.kind, 1)),
            }
        }
        counts
    }

    fn write(&self, args: &SynthArgs) -> Result<()> {
        let file = &args.file;
        if file.is_dir() {
            bail!("{} is a folder; name a file in it", file.display());
        }
        args.refuse_to_replace()?;
        let part = part_name(file)?;
        check_space(&part, self.bytes)?;
        let mut out = lock(&part)?;
        let made = self.write_all(&mut out, args.seed).and_then(|()| {
            args.refuse_to_replace()?;
            fs::rename(&part, file).with_context(|| format!("cannot name {}", file.display()))
        });
        if made.is_err() {
            // The error that is told is the first one.
            let _ = fs::remove_file(&part);
        }
        made.with_context(|| format!("{} was not written", file.display()))
    }

    fn write_all(&self, out: &mut File, seed: u64) -> Result<()> {
        let meter = Meter::begin(&format!("writing {}", self.name), self.bytes);
        out.write_all(&self.header)?;
        let mut done = self.header.len() as u64;
        let mut piece = Vec::new();
        for tensor in &self.tensors {
            let mut noise = Noise::new(seed, &tensor.name);
            let filler = tensor.filler();
            let mut left = tensor.bytes();
            while left > 0 {
                let whole = filler.whole_blocks(PIECE_BYTES) as u64;
                piece.resize(whole.min(left) as usize, 0);
                filler.fill(&mut piece, &mut noise);
                out.write_all(&piece)?;
                left -= piece.len() as u64;
                done += piece.len() as u64;
                meter.set(done);
            }
            let padding = gguf::aligned(tensor.bytes()) - tensor.bytes();
            out.write_all(&[0; gguf::ALIGNMENT as usize][..padding as usize])?;
            done += padding;
        }
        // After a crash the name must not stand for a file whose bytes never reached the disk.
        out.sync_all()?;
        meter.end();
        Ok(())
    }
}

/// The name under which a file is written: in the same folder, so that a rename will do.
fn part_name(file: &Path) -> Result<PathBuf> {
    let Some(name) = file.file_name() else {
        bail!("{} names no file", file.display());
    };
    let mut part = OsString::from(name);
    part.push(".part");
    Ok(file.with_file_name(part))
}

/// Opens the file in the making, empty, and holds it for this process.
fn lock(part: &Path) -> Result<File> {
    let named = || format!("cannot write {}", part.display());
    let file = File::options()
        .create(true)
        .append(true)
        .open(part)
        .with_context(named)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!("another orcd is writing {}", part.display())
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(named),
    }
    file.set_len(0).with_context(named)?;
    Ok(file)
}

/// Says at once what would otherwise be found out after minutes. What the system does not tell is no reason to stop.
fn check_space(part: &Path, needed: u64) -> Result<()> {
    let folder = part
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let left_behind = fs::metadata(part).map_or(0, |part| part.len());
    if let Ok(disk) = rustix::fs::statvfs(folder) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize) + left_behind;
        if free < needed {
            bail!(
                "{} takes {}, and {} has {} free",
                part.with_extension("").display(),
                out::megabytes(needed),
                folder.display(),
                out::megabytes(free)
            );
        }
    }
    Ok(())
}
