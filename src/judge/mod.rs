//! A language model as a judge: which of two answers is better, and how good one is.
//!
//! Lee et al. 2023 (arXiv:2309.00267). A judge is any model folder. It is asked by a template, and what
//! counts is the probability that it gives to each of the answers it may give; nothing is sampled. What is
//! made of these probabilities is in [`losses::verdict`] and [`losses::rating`]; a judge that says
//! something else has no answer, which is a state of its own and never a label.

mod templates;

pub use templates::Templates;

use std::path::Path;
use std::sync::Arc;

use crate::data::Tokenizer;
use crate::losses::{self, OptionLogps, Verdict};
use crate::models::ModelFolder;
use crate::nn::{Decoder, Keep, Layout, LayoutBuilder, LmHead, Weights};
use crate::ops::token_logprobs::Wanted;
use crate::{Device, Error, Result};

/// How a judge is asked.
#[derive(Clone, Debug)]
pub struct JudgeOptions {
    /// The questions.
    pub templates: Templates,
    /// The probability that its answers must have together, or it gave none.
    pub min_mass: f64,
    /// Questions that pass through the model together.
    pub batch_size: usize,
}

/// A model that judges.
#[derive(Debug)]
pub struct Judge {
    decoder: Decoder,
    weights: Weights<f32>,
    tokenizer: Arc<Tokenizer>,
    options: JudgeOptions,
    device: Device,
}

/// What a judge said of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Its options with the pair's first answer shown first.
    pub straight: OptionLogps,
    /// Its options with the pair's first answer shown second.
    pub swapped: OptionLogps,
    /// What follows from both.
    pub verdict: Verdict,
}

impl Comparison {
    /// The probability that the pair's first answer is the better one; none where there is no answer.
    pub fn prob(&self) -> Option<f64> {
        match self.verdict {
            Verdict::Preference(p) => Some(p),
            Verdict::NoAnswer => None,
        }
    }

    /// The mean probability of whatever answer is shown first: one half without position bias.
    pub fn first_position(&self) -> f64 {
        0.5 * (self.straight.first_prob() + self.swapped.first_prob())
    }
}

const LOGPS_ONLY: Wanted =
    Wanted { entropy: false, mean_logit: false, hit: false, log_sum_p2: false };

impl Judge {
    /// Opens the model in `path`.
    ///
    /// # Errors
    /// As [`ModelFolder::open`], and [`Error::Setting`] for an option out of its range.
    pub fn open(path: &Path, options: JudgeOptions, device: &Device) -> Result<Self> {
        if !(0.0..=1.0).contains(&options.min_mass) {
            return Err(Error::setting("judge_min_mass", "a number from 0 to 1", options.min_mass));
        }
        if options.batch_size == 0 {
            return Err(Error::setting("batch_size", "at least 1", 0));
        }
        let folder = ModelFolder::open(path)?;
        let (decoder, table) = Decoder::new(folder.config.clone())?;
        let weights = folder.load_weights(&table, device)?;
        let tokenizer = Arc::new(Tokenizer::load(path)?);
        Ok(Judge { decoder, weights, tokenizer, options, device: device.clone() })
    }

    /// The direct reward of each `(prompt, completion)`, from -1 to 1: the expected rating. None where the
    /// judge gave no rating, or where the question is longer than the model can read.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and [`Error::NonFinite`] for a judge whose logits are not finite.
    pub fn score(&self, answers: &[(&str, &str)]) -> Result<Vec<Option<f64>>> {
        let templates = &self.options.templates;
        let ask = |&(prompt, completion): &(&str, &str)| templates.rating(prompt, completion);
        let questions: Vec<String> = answers.iter().map(ask).collect();
        let rate = |logps: Vec<f64>| losses::rating(&logps, self.options.min_mass);
        self.answers(&questions, &templates.ratings)?.into_iter().map(rate).collect()
    }

    /// Which of the two completions of each `(prompt, a, b)` is better, asked in both orders. A question
    /// that is longer than the model can read has no answer.
    ///
    /// # Errors
    /// As [`Judge::score`].
    pub fn compare(&self, pairs: &[(&str, &str, &str)]) -> Result<Vec<Comparison>> {
        let templates = &self.options.templates;
        let ask = |&(prompt, a, b): &(&str, &str, &str)| {
            [templates.comparison(prompt, a, b), templates.comparison(prompt, b, a)]
        };
        let questions: Vec<String> = pairs.iter().flat_map(ask).collect();
        let logps = self.answers(&questions, &templates.options)?;
        let options = |logps: &[f64]| OptionLogps { first: logps[0], second: logps[1] };
        let judge = |both: &[Vec<f64>]| {
            let (straight, swapped) = (options(&both[0]), options(&both[1]));
            let verdict = losses::verdict(straight, swapped, self.options.min_mass)?;
            Ok(Comparison { straight, swapped, verdict })
        };
        logps.chunks(2).map(judge).collect()
    }

