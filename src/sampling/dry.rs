//! dry ("don't repeat yourself"): makes tokens less likely that would go on with a sequence that was there before.
//!
//! Where the last `n` tokens stand earlier in the window too, followed by some token, then this token would make the
//! repetition longer. From `n` = allowed_length on its logit loses multiplier × base^(n − allowed_length); of several such
//! places the longest counts. A sequence ends at a breaker: none is part of a repetition, and none is made less likely.

use super::{DryParams, SampleStep, change};

/// Longest repetition that is told from a longer one. It bounds the scratch, and no penalty needs more.
pub const DRY_MATCH_MAX: usize = 256;

/// `lengths` has an entry for each token and is all zero between two calls. The cost is linear in the window, whatever stands in it.
pub(super) fn apply(logits: &mut [f32], step: &SampleStep<'_>, lengths: &mut [u32]) {
    let Some(params) = step.params.dry.filter(|dry| dry.multiplier > 0.0) else {
        return;
    };
    let window = params.window.of(step.history);
    let is_breaker = |token: &&u32| step.breakers.contains(**token);
    let unbroken = window.iter().rev().position(|t| is_breaker(&t));
    let longest = unbroken.unwrap_or(window.len()).min(DRY_MATCH_MAX);
    if longest < params.allowed_length.max(1) as usize {
        return;
    }
    note_lengths(window, longest, lengths);
    for &token in window {
        let at = token as usize;
        let (Some(length), Some(logit)) = (lengths.get_mut(at), logits.get_mut(at)) else {
            continue;
        };
        let length = std::mem::take(length);
        if length >= params.allowed_length.max(1) && !step.breakers.contains(token) {
            change(logit, |logit| {
                (f64::from(logit) - penalty(&params, length)) as f32
            });
        }
    }
}

/// What a repetition of so many tokens costs.
fn penalty(params: &DryParams, length: u32) -> f64 {
    let over = length.saturating_sub(params.allowed_length.max(1));
    f64::from(params.multiplier) * libm::pow(f64::from(params.base), f64::from(over))
}

