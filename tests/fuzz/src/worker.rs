//! The worker as a state machine: the bytes are the dice of `tests/worker/script.rs`, which decide on the load, the device's results
//! and failures, and on lines, cancels, time, signals and the end of input. A client's raw line can be among them.

use script::Dice;

#[path = "../../worker/script.rs"]
mod script;
#[path = "../../worker/support.rs"]
#[allow(dead_code, reason = "the scripts use a part of the rig")]
mod support;

/// Takes its throws from bytes, one for a die of up to 256 sides and two for a larger one; zeros when there are no more.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Dice for Bytes<'_> {
    fn throw(&mut self, sides: usize) -> usize {
        let mut byte = || usize::from(self.0.next().copied().unwrap_or(0));
        let thrown = if sides <= 256 {
            byte()
        } else {
            byte() << 8 | byte()
        };
        thrown % sides
    }
}

/// Lets a worker live as the bytes say.
pub fn run(bytes: &[u8]) {
    script::run(&mut Bytes(bytes.iter()));
}
