//! How a launch of `matvec` for block formats is cut: tiles of sixteen rows, the warps that share a tile, the copies under way. Plain numbers,
//! made from the shape and the card alone, so that they are checked without one.

use super::ROWS_MAX;
use super::launch::TILE_THREADS;
use super::layout::planes;
use crate::quant::TensorType;

/// Rows of a tile: `TILE` of `cuda/matvec.cu`.
pub const TILE: usize = 16;

/// Columns that a warp takes at once.
pub const OCTET: usize = 256;

/// Warps of a block.
const WARPS: usize = TILE_THREADS / 32;

/// Most slots of a warp's ring: what `await_groups` of `cuda/matvec.cu` knows.
const STAGES_MAX: usize = 5;

/// Slots of a ring that keep memory busy: fewer only where there is no more room.
const STAGES_MIN: usize = 3;

/// Shared memory of a block that leaves room on its multiprocessor for a block of the kernel that follows, which then has its first copies under
/// way while this one ends; [`STAGES_MIN`] counts for more.
const BLOCK_BYTES: usize = 104 * 1024;

/// The numbers of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Of the whole launch.
    pub n_tiles: usize,
    /// Warps that share the columns of a tile; a power of two.
    pub warps_a_tile: usize,
    /// Tiles that a block works on at once.
    pub tiles_a_pass: usize,
    /// Slots of a warp's ring.
    pub stages: usize,
    /// Blocks in a row.
    pub blocks: usize,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
}

/// What a tiling is made from.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// Types of the segments; at most two.
    pub kinds: &'a [TensorType],
    /// Columns.
    pub cols: usize,
    /// Rows of each segment.
    pub rows: &'a [usize],
    /// A tile is eight rows of each of two segments.
    pub gated: bool,
    /// Rows of x that the instance is for.
    pub tokens: usize,
    /// Multiprocessors that share the tiles.
    pub multiprocessors: usize,
    /// Most shared memory that a block may have.
    pub shared_max: usize,
}

impl Work<'_> {
    fn octets(&self) -> usize {
        self.cols.div_ceil(OCTET)
    }

    fn n_tiles(&self) -> usize {
        match self.gated {
            true => self.rows[0].div_ceil(TILE / 2),
            false => self.rows.iter().map(|r| r.div_ceil(TILE)).sum(),
        }
    }

    /// The number of warps for which the busiest one has least to do; of equals the fewest, whose parts are fewest.
    /// It depends on the shape and the card alone, as the order of a row's sum does.
    fn warps_a_tile(&self) -> usize {
        let busiest = |warps: usize| {
            let passes = self
                .n_tiles()
                .div_ceil(WARPS / warps * self.multiprocessors);
            (passes * self.octets().div_ceil(warps), warps)
        };
        let fitting = [2, 4, 8, 16]
            .into_iter()
            .filter(|w| self.tokens_beside(*w) > 0);
        fitting.min_by_key(|w| busiest(*w)).unwrap_or(2)
    }

    /// Shared memory of x, for one token.
    fn x_bytes(&self) -> usize {
        let mut kinds = self.kinds.to_vec();
        kinds.dedup();
        self.octets() * kinds.into_iter().map(x_octet_bytes).sum::<usize>()
    }

    fn stage_bytes(&self) -> usize {
        let slots = self.kinds.iter().map(|kind| TILE * octet_bytes(*kind));
        WARPS * slots.max().unwrap_or(0)
    }

    /// Tokens whose x fits beside the smallest rings of so many warps, and the parts that they leave.
    fn tokens_beside(&self, warps: usize) -> usize {
        let a_warp = self.stage_bytes() / WARPS + 2 * TILE * 4 * ROWS_MAX;
        self.shared_max.saturating_sub(warps * a_warp) / self.x_bytes()
    }

    /// Tokens that are worked on at once: as many as fit beside all warps, or beside those of one tile; 0 where not even one does.
    pub fn tokens_max(&self) -> usize {
        match self.tokens_beside(WARPS) {
            0 => self.tokens_beside(self.warps_a_tile()).min(1),
            some => some,
        }
    }

    /// The tiling for `n` rows of x.
    pub fn tiling(&self, n: usize) -> Tiling {
        let (n_tiles, warps_a_tile) = (self.n_tiles(), self.warps_a_tile());
        let at_once = WARPS / warps_a_tile;
        let useful = at_once.min(n_tiles.div_ceil(self.multiprocessors));
        // fewer warps are busy where there is no room for the rings of all
        let fits = |tiles: &usize| self.tokens_beside(tiles * warps_a_tile) >= n;
        let tiles_a_pass = (1..=useful).rev().find(fits).unwrap_or(1);
        let busy = tiles_a_pass * warps_a_tile;
        let stage = self.stage_bytes() / WARPS * busy;
        let fixed = n * self.x_bytes() + 2 * busy * TILE * 4 * self.tokens;
        let blocks = self.multiprocessors.min(n_tiles.div_ceil(tiles_a_pass));
        let passes = n_tiles.div_ceil(blocks * tiles_a_pass);
        let useful = (passes * self.octets().div_ceil(warps_a_tile)).min(STAGES_MAX);
        let within = |bytes: usize| bytes.saturating_sub(fixed) / stage;
        let stages = within(BLOCK_BYTES).max(STAGES_MIN);
        let stages = stages.min(within(self.shared_max));
        let stages = stages.min(useful).max(1);
        Tiling {
            n_tiles,
            warps_a_tile,
            tiles_a_pass,
            stages,
            blocks,
            shared_bytes: fixed + stages * stage,
        }
    }
}

