//! Supervised fine-tuning: the mean negative log-likelihood of a token.

/// The mean negative log-likelihood over `tokens`, from the sum of their log-probabilities, and its
/// derivative with respect to that sum. Without tokens both are 0.
///
/// The mean is over every token that counts together: a whole step in supervised fine-tuning, a
/// micro-batch's chosen completions in a mixture of paired losses.
pub fn token_nll(logp_sum: f64, tokens: usize) -> (f64, f64) {
    if tokens == 0 {
        return (0.0, 0.0);
    }
    let n = tokens as f64;
    (-logp_sum / n, -1.0 / n)
}
