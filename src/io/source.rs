//! Input that never blocks: everything is read only after a poll has found something, a pipe or a terminal was opened anew without
//! blocking, since others may read it as well, a socket is read with MSG_DONTWAIT, and files do not block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::kind::{Kind, examine};

/// A descriptor to read from.
pub struct Source {
    fd: OwnedFd,
    kind: Kind,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// Nothing ever again.
    End,
}

impl Source {
    /// A source that reads from `fd`.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let (fd, kind) = examine(fd, OFlags::RDONLY)?;
        Ok(Self { fd, kind })
    }

    /// Whether all there is to read is there already: then it is read only as there is room for it.
    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// Whether somebody at the other end feeds it, who may die.
    pub fn has_peer(&self) -> bool {
        matches!(self.kind, Kind::Pipe | Kind::Socket)
    }

    /// Reads once, after a poll has found something.
    ///
    /// # Errors
    ///
    /// It cannot be read: a directory, say.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Read> {
        let result = match self.kind {
            Kind::Socket => {
                rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT).map(|(read, _)| read)
            }
            Kind::Pipe | Kind::Terminal | Kind::File | Kind::Other => {
                rustix::io::read(&self.fd, &mut *buffer)
            }
        };
        match result {
            Ok(0) => Ok(Read::End),
            Ok(read) => Ok(Read::Bytes(read)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Read::Nothing),
            // The peer is gone, or the terminal.
            Err(Errno::CONNRESET | Errno::IO) => Ok(Read::End),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
