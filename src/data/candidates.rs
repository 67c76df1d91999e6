//! Several answers to one prompt, with a table of how often each beats each other one.

use std::sync::Arc;

use super::formats::PairText;

/// Two of several answers to one prompt, with what is known of all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    /// The probability that answer i is better than answer j, `[K, K]` by rows.
    probs: Arc<[f64]>,
    k: usize,
    chosen: usize,
    rejected: usize,
}

impl Candidates {
    /// The probabilities that the chosen answer, and that the rejected one, is better than each of the
    /// K answers.
    pub fn rows(&self) -> [&[f64]; 2] {
        [self.chosen, self.rejected].map(|i| &self.probs[i * self.k..(i + 1) * self.k])
    }
}

/// Several answers to one prompt, and how often each of them beats each other one.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidatesText {
    /// What all of them answer.
    pub prompt: String,
    /// `responses`: the answers.
    pub responses: Vec<String>,
    /// `probabilities`: the probability that answer i is better than answer j, `[K, K]` by rows.
    pub probabilities: Arc<[f64]>,
}

impl CandidatesText {
    /// Every pair of its answers, the likelier winner chosen.
    pub fn pairs(&self) -> Vec<PairText> {
        let k = self.responses.len();
        let pair = |(i, j): (usize, usize)| {
            let p = self.probabilities[i * k + j];
            let (chosen, rejected, p) = if p < 0.5 { (j, i, 1.0 - p) } else { (i, j, p) };
            PairText {
                prompt: self.prompt.clone(),
                chosen: self.responses[chosen].clone(),
                rejected: self.responses[rejected].clone(),
                margin: None,
                weight: None,
                target_prob: Some(p),
                candidates: Some(Candidates {
                    probs: self.probabilities.clone(),
                    k,
                    chosen,
                    rejected,
                }),
            }
        };
        (0..k).flat_map(|i| (i + 1..k).map(move |j| (i, j))).map(pair).collect()
    }
}
