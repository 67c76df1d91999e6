//! WPO: pairs count by how likely their answers are under the policy that learns from them.

/// What a pair counts: `exp(c / n_c) exp(r / n_r)`, `c` and `r` the sums over the answers' tokens of
/// `ln p(token) - ln(sum over the vocabulary of p^2)`, and `n` their tokens.
///
/// Zhou et al. 2024 (arXiv:2406.11827), equation 2, with its alignment of weights: an answer that the
/// policy would sample itself has a weight of about 1, whatever the policy's entropy. A constant for the
/// gradient. An answer without tokens has a factor of 1.
pub fn wpo_weight(chosen: (f64, usize), rejected: (f64, usize)) -> f64 {
    let mean = |(sum, tokens): (f64, usize)| sum / tokens.max(1) as f64;
    (mean(chosen) + mean(rejected)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_policy_would_say_counts_whole() {
        assert_eq!(wpo_weight((0.0, 3), (0.0, 7)), 1.0);
        assert_eq!(wpo_weight((0.0, 0), (0.0, 0)), 1.0);
        approx::assert_relative_eq!(wpo_weight((-2.0, 4), (-3.0, 2)), (-2f64).exp());
    }
}
