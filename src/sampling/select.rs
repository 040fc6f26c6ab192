//! The smallest set of candidates that reaches a weight: what top_p and typical_p have in common.

use std::cmp::Ordering;

use super::Candidate;

/// The member that brings the sum of the first candidates in the order `by` to `wanted`, or the last one if none does. Linear: it is
/// found by halving, nothing is sorted.
///
/// Invariant: everything before the slice has been subtracted from `wanted`, and the member sought is in the slice.
pub(super) fn last_to_reach(
    mut slice: &mut [Candidate],
    mut wanted: f64,
    by: impl Fn(&Candidate, &Candidate) -> Ordering + Copy,
) -> Option<Candidate> {
    while slice.len() > 1 {
        let half = slice.len() / 2;
        let (first, _, _) = slice.select_nth_unstable_by(half, by);
        let weight: f64 = first.iter().map(|c| c.score).sum();
        let (first, rest) = slice.split_at_mut(half);
        if weight >= wanted {
            slice = first;
        } else {
            wanted -= weight;
            slice = rest;
        }
    }
    slice.first().copied()
}
