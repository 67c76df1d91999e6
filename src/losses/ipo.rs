//! Identity preference optimisation: a regression of the log-ratio's difference on a finite gap.

use super::{LossOptions, PairInputs, PairOutput, Pairwise};

/// IPO on summed log-probabilities: `(delta - 1 / (2 tau))^2`.
///
/// Azar et al. 2023 (arXiv:2310.12036), equation 17. It is [`PsiPo`](super::PsiPo) with the identity
/// and hard labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IpoSum {
    /// Strength of the regularisation towards the reference.
    pub tau: f64,
}

impl Pairwise for IpoSum {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let error = x.delta() - 0.5 / self.tau;
        PairOutput::of_difference(error * error, 2.0 * error)
    }

    fn from_options(o: &LossOptions) -> Self {
        IpoSum { tau: o.beta }
    }

    fn beta(&self) -> f64 {
        self.tau
    }
}

/// IPO on log-probabilities averaged over a completion's tokens: `(a / n_w - b / n_l - 1 / (2 tau))^2`.
///
/// [`IpoSum`] with each log-ratio divided by its length, as the authors advised for completions of
/// unequal length and as trainers in the field have it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IpoMean {
    /// Strength of the regularisation towards the reference.
    pub tau: f64,
}

impl Pairwise for IpoMean {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (nw, nl) = (x.chosen_length(), x.rejected_length());
        let error = x.chosen_logratio() / nw - x.rejected_logratio() / nl - 0.5 / self.tau;
        PairOutput::new(error * error, 2.0 * error / nw, -2.0 * error / nl)
    }

    fn from_options(o: &LossOptions) -> Self {
        IpoMean { tau: o.beta }
    }

    fn beta(&self) -> f64 {
        self.tau
    }
}