/// Notes for each token the longest repetition that it would make longer; a repetition of more than `longest` tokens counts as one
/// of so many.
///
/// The Z algorithm on the window read backwards, where repetitions of its end are repetitions of its beginning.
fn note_lengths(window: &[u32], longest: usize, lengths: &mut [u32]) {
    let at = |i: usize| window.len().checked_sub(i + 1).and_then(|i| window.get(i));
    // How much of the beginning stands again at each of the first places; the only ones that are asked for later.
    let mut again = [0usize; DRY_MATCH_MAX];
    // The repetition that reaches furthest: it begins at `from` and ends before `to`.
    let (mut from, mut to) = (0, 0);
    for place in 1..window.len() {
        let mut length = 0;
        if place < to {
            length = again[place - from].min(to - place);
        }
        while length < longest && place + length < window.len() && at(length) == at(place + length)
        {
            length += 1;
        }
        if place + length > to {
            (from, to) = (place, place + length);
        }
        if let Some(slot) = again.get_mut(place) {
            *slot = length;
        }
        let next = at(place - 1).and_then(|next| lengths.get_mut(*next as usize));
        if let Some(noted) = next {
            *noted = (*noted).max(length as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SamplingParams, TokenSet, Window, uniform};
    use super::*;

    const VOCAB: usize = 12;

    const DRY: DryParams = DryParams {
        multiplier: 0.5,
        base: 2.0,
        allowed_length: 2,
        window: Window::All,
    };

    /// What each token's logit loses.
    fn losses(history: &[u32], dry: DryParams, breakers: &[u32]) -> Vec<f32> {
        let params = SamplingParams {
            dry: Some(dry),
            ..SamplingParams::NEUTRAL
        };
        let mut words = [0; 1];
        for &breaker in breakers {
            TokenSet::insert(&mut words, breaker);
        }
        let step = SampleStep {
            breakers: TokenSet(&words),
            ..SampleStep::new(&params, 0.0, history)
        };
        let mut logits = [0.0; VOCAB];
        let mut lengths = [0; VOCAB];
        apply(&mut logits, &step, &mut lengths);
        assert_eq!(lengths, [0; VOCAB], "nothing is left");
        logits.iter().map(|logit| 0.0 - logit).collect()
    }

    /// The same by comparing every pair of places, as plainly as possible.
    fn naive(history: &[u32], dry: DryParams, breakers: &[u32]) -> Vec<f32> {
        let window = dry.window.of(history);
        let mut longest = [0u32; VOCAB];
        for end in 1..window.len() {
            let (earlier, next) = (&window[..end], window[end]);
            let mut pairs = earlier.iter().rev().zip(window.iter().rev());
            let length = pairs
                .position(|(a, b)| a != b || breakers.contains(a))
                .unwrap_or(end)
                .min(DRY_MATCH_MAX);
            longest[next as usize] = longest[next as usize].max(length as u32);
        }
        let loss = |token: u32| {
            let length = longest[token as usize];
            let free = length < dry.allowed_length || breakers.contains(&token);
            if free {
                0.0
            } else {
                (0.5 * f64::from(dry.base).powi((length - dry.allowed_length) as i32)) as f32
            }
        };
        (0..VOCAB as u32).map(loss).collect()
    }

    #[test]
    fn hand_computed() {
        // "1 2 3 … 1 2": 3 would repeat two tokens and a third.
        let mut want = [0.0; VOCAB];
        want[3] = 0.5;
        assert_eq!(losses(&[1, 2, 3, 7, 1, 2], DRY, &[]), want);
        // One more token costs twice as much.
        assert_eq!(losses(&[5, 1, 2, 3, 7, 5, 1, 2], DRY, &[])[3], 1.0);
        // One token alone is no repetition yet.
        assert_eq!(losses(&[9, 2, 3, 7, 1, 2], DRY, &[]), [0.0; VOCAB]);
        // Of two places the longer repetition counts.
        let both = [5, 1, 2, 3, 8, 1, 2, 4, 5, 1, 2];
        assert_eq!(
            (losses(&both, DRY, &[])[3], losses(&both, DRY, &[])[4]),
            (1.0, 0.5)
        );
    }

    #[test]
    fn a_sequence_ends_at_a_breaker_and_no_breaker_is_punished() {
        let history = [5, 1, 2, 3, 7, 5, 1, 2];
        assert_eq!(losses(&history, DRY, &[5])[3], 0.5);
        assert_eq!(losses(&history, DRY, &[1]), [0.0; VOCAB]);
        assert_eq!(losses(&history, DRY, &[2]), [0.0; VOCAB]);
        assert_eq!(losses(&history, DRY, &[3]), [0.0; VOCAB]);
    }

    #[test]
    fn the_window_and_the_allowed_length_bound_it() {
        let history = [1, 2, 3, 7, 1, 2];
        let last = |tokens| DryParams {
            window: Window::Last(tokens),
            ..DRY
        };
        assert_eq!(losses(&history, last(6), &[])[3], 0.5);
        assert_eq!(losses(&history, last(5), &[])[3], 0.0);
        assert_eq!(losses(&history, last(0), &[])[3], 0.0);
        let allowed = |allowed_length| DryParams {
            allowed_length,
            ..DRY
        };
        assert_eq!(losses(&history, allowed(1), &[])[3], 1.0);
        assert_eq!(losses(&history, allowed(3), &[])[3], 0.0);
    }

    #[test]
    fn a_multiplier_of_zero_and_a_short_history_change_nothing() {
        let off = DryParams {
            multiplier: 0.0,
            ..DRY
        };
        assert_eq!(losses(&[1, 2, 3, 1, 2], off, &[]), [0.0; VOCAB]);
        assert_eq!(losses(&[], DRY, &[]), [0.0; VOCAB]);
        assert_eq!(losses(&[1], DRY, &[]), [0.0; VOCAB]);
    }

    #[test]
    fn agrees_with_comparing_every_pair_of_places() {
        for case in 0..600u64 {
            let throw = |i: u64, sides: usize| (uniform(case, i) * sides as f64) as u32;
            let kinds = 1 + throw(0, 4) as usize;
            let history: Vec<u32> = (0..throw(1, 700) as u64)
                .map(|i| throw(10 + i, kinds))
                .collect();
            let dry = DryParams {
                base: 1.01,
                allowed_length: 1 + throw(2, 4),
                window: match throw(3, 3) {
                    0 => Window::Last(throw(4, 40) as usize),
                    _ => Window::All,
                },
                ..DRY
            };
            let breakers: &[u32] = if throw(5, 2) == 0 { &[] } else { &[0] };
            let (got, want) = (
                losses(&history, dry, breakers),
                naive(&history, dry, breakers),
            );
            let close = got
                .iter()
                .zip(&want)
                .all(|(a, b)| (a - b).abs() <= 1e-6 * b);
            assert!(close, "case {case}: {got:?} instead of {want:?}");
        }
    }

    #[test]
    fn the_worst_window_takes_no_longer_than_any_other() {
        let history = vec![3; 131_072];
        let start = std::time::Instant::now();
        let lost = losses(&history, DRY, &[])[3];
        // Comparing every pair of places would take seconds.
        assert!(start.elapsed() < std::time::Duration::from_millis(500));
        assert!(lost > 1e30 && lost.is_finite());
    }
}
