//! Random choices, from a seed alone: the same ones on every machine.

/// A splitmix64: fast, and good enough to choose with.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give neighbouring sequences.
        let mut dice = Self(seed.wrapping_mul(0xd134_2543_de82_ef95));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `sides`.
    pub fn throw(&mut self, sides: usize) -> usize {
        ((u128::from(self.next()) * sides as u128) >> 64) as usize
    }

    pub fn one_in(&mut self, sides: usize) -> bool {
        self.throw(sides) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.throw(from.len())]
    }

    /// `Some` once in so many times.
    pub fn seldom<T>(&mut self, sides: usize, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(sides).then(|| make(self))
    }
}
