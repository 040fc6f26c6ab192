//! The end of the chain: the likeliest candidate, or one drawn in proportion to its weight.

use super::{Candidate, sum};

/// The token with the largest logit, and its logit; of equal ones the lowest id. `None` where every token is forbidden.
pub(super) fn likeliest(logits: &[f32]) -> Option<(u32, f32)> {
    let largest = logits
        .iter()
        .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    if largest == f32::NEG_INFINITY {
        return None;
    }
    let token = logits.iter().position(|logit| *logit == largest)?;
    Some((token as u32, largest))
}

/// The candidate in whose share of [0, total) the number `uniform` ([0, 1)) of the way falls; shares lie in the order of ids.
pub(super) fn draw(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let total = sum(candidates, |c| c.score);
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
    use super::super::candidates as of;
    use super::*;

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
        assert_eq!(likeliest(&[1.0, 3.0, 3.0]), Some((1, 3.0)));
        let no = f32::NEG_INFINITY;
        assert_eq!(likeliest(&[no, -3.0, no]), Some((1, -3.0)));
        assert_eq!(likeliest(&[no, no]), None);
        assert_eq!(likeliest(&[]), None);
    }
}
