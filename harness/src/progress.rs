//! A progress bar on stderr where that is a terminal, one line per stage where it is not.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::out;

/// Shows how far something is. No thread draws it: it moves when [`Meter::set`] is called.
pub struct Meter {
    bar: ProgressBar,
}

impl Meter {
    /// Begins a stage of `total` bytes; says `what` once where there is no terminal.
    pub fn begin(what: &str, total: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            out::note_line(&format!("{what} ({})", out::megabytes(total)));
        }
        Self::on_terminal(what, total)
    }

    /// Begins a stage of `total` bytes that only a person at a terminal needs to see.
    pub fn on_terminal(what: &str, total: u64) -> Self {
        // indicatif draws nothing where stderr is no terminal.
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        // A stage that has not moved yet is to be seen too.
        bar.tick();
        Meter { bar }
    }

    /// `done` of the total.
    pub fn set(&self, done: u64) {
        self.bar
            .set_position(done.min(self.bar.length().unwrap_or(done)));
    }

    /// Takes the bar away.
    pub fn end(self) {
        self.bar.finish_and_clear();
    }
}

/// How long to sleep between two looks at something that grows.
pub const LOOK_EVERY: Duration = Duration::from_millis(80);
