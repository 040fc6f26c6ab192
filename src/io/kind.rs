//! What kind of thing a descriptor is, since each kind has its own way not to block.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};

/// What kind of thing a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A pipe or a FIFO.
    Pipe,
    /// A socket.
    Socket,
    /// A terminal.
    Terminal,
    /// A file on a disk.
    File,
    /// /dev/null and the like: never blocks.
    Other,
}

/// The file system of pipes without a name.
const PIPEFS_MAGIC: u64 = 0x5049_5045;

/// Finds out. A terminal or a pipe is opened anew, without blocking: one's own open file has its own flags. A terminal blocks in spite of
/// POLLOUT, and so does a pipe that others write to or read from as well; where it cannot be opened anew it is used as it is.
pub(super) fn examine(fd: OwnedFd, access: OFlags) -> io::Result<(OwnedFd, Kind)> {
    let kind = match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::Fifo => Kind::Pipe,
        FileType::Socket => Kind::Socket,
        FileType::RegularFile => Kind::File,
        FileType::CharacterDevice if rustix::termios::isatty(&fd) => Kind::Terminal,
        FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Directory
        | FileType::Symlink
        | FileType::Unknown => Kind::Other,
    };
    let anew = match kind {
        Kind::Pipe => has_no_name(&fd),
        Kind::Terminal => true,
        Kind::Socket | Kind::File | Kind::Other => false,
    };
    if !anew {
        return Ok((fd, kind));
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(own) => Ok((own, kind)),
        Err(_) => Ok((fd, Kind::Pipe)),
    }
}

/// Whether a pipe has no name in a file system. One that has tells whoever opens it after its last writer has gone that nobody has come
/// yet, and not that it is at its end.
fn has_no_name(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|system| system.f_type as u64 == PIPEFS_MAGIC)
}
