//! Tensor types: how large their blocks are, and how to make random ones whose weights deviate from 0 by a wanted amount.

use half::f16;

use super::noise::Noise;

/// The types that the shapes here use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called what ggml calls them")]
pub enum Kind {
    F32,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    Mxfp4,
}

/// A type's number in files, its name, and its blocks.
struct Layout {
    id: u32,
    name: &'static str,
    weights: usize,
    bytes: usize,
    /// The halves in a block: where they are, and what they are where the weights are to deviate by 1. All other bytes are drawn.
    halves: &'static [(usize, f32)],
}

impl Kind {
    /// Weights of quants from 0 to n that are each as likely deviate by √((n + 1)² - 1) / √12 times the scale; a superblock's scales
    /// are drawn too, and minima are such that the mean is 0.
    fn layout(self) -> Layout {
        let (id, name, weights, bytes, halves): (_, _, _, _, &'static [_]) = match self {
            Kind::F32 => (0, "F32", 1, 4, &[]),
            Kind::Q4_1 => (3, "Q4_1", 32, 20, &[(0, 1.0 / 4.6), (2, -7.5 / 4.6)]),
            Kind::Q5_0 => (6, "Q5_0", 32, 22, &[(0, 1.0 / 9.2)]),
            Kind::Q5_1 => (7, "Q5_1", 32, 24, &[(0, 1.0 / 9.2), (2, -15.5 / 9.2)]),
            Kind::Q8_0 => (8, "Q8_0", 32, 34, &[(0, 1.0 / 74.0)]),
            Kind::Q4K => (12, "Q4_K", 256, 144, &[(0, 1.0 / 258.0), (2, 7.5 / 258.0)]),
            Kind::Q5K => (13, "Q5_K", 256, 176, &[(0, 1.0 / 527.0), (2, 15.5 / 527.0)]),
            Kind::Q6K => (14, "Q6_K", 256, 210, &[(208, 1.0 / 1366.0)]),
            Kind::Mxfp4 => (39, "MXFP4", 32, 17, &[]),
        };
        Layout {
            id,
            name,
            weights,
            bytes,
            halves,
        }
    }

    /// The type's number in files.
    pub fn id(self) -> u32 {
        self.layout().id
    }

    /// The type's name.
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// Bytes of so many weights, whole blocks.
    pub fn bytes(self, weights: u64) -> u64 {
        let layout = self.layout();
        weights / layout.weights as u64 * layout.bytes as u64
    }

    /// What the quantiser takes instead where rows are no whole blocks of this type.
    pub fn for_columns(self, columns: u32) -> Self {
        if (columns as usize).is_multiple_of(self.layout().weights) {
            return self;
        }
        match self {
            Kind::Q4K => Kind::Q5_0,
            Kind::Q5K => Kind::Q5_1,
            Kind::Q6K => Kind::Q8_0,
            Kind::F32 | Kind::Q4_1 | Kind::Q5_0 | Kind::Q5_1 | Kind::Q8_0 | Kind::Mxfp4 => self,
        }
    }
}

/// Makes blocks of one tensor.
pub(super) enum Filler {
    /// Singles from one number up to another.
    Between(f32, f32),
    /// These singles.
    Given(Vec<u8>),
    /// Bytes that are drawn, but for those of the scales: they come from tables by the first of the bytes that they replace, so that
    /// blocks differ in their scales and the scales of a block belong together.
    Scaled {
        block_bytes: usize,
        tables: Vec<(usize, [u8; 256])>,
    },
}