/// Bytes of 256 columns of a row, in all planes.
fn octet_bytes(kind: TensorType) -> usize {
    let of = |p: &super::layout::Plane| p.pitch * OCTET / kind.block_len();
    planes(kind).iter().map(of).sum()
}

/// Bytes of 256 columns of a token's x: `Octet` of `cuda/matvec.cu`. The words of a unit are a sum for each group of a format with minima,
/// two for each group of one with an offset.
fn x_octet_bytes(kind: TensorType) -> usize {
    let words = match kind {
        TensorType::Q4_1 | TensorType::Q5_1 => 1,
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q4_K | TensorType::Q5_K => 2,
        TensorType::Q2_K => 4,
        TensorType::Q3_K | TensorType::Q6_K => 8,
        _ => 0,
    };
    2 * 256 + 16 + 8 * 4 * words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the warps of a launch do, as `matvec` of `cuda/matvec.cu` walks it: how often each octet of each tile is taken.
    fn walk(work: &Work<'_>, t: Tiling) -> Vec<usize> {
        let octets = work.octets();
        let mut taken = vec![0; t.n_tiles * octets];
        for block in 0..t.blocks {
            for warp in 0..t.tiles_a_pass * t.warps_a_tile {
                let (of_tile, which) = (warp % t.warps_a_tile, warp / t.warps_a_tile);
                let step = t.blocks * t.tiles_a_pass;
                for tile in (which * t.blocks + block..t.n_tiles).step_by(step) {
                    for octet in (of_tile..octets).step_by(t.warps_a_tile) {
                        taken[tile * octets + octet] += 1;
                    }
                }
            }
        }
        taken
    }

    #[test]
    fn every_octet_of_every_tile_is_taken_once() {
        let shapes: [(usize, &[usize], bool); 8] = [
            (576, &[576, 192, 192], false),
            (32, &[5], false),
            (896, &[4864, 4864], true),
            (4096, &[4096, 1024, 1024], false),
            (14336, &[4096], false),
            (2880, &[201_088], false),
            (18_944, &[3584], false),
            (33, &[17, 17], true),
        ];
        let kinds = TensorType::ALL
            .into_iter()
            .filter(|k| !planes(*k).is_empty());
        for kind in kinds {
            for (cols, rows, gated) in shapes {
                for multiprocessors in [1, 40, 132] {
                    let work = Work {
                        kinds: &[kind],
                        cols,
                        rows,
                        gated,
                        tokens: 1,
                        multiprocessors,
                        shared_max: 225 * 1024,
                    };
                    let taken = walk(&work, work.tiling(1));
                    assert!(taken.iter().all(|n| *n == 1), "{work:?}");
                }
            }
        }
    }

    #[test]
    fn what_a_block_takes_fits_on_every_card() {
        for (shared_max, widest) in [(97, 27_648), (161, 35_000), (225, 50_000)] {
            for kind in [
                TensorType::Q4_K,
                TensorType::Q6_K,
                TensorType::Q8_0,
                TensorType::MXFP4,
            ] {
                for cols in (256..=widest).step_by(256) {
                    for (rows, multiprocessors) in [(64, 128), (1728, 108), (4096, 132)] {
                        let work = Work {
                            kinds: &[kind],
                            cols,
                            rows: &[rows],
                            gated: false,
                            tokens: ROWS_MAX,
                            multiprocessors,
                            shared_max: shared_max * 1024,
                        };
                        assert!(work.tokens_max() > 0, "{work:?}");
                        for n in 1..=work.tokens_max().min(ROWS_MAX) {
                            let tiling = work.tiling(n);
                            assert!(
                                tiling.shared_bytes <= work.shared_max
                                    && tiling.blocks <= multiprocessors,
                                "{n}: {work:?} {tiling:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_order_of_a_row_s_sum_does_not_depend_on_the_number_of_tokens() {
        let work = |tokens| Work {
            kinds: &[TensorType::Q4_K, TensorType::Q6_K],
            cols: 4096,
            rows: &[4096, 1024, 1024],
            gated: false,
            tokens,
            multiprocessors: 132,
            shared_max: 225 * 1024,
        };
        let one = work(1).tiling(1);
        let most = work(8).tokens_max().min(8);
        assert!(most > 4);
        for n in 2..=most {
            let many = work(8).tiling(n);
            assert_eq!(many.warps_a_tile, one.warps_a_tile);
            assert!(many.shared_bytes <= 225 * 1024);
        }
    }
}