    /// The log-probability of each of `answers` after each question; -inf for all of them where the question
    /// is too long.
    fn answers(&self, questions: &[String], answers: &[String]) -> Result<Vec<Vec<f64>>> {
        let limit = self.decoder.config().max_positions;
        let mut all = Vec::with_capacity(questions.len());
        for batch in questions.chunks(self.options.batch_size) {
            let mut layout = LayoutBuilder::new();
            let mut asked = Vec::with_capacity(batch.len());
            for question in batch {
                let (prompt, tails) = self.tokenise(question, answers)?;
                let longest = tails.iter().map(Vec::len).max().unwrap_or_default();
                let fits = prompt.len() + longest <= limit + 1;
                if fits {
                    let tails: Vec<&[i32]> = tails.iter().map(Vec::as_slice).collect();
                    layout.push_shared(&prompt, &tails);
                }
                asked.push(fits.then_some(tails));
            }
            let sums = self.logps(layout.finish()?)?;
            let mut sums = sums.chunks(answers.len());
            for tails in asked {
                let own = tails.and_then(|tails| Some(exactly(&tails, sums.next()?)));
                all.push(own.unwrap_or_else(|| vec![f64::NEG_INFINITY; answers.len()]));
            }
        }
        Ok(all)
    }

    /// The question's tokens, and those of each answer after it. The question ends where any of the texts
    /// with an answer parts from it: tokens may merge across that boundary.
    fn tokenise(&self, question: &str, answers: &[String]) -> Result<(Vec<i32>, Vec<Vec<i32>>)> {
        let mut prompt = self.tokenizer.encode(question)?;
        let whole =
            answers.iter().map(|answer| self.tokenizer.encode(&format!("{question}{answer}")));
        let mut tails: Vec<Vec<i32>> = whole.collect::<Result<_>>()?;
        for tail in &tails {
            let common = prompt.iter().zip(tail).take_while(|(a, b)| a == b).count();
            prompt.truncate(common);
        }
        for (tail, answer) in tails.iter_mut().zip(answers) {
            tail.drain(..prompt.len());
            if tail.is_empty() || prompt.is_empty() {
                let expected = "an answer of at least one token after a question of at least one";
                return Err(Error::setting("judge_templates", expected, format!("{answer:?}")));
            }
        }
        Ok((prompt, tails))
    }

    /// Summed log-probs of every sequence of a layout.
    fn logps(&self, layout: Layout) -> Result<Vec<f64>> {
        if layout.sequences() == 0 {
            return Ok(Vec::new());
        }
        let batch = self.decoder.batch::<f32>(&self.device, layout)?;
        let (hidden, _) = self.decoder.forward(&self.weights, &batch, Keep::Nothing)?;
        let head = LmHead::default();
        let mut sums = Vec::with_capacity(batch.layout.sequences());
        for sequences in head.chunks(&batch, self.decoder.config().vocab, 1) {
            let first = batch.layout.scored_of(sequences.start).start;
            let (decoder, weights) = (&self.decoder, &self.weights);
            let stats =
                head.score(decoder, weights, &hidden, &batch, sequences.clone(), LOGPS_ONLY)?;
            let logps = stats.logps.to_vec()?;
            sums.extend(sequences.map(|s| {
                let tokens = batch.layout.scored_of(s);
                logps[tokens.start - first..tokens.end - first]
                    .iter()
                    .map(|&l| f64::from(l))
                    .sum::<f64>()
            }));
        }
        Ok(sums)
    }
}

/// The log-probability of saying exactly each answer and none that goes on from it: `1` without `10`.
fn exactly(tails: &[Vec<i32>], logps: &[f64]) -> Vec<f64> {
    let extends = |longer: &[i32], shorter: &[i32]| {
        longer.len() > shorter.len() && longer.starts_with(shorter)
    };
    (0..tails.len())
        .map(|i| {
            let longer: Vec<usize> =
                (0..tails.len()).filter(|&j| extends(&tails[j], &tails[i])).collect();
            // Of a chain 1, 10, 100 only the next one: it holds the rest.
            let next = |j: &&usize| !longer.iter().any(|&k| extends(&tails[**j], &tails[k]));
            let taken: f64 = longer.iter().filter(next).map(|&j| logps[j].exp()).sum();
            if taken == 0.0 { logps[i] } else { (logps[i].exp() - taken).max(0.0).ln() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_does_not_count_those_that_go_on_from_it() {
        let tails = [vec![1], vec![2], vec![1, 0], vec![1, 0, 0]];
        let probs = [0.5f64, 0.2, 0.3, 0.1];
        let own: Vec<f64> =
            exactly(&tails, &probs.map(f64::ln)).into_iter().map(f64::exp).collect();
        approx::assert_relative_eq!(own[..], [0.2, 0.2, 0.2, 0.1], epsilon = 1e-12);
        // Rounding must not make a probability negative, nor a NaN.
        assert_eq!(exactly(&tails[1..3], &[-1.0, -2.0]), [-1.0, -2.0]);
        assert_eq!(exactly(&[vec![1], vec![1, 0]], &[-1.0, -0.999_999])[0], f64::NEG_INFINITY);
    }
}
