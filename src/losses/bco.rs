//! Binary classifier optimisation: each side against the mean of all rewards seen.

use super::math::{sigmoid, softplus};
use super::{BatchOutput, Batchwise, LossOptions, PairInputs, PairOutput};

/// BCO on pairs: `softplus(-(u - shift)) + softplus(v - shift)`, `u` and `v` the two rewards.
///
/// Jung et al. 2024 (arXiv:2404.04656), with its reward shift: the mean of all rewards seen, this
/// batch's included, a constant for the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BcoPair {
    /// Strength of the hold on the reference.
    pub beta: f64,
    /// Sum of the rewards of all steps before: part of a run's state.
    pub seen_sum: f64,
    /// How many they are.
    pub seen: usize,
}

impl BcoPair {
    /// Takes a batch's rewards into the mean, once it has been stepped on.
    pub fn observe(&mut self, batch: &BatchOutput) {
        let rewards = batch.chosen_rewards.iter().chain(&batch.rejected_rewards);
        self.seen_sum += rewards.sum::<f64>();
        self.seen += batch.chosen_rewards.len() + batch.rejected_rewards.len();
    }
}

impl Batchwise for BcoPair {
    fn value_and_gradient(&self, pairs: &[PairInputs], weights: &[f64]) -> Vec<PairOutput> {
        let rewards =
            |x: &PairInputs| (self.beta * x.chosen_logratio(), self.beta * x.rejected_logratio());
        let sum: f64 = pairs.iter().map(rewards).map(|(u, v)| u + v).sum();
        let count = self.seen + 2 * pairs.len();
        let shift = (self.seen_sum + sum) / count.max(1) as f64;
        let output = |(x, weight): (&PairInputs, &f64)| {
            let (u, v) = rewards(x);
            PairOutput::new(
                softplus(shift - u) + softplus(v - shift),
                -weight * self.beta * sigmoid(shift - u),
                weight * self.beta * sigmoid(v - shift),
            )
        };
        pairs.iter().zip(weights).map(output).collect()
    }

    fn from_options(o: &LossOptions) -> Self {
        BcoPair { beta: o.beta, seen_sum: 0.0, seen: 0 }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
