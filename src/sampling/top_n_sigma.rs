//! top_n_sigma: keeps tokens whose logit is at most `n` standard deviations below the largest.
//!
//! The deviation is that of all logits that are not forbidden. Logits divided by a temperature have the same relation to their
//! deviation as the logits themselves, so the stage gives the same after the temperature as before it.

use super::sum;

/// The least logit that is kept; negative infinity without the stage. `largest` is the largest logit.
pub(super) fn least_kept(logits: &[f32], largest: f32, n: Option<f32>) -> f32 {
    let Some(n) = n.filter(|n| *n > 0.0) else {
        return f32::NEG_INFINITY;
    };
    let least = f64::from(largest) - f64::from(n) * deviation(logits, f64::from(largest));
    let rounded = least as f32;
    // Not below the bound by rounding.
    if f64::from(rounded) < least {
        rounded.next_up().min(largest)
    } else {
        rounded.min(largest)
    }
}

/// The standard deviation, of the distances from `largest` so that nothing cancels out.
fn deviation(logits: &[f32], largest: f64) -> f64 {
    let distance = |logit: f32| {
        if logit > f32::NEG_INFINITY {
            largest - f64::from(logit)
        } else {
            0.0
        }
    };
    let count = sum(logits, |logit| {
        f64::from(u8::from(logit > f32::NEG_INFINITY))
    });
    let mean = sum(logits, distance) / count;
    let squares = sum(logits, |logit| distance(logit) * distance(logit));
    (squares / count - mean * mean).max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: f32 = f32::NEG_INFINITY;

    #[test]
    fn hand_computed() {
        // 2, 4, 4, 4, 5, 5, 7, 9 have the deviation 2.
        let logits = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(least_kept(&logits, 9.0, Some(1.0)), 7.0);
        assert_eq!(least_kept(&logits, 9.0, Some(0.5)), 8.0);
        assert_eq!(least_kept(&logits, 9.0, Some(2.5)), 4.0);
    }

    #[test]
    fn what_is_forbidden_does_not_count() {
        let logits = [2.0, 4.0, NO, 4.0, 4.0, 5.0, 5.0, NO, 7.0, 9.0];
        assert_eq!(least_kept(&logits, 9.0, Some(1.0)), 7.0);
    }

    #[test]
    fn nothing_is_off_and_the_likeliest_stays() {
        assert_eq!(least_kept(&[1.0, 2.0], 2.0, None), NO);
        assert_eq!(least_kept(&[3.0; 9], 3.0, Some(1.0)), 3.0);
        assert_eq!(least_kept(&[1.0, 2.5], 2.5, Some(1e-30)), 2.5);
        assert_eq!(least_kept(&[NO, 2.5], 2.5, Some(1.0)), 2.5);
    }

    #[test]
    fn a_large_vocabulary_of_large_logits_loses_no_digits() {
        let logits: Vec<f32> = (0..200_000).map(|i| 1000.0 + (i % 2) as f32).collect();
        assert_eq!(least_kept(&logits, 1001.0, Some(1.0)), 1000.5);
    }
}