impl Filler {
    /// For weights that deviate by `deviation` from 0, and have it as their mean.
    pub(super) fn weights(kind: Kind, deviation: f32) -> Self {
        let layout = kind.layout();
        let tables = match kind {
            Kind::F32 => {
                let uniform = 3f32.sqrt() * deviation;
                return Filler::Between(-uniform, uniform);
            }
            Kind::Mxfp4 => vec![(0, exponents(deviation))],
            Kind::Q4_1
            | Kind::Q5_0
            | Kind::Q5_1
            | Kind::Q8_0
            | Kind::Q4K
            | Kind::Q5K
            | Kind::Q6K => {
                let halves = layout.halves.iter();
                halves
                    .flat_map(|&(at, unit)| half_tables(at, deviation * unit))
                    .collect()
            }
        };
        Filler::Scaled {
            block_bytes: layout.bytes,
            tables,
        }
    }

    /// How many bytes of whole blocks fit into `bytes`; at least one block.
    pub(super) fn whole_blocks(&self, bytes: usize) -> usize {
        let block = match self {
            Filler::Between(..) => size_of::<f32>(),
            Filler::Given(singles) => singles.len(),
            Filler::Scaled { block_bytes, .. } => *block_bytes,
        };
        (bytes / block).max(1) * block
    }

    /// Fills whole blocks.
    pub(super) fn fill(&self, blocks: &mut [u8], noise: &mut Noise) {
        match self {
            Filler::Between(from, to) => {
                for single in blocks.chunks_exact_mut(size_of::<f32>()) {
                    single.copy_from_slice(&noise.between(*from, *to).to_le_bytes());
                }
            }
            Filler::Given(singles) => blocks.copy_from_slice(singles),
            Filler::Scaled {
                block_bytes,
                tables,
            } => {
                noise.fill(blocks);
                let by = tables.first().map_or(0, |table| table.0);
                for block in blocks.chunks_exact_mut(*block_bytes) {
                    let drawn = usize::from(block[by]);
                    for (at, table) in tables {
                        block[*at] = table[drawn];
                    }
                }
            }
        }
    }
}

/// The two bytes of a half that lies between three quarters and five quarters of `scale`.
fn half_tables(at: usize, scale: f32) -> [(usize, [u8; 256]); 2] {
    let half = |drawn: usize| f16::from_f32(scale * (0.75 + drawn as f32 / 510.0)).to_le_bytes();
    [0, 1].map(|i| (at + i, std::array::from_fn(|drawn| half(drawn)[i])))
}

/// Two exponents in turn, in the proportion in which the weights' mean square is right.
fn exponents(deviation: f32) -> [u8; 256] {
    // The quants are 0, 1, 2, 3, 4, 6, 8 and 12 with either sign, times 2^(exponent - 128).
    let mean_square = 274.0 / 8.0_f32;
    let exact = (deviation / mean_square.sqrt()).log2() + 128.0;
    let lower = exact.floor().clamp(1.0, 253.0);
    let share_of_upper = (4f32.powf(exact - lower) - 1.0) / 3.0;
    std::array::from_fn(|byte| {
        let upper = (byte as f32) < share_of_upper * 256.0;
        lower as u8 + u8::from(upper)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 9] = [
        Kind::F32,
        Kind::Q4_1,
        Kind::Q5_0,
        Kind::Q5_1,
        Kind::Q8_0,
        Kind::Q4K,
        Kind::Q5K,
        Kind::Q6K,
        Kind::Mxfp4,
    ];

    #[test]
    fn scales_differ_from_block_to_block() {
        for kind in ALL {
            let filler = Filler::weights(kind, 0.02);
            let mut blocks = vec![0; kind.bytes(256 * 256) as usize];
            filler.fill(&mut blocks, &mut Noise::new(1, "a"));
            let layout = kind.layout();
            let at = layout.halves.first().map_or(0, |half| half.0);
            let first: std::collections::BTreeSet<_> = blocks
                .chunks(layout.bytes)
                .map(|block| block[at..at + 1].to_vec())
                .collect();
            assert!(first.len() > 1, "{kind:?}");
        }
    }

    #[test]
    fn streams_differ_by_seed_and_by_name() {
        let first = |seed, name| Noise::new(seed, name).number();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }
}
