//! What kind of thing a descriptor is, since each kind has its own way not to block.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

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

/// Finds out. A terminal is opened anew, without blocking: one's own open file has its own flags. A terminal blocks in spite of
/// POLLOUT, so that there is no other way; where it cannot be opened anew it is used as it is.
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
    if kind != Kind::Terminal {
        return Ok((fd, kind));
    }
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd())
    );
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(own) => Ok((own, kind)),
        Err(_) => Ok((fd, Kind::Pipe)),
    }
}
