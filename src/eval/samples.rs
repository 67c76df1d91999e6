//! Measures on fresh samples.

use super::Batching;
use super::answers::Answers;
use super::findings::{Findings, Rate};
use super::in_parts;
use super::models::LanguageModel;
use crate::Result;
use crate::judge::Judge;
use crate::nn::LayoutBuilder;
use crate::train::Observer;

/// A completion that a model sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The prompt's tokens.
    pub prompt: Vec<i32>,
    /// The completion's, the one that ended it included.
    pub completion: Vec<i32>,
}

/// KL(model || reference) on samples of the model at temperature 1, by the mean log-ratio: unbiased.
pub fn kl(
    model: &LanguageModel,
    reference: &LanguageModel,
    samples: &[Sample],
    batching: &Batching,
    observer: &mut dyn Observer,
    into: &mut Findings,
) -> Result<()> {
    let ratios = in_parts(samples, batching.prompts, observer, |samples| {
        let mut layout = LayoutBuilder::new();
        samples.iter().for_each(|sample| layout.push(&sample.prompt, &sample.completion));
        let layout = layout.finish()?;
        let (own, other) = (model.policy.logps(&layout)?, reference.policy.logps(&layout)?);
        Ok(own.iter().zip(&other).map(|(own, other)| own - other).collect())
    })?;
    let tokens: usize = samples.iter().map(|sample| sample.completion.len()).sum();
    into.mean("kl", &ratios, "nats a completion, from the reference");
    into.number("kl_per_token", ratios.iter().sum::<f64>() / tokens.max(1) as f64, "nats");
    Ok(())
}

/// How often one model's answer beats another's.
#[derive(Clone, Debug, PartialEq)]
pub struct Wins {
    /// Of each prompt 1 for a win, 1/2 for a tie, 0 for a loss; none without an answer.
    pub outcomes: Vec<Option<f64>>,
}

impl Wins {
    /// A positive lead is a win.
    pub fn of(leads: impl Iterator<Item = Option<f64>>) -> Self {
        let outcome = |lead: f64| {
            if lead > 0.0 {
                1.0
            } else if lead < 0.0 {
                0.0
            } else {
                0.5
            }
        };
        Wins { outcomes: leads.map(|lead| lead.map(outcome)).collect() }
    }

    /// By the scores of `(model's, reference's)` answers.
    pub fn by_scores(scores: &[Vec<Option<f64>>]) -> Self {
        let lead = |own: &Vec<Option<f64>>| Some(own.first().copied()?? - own.get(1).copied()??);
        Wins::of(scores.iter().map(lead))
    }

    /// Adds the win rate and the counts.
    pub fn tell(&self, into: &mut Findings) {
        let known: Vec<f64> = self.outcomes.iter().flatten().copied().collect();
        let count = |outcome: f64| known.iter().filter(|&&own| own == outcome).count();
        if !known.is_empty() {
            into.rate("win_rate", Rate::of(&known), "against the reference; a tie is half a win");
        }
        into.count("wins", count(1.0), "");
        into.count("ties", count(0.5), "");
        into.count("losses", count(0.0), "");
        into.count("no_answer", self.outcomes.len() - known.len(), "prompts left out");
    }
}

/// Wins by a judge that is shown both answers in both orders: the one with more than half of the mean
/// probability. With the probabilities.
pub fn win_by_judge(
    judge: &Judge,
    rows: &[Answers],
    batching: &Batching,
    observer: &mut dyn Observer,
) -> Result<(Wins, Vec<Option<f64>>)> {
    let probs = in_parts(rows, batching.prompts, observer, |rows| {
        let texts: Vec<(&str, &str, &str)> = rows
            .iter()
            .filter_map(|row| match &row.answers[..] {
                [own, other] => Some((&*row.prompt, &**own, &**other)),
                _ => None,
            })
            .collect();
        Ok(judge.compare(&texts)?.iter().map(|said| said.prob()).collect())
    })?;
    // Rounding must not decide between two answers that are the same.
    let lead = |(row, prob): (&Answers, &Option<f64>)| {
        let same = row.answers.first() == row.answers.get(1);
        prob.map(|p| if same { 0.0 } else { p - 0.5 })
    };
    Ok((Wins::of(rows.iter().zip(&probs).map(lead)), probs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_are_halves_and_silence_is_left_out() {
        let wins = Wins::of([Some(0.2), Some(-3.0), Some(0.0), None, Some(1e-9)].into_iter());
        assert_eq!(wins.outcomes, [Some(1.0), Some(0.0), Some(0.5), None, Some(1.0)]);
        let mut findings = Findings::default();
        wins.tell(&mut findings);
        let json: serde_json::Value = serde_json::from_str(&findings.to_json()).unwrap();
        assert_eq!(json["win_rate"]["mean"], 0.625);
        assert_eq!(
            (&json["wins"], &json["ties"], &json["losses"]),
            (&2.into(), &1.into(), &1.into())
        );
        assert_eq!(json["no_answer"], 1);
    }
}
