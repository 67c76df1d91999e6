//! Measures on the answers of a file.

use serde_json::{Value, json};

use super::Batching;
use super::answers::Answers;
use super::findings::{Findings, Rate};
use super::models::{LanguageModel, Likelihood, RewardModel};
use crate::losses::BradleyTerry;
use crate::train::Observer;
use crate::{Error, Result};

/// Scores every answer; of answers that are ranked, how often and by how much the better one leads. The
/// scored rows are returned, as they are to be written.
///
/// # Errors
/// [`Error::Setting`] where no answer is short enough.
pub fn rewards_on_file(
    model: &RewardModel,
    rows: &[Answers],
    batching: &Batching,
    observer: &mut dyn Observer,
    into: &mut Findings,
) -> Result<Vec<Value>> {
    let scores = model.scores(rows, batching, observer)?;
    let all: Vec<f64> = scores.iter().flatten().copied().flatten().collect();
    some(&all, "answers that the reward model can read")?;
    let (mut shares, mut margins) = (Vec::new(), Vec::new());
    for (row, scores) in rows.iter().zip(&scores) {
        let Some(ranks) = &row.ranks else { continue };
        let read = scores.iter().zip(ranks).filter_map(|(score, &rank)| Some(((*score)?, rank)));
        let (scores, ranks): (Vec<f64>, Vec<usize>) = read.unzip();
        if let Some(out) = BradleyTerry::default().ranked(&scores, &ranks)? {
            shares.push(out.accurate as f64 / out.pairs as f64);
            margins.push(out.margin);
        }
    }
    into.count("answers", all.len(), "scored by the reward model");
    into.count("too_long", scores.iter().flatten().count() - all.len(), "answers without a score");
    into.number("min_reward", all.iter().copied().fold(f64::INFINITY, f64::min), "");
    into.mean("mean_reward", &all, "");
    into.number("max_reward", all.iter().copied().fold(f64::NEG_INFINITY, f64::max), "");
    if !shares.is_empty() {
        into.rate("accuracy", Rate::of(&shares), "the better answer has the larger score");
        into.mean("margin", &margins, "of the better answer's score");
    }
    Ok(rows.iter().zip(&scores).map(|(row, scores)| scored(row, scores)).collect())
}

/// A row with its scores under the names of its own fields.
fn scored(row: &Answers, scores: &[Option<f64>]) -> Value {
    match (&row.ranks, &row.answers[..], scores) {
        (None, [completion], [score]) => {
            json!({ "prompt": row.prompt, "completion": completion, "score": score })
        }
        (Some(ranks), [chosen, rejected], [best, worst]) if ranks[..] == [0, 1] => json!({
            "prompt": row.prompt, "chosen": chosen, "rejected": rejected,
            "chosen_score": best, "rejected_score": worst,
        }),
        (Some(ranks), answers, scores) => json!({
            "prompt": row.prompt, "responses": answers, "ranks": ranks, "scores": scores,
        }),
        (None, answers, scores) => {
            json!({ "prompt": row.prompt, "responses": answers, "scores": scores })
        }
    }
}

/// A policy, and what it is measured against.
#[derive(Clone, Copy, Debug)]
pub struct Policies<'a> {
    /// The policy.
    pub model: &'a LanguageModel,
    /// The reference of its implicit rewards.
    pub reference: Option<&'a LanguageModel>,
    /// What log-ratios are multiplied by.
    pub beta: f64,
}

/// Perplexities; and on pairs the implicit rewards `beta (policy - reference)`, by summed log-probs, the
/// reference's 0 where there is none.
///
/// # Errors
/// [`Error::Setting`] where no answer is short enough.
pub fn policy_on_file(
    policies: Policies,
    rows: &[Answers],
    batching: &Batching,
    observer: &mut dyn Observer,
    into: &mut Findings,
) -> Result<()> {
    let mut batching = *batching;
    if let Some(reference) = policies.reference {
        // Both are measured on the same answers.
        let limit = |model: &LanguageModel| model.policy.decoder.config().max_positions;
        batching.max_length = batching.max_length.min(limit(policies.model)).min(limit(reference));
    }
    let own = policies.model.likelihoods(rows, &batching, observer)?;
    let reference = match policies.reference {
        Some(reference) => Some(reference.likelihoods(rows, &batching, observer)?),
        None => None,
    };
    let paired = rows.iter().all(|row| row.ranks.as_deref() == Some(&[0, 1]));
    // Of pairs each side by itself, else all answers together.
    let side = |all: &[Vec<Option<Likelihood>>], at: Option<usize>| -> Vec<Likelihood> {
        let wanted = |row: &[Option<Likelihood>]| match at {
            Some(at) => row.get(at).copied().into_iter().flatten().collect(),
            None => row.iter().copied().flatten().collect::<Vec<_>>(),
        };
        all.iter().flat_map(|row| wanted(row)).collect()
    };
    let sides: &[(Option<usize>, &str)] = match paired {
        true => &[(Some(0), "/chosen"), (Some(1), "/rejected")],
        false => &[(None, "")],
    };
    for &(at, name) in sides {
        let all = side(&own, at);
        some(&all, "answers that the model can read")?;
        into.count(&format!("tokens{name}"), tokens(&all), "");
        into.number(&format!("perplexity{name}"), perplexity(&all), "a token of the answers");
        if let Some(reference) = &reference {
            let name = format!("perplexity{name}/reference");
            into.number(&name, perplexity(&side(reference, at)), "");
        }
    }
    let left_out = own.iter().flatten().filter(|own| own.is_none()).count();
    into.count("too_long_for_the_model", left_out, "answers left out");
    if !paired {
        return Ok(());
    }
    let (mut chosen, mut rejected) = (Vec::new(), Vec::new());
    for (i, own) in own.iter().enumerate() {
        let reward = |at: usize| {
            let reference = match &reference {
                Some(reference) => reference[i][at]?.logp,
                None => 0.0,
            };
            Some(policies.beta * (own[at]?.logp - reference))
        };
        if let (Some(c), Some(r)) = (reward(0), reward(1)) {
            chosen.push(c);
            rejected.push(r);
        }
    }
    some(&chosen, "pairs of which the model can read both answers")?;
    let margins: Vec<f64> = chosen.iter().zip(&rejected).map(|(c, r)| c - r).collect();
    let right: Vec<f64> = margins.iter().map(|&margin| f64::from(margin > 0.0)).collect();
    let about = match reference {
        Some(_) => "the chosen answer gained more on the reference",
        None => "the chosen answer is the likelier one",
    };
    into.rate("rewards/accuracies", Rate::of(&right), about);
    into.mean("rewards/margins", &margins, "");
    into.mean("rewards/chosen", &chosen, "");
    into.mean("rewards/rejected", &rejected, "");
    Ok(())
}

fn tokens(all: &[Likelihood]) -> usize {
    all.iter().map(|own| own.tokens).sum()
}

fn perplexity(all: &[Likelihood]) -> f64 {
    let logp: f64 = all.iter().map(|own| own.logp).sum();
    (-logp / tokens(all).max(1) as f64).exp()
}

fn some<T>(values: &[T], expected: &str) -> Result<()> {
    match values {
        [] => Err(Error::setting("max_length", expected, "none")),
        _ => Ok(()),
    }
}
