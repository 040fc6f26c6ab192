//! xtc ("exclude top choices"): now and then leaves out the likeliest tokens, so that a less obvious one is drawn.
//!
//! Of the candidates whose probability is at least the threshold all but the least likely are left out, where there are two or more.

use super::{Candidate, XtcParams, sum};

/// `uniform` in [0, 1) says whether the stage acts: below the probability it does.
pub(super) fn apply(candidates: &mut Vec<Candidate>, xtc: Option<XtcParams>, uniform: f64) {
    let Some(xtc) = xtc.filter(|xtc| uniform < f64::from(xtc.probability)) else {
        return;
    };
    let least = f64::from(xtc.threshold) * sum(candidates, |c| c.score);
    let top = candidates
        .iter()
        .filter(|c| c.score >= least && c.score > 0.0);
    let Some(stays) = top.copied().max_by(Candidate::rank) else {
        return;
    };
    candidates.retain(|c| c.rank(&stays).is_ge());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f64; 5] = [0.4, 0.1, 0.3, 0.15, 0.05];

    fn kept(probability: f32, threshold: f32, uniform: f64) -> Vec<u32> {
        let xtc = XtcParams {
            probability,
            threshold,
        };
        super::super::kept(&SCORES, |all| apply(all, Some(xtc), uniform))
    }

    #[test]
    fn all_but_the_least_likely_of_the_top_go() {
        assert_eq!(kept(1.0, 0.125, 0.9), [1, 3, 4]);
        assert_eq!(kept(1.0, 0.25, 0.9), [1, 2, 3, 4]);
        assert_eq!(kept(1.0, 0.0, 0.9), [4]);
    }

    #[test]
    fn one_alone_stays_and_so_do_those_that_no_threshold_reaches() {
        assert_eq!(kept(1.0, 0.35, 0.9), [0, 1, 2, 3, 4]);
        assert_eq!(kept(1.0, 0.5, 0.9), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn it_acts_as_often_as_the_probability_says() {
        assert_eq!(kept(0.5, 0.125, 0.49), [1, 3, 4]);
        assert_eq!(kept(0.5, 0.125, 0.5), [0, 1, 2, 3, 4]);
        assert_eq!(kept(0.0, 0.125, 0.0), [0, 1, 2, 3, 4]);
        let without = super::super::kept(&SCORES, |all| apply(all, None, 0.0));
        assert_eq!(without, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_threshold_is_of_probabilities_and_of_equal_ones_the_highest_id_stays() {
        let xtc = XtcParams {
            probability: 1.0,
            threshold: 0.25,
        };
        let equal = |all: &mut Vec<Candidate>| apply(all, Some(xtc), 0.0);
        assert_eq!(super::super::kept(&[8.0, 8.0, 8.0, 8.0], equal), [3]);
    }
}
