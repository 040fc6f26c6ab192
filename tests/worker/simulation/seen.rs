//! Where scripts have led to.

use std::collections::HashSet;

use worker_orcd_protocol::{ErrorCode, Exit, RequestCounts};

/// What scripts have led to.
#[derive(Default)]
pub struct Seen {
    pub codes: HashSet<ErrorCode>,
    pub exits: HashSet<u8>,
    pub requests: RequestCounts,
    /// Turns in which there was work, but too much output waited.
    pub turns_without_work: u64,
    /// Turns in which there were lines, but too much output waited.
    pub turns_without_input: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Seen) {
        self.codes.extend(&other.codes);
        self.exits.extend(&other.exits);
        self.requests.stop += other.requests.stop;
        self.requests.length += other.requests.length;
        self.requests.cancelled += other.requests.cancelled;
        self.requests.timeout += other.requests.timeout;
        self.requests.error += other.requests.error;
        self.requests.rejected += other.requests.rejected;
        self.turns_without_work += other.turns_without_work;
        self.turns_without_input += other.turns_without_input;
    }

    /// The scripts are worth something only as long as they lead everywhere.
    pub fn assert_all(&self) {
        for code in ErrorCode::ALL {
            assert!(self.codes.contains(&code), "{code:?}");
        }
        for exit in Exit::ALL {
            // Flags are not the worker's business, and nothing panics.
            let is_reached = exit != Exit::Usage && exit != Exit::Bug;
            assert_eq!(self.exits.contains(&exit.code()), is_reached, "{exit:?}");
        }
        let requests = self.requests;
        let counts = [
            requests.stop,
            requests.length,
            requests.cancelled,
            requests.timeout,
            requests.error,
            requests.rejected,
            self.turns_without_work,
            self.turns_without_input,
        ];
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }
}
