//! How the worker ends: one number per kind of end, and what an orchestrator should make of it.

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// All is done.
    Done,
    /// The command line is wrong.
    Usage,
    /// The model file is damaged, or asks for something that this worker does not know.
    BadModel,
    /// There is no such file, or it cannot be read.
    NoInput,
    /// The machine or the build has no such device.
    NoDevice,
    /// A bug.
    Bug,
    /// Nobody reads or the parent is gone.
    PipeLost,
    /// The model does not fit in memory.
    NoMemory,
    /// The device is lost.
    DeviceLost,
    /// Interrupted by SIGINT.
    Interrupted,
    /// A second SIGTERM.
    Terminated,
}

/// What an orchestrator does after an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Restart {
    /// The end was wanted: nothing.
    No,
    /// The same would come again: have somebody look at it.
    ComesAgain,
    /// Start again at once.
    AtOnce,
    /// Start again, and wait longer each time.
    WithBackoff,
}

impl Exit {
    /// Every end, in the order of the documentation.
    pub const ALL: [Exit; 11] = [
        Exit::Done,
        Exit::Usage,
        Exit::BadModel,
        Exit::NoInput,
        Exit::NoDevice,
        Exit::Bug,
        Exit::PipeLost,
        Exit::NoMemory,
        Exit::DeviceLost,
        Exit::Interrupted,
        Exit::Terminated,
    ];

    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Usage => 2,
            Exit::BadModel => 65,
            Exit::NoInput => 66,
            Exit::NoDevice => 69,
            Exit::Bug => 70,
            Exit::PipeLost => 74,
            Exit::NoMemory => 75,
            Exit::DeviceLost => 76,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }

    /// The end that has this exit code.
    pub fn from_code(code: u8) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| exit.code() == code)
    }

    /// What happened.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done: the input ended, `shutdown`, or SIGTERM, and all was drained",
            Exit::Usage => "the command line is wrong",
            Exit::BadModel => {
                "the model file is damaged, or asks for something that this worker does not know"
            }
            Exit::NoInput => "there is no such file, or it cannot be read",
            Exit::NoDevice => {
                "there is no such device, no driver for it, or the build does not know it"
            }
            Exit::Bug => "a bug",
            Exit::PipeLost => "nobody reads stdout, or the parent is gone",
            Exit::NoMemory => "the model does not fit in memory",
            Exit::DeviceLost => "the device is lost",
            Exit::Interrupted => "SIGINT",
            Exit::Terminated => "a second SIGTERM",
        }
    }

    /// What to do.
    pub fn restart(self) -> Restart {
        match self {
            Exit::Done | Exit::PipeLost | Exit::Interrupted | Exit::Terminated => Restart::No,
            Exit::Usage | Exit::BadModel | Exit::NoInput | Exit::NoDevice | Exit::NoMemory => {
                Restart::ComesAgain
            }
            Exit::DeviceLost => Restart::AtOnce,
            Exit::Bug => Restart::WithBackoff,
        }
    }
}

impl Restart {
    /// The advice in words.
    pub fn words(self) -> &'static str {
        match self {
            Restart::No => "no",
            Restart::ComesAgain => "no, the same comes again",
            Restart::AtOnce => "at once",
            Restart::WithBackoff => "with backoff",
        }
    }
}
