//! top_p: keeps the smallest set of likeliest tokens whose probabilities, among the candidates left by the stages before,
//! reach `p`.

use super::select::last_to_reach;
use super::{Candidate, sum};

/// `p` = 1 keeps all. `scratch` has room for all candidates. Linear: the set's last member is found by halving.
pub(super) fn apply(candidates: &mut Vec<Candidate>, scratch: &mut Vec<Candidate>, p: f32) {
    if p.is_nan() || p >= 1.0 {
        return;
    }
    let p = f64::from(p);
    let total = sum(candidates, |c| c.score);
    // Those below this weigh less than 1 − p even together, so the set is among the others: few, as a rule.
    let least = (1.0 - p) * total / candidates.len() as f64;
    scratch.clear();
    scratch.extend(candidates.iter().filter(|c| c.score >= least));
    if let Some(last_kept) = last_to_reach(scratch, p * total, Candidate::rank) {
        candidates.retain(|c| c.rank(&last_kept).is_le());
    }
}

/// The same where only some candidates are at hand: every one that weighs more than `heaviest`, and no other more than that. The weight
/// of all lies in `total`. Whether the set is the same for all of it, and every member at hand; otherwise nothing is done.
pub(super) fn apply_beside(
    candidates: &mut Vec<Candidate>,
    scratch: &mut Vec<Candidate>,
    p: f32,
    total: (f64, f64),
    heaviest: f64,
) -> bool {
    let p = f64::from(p);
    scratch.clear();
    scratch.extend_from_slice(candidates);
    let Some(last) = last_to_reach(scratch, p * total.1, Candidate::rank) else {
        return false;
    };
    let before = candidates.iter().filter(|c| c.rank(&last).is_lt());
    let before = before.map(|c| c.score).sum::<f64>();
    let reaches = before + last.score >= p * total.1 && before < p * total.0;
    // Equal weights may come from logits that differ, so that a token that is not at hand could come first.
    let decided = reaches && last.score > heaviest;
    if decided {
        candidates.retain(|c| c.rank(&last).is_le());
    }
    decided
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(scores: &[f64], p: f32) -> Vec<u32> {
        super::super::kept(scores, |all| apply(all, &mut Vec::new(), p))
    }

    #[test]
    fn the_smallest_set_that_reaches_p() {
        // Powers of two, so that the sums are exact: probabilities 1/2, 1/4, 1/8, 1/8.
        let scores = [0.125, 0.5, 0.125, 0.25];
        assert_eq!(kept(&scores, 0.25), [1]);
        assert_eq!(kept(&scores, 0.5), [1]);
        assert_eq!(kept(&scores, 0.625), [1, 3]);
        assert_eq!(kept(&scores, 0.75), [1, 3]);
        assert_eq!(kept(&scores, 0.875), [0, 1, 3]);
        assert_eq!(kept(&scores, 0.9), [0, 1, 2, 3]);
    }

    #[test]
    fn weights_need_not_be_normalised() {
        assert_eq!(kept(&[1.0, 4.0, 1.0, 2.0], 0.75), [1, 3]);
    }

    #[test]
    fn one_changes_nothing_and_a_tiny_p_keeps_the_likeliest() {
        assert_eq!(kept(&[0.2, 0.3, 0.5], 1.0), [0, 1, 2]);
        assert_eq!(kept(&[0.2, 0.3, 0.5], f32::MIN_POSITIVE), [2]);
        assert_eq!(kept(&[0.0, 0.0, 1.0, 0.0], 0.999), [2]);
    }

    #[test]
    fn agrees_with_sorting() {
        let scores: Vec<f64> = (0..1000u32)
            .map(|i| libm::exp(f64::from((i * 7919) % 1000) / 100.0))
            .collect();
        let total: f64 = scores.iter().sum();
        for p in [0.01f32, 0.1, 0.33, 0.5, 0.9, 0.99, 0.9999] {
            let mut order: Vec<u32> = (0..1000).collect();
            order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
            let mut sum = 0.0;
            let mut want: Vec<u32> = Vec::new();
            for token in order {
                want.push(token);
                sum += scores[token as usize];
                if sum >= f64::from(p) * total {
                    break;
                }
            }
            want.sort_unstable();
            assert_eq!(kept(&scores, p), want, "p = {p}");
        }
    }
}
