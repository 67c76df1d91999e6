//! Psi-PO: preference optimisation of any monotone function of the preference probability.

use super::math::logit;
use super::options::positive;
use super::{LossOptions, PairInputs, PairOutput, Pairwise};
use crate::{Error, Result};

/// Psi-PO as a regression: `(delta - (Psi(p) - Psi(1 - p)) / (2 tau))^2`.
///
/// Azar et al. 2023 (arXiv:2310.12036), the root-finding problem behind IPO, with the comparison policy uniform on
/// the two candidates at hand; `p` is the pair's target probability, 1 where absent.
#[derive(Clone, Debug, PartialEq)]
pub struct PsiPo {
    /// The function of the preference probability.
    pub psi: Psi,
    /// Strength of the regularisation towards the reference.
    pub tau: f64,
}

/// A monotone function of a preference probability.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Psi {
    /// `Psi(p) = p`: IPO with soft labels.
    #[default]
    Identity,
    /// `Psi(p) = ln(p / (1 - p))`: the objective of RLHF and DPO as a regression. `p` is clamped to
    /// `[1e-6, 1 - 1e-6]`.
    Logit,
    /// Linear between the points `(p, Psi(p))`, sorted by `p`, constant outside them.
    Table(Vec<(f64, f64)>),
}

/// Where a function is unbounded, probabilities keep this distance from 0 and 1.
const PROB_MARGIN: f64 = 1e-6;

impl Psi {
    /// The function's value at a probability.
    pub fn at(&self, p: f64) -> f64 {
        match self {
            Psi::Identity => p,
            Psi::Logit => logit(p.clamp(PROB_MARGIN, 1.0 - PROB_MARGIN)),
            Psi::Table(points) => interpolate(points, p),
        }
    }

    /// Reads `identity`, `logit`, or a table `0:-1,0.5:0,1:1` of `p:Psi(p)`.
    pub fn parse(text: &str) -> Result<Self> {
        let psi = match text {
            "identity" => Psi::Identity,
            "logit" => Psi::Logit,
            table => {
                let point = |item: &str| {
                    let (p, psi) = item.split_once(':')?;
                    Some((p.trim().parse().ok()?, psi.trim().parse().ok()?))
                };
                let points: Option<Vec<_>> = table.split(',').map(point).collect();
                Psi::Table(points.ok_or_else(|| {
                    let expected = "identity, logit or a table such as 0:-1,0.5:0,1:1";
                    Error::setting("--psi", expected, table)
                })?)
            }
        };
        psi.validate()?;
        Ok(psi)
    }

    /// Checks that a table is one of a monotone function.
    pub fn validate(&self) -> Result<()> {
        let Psi::Table(points) = self else { return Ok(()) };
        let error = |expected: &str, got: String| Err(Error::setting("--psi", expected, got));
        if points.len() < 2 {
            return error("a table of at least 2 points", format!("{}", points.len()));
        }
        if let Some((p, psi)) =
            points.iter().find(|(p, psi)| !(0.0..=1.0).contains(p) || !psi.is_finite())
        {
            return error("probabilities from 0 to 1 and finite values", format!("{p}:{psi}"));
        }
        if let Some(w) = points.windows(2).find(|w| w[0].0 >= w[1].0 || w[0].1 > w[1].1) {
            let got = format!("{}:{} before {}:{}", w[0].0, w[0].1, w[1].0, w[1].1);
            return error("points by rising probability, values that never fall", got);
        }
        Ok(())
    }
}

fn interpolate(points: &[(f64, f64)], p: f64) -> f64 {
    if p.is_nan() {
        return p;
    }
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return f64::NAN };
    if p <= first.0 {
        return first.1;
    }
    for w in points.windows(2) {
        let ((p0, y0), (p1, y1)) = (w[0], w[1]);
        if p <= p1 {
            return y0 + (y1 - y0) * ((p - p0) / (p1 - p0));
        }
    }
    last.1
}

impl PsiPo {
    /// The gap that `delta` is regressed on, from the probability that the chosen one is better.
    pub fn target(&self, prob: f64) -> f64 {
        (self.psi.at(prob) - self.psi.at(1.0 - prob)) / (2.0 * self.tau)
    }

    /// The gap between two of K candidates, from their [`candidate_values`].
    pub fn candidate_target(&self, chosen_value: f64, rejected_value: f64) -> f64 {
        (chosen_value - rejected_value) / self.tau
    }

    /// The same from the probabilities that the chosen one, and the rejected one, is better than each.
    pub fn target_of(&self, probs: [&[f64]; 2]) -> f64 {
        let [chosen, rejected] = probs.map(|probs| candidate_value(&self.psi, probs));
        self.candidate_target(chosen, rejected)
    }

    /// The loss with its target given.
    pub fn regression(&self, x: &PairInputs, target: f64) -> PairOutput {
        let error = x.delta() - target;
        PairOutput::of_difference(error * error, 2.0 * error)
    }
}

/// The value of a candidate: the mean of `Psi(p(y > y'))` over all candidates `y'`, itself included.
fn candidate_value(psi: &Psi, probs: &[f64]) -> f64 {
    probs.iter().map(|&p| psi.at(p)).sum::<f64>() / probs.len() as f64
}

/// The value of each of K candidates: the mean of `Psi(p(y > y'))` over all K candidates `y'`.
///
/// Azar et al. 2023 (arXiv:2310.12036), the expectation of equation 6 with the comparison policy
/// uniform on the candidates. `probs` is `[K, K]` by rows, `probs[i * k + j]` the probability that
/// candidate i is better than candidate j. A candidate itself is part of its mean, with probability
/// one half: leaving it out would make every target K/(K-1) too large.
pub fn candidate_values(psi: &Psi, probs: &[f64], k: usize) -> Result<Vec<f64>> {
    psi.validate()?;
    check_candidates(probs, k)?;
    Ok(probs.chunks(k).map(|row| candidate_value(psi, row)).collect())
}

/// Checks that a table `[K, K]` is one of pairwise probabilities.
pub fn check_candidates(probs: &[f64], k: usize) -> Result<()> {
    if k == 0 || k.checked_mul(k) != Some(probs.len()) {
        let expected = format!("a table of {k} x {k} probabilities, {k} at least 1");
        return Err(Error::shape("candidate_values", expected, format!("{}", probs.len())));
    }
    for i in 0..k {
        for j in 0..=i {
            let (p, q) = (probs[i * k + j], probs[j * k + i]);
            if !((0.0..=1.0).contains(&p) && (p + q - 1.0).abs() <= 1e-6) {
                let expected = "p(i > j) + p(j > i) = 1, and 1/2 on the diagonal".to_string();
                let got = format!("{p} and {q} for candidates {i} and {j}");
                return Err(Error::shape("candidate_values", expected, got));
            }
        }
    }
    Ok(())
}

impl Pairwise for PsiPo {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let target = match x.candidates {
            Some(probs) => self.target_of(probs),
            None => self.target(x.target_prob.unwrap_or(1.0)),
        };
        self.regression(x, target)
    }

    fn validate(&self) -> Result<()> {
        positive("--beta", self.tau)?;
        self.psi.validate()
    }

    fn from_options(o: &LossOptions) -> Self {
        PsiPo { psi: o.psi.clone(), tau: o.beta }
    }

    fn beta(&self) -> f64 {
        self.tau
    }

    fn uses_target_prob(&self) -> bool {
        true
    }
}
