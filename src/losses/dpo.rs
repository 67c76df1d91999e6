//! Direct preference optimisation and its kin: the logistic losses of the reward margin.

use super::math::{sigmoid, softplus};
use super::options::{label_smoothing, positive};
use super::{LossOptions, PairInputs, PairOutput, Pairwise};
use crate::Result;

/// DPO: `p softplus(-h) + (1 - p) softplus(h)` with `h = beta delta`.
///
/// Rafailov et al. 2023 (arXiv:2305.18290), equation 7, for `p = 1`. `p` is the probability that the
/// chosen completion is the better one: 1, or the pair's target probability; label smoothing `e`
/// moves it to `(1 - e) p + e (1 - p)` (conservative DPO, Mitchell 2023). The optimum is
/// `h = ln(p / (1 - p))`.
///
/// With the human answer as chosen, the model's own sample as rejected and the model of the round
/// before as reference it is SPIN's loss (Chen et al. 2024, arXiv:2401.01335, equation 4.7), with
/// `beta` for its lambda.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dpo {
    /// Strength of the hold on the reference.
    pub beta: f64,
    /// Assumed probability that a label is flipped, below one half.
    pub label_smoothing: f64,
}

impl Dpo {
    /// The probability that the chosen completion of a pair is the better one.
    pub fn prob(&self, target_prob: Option<f64>) -> f64 {
        let (p, e) = (target_prob.unwrap_or(1.0), self.label_smoothing);
        (1.0 - e) * p + e * (1.0 - p)
    }
}

impl Pairwise for Dpo {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let h = self.beta * x.delta();
        let p = self.prob(x.target_prob);
        // sigmoid(h) - p, but without its cancellation where p = 1.
        let g = (1.0 - p) * sigmoid(h) - p * sigmoid(-h);
        PairOutput::of_difference(p * softplus(-h) + (1.0 - p) * softplus(h), self.beta * g)
    }

    fn validate(&self) -> Result<()> {
        positive("--beta", self.beta)?;
        label_smoothing(self.label_smoothing)
    }

    fn from_options(o: &LossOptions) -> Self {
        Dpo { beta: o.beta, label_smoothing: o.label_smoothing.unwrap_or(0.0) }
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn uses_label_smoothing(&self) -> bool {
        true
    }

    fn uses_target_prob(&self) -> bool {
        true
    }
}

/// Robust DPO: `((1 - e) softplus(-h) - e softplus(h)) / (1 - 2e)`.
///
/// Chowdhury et al. 2024 (arXiv:2403.00409), the unbiased estimate of DPO's loss when labels are
/// flipped with probability `e`. It is unbounded below on samples whose observed frequency leaves
/// `(e, 1 - e)`: a pair that only ever occurs one way round is pushed apart without end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Robust {
    /// Strength of the hold on the reference.
    pub beta: f64,
    /// The probability that a label is flipped, below one half.
    pub label_smoothing: f64,
}

impl Pairwise for Robust {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (h, e) = (self.beta * x.delta(), self.label_smoothing);
        let scale = 1.0 / (1.0 - 2.0 * e);
        PairOutput::of_difference(
            scale * ((1.0 - e) * softplus(-h) - e * softplus(h)),
            -self.beta * scale * ((1.0 - e) * sigmoid(-h) + e * sigmoid(h)),
        )
    }

    fn validate(&self) -> Result<()> {
        positive("--beta", self.beta)?;
        label_smoothing(self.label_smoothing)
    }

    fn from_options(o: &LossOptions) -> Self {
        Robust { beta: o.beta, label_smoothing: o.label_smoothing.unwrap_or(0.0) }
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn uses_label_smoothing(&self) -> bool {
        true
    }
}

/// Length-normalised DPO: `softplus(-beta (a / n_w - b / n_l))`, `a` and `b` the two log-ratios and
/// `n` the completions' tokens.
///
/// Lambert et al. 2024 (arXiv:2411.15124), the loss of Tülu 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SigmoidNorm {
    /// Strength of the hold on the reference, per token.
    pub beta: f64,
}

impl Pairwise for SigmoidNorm {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (nw, nl) = (x.chosen_length(), x.rejected_length());
        let h = self.beta * (x.chosen_logratio() / nw - x.rejected_logratio() / nl);
        let g = self.beta * sigmoid(-h);
        PairOutput::new(softplus(-h), -g / nw, g / nl)
    }

    fn from_options(o: &LossOptions) -> Self {
        SigmoidNorm { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
