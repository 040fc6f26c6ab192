//! The files of a model as one stretch of memory: each is mapped for itself, one behind the other, and their pages come in as they
//! are read.

use std::cell::Cell;
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Each file begins at a multiple of this many bytes: the largest page of the machines that this runs on, and more than any
/// tensor is aligned to.
const PLACE_BYTES: usize = 64 * 1024;

/// How far ahead of the load the system is told to read. All at once would keep the loop waiting at a large file.
const AHEAD_BYTES: usize = 64 * 1024 * 1024;

/// Mapped files; they live as long as the device that reads its weights from them.
pub(super) struct Mapped {
    start: *mut c_void,
    len: usize,
    /// Bytes that the system was told to read.
    advised: Cell<usize>,
}

/// Where a file lies in a [`Mapped`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` and `len` are those of a readable mapping that ends when `self` does, and nothing writes to it. Whoever
        // truncates a model file while a worker runs on it ends the worker with SIGBUS, as with every program that maps its input:
        // the README says so.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever borrowed from it is gone.
        unsafe { munmap(self.start, self.len) }.ok();
    }
}

impl Mapped {
    /// Maps files of the lengths that are given, none of them empty, and says where each lies.
    pub(super) fn new(files: &[(File, usize)]) -> io::Result<(Self, Vec<Place>)> {
        let mut places = Vec::with_capacity(files.len());
        let mut len = 0_usize;
        let beyond = || io::Error::from(io::ErrorKind::OutOfMemory);
        for (_, file_len) in files {
            places.push(Place {
                start: len,
                len: *file_len,
            });
            len = file_len
                .checked_next_multiple_of(PLACE_BYTES)
                .and_then(|file_len| len.checked_add(file_len))
                .filter(|len| isize::try_from(*len).is_ok())
                .ok_or_else(beyond)?;
        }
        // What no file covers reads as zeros.
        let reserved = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the system chooses where, so nothing that exists is touched.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ, reserved) }?;
        let mapped = Self {
            start,
            len,
            advised: Cell::new(0),
        };
        for ((file, _), place) in files.iter().zip(&places) {
            let at = start.wrapping_byte_add(place.start);
            let fixed = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: the place lies in the stretch that was reserved above and that nobody has seen yet.
            unsafe { mmap(at, place.len, ProtFlags::READ, fixed, file, 0) }?;
        }
        Ok((mapped, places))
    }

    /// Tells the system to read a stretch that follows the first `done` bytes. It is a hint: without it the load is only slower.
    pub(super) fn read_ahead(&self, done: usize) {
        let from = self.advised.get();
        let to = done.saturating_add(AHEAD_BYTES).min(self.len) / PLACE_BYTES * PLACE_BYTES;
        // Half a stretch at a time, so that it is not asked for page by page.
        if to <= from || (to - from < AHEAD_BYTES / 2 && to < self.len / PLACE_BYTES * PLACE_BYTES)
        {
            return;
        }
        let at = self.start.wrapping_byte_add(from);
        // SAFETY: the stretch lies in the mapping, and the advice changes nothing that can be read there.
        unsafe { madvise(at, to - from, Advice::WillNeed) }.ok();
        self.advised.set(to);
    }
}
