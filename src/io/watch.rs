//! Watching the process that started this one, by a descriptor that becomes readable when it ends. The end of stdin is not enough:
//! a sibling may hold the other end of the pipe. A death signal is too much: it fires when the spawning thread ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};

/// A process whose end is noticed.
#[derive(Debug)]
pub struct ParentWatch {
    fd: OwnedFd,
}

/// Why a process cannot be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// It has ended already.
    #[error("the process to watch has ended already")]
    Gone,
    /// The system does not let us.
    #[error("the process cannot be watched: {0}")]
    Refused(Errno),
}

impl ParentWatch {
    /// Watches the parent process; `None` where it cannot be seen from here (it lives outside of this PID namespace).
    ///
    /// # Errors
    ///
    /// It has ended meanwhile, or the system refuses.
    pub fn of_parent() -> Result<Option<Self>, WatchError> {
        let Some(parent) = getppid() else {
            return Ok(None);
        };
        let watch = Self::of(parent)?;
        // Who has ended in between has handed us over to another parent, and its number may be anybody's.
        if getppid() == Some(parent) {
            Ok(Some(watch))
        } else {
            Err(WatchError::Gone)
        }
    }

    /// Watches the process with this number.
    ///
    /// # Errors
    ///
    /// There is no such process, or the system refuses.
    pub fn of_pid(pid: i32) -> Result<Self, WatchError> {
        Self::of(Pid::from_raw(pid).ok_or(WatchError::Gone)?)
    }

    fn of(pid: Pid) -> Result<Self, WatchError> {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Ok(Self { fd }),
            Err(Errno::SRCH) => Err(WatchError::Gone),
            Err(error) => Err(WatchError::Refused(error)),
        }
    }
}

impl AsFd for ParentWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
