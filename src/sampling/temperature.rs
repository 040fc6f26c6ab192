//! Temperature: turns logits into weights, exp((logit − largest) / temperature). The likeliest token weighs 1.

use super::Candidate;
use super::exp::exp;

/// `largest` is the largest logit among the candidates and finite; `temperature` is above 0.
///
/// In f64 throughout: the smallest temperature above 0 must not overflow, and 200,000 weights are summed later.
pub(super) fn apply(candidates: &mut [Candidate], largest: f64, temperature: f32) {
    let temperature = f64::from(temperature);
    for candidate in candidates {
        candidate.score = exp((candidate.score - largest) / temperature);
    }
}

#[cfg(test)]
mod tests {
    use super::super::candidates;
    use super::*;

    fn weights(logits: &[f64], temperature: f32) -> Vec<f64> {
        let mut all = candidates(logits);
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        apply(&mut all, largest, temperature);
        all.iter().map(|c| c.score).collect()
    }

    #[test]
    fn half_the_temperature_squares_the_ratios() {
        let ln2 = std::f64::consts::LN_2;
        let at_one = weights(&[ln2, 0.0], 1.0);
        let at_half = weights(&[ln2, 0.0], 0.5);
        assert!((at_one[1] - 0.5).abs() < 1e-15);
        assert!((at_half[1] - 0.25).abs() < 1e-15);
    }

    #[test]
    fn the_smallest_temperature_leaves_the_likeliest_alone() {
        assert_eq!(
            weights(&[1.0, 2.0, f64::NEG_INFINITY], f32::MIN_POSITIVE),
            [0.0, 1.0, 0.0]
        );
    }

    #[test]
    fn probabilities_of_a_large_vocabulary_sum_to_one() {
        let logits: Vec<f64> = (0..200_000)
            .map(|i| f64::from((i as f32 * 0.37).sin() * 12.0))
            .collect();
        let weights = weights(&logits, 1.0);
        let total: f64 = weights.iter().sum();
        let sum: f64 = weights.iter().map(|w| w / total).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        // And the normaliser is the right one, by a sum taken in another order.
        let mut sorted = weights.clone();
        sorted.sort_by(f64::total_cmp);
        let careful: f64 = sorted.iter().sum();
        assert!((total / careful - 1.0).abs() < 1e-9);
    }
}
