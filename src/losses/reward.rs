//! The reward model's losses: Bradley-Terry on pairs, and on K ranked responses.

use super::math::{sigmoid, softplus};
use super::options::{finite, non_negative, probability};
use crate::{Error, Result};

/// Bradley-Terry: `softplus(-D) + center (s_w + s_l)^2` with `D = s_w - s_l - margin`.
///
/// Ouyang et al. 2022 (arXiv:2203.02155), equation 1; the margin as in Touvron et al. 2023
/// (arXiv:2307.09288), equation 2; the centring as in Eisenstein et al. 2023 (arXiv:2312.09244).
/// With a soft label `p`, `p softplus(-D) + (1 - p) softplus(D)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BradleyTerry {
    /// Weight of the term that centres the scores on 0.
    pub center: f64,
}

/// The two scores of a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreInputs {
    /// Score of the chosen completion.
    pub chosen_score: f64,
    /// Score of the rejected completion.
    pub rejected_score: f64,
    /// By how much the chosen one should lead.
    pub margin: f64,
    /// The probability that the chosen one is the better; absent is 1.
    pub target_prob: Option<f64>,
}

/// A pair's loss and its derivatives with respect to both scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreOutput {
    /// The loss.
    pub loss: f64,
    /// Its derivative with respect to the chosen score.
    pub dchosen: f64,
    /// Its derivative with respect to the rejected score.
    pub drejected: f64,
    /// The chosen score is the larger, strictly.
    pub accurate: bool,
}

impl BradleyTerry {
    /// Checks the setting's range; the error names the command-line flag.
    pub fn validate(&self) -> Result<()> {
        non_negative("--center-rewards-coefficient", self.center)
    }

    /// The loss and its gradient. A margin has no meaning for a pair whose order is uncertain: one
    /// together with a target probability other than 1 is an error.
    pub fn value_and_gradient(&self, x: &ScoreInputs) -> Result<ScoreOutput> {
        let p = x.target_prob.unwrap_or(1.0);
        probability("target_prob", p)?;
        finite("margin", x.margin)?;
        if x.margin != 0.0 && p != 1.0 {
            let expected = "no margin for a pair whose target_prob is not 1";
            return Err(Error::setting("margin", expected, x.margin));
        }
        let d = x.chosen_score - x.rejected_score - x.margin;
        let total = x.chosen_score + x.rejected_score;
        let slope = (1.0 - p) * sigmoid(d) - p * sigmoid(-d);
        let center = 2.0 * self.center * total;
        Ok(ScoreOutput {
            loss: p * softplus(-d) + (1.0 - p) * softplus(d) + self.center * total * total,
            dchosen: slope + center,
            drejected: center - slope,
            accurate: x.chosen_score > x.rejected_score,
        })
    }
}

/// The pairs of unequal rank among ranked responses, the better one first.
pub fn ranked_pairs(ranks: &[usize]) -> Vec<(usize, usize)> {
    let all = 0..ranks.len();
    let ordered = all.clone().flat_map(|i| all.clone().map(move |j| (i, j)));
    ordered.filter(|&(i, j)| ranks[i] < ranks[j]).collect()
}

/// The loss of one prompt's ranked responses.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedOutput {
    /// The mean over the pairs.
    pub loss: f64,
    /// Its derivative with respect to each score; without a centre term they sum to zero.
    pub dscores: Vec<f64>,
    /// The pairs of unequal rank.
    pub pairs: usize,
    /// Those of them whose better response has the larger score, strictly.
    pub accurate: usize,
    /// The mean lead of the better response's score.
    pub margin: f64,
}

impl BradleyTerry {
    /// The loss on all pairs of K ranked responses to one prompt, divided by the pairs kept.
    ///
    /// Ouyang et al. 2022 (arXiv:2203.02155), equation 1. A smaller rank is better; responses of equal
    /// rank make no pair. `None` where no pair is left: such a prompt is dropped and counted.
    pub fn ranked(&self, scores: &[f64], ranks: &[usize]) -> Result<Option<RankedOutput>> {
        if scores.len() != ranks.len() {
            let (expected, got) = (format!("{} ranks", scores.len()), ranks.len().to_string());
            return Err(Error::shape("ranked", expected, got));
        }
        let k = scores.len();
        let kept = ranked_pairs(ranks);
        if kept.is_empty() {
            return Ok(None);
        }
        let (n, dscores) = (kept.len() as f64, vec![0.0; k]);
        let mut out =
            RankedOutput { loss: 0.0, dscores, pairs: kept.len(), accurate: 0, margin: 0.0 };
        for (better, worse) in kept {
            let (chosen_score, rejected_score) = (scores[better], scores[worse]);
            let x = ScoreInputs { chosen_score, rejected_score, ..ScoreInputs::default() };
            let pair = self.value_and_gradient(&x)?;
            out.loss += pair.loss / n;
            out.dscores[better] += pair.dchosen / n;
            out.dscores[worse] += pair.drejected / n;
            out.accurate += usize::from(pair.accurate);
            out.margin += (chosen_score - rejected_score) / n;
        }
        Ok(Some(out))
    }
}

/// [`BradleyTerry::ranked`] without a centre term.
pub fn ranked(scores: &[f64], ranks: &[usize]) -> Result<Option<RankedOutput>> {
    BradleyTerry::default().ranked(scores, ranks)
}
