//! The number that a draw uses: a pure function of the seed and the token's index, so that a restart, a speculation or a
//! retry at the same index draws the same.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A number in [0, 1) with 53 random bits: words 2·`index` and 2·`index` + 1 of the ChaCha8 stream whose key is the seed
/// (little endian, then zeros).
pub fn uniform(seed: u64, index: u64) -> f64 {
    number(seed, DRAWS, index)
}

/// The same on a stream of its own: whether xtc acts has nothing to do with what is drawn then.
pub fn uniform_for_xtc(seed: u64, index: u64) -> f64 {
    number(seed, XTC, index)
}

/// The ChaCha streams of a seed.
const DRAWS: u64 = 0;
const XTC: u64 = 1;

fn number(seed: u64, stream_id: u64, index: u64) -> f64 {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut stream = ChaCha8Rng::from_seed(key);
    stream.set_stream(stream_id);
    stream.set_word_pos(u128::from(index) * 2);
    (stream.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_what_it_is() {
        // A change here changes what every recorded seed draws.
        let drawn: Vec<f64> = (0..3).map(|i| uniform(42, i)).collect();
        assert_eq!(
            drawn,
            [0.3482544685480763, 0.28569857126296205, 0.4934724642416646]
        );
        assert!(drawn.iter().all(|u| (0.0..1.0).contains(u)));
        assert_ne!(uniform(1, 0), uniform(2, 0));
        assert_ne!(uniform(1, 0), uniform(1, 1));
    }

    #[test]
    fn spreads_evenly_over_indices_and_over_seeds() {
        let over_indices: Vec<f64> = (0..20_000).map(|i| uniform(7, i)).collect();
        let over_seeds: Vec<f64> = (0..20_000).map(|s| uniform(s, 0)).collect();
        let of_xtc: Vec<f64> = (0..20_000).map(|i| uniform_for_xtc(7, i)).collect();
        assert!(over_indices.iter().zip(&of_xtc).all(|(a, b)| a != b));
        for numbers in [over_indices, over_seeds, of_xtc] {
            let mut counts = [0u32; 20];
            for u in numbers {
                counts[(u * 20.0) as usize] += 1;
            }
            let chi_square: f64 = counts
                .iter()
                .map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0)
                .sum();
            // 19 degrees of freedom: above 43.8 once in a thousand; the numbers are fixed, so this never flickers.
            assert!(chi_square < 43.8, "{chi_square}");
        }
    }
}
