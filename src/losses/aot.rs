//! Alignment by optimal transport: a stochastic order of whole distributions, not of single pairs.

use super::math::{sigmoid, softplus};
use super::{Batchwise, LossOptions, PairInputs, PairOutput};

/// AOT on pairs: `softplus(-beta (x_k - y_k))`, `x` the batch's margins `lw - ll` under the policy and
/// `y` those under the reference, each sorted on its own.
///
/// Melnyk et al. 2024 (arXiv:2406.05882), the paired variant. A loss and its weight are those of the
/// pair whose policy margin it reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aot {
    /// Scale of the rewards.
    pub beta: f64,
}

/// AOT on the two sides apart: `softplus(-beta (a_k - b_k))`, `a` the batch's chosen log-ratios and `b`
/// the rejected ones, each sorted on its own.
///
/// Melnyk et al. 2024 (arXiv:2406.05882), the unpaired variant. A loss and its weight are those of the
/// pair whose chosen log-ratio it reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AotUnpaired {
    /// Scale of the rewards.
    pub beta: f64,
}

/// The positions of the values, from the smallest to the largest.
fn order(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    order
}

impl Batchwise for Aot {
    fn value_and_gradient(&self, pairs: &[PairInputs], weights: &[f64]) -> Vec<PairOutput> {
        let margin = |x: &PairInputs| x.policy_chosen_logp - x.policy_rejected_logp;
        let policy: Vec<f64> = pairs.iter().map(margin).collect();
        let reference: Vec<f64> =
            pairs.iter().map(|x| x.ref_chosen_logp - x.ref_rejected_logp).collect();
        let mut out = vec![PairOutput::default(); pairs.len()];
        for (i, j) in order(&policy).into_iter().zip(order(&reference)) {
            let h = self.beta * (policy[i] - reference[j]);
            let slope = -weights[i] * self.beta * sigmoid(-h);
            out[i] = PairOutput::of_difference(softplus(-h), slope);
        }
        out
    }

    fn from_options(o: &LossOptions) -> Self {
        Aot { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn takes_logratios(&self) -> bool {
        false
    }
}

impl Batchwise for AotUnpaired {
    fn value_and_gradient(&self, pairs: &[PairInputs], weights: &[f64]) -> Vec<PairOutput> {
        let chosen: Vec<f64> = pairs.iter().map(PairInputs::chosen_logratio).collect();
        let rejected: Vec<f64> = pairs.iter().map(PairInputs::rejected_logratio).collect();
        let mut out = vec![PairOutput::default(); pairs.len()];
        for (i, j) in order(&chosen).into_iter().zip(order(&rejected)) {
            let h = self.beta * (chosen[i] - rejected[j]);
            let slope = weights[i] * self.beta * sigmoid(-h);
            out[i].loss = softplus(-h);
            out[i].dchosen = -slope;
            out[j].drejected = slope;
        }
        out
    }

    fn from_options(o: &LossOptions) -> Self {
        AotUnpaired { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
