//! The penalties for tokens that stand in the window: repetition_penalty, then presence_penalty and frequency_penalty.
//!
//! A positive logit is divided by repetition_penalty, a negative one multiplied with it, once for each token however often
//! it stands there. Then presence_penalty is taken away once and frequency_penalty as often as the token stands there.

use super::{SamplingParams, change};

/// `counts` has an entry for each token and is all zero between two calls. The cost is that of the window, not of the vocabulary.
pub(super) fn apply(
    logits: &mut [f32],
    history: &[u32],
    params: &SamplingParams,
    counts: &mut [u32],
) {
    let (repetition, presence) = (params.repetition_penalty, params.presence_penalty);
    let frequency = params.frequency_penalty;
    if repetition == 1.0 && presence == 0.0 && frequency == 0.0 {
        return;
    }
    let window = params.penalty_window.of(history);
    for &token in window {
        if let Some(count) = counts.get_mut(token as usize) {
            *count += 1;
        }
    }
    for &token in window {
        let at = token as usize;
        let (Some(count), Some(logit)) = (counts.get_mut(at), logits.get_mut(at)) else {
            continue;
        };
        let times = std::mem::take(count);
        if times == 0 {
            continue;
        }
        // In f32, as the reference implementations do it.
        change(logit, |logit| {
            let logit = if logit > 0.0 {
                logit / repetition
            } else {
                logit * repetition
            };
            logit - presence - frequency * times as f32
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Window;
    use super::*;

    const NEUTRAL: SamplingParams = SamplingParams::NEUTRAL;

    fn run(logits: &[f32], history: &[u32], params: SamplingParams) -> Vec<f32> {
        let mut logits = logits.to_vec();
        let mut counts = vec![0; logits.len()];
        apply(&mut logits, history, &params, &mut counts);
        assert!(counts.iter().all(|count| *count == 0), "nothing is left");
        logits
    }

    #[test]
    fn repetition_divides_positive_logits_and_multiplies_negative_ones_once() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            ..NEUTRAL
        };
        assert_eq!(
            run(&[3.0, -1.0, 0.0, 2.0], &[0, 1, 0, 2, 1], params),
            [1.5, -2.0, 0.0, 2.0]
        );
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time() {
        let (logits, history) = ([3.0, -1.0, 5.0], [0, 1, 0, 0]);
        let presence = SamplingParams {
            presence_penalty: 0.5,
            ..NEUTRAL
        };
        assert_eq!(run(&logits, &history, presence), [2.5, -1.5, 5.0]);
        let frequency = SamplingParams {
            frequency_penalty: 0.5,
            ..NEUTRAL
        };
        assert_eq!(run(&logits, &history, frequency), [1.5, -1.5, 5.0]);
        let reward = SamplingParams {
            presence_penalty: -1.0,
            frequency_penalty: -0.25,
            ..NEUTRAL
        };
        assert_eq!(run(&logits, &history, reward), [4.75, 0.25, 5.0]);
    }

    #[test]
    fn repetition_comes_before_the_other_two() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 1.0,
            frequency_penalty: 0.5,
            ..NEUTRAL
        };
        assert_eq!(run(&[4.0, 4.0], &[0, 0], params), [0.0, 4.0]);
    }

    #[test]
    fn the_window_is_what_is_looked_at() {
        let windowed = |penalty_window| SamplingParams {
            frequency_penalty: 1.0,
            penalty_window,
            ..NEUTRAL
        };
        let (logits, history) = ([5.0, 5.0, 5.0], [0, 1, 1, 2]);
        for (window, want) in [
            (Window::All, [4.0, 3.0, 4.0]),
            (Window::Last(0), [5.0, 5.0, 5.0]),
            (Window::Last(2), [5.0, 4.0, 4.0]),
            (Window::Last(4), [4.0, 3.0, 4.0]),
            (Window::Last(400), [4.0, 3.0, 4.0]),
        ] {
            assert_eq!(run(&logits, &history, windowed(window)), want, "{window:?}");
        }
    }

    #[test]
    fn neutral_values_change_nothing() {
        assert_eq!(run(&[3.0, -1.0], &[0, 1], NEUTRAL), [3.0, -1.0]);
    }

    #[test]
    fn what_is_forbidden_stays_so_and_nothing_becomes_infinite() {
        let params = SamplingParams {
            repetition_penalty: f32::MIN_POSITIVE,
            presence_penalty: -2.0,
            ..NEUTRAL
        };
        assert_eq!(
            run(&[f32::NEG_INFINITY, 30.0], &[0, 1], params),
            [f32::NEG_INFINITY, f32::MAX]
        );
    }
}
