//! min_p: keeps tokens at least `min_p` times as likely as the likeliest.

use super::Candidate;

/// 0 keeps all. The likeliest candidate always stays.
pub(super) fn apply(candidates: &mut Vec<Candidate>, min_p: f32) {
    if min_p.is_nan() || min_p <= 0.0 {
        return;
    }
    let largest = candidates.iter().map(|c| c.score).fold(0.0, f64::max);
    let least = f64::from(min_p.min(1.0)) * largest;
    candidates.retain(|c| c.score >= least);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(scores: &[f64], min_p: f32) -> Vec<u32> {
        super::super::kept(scores, |all| apply(all, min_p))
    }

    #[test]
    fn the_bound_is_relative_to_the_likeliest() {
        assert_eq!(kept(&[0.5, 0.25, 0.125, 0.0625], 0.5), [0, 1]);
        assert_eq!(kept(&[0.5, 0.25, 0.125, 0.0625], 0.51), [0]);
        assert_eq!(kept(&[0.5, 0.25, 0.125, 0.0625], 0.125), [0, 1, 2, 3]);
    }

    #[test]
    fn zero_keeps_all_and_one_the_likeliest() {
        assert_eq!(kept(&[0.5, 0.25, 0.0], 0.0), [0, 1, 2]);
        assert_eq!(kept(&[0.5, 0.25, 0.5], 1.0), [0, 2]);
    }
}
