//! e^x for weights: the same bits on every machine, and several times as fast as a library's, since a draw may need it once a token.

/// Adding it to a number leaves the nearest integer in the low bits: 1.5 × 2^52.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// ln 2 in two parts; the first has so few digits that its product with an exponent is exact.
const LN_2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];

/// 1 / k! from k = 13 down to 0: what is left out is below the last bit, for |r| ≤ ln 2 / 2.
const SERIES: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// `x` ≤ 0 or negative infinity. Below e^-708, where f64 loses digits, it is 0. Additions and multiplications alone, each rounded, no branch.
pub(super) fn exp(x: f64) -> f64 {
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let series = SERIES.iter().fold(0.0, |sum, term| sum * r + term);
    // 2^n: n is in the low bits of `shifted` and goes to the exponent.
    let scaled = f64::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 52));
    if x < -708.0 { 0.0 } else { scaled }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_library_to_the_last_digits() {
        for i in 0..=70_800 {
            let x = f64::from(i) / -100.0;
            let (got, want) = (exp(x), libm::exp(x));
            assert!((got / want - 1.0).abs() < 5e-16, "{x}: {got} {want}");
        }
    }

    #[test]
    fn its_ends_are_one_and_zero() {
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!((exp(-709.0), exp(-1e300)), (0.0, 0.0));
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e-300), 1.0);
    }

    #[test]
    fn a_smaller_number_never_gives_more() {
        let values: Vec<f64> = (0..100_000).map(|i| exp(f64::from(i) * -1e-3)).collect();
        assert!(values.is_sorted_by(|a, b| a >= b));
    }
}
