//! A softmax over a row of logits, Adam, and the fitting of one to comparisons.

use collimate::losses::{PairInputs, PairLoss};

/// The logarithms of a softmax.
pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - lse).collect()
}

/// The gradient of the logits from that of the log-probabilities.
pub fn log_softmax_backward(logps: &[f64], dlogps: &[f64]) -> Vec<f64> {
    let sum: f64 = dlogps.iter().sum();
    logps.iter().zip(dlogps).map(|(logp, d)| d - sum * logp.exp()).collect()
}

pub fn exp(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.exp()).collect()
}

pub fn ln(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.ln()).collect()
}

/// The KL from one distribution to another, both as log-probabilities.
pub fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// `reference * exp(reward / beta)`, normalised: the optimum of RLHF.
pub fn gibbs(reference: &[f64], rewards: &[f64], beta: f64) -> Vec<f64> {
    let logits: Vec<f64> = reference.iter().zip(rewards).map(|(p, r)| p.ln() + r / beta).collect();
    exp(&log_softmax(&logits))
}

/// Adam with its usual constants.
pub struct Adam {
    m: Vec<f64>,
    v: Vec<f64>,
    steps: i32,
}

impl Adam {
    pub fn new(parameters: usize) -> Self {
        Adam { m: vec![0.0; parameters], v: vec![0.0; parameters], steps: 0 }
    }

    pub fn step(&mut self, parameters: &mut [f64], gradient: &[f64], rate: f64) {
        self.steps += 1;
        let (b1, b2) = (1.0 - 0.9f64.powi(self.steps), 1.0 - 0.999f64.powi(self.steps));
        for (i, (x, g)) in parameters.iter_mut().zip(gradient).enumerate() {
            self.m[i] += 0.1 * (g - self.m[i]);
            self.v[i] += 0.001 * (g * g - self.v[i]);
            *x -= rate * (self.m[i] / b1) / ((self.v[i] / b2).sqrt() + 1e-8);
        }
    }
}

/// How a learning rate goes: from its start linearly to 0, or constant.
#[derive(Clone, Copy)]
pub enum Rate {
    Decayed(f64),
    Constant(f64),
}

impl Rate {
    pub fn at(self, step: usize, steps: usize) -> f64 {
        match self {
            Rate::Decayed(rate) => rate * (1.0 - step as f64 / steps as f64),
            Rate::Constant(rate) => rate,
        }
    }
}

/// Minimises a function of the logits, given the gradient of their log-probabilities.
pub fn fit(
    logits: &[f64],
    rate: Rate,
    steps: usize,
    mut gradient: impl FnMut(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let (mut logits, mut adam) = (logits.to_vec(), Adam::new(logits.len()));
    for step in 0..steps {
        let logps = log_softmax(&logits);
        let dlogits = log_softmax_backward(&logps, &gradient(&logps));
        adam.step(&mut logits, &dlogits, rate.at(step, steps));
    }
    exp(&log_softmax(&logits))
}

/// One answer was preferred to another, with a probability or in so many cases.
#[derive(Clone, Copy)]
pub struct Comparison {
    pub chosen: usize,
    pub rejected: usize,
    pub prob: Option<f64>,
    pub weight: f64,
}

impl Comparison {
    pub fn certain(chosen: usize, rejected: usize) -> Self {
        Comparison { chosen, rejected, prob: None, weight: 1.0 }
    }
}

/// The gradient of a loss's weighted mean over comparisons with respect to the log-probabilities.
pub fn gradient(
    loss: &PairLoss,
    comparisons: impl IntoIterator<Item = Comparison>,
    logps: &[f64],
    reference: &[f64],
) -> Vec<f64> {
    let (mut dlogps, mut total) = (vec![0.0; logps.len()], 0.0);
    for c in comparisons {
        let x = PairInputs {
            policy_chosen_logp: logps[c.chosen],
            policy_rejected_logp: logps[c.rejected],
            ref_chosen_logp: reference[c.chosen].ln(),
            ref_rejected_logp: reference[c.rejected].ln(),
            chosen_tokens: 1,
            rejected_tokens: 1,
            target_prob: c.prob,
            ..Default::default()
        };
        let y = loss.value_and_gradient(&x);
        dlogps[c.chosen] += c.weight * y.dchosen;
        dlogps[c.rejected] += c.weight * y.drejected;
        total += c.weight;
    }
    dlogps.iter().map(|d| d / total).collect()
}

/// Fits a policy, from the reference on, to comparisons in full batches.
pub fn fit_comparisons(
    loss: impl Into<PairLoss>,
    comparisons: &[Comparison],
    reference: &[f64],
    rate: Rate,
    steps: usize,
) -> Vec<f64> {
    let loss = loss.into();
    fit(&ln(reference), rate, steps, |logps| {
        gradient(&loss, comparisons.iter().copied(), logps, reference)
    })
}
