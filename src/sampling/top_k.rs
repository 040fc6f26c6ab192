//! top_k: keeps the `k` likeliest tokens.

use super::Candidate;

/// `k` = 0 keeps all. `scratch` has room for all candidates. Linear: the k-th is selected, nothing is sorted.
pub(super) fn apply(candidates: &mut Vec<Candidate>, scratch: &mut Vec<Candidate>, k: u32) {
    let k = k as usize;
    if k == 0 || k >= candidates.len() {
        return;
    }
    scratch.clear();
    scratch.extend_from_slice(candidates);
    let (_, last_kept, _) = scratch.select_nth_unstable_by(k - 1, Candidate::rank);
    let last_kept = *last_kept;
    candidates.retain(|c| c.rank(&last_kept).is_le());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(scores: &[f64], k: u32) -> Vec<u32> {
        let mut all: Vec<Candidate> = (0u32..)
            .zip(scores)
            .map(|(token, &score)| Candidate { token, score })
            .collect();
        apply(&mut all, &mut Vec::new(), k);
        all.iter().map(|c| c.token).collect()
    }

    #[test]
    fn the_likeliest_stay_in_the_order_of_their_ids() {
        assert_eq!(kept(&[0.1, 0.9, 0.5, 0.7], 2), [1, 3]);
        assert_eq!(kept(&[0.1, 0.9, 0.5, 0.7], 1), [1]);
    }

    #[test]
    fn of_equal_ones_the_lower_ids_stay() {
        assert_eq!(kept(&[0.5, 1.0, 0.5, 0.5], 3), [0, 1, 2]);
    }

    #[test]
    fn zero_and_everything_change_nothing() {
        assert_eq!(kept(&[0.1, 0.9, 0.5], 0), [0, 1, 2]);
        assert_eq!(kept(&[0.1, 0.9, 0.5], 3), [0, 1, 2]);
        assert_eq!(kept(&[0.1, 0.9, 0.5], u32::MAX), [0, 1, 2]);
    }
}
