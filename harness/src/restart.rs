//! When to start a worker again that has ended: the protocol's advice, with times.

use std::time::Duration;

use worker_orcd_protocol::{Exit, Restart};

/// The first wait after a bug; it doubles with each failure in a row.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(500);

/// The longest wait.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How long to wait before a worker is started again that ended with `exit_code` (`None`: killed by a signal), after
/// `failures` ends in a row before it with no answered request in between. `None`: it is not to be started again.
///
/// A lost device (76) is tried again at once, and with backoff when it is lost again; a bug (70) or a death by signal
/// with backoff. A bad or missing model, device or argument, too little memory and a lost pipe come again as they are,
/// and an end that was asked for is one.
pub fn restart_delay(exit_code: Option<i32>, failures: u32) -> Option<Duration> {
    let advice = match exit_code {
        None => Restart::WithBackoff,
        // A code that no worker has is another program's.
        Some(code) => {
            let exit = u8::try_from(code).ok().and_then(Exit::from_code);
            exit.map_or(Restart::ComesAgain, Exit::restart)
        }
    };
    match advice {
        Restart::No | Restart::ComesAgain => None,
        Restart::AtOnce if failures == 0 => Some(Duration::ZERO),
        Restart::AtOnce => Some(backoff(failures - 1)),
        Restart::WithBackoff => Some(backoff(failures)),
    }
}

fn backoff(doublings: u32) -> Duration {
    BACKOFF_FIRST
        .saturating_mul(2u32.saturating_pow(doublings))
        .min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The same table holds for the Python client.
    #[test]
    fn the_table_holds() {
        let table: Vec<Value> =
            serde_json::from_str(include_str!("../tests/restart.json")).unwrap();
        for exit in Exit::ALL {
            assert!(
                table.iter().any(|row| row["exit_code"] == exit.code()),
                "{exit:?} is missing"
            );
        }
        for row in table {
            let code = row["exit_code"].as_i64().map(|code| code as i32);
            let failures = row["failures"].as_u64().unwrap() as u32;
            let wanted = row["wait_ms"].as_u64().map(Duration::from_millis);
            assert_eq!(restart_delay(code, failures), wanted, "{row}");
        }
    }
}
