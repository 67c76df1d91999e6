//! Where rewards come from: a reward model, a judge, a program, or a function.

mod command;
mod model;

pub use command::{CommandOptions, CommandReward};
pub use model::ModelReward;

use crate::judge::Judge;
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
}

/// [`Reward::score`], checked: as many as there are answers, and finite.
///
/// # Errors
/// Those of the source, and [`Error::NonFinite`].
pub fn score(source: &mut dyn Reward, answers: &[Answer]) -> Result<Vec<Option<f64>>> {
    let scores = source.score(answers)?;
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
