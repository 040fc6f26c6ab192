//! top_k: keeps the `k` likeliest tokens.
//!
//! It is where logits become candidates, so that everything after it only looks at those. The likeliest are found in one pass that
//! keeps no more than 2·`k` at a time and looks at a logit twice only if it is among the largest so far: nothing is sorted.

use super::Candidate;

/// Logits that are compared at once.
const BLOCK: usize = 32;

/// Fills `candidates` with the `k` likeliest tokens whose logit is at least `least`, in the order of their ids; `k` = 0 takes all. A
/// forbidden token is never one. `candidates` and `scratch` have room for all tokens.
pub(super) fn gather(
    logits: &[f32],
    least: f32,
    k: u32,
    candidates: &mut Vec<Candidate>,
    scratch: &mut Vec<Candidate>,
) {
    let k = k as usize;
    let last = match k {
        0 => None,
        k if k >= logits.len() => None,
        k => last_of_the_likeliest(logits, k, scratch),
    };
    candidates.clear();
    match last {
        None => candidates.extend(all(logits).filter(|c| c.score >= f64::from(least))),
        Some(last) => {
            let least = least.max(last.score as f32);
            for_each_from(logits, least, |candidate| {
                if candidate.rank(&last).is_le() {
                    candidates.push(candidate);
                }
            });
        }
    }
}

/// All tokens that are not forbidden.
fn all(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    let candidate = |(token, &logit): (u32, &f32)| Candidate {
        token,
        score: f64::from(logit),
    };
    (0u32..)
        .zip(logits)
        .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
        .map(candidate)
}

/// Calls `take` for each token whose logit is at least `least` and not forbidden.
fn for_each_from(logits: &[f32], least: f32, mut take: impl FnMut(Candidate)) {
    for (block, start) in logits.chunks(BLOCK).zip((0u32..).step_by(BLOCK)) {
        if block
            .iter()
            .fold(false, |any, logit| any | (*logit >= least))
        {
            let tokens = all(block).filter(|c| c.score >= f64::from(least));
            tokens.for_each(|c| {
                take(Candidate {
                    token: start + c.token,
                    ..c
                })
            });
        }
    }
}

/// The `k`-th likeliest token, `k` ≥ 1; `None` where there are fewer.
fn last_of_the_likeliest(
    logits: &[f32],
    k: usize,
    scratch: &mut Vec<Candidate>,
) -> Option<Candidate> {
    scratch.clear();
    let mut least = f32::NEG_INFINITY;
    for (block, start) in logits.chunks(BLOCK).zip((0u32..).step_by(BLOCK)) {
        // Of equal ones the first count, so later ones have to be larger.
        if !block
            .iter()
            .fold(false, |any, logit| any | (*logit > least))
        {
            continue;
        }
        for c in all(block).filter(|c| c.score > f64::from(least)) {
            scratch.push(Candidate {
                token: start + c.token,
                ..c
            });
        }
        if scratch.len() >= 2 * k + BLOCK {
            least = select(scratch, k)?.score as f32;
        }
    }
    if scratch.len() < k {
        return None;
    }
    select(scratch, k)
}

/// Leaves the `k` likeliest and gives the last of them.
fn select(scratch: &mut Vec<Candidate>, k: usize) -> Option<Candidate> {
    scratch.select_nth_unstable_by(k - 1, Candidate::rank);
    scratch.truncate(k);
    scratch.last().copied()
}

#[cfg(test)]
mod tests {
    use super::super::uniform;
    use super::*;

    const NO: f32 = f32::NEG_INFINITY;

    fn kept(logits: &[f32], least: f32, k: u32) -> Vec<u32> {
        let (mut candidates, mut scratch) = (Vec::new(), Vec::new());
        gather(logits, least, k, &mut candidates, &mut scratch);
        assert!(
            candidates
                .iter()
                .all(|c| c.score == f64::from(logits[c.token as usize]))
        );
        candidates.iter().map(|c| c.token).collect()
    }

    #[test]
    fn the_likeliest_stay_in_the_order_of_their_ids() {
        assert_eq!(kept(&[0.1, 0.9, 0.5, 0.7], NO, 2), [1, 3]);
        assert_eq!(kept(&[0.1, 0.9, 0.5, 0.7], NO, 1), [1]);
    }

    #[test]
    fn of_equal_ones_the_lower_ids_stay() {
        assert_eq!(kept(&[0.5, 1.0, 0.5, 0.5], NO, 3), [0, 1, 2]);
        let equal = [1.0; 1000];
        assert_eq!(kept(&equal, NO, 40), (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn zero_and_everything_change_nothing() {
        assert_eq!(kept(&[0.1, 0.9, 0.5], NO, 0), [0, 1, 2]);
        assert_eq!(kept(&[0.1, 0.9, 0.5], NO, 3), [0, 1, 2]);
        assert_eq!(kept(&[0.1, 0.9, 0.5], NO, u32::MAX), [0, 1, 2]);
    }

    #[test]
    fn what_is_forbidden_or_too_low_is_no_candidate() {
        assert_eq!(kept(&[0.1, NO, 0.5], NO, 0), [0, 2]);
        assert_eq!(kept(&[0.1, NO, 0.5, NO], NO, 3), [0, 2]);
        assert_eq!(kept(&[0.1, NO, 0.5], 0.5, 0), [2]);
        assert_eq!(kept(&[0.1, NO, 0.5, 0.7], 0.6, 2), [3]);
    }

    #[test]
    fn agrees_with_sorting() {
        for case in 0..40 {
            let n = 1 + (uniform(case, 0) * 5000.0) as u64;
            // Few different values, so that many are equal.
            let logits: Vec<f32> = (1..=n)
                .map(|i| (uniform(case, i) * 300.0).floor() as f32)
                .collect();
            for k in [1, 2, 31, 40, 1000, 4999] {
                let mut want: Vec<u32> = (0..n as u32).collect();
                want.sort_by(|a, b| {
                    let of = |id: &u32| logits[*id as usize];
                    of(b).total_cmp(&of(a)).then(a.cmp(b))
                });
                want.truncate(k as usize);
                want.sort_unstable();
                assert!(kept(&logits, NO, k) == want, "case {case}, k {k}");
            }
        }
    }
}
