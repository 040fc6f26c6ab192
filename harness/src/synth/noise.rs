//! Random numbers that come fast and are the same everywhere.

/// A stream of numbers by counting: the nth is a function of the seed, the stream's name and n (SplitMix64, Steele, Lea & Flood 2014).
pub(super) struct Noise {
    state: u64,
}

impl Noise {
    /// The stream of one tensor, whatever other tensors there are.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        // FNV-1a tells names apart, and a step of the generator mixes what it gives.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut noise = Noise { state: hash };
        let named = noise.number();
        noise.state = named ^ seed;
        noise.state = noise.number();
        noise
    }

    /// The next 64 bits.
    pub(super) fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Any bytes.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            let number = self.number().to_le_bytes();
            eight.copy_from_slice(&number[..eight.len()]);
        }
    }

    /// A number from `from` up to `to`.
    pub(super) fn between(&mut self, from: f32, to: f32) -> f32 {
        let unit = (self.number() >> 40) as f32 / (1u32 << 24) as f32;
        from + unit * (to - from)
    }
}
