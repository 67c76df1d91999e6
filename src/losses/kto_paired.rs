//! KTO on pairs: each side against the other side's KL over the batch.

use super::math::{dsigmoid, relu, sigmoid};
use super::options::positive;
use super::{Batchwise, LossOptions, PairInputs, PairOutput};
use crate::Result;

/// Paired KTO: `sigmoid(-lambda_d (a - KL_l))` for the chosen completion and
/// `sigmoid(-lambda_u (KL_w - b))` for the rejected one, `a` and `b` their log-ratios.
///
/// Ethayarajh et al. 2024 (arXiv:2402.01306), the loss of the paper's first version, in which a batch's
/// KL is estimated by the other side: `KL_w = max(0, mean a)`, `KL_l = max(0, mean b)`. The lambdas
/// scale inside the sigmoid; they are not the weights of [`Kto`](super::Kto).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KtoPaired {
    /// Scale of the rewards, and of both sides unless they have their own.
    pub beta: f64,
    /// Scale of the chosen side; absent is `beta`.
    pub lambda_d: Option<f64>,
    /// Scale of the rejected side; absent is `beta`.
    pub lambda_u: Option<f64>,
    /// Takes the KL estimates as constants.
    pub detach_kl: bool,
}

/// A batch's losses and the gradient of their weighted sum.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KtoPairedOutput {
    /// The chosen completions' losses.
    pub chosen_losses: Vec<f64>,
    /// The rejected completions' losses.
    pub rejected_losses: Vec<f64>,
    /// Derivative of the weighted sum over pairs, a pair's loss being the mean of its two sides, with
    /// respect to each chosen log-ratio.
    pub dchosen: Vec<f64>,
    /// The same with respect to each rejected log-ratio.
    pub drejected: Vec<f64>,
}

impl KtoPaired {
    /// Both sides' losses, and the gradients, of a batch of pairs.
    ///
    /// `chosen` and `rejected` are the log-ratios of each pair, `weights` the factors on its loss. What
    /// one slice has beyond another is left out.
    pub fn sides(&self, chosen: &[f64], rejected: &[f64], weights: &[f64]) -> KtoPairedOutput {
        let pairs = chosen.len().min(rejected.len()).min(weights.len());
        let (chosen, rejected) = (&chosen[..pairs], &rejected[..pairs]);
        let n = pairs.max(1) as f64;
        let (ld, lu) = (self.lambda_d.unwrap_or(self.beta), self.lambda_u.unwrap_or(self.beta));
        let mean = |x: &[f64]| x.iter().sum::<f64>() / n;
        let (kl_chosen, kl_rejected) = (relu(mean(chosen)), relu(mean(rejected)));
        let mut out = KtoPairedOutput::default();
        // What each side's slopes pull on the other side's mean.
        let (mut from_chosen, mut from_rejected) = (0.0, 0.0);
        for ((a, b), weight) in chosen.iter().zip(rejected).zip(weights) {
            let (x, y) = (ld * (a - kl_rejected), lu * (kl_chosen - b));
            let w = 0.5 * weight;
            let (dx, dy) = (w * ld * dsigmoid(x), w * lu * dsigmoid(y));
            out.chosen_losses.push(sigmoid(-x));
            out.rejected_losses.push(sigmoid(-y));
            out.dchosen.push(-dx);
            out.drejected.push(dy);
            from_chosen += dx;
            from_rejected += dy;
        }
        if !self.detach_kl {
            if kl_chosen > 0.0 {
                out.dchosen.iter_mut().for_each(|d| *d -= from_rejected / n);
            }
            if kl_rejected > 0.0 {
                out.drejected.iter_mut().for_each(|d| *d += from_chosen / n);
            }
        }
        out
    }
}

impl Batchwise for KtoPaired {
    fn value_and_gradient(&self, pairs: &[PairInputs], weights: &[f64]) -> Vec<PairOutput> {
        let chosen: Vec<f64> = pairs.iter().map(PairInputs::chosen_logratio).collect();
        let rejected: Vec<f64> = pairs.iter().map(PairInputs::rejected_logratio).collect();
        let y = self.sides(&chosen, &rejected, weights);
        let loss = |i: usize| 0.5 * (y.chosen_losses[i] + y.rejected_losses[i]);
        (0..y.dchosen.len())
            .map(|i| PairOutput::new(loss(i), y.dchosen[i], y.drejected[i]))
            .collect()
    }

    fn validate(&self) -> Result<()> {
        positive("--beta", self.beta)?;
        positive("--kto-lambda-d", self.lambda_d.unwrap_or(self.beta))?;
        positive("--kto-lambda-u", self.lambda_u.unwrap_or(self.beta))
    }

    fn from_options(o: &LossOptions) -> Self {
        KtoPaired {
            beta: o.beta,
            lambda_d: o.kto_lambda_d,
            lambda_u: o.kto_lambda_u,
            detach_kl: o.kto_detach_kl,
        }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
