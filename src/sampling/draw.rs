//! The end of the chain: the likeliest candidate, or one drawn in proportion to its weight.

use super::Candidate;

/// The candidate with the largest score; of equal ones the lowest id. `None` where there is no candidate.
pub(super) fn likeliest(candidates: &[Candidate]) -> Option<Candidate> {
    let mut best = *candidates.first()?;
    for candidate in candidates {
        if candidate.score > best.score {
            best = *candidate;
        }
    }
    Some(best)
}

/// The candidate in whose share of [0, total) the number `uniform` ([0, 1)) of the way falls; shares lie in the order of ids.
pub(super) fn draw(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|c| c.score).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    let mut last = None;
    for candidate in candidates {
        sum += candidate.score;
        if candidate.score > 0.0 {
            last = Some(candidate.token);
            if sum > target {
                break;
            }
        }
    }
    // Rounding may leave `target` at the very end; then it is the last candidate that can be drawn at all.
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(scores: &[f64]) -> Vec<Candidate> {
        (0u32..)
            .zip(scores)
            .map(|(token, &score)| Candidate { token, score })
            .collect()
    }

    #[test]
    fn shares_lie_in_the_order_of_ids() {
        let all = of(&[1.0, 0.0, 2.0, 1.0]);
        let drawn: Vec<_> = [0.0, 0.24, 0.25, 0.7, 0.75, 0.999]
            .iter()
            .map(|&u| draw(&all, u))
            .collect();
        assert_eq!(
            drawn,
            [Some(0), Some(0), Some(2), Some(2), Some(3), Some(3)]
        );
    }

    #[test]
    fn what_weighs_nothing_is_never_drawn() {
        assert_eq!(draw(&of(&[0.0, 1.0, 0.0]), 0.0), Some(1));
        assert_eq!(draw(&of(&[0.0, 1.0, 0.0]), 1.0), Some(1));
        assert_eq!(draw(&[], 0.5), None);
    }

    #[test]
    fn of_equal_ones_the_lowest_id_is_the_likeliest() {
        assert_eq!(likeliest(&of(&[1.0, 3.0, 3.0])).map(|c| c.token), Some(1));
    }
}
