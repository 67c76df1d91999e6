//! Measuring models: on the answers of a file, and on fresh samples.
//!
//! Texts are tokenised by the model that reads them, an answer ended by its end-of-text token, so models
//! with different tokenizers can be measured on the same file. An answer that is longer than a model can
//! read has no score and is counted.

mod answers;
mod file;
mod findings;
mod models;
mod samples;

pub use answers::Answers;
pub use file::{Policies, policy_on_file, rewards_on_file};
pub use findings::{Findings, Rate};
pub use models::{LanguageModel, Likelihood, RewardModel};
pub use samples::{Sample, Wins, kl, win_by_judge};

use crate::train::Observer;
use crate::{Error, Result};

/// How many prompts pass through a model together, and how long a sequence may be.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Prompts with all of their answers.
    pub prompts: usize,
    /// Tokens of a prompt and an answer; a model's own limit holds too.
    pub max_length: usize,
}

/// Runs `measure` over parts of `items`, and tells how far it is.
fn in_parts<T, R>(
    items: &[T],
    size: usize,
    observer: &mut dyn Observer,
    mut measure: impl FnMut(&[T]) -> Result<Vec<R>> + Send,
) -> Result<Vec<R>>
where
    T: Sync,
    R: Send,
{
    let mut all = Vec::with_capacity(items.len());
    observer.start(0, items.len());
    for part in items.chunks(size.max(1)) {
        if observer.stop() {
            return Err(Error::Interrupted("interrupted: nothing is written; run it again".into()));
        }
        // On the pool's own threads: each operation is spared waking another one.
        all.extend(rayon::scope(|_| measure(part))?);
        observer.step(all.len(), &crate::train::Means::default());
    }
    Ok(all)
}
