//! The few scalar functions that every loss is made of, in forms that neither overflow nor cancel.

/// `ln(1 + exp(x))`, which is `-ln(sigmoid(-x))`.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

/// The derivative of [`sigmoid`]: `sigmoid(x) sigmoid(-x)`.
pub fn dsigmoid(x: f64) -> f64 {
    sigmoid(x) * sigmoid(-x)
}

/// `ln(1 - exp(x))` for `x < 0`.
pub fn log1mexp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() }
}

/// `ln(p / (1 - p))`.
pub fn logit(p: f64) -> f64 {
    p.ln() - (-p).ln_1p()
}

/// `max(0, x)`, but a NaN stays one: `f64::max` would turn it into a harmless 0.
pub fn relu(x: f64) -> f64 {
    if x <= 0.0 { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_are_finite_and_exact() {
        for x in [1e4, 745.0, 40.0, 1.0, 0.0] {
            assert!(softplus(x) >= x && softplus(x) <= x + std::f64::consts::LN_2);
            assert!((0.0..=std::f64::consts::LN_2).contains(&softplus(-x)));
            assert!((sigmoid(x) + sigmoid(-x) - 1.0).abs() < 1e-15);
            assert!(dsigmoid(x) >= 0.0 && dsigmoid(x) == dsigmoid(-x));
        }
        assert_eq!(softplus(0.0), std::f64::consts::LN_2);
        assert_eq!(softplus(-0.0), std::f64::consts::LN_2);
        assert_eq!((softplus(1e4), softplus(-1e4), sigmoid(-1e4)), (1e4, 0.0, 0.0));
    }

    #[test]
    fn log1mexp_keeps_its_digits_at_both_ends() {
        // 1 - exp(x) is -x + x^2/2 near 0 and 1 - exp(x) far from it.
        assert!((log1mexp(-1e-10) - (1e-10f64.ln() - 0.5e-10)).abs() < 1e-14);
        assert!((log1mexp(-40.0) / -(-40f64).exp() - 1.0).abs() < 1e-15);
        assert!((log1mexp(-1.0) - (1.0 - (-1f64).exp()).ln()).abs() < 1e-15);
    }

    #[test]
    fn nan_is_never_swallowed() {
        for f in [softplus, sigmoid, dsigmoid, relu, log1mexp] {
            assert!(f(f64::NAN).is_nan());
        }
    }
}
