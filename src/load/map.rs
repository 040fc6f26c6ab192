//! The files of a model in memory: each is mapped for itself, and its pages come in as they are read.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::model::weights::Files;

/// How far ahead of the load the system is told to read. All at once would keep the loop waiting at a large file.
const AHEAD_BYTES: usize = 64 * 1024 * 1024;

/// The mapped files of a model, in their order; they live as long as the device that reads its weights from them.
pub(super) struct Mapped {
    files: Vec<Mmap>,
    /// Bytes that the system was told to read, counted over all files one after another.
    advised: Cell<usize>,
}

impl Files for Rc<Mapped> {
    fn file(&self, number: usize) -> &[u8] {
        self.files.get(number).map_or(&[], |file| file)
    }

    fn forget(&self, number: usize, bytes: Range<usize>) {
        let Some(file) = self.files.get(number) else {
            return;
        };
        // SAFETY: a shared mapping of a file that nothing here writes to: pages that are dropped are the file's again when they are read, and
        // those at both ends, which other tensors may have a part of, are too. Without it there is only less memory left.
        unsafe { file.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) }
            .ok();
    }
}

/// Maps a file.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only, and nothing here writes to the file. Whoever truncates a model file while a worker runs on it
    // ends the worker with SIGBUS, as with every program that maps its input: the README says so.
    unsafe { Mmap::map(file) }
}

impl Mapped {
    /// Of these files.
    pub(super) fn new(files: Vec<Mmap>) -> Self {
        Self {
            files,
            advised: Cell::new(0),
        }
    }

    /// Tells the system to read a stretch that follows the first `done` bytes. It is a hint: without it the load is only slower.
    pub(super) fn read_ahead(&self, done: usize) {
        let total = self.files.iter().map(|file| file.len()).sum();
        let from = self.advised.get();
        let to = done.saturating_add(AHEAD_BYTES).min(total);
        // Half a stretch at a time, so that it is not asked for page by page.
        if to <= from || (to - from < AHEAD_BYTES / 2 && to < total) {
            return;
        }
        let mut begin = 0;
        for file in &self.files {
            let at = from.saturating_sub(begin).min(file.len());
            let end = to.saturating_sub(begin).min(file.len());
            if at < end {
                file.advise_range(Advice::WillNeed, at, end - at).ok();
            }
            begin += file.len();
        }
        self.advised.set(to);
    }
}
