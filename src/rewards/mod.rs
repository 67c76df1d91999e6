//! Where rewards come from: a reward model, a judge, a program, or a function.

mod command;
mod model;

pub use command::{CommandOptions, CommandReward};
pub use model::ModelReward;

use crate::judge::{Comparison, Judge};
use crate::{Error, Result};

/// A completion that is to be rewarded.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The prompt's text.
    pub prompt: &'a str,
    /// The completion's, without special tokens.
    pub completion: &'a str,
    /// The prompt as the policy saw it.
    pub prompt_ids: &'a [i32],
    /// What the policy made of it, the token that ended it included.
    pub completion_ids: &'a [i32],
}

/// A source of rewards.
pub trait Reward: Send {
    /// A finite reward of each answer; none where the source has nothing to say of it. Such an
    /// answer is counted and left out, never given a number.
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<Option<f64>>>;

    /// The same of answers that stand in groups of `size`, each to one prompt. A source that compares
    /// answers compares those of a group.
    fn score_groups(&mut self, answers: &[Answer], _size: usize) -> Result<Vec<Option<f64>>> {
        self.score(answers)
    }

    /// Nothing more will be asked: an error where the source said more than it was asked.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// [`Reward::score_groups`], checked: as many as there are answers, and finite.
///
/// # Errors
/// Those of the source, and [`Error::NonFinite`].
pub fn score(
    source: &mut dyn Reward,
    answers: &[Answer],
    group: usize,
) -> Result<Vec<Option<f64>>> {
    let scores = source.score_groups(answers, group)?;
    if scores.len() != answers.len() {
        let expected = format!("{} rewards, one an answer", answers.len());
        return Err(Error::shape("rewards", expected, scores.len().to_string()));
    }
    match scores.iter().flatten().find(|score| !score.is_finite()) {
        Some(score) => Err(Error::NonFinite(format!("a reward is {score}"))),
        None => Ok(scores),
    }
}

/// A function of prompt and completion.
pub struct FunctionReward(pub fn(&Answer) -> f64);

impl Reward for FunctionReward {
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<Option<f64>>> {
        Ok(answers.iter().map(|answer| Some((self.0)(answer))).collect())
    }
}

/// A judge's direct ratings, from -1 to 1.
pub struct JudgeReward(pub Judge);

impl Reward for JudgeReward {
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<Option<f64>>> {
        let texts: Vec<_> = answers.iter().map(|a| (a.prompt, a.completion)).collect();
        self.0.score(&texts)
    }
}

/// A judge that compares the two answers of a prompt, shown in both orders: the probabilities of being the
/// better one. Answers that do not stand in twos have its direct ratings.
pub struct ComparingJudge(pub Judge);

impl Reward for ComparingJudge {
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<Option<f64>>> {
        let texts: Vec<_> = answers.iter().map(|a| (a.prompt, a.completion)).collect();
        self.0.score(&texts)
    }

    fn score_groups(&mut self, answers: &[Answer], size: usize) -> Result<Vec<Option<f64>>> {
        if size != 2 {
            return self.score(answers);
        }
        let pairs = answers.chunks_exact(2);
        let texts: Vec<_> =
            pairs.map(|two| (two[0].prompt, two[0].completion, two[1].completion)).collect();
        let said = self.0.compare(&texts)?;
        let probs = |(said, (_, a, b)): (&Comparison, &(&str, &str, &str))| {
            // Rounding must not decide between two answers that are the same.
            let first = said.prob().map(|p| if a == b { 0.5 } else { p });
            [first, first.map(|p| 1.0 - p)]
        };
        Ok(said.iter().zip(&texts).flat_map(probs).collect())
    }
}
