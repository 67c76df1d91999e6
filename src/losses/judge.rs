//! Labels from a judge model: preferences without position bias, and direct scores.

use super::math::sigmoid;
use super::options::probability;
use crate::{Error, Result};

/// The log-probabilities that a judge gave to the tokens of its two options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptionLogps {
    /// For the completion shown first.
    pub first: f64,
    /// For the completion shown second.
    pub second: f64,
}

impl OptionLogps {
    /// The probability that the judge answers at all.
    pub fn mass(&self) -> f64 {
        self.first.exp() + self.second.exp()
    }

    /// The probability of the first one among the two.
    pub fn first_prob(&self) -> f64 {
        sigmoid(self.first - self.second)
    }

    /// The probability of the second one among the two.
    pub fn second_prob(&self) -> f64 {
        sigmoid(self.second - self.first)
    }
}

/// What a judge said of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The probability that the pair's first completion is the better one.
    Preference(f64),
    /// The judge answered neither option: counted and dropped, never a label.
    NoAnswer,
}

/// The label of a pair shown in both orders: the mean of both distributions, the second re-aligned.
///
/// Lee et al. 2023 (arXiv:2309.00267), its remedy for position bias. `straight` shows the pair's first completion
/// first, `swapped` shows it second. A judge whose options have less than `min_mass` of the
/// probability in either order gave no answer.
pub fn verdict(straight: OptionLogps, swapped: OptionLogps, min_mass: f64) -> Result<Verdict> {
    if !(answered(straight.mass(), min_mass)? && answered(swapped.mass(), min_mass)?) {
        return Ok(Verdict::NoAnswer);
    }
    Ok(Verdict::Preference(0.5 * (straight.first_prob() + swapped.second_prob())))
}

/// A direct reward: the expected rating on the scale `1..=K`, rescaled to `[-1, 1]`.
///
/// Lee et al. 2023 (arXiv:2309.00267), direct RLAIF, with K of 10. `logps[i]` is the log-probability
/// of the rating `i + 1`. `None` where the ratings have less than `min_mass` of the probability.
pub fn rating(logps: &[f64], min_mass: f64) -> Result<Option<f64>> {
    let mass: f64 = logps.iter().map(|l| l.exp()).sum();
    if !answered(mass, min_mass)? || logps.len() < 2 {
        return Ok(None);
    }
    let expected = logps.iter().enumerate().map(|(i, l)| i as f64 * l.exp()).sum::<f64>() / mass;
    Ok(Some(2.0 * expected / (logps.len() - 1) as f64 - 1.0))
}

/// Whether the options' probability is enough of an answer; a broken judge is none, but an error.
fn answered(mass: f64, min_mass: f64) -> Result<bool> {
    probability("--judge-min-mass", min_mass)?;
    if mass.is_nan() {
        return Err(Error::NonFinite("a judge's log-probability is not a number".into()));
    }
    Ok(mass > 0.0 && mass >= min_mass)
}
