//! typical_p: keeps the smallest set of the most typical tokens whose probabilities, among the candidates left by the stages before,
//! reach `p`.
//!
//! A token is the more typical the nearer its surprise, −ln of its probability, is to the mean surprise of all candidates, their
//! entropy: the likeliest one may be left out.

use std::cmp::Ordering;

use super::select::last_to_reach;
use super::{Candidate, sum};

/// `p` = 1 keeps all. `scratch` has room for all candidates. Linear: the set's last member is found by halving.
pub(super) fn apply(candidates: &mut Vec<Candidate>, scratch: &mut Vec<Candidate>, p: f32) {
    if p.is_nan() || p >= 1.0 {
        return;
    }
    let total = sum(candidates, |c| c.score);
    let surprise = |c: Candidate| match c.score {
        weight if weight > 0.0 => weight * libm::log(weight),
        _ => 0.0,
    };
    // The distance |−ln(weight / total) − entropy| is |ln(weight / typical)| with the weighted geometric mean of the weights: a
    // ratio is compared in its place.
    let typical = libm::exp(sum(candidates, surprise) / total);
    let ratio = |c: &Candidate| (c.score / typical).max(typical / c.score);
    let by = |a: &Candidate, b: &Candidate| -> Ordering {
        ratio(a).total_cmp(&ratio(b)).then_with(|| a.rank(b))
    };
    scratch.clear();
    scratch.extend_from_slice(candidates);
    if let Some(last_kept) = last_to_reach(scratch, f64::from(p) * total, by) {
        candidates.retain(|c| by(c, &last_kept).is_le());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(scores: &[f64], p: f32) -> Vec<u32> {
        super::super::kept(scores, |all| apply(all, &mut Vec::new(), p))
    }

    #[test]
    fn hand_computed() {
        // Probabilities 1/2, 1/4, 1/8, 1/8: surprises of 1, 2, 3 and 3 bits, entropy 1.75 bits.
        let scores = [0.5, 0.25, 0.125, 0.125];
        assert_eq!(kept(&scores, 0.2), [1]);
        assert_eq!(kept(&scores, 0.25), [1]);
        assert_eq!(kept(&scores, 0.5), [0, 1]);
        assert_eq!(kept(&scores, 0.75), [0, 1]);
        // Of equally typical ones the lower id comes first.
        assert_eq!(kept(&scores, 0.8), [0, 1, 2]);
        assert_eq!(kept(&scores, 0.9), [0, 1, 2, 3]);
    }

    #[test]
    fn the_likeliest_may_be_left_out() {
        // 0.4 and sixty times 0.01: the mean surprise is nearer to that of the sixty.
        let mut scores = vec![0.01; 61];
        scores[7] = 0.4;
        assert!(!kept(&scores, 0.5).contains(&7));
        assert_eq!(kept(&scores, 0.5).len(), 50);
    }

    #[test]
    fn weights_need_not_be_normalised_and_one_changes_nothing() {
        assert_eq!(kept(&[4.0, 2.0, 1.0, 1.0], 0.5), [0, 1]);
        assert_eq!(kept(&[4.0, 2.0, 0.0, 1.0], 1.0), [0, 1, 2, 3]);
        assert_eq!(kept(&[0.0, 1.0, 0.0], 0.999), [1]);
        assert_eq!(kept(&[1.0; 5], f32::MIN_POSITIVE), [0]);
    }

    #[test]
    fn agrees_with_the_definition() {
        let scores: Vec<f64> = (0..997u32)
            .map(|i| libm::exp(f64::from((i * 7919) % 997) / 130.0))
            .collect();
        let total: f64 = scores.iter().sum();
        let surprise = |id: u32| -libm::log(scores[id as usize] / total);
        let entropy: f64 = (0..997)
            .map(|id| scores[id as usize] / total * surprise(id))
            .sum();
        let distance = |id: u32| (surprise(id) - entropy).abs();
        for p in [0.05f32, 0.2, 0.5, 0.9, 0.99] {
            let mut order: Vec<u32> = (0..997).collect();
            order.sort_by(|a, b| distance(*a).total_cmp(&distance(*b)));
            let mut reached = 0.0;
            let mut want = Vec::new();
            for id in order {
                want.push(id);
                reached += scores[id as usize] / total;
                if reached >= f64::from(p) {
                    break;
                }
            }
            want.sort_unstable();
            assert_eq!(kept(&scores, p), want, "p = {p}");
        }
    }
}
