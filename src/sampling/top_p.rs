//! top_p: keeps the smallest set of likeliest tokens whose probabilities, among the candidates left by the stages before,
//! reach `p`.

use super::Candidate;

/// `p` = 1 keeps all. `scratch` has room for all candidates. Linear: the set's last member is found by halving.
pub(super) fn apply(candidates: &mut Vec<Candidate>, scratch: &mut Vec<Candidate>, p: f32) {
    if p.is_nan() || p >= 1.0 {
        return;
    }
    let total: f64 = candidates.iter().map(|c| c.score).sum();
    scratch.clear();
    scratch.extend_from_slice(candidates);
    if let Some(last_kept) = last_of_set(scratch, f64::from(p) * total) {
        candidates.retain(|c| c.rank(&last_kept).is_le());
    }
}

/// The member that brings the sum of the likeliest candidates to `wanted`, or the least likely one if none does.
///
/// Invariant: everything likelier than the slice has been subtracted from `wanted`, and the member sought is in the slice.
fn last_of_set(mut slice: &mut [Candidate], mut wanted: f64) -> Option<Candidate> {
    while slice.len() > 1 {
        let half = slice.len() / 2;
        let (likelier, _, _) = slice.select_nth_unstable_by(half, Candidate::rank);
        let weight: f64 = likelier.iter().map(|c| c.score).sum();
        let (likelier, rest) = slice.split_at_mut(half);
        if weight >= wanted {
            slice = likelier;
        } else {
            wanted -= weight;
            slice = rest;
        }
    }
    slice.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(scores: &[f64], p: f32) -> Vec<u32> {
        let mut all: Vec<Candidate> = (0u32..)
            .zip(scores)
            .map(|(token, &score)| Candidate { token, score })
            .collect();
        apply(&mut all, &mut Vec::new(), p);
        all.iter().map(|c| c.token).collect()
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
