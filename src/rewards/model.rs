use std::path::Path;

use super::{Answer, Reward};
use crate::data::Tokenizer;
use crate::models::{Head, ModelFolder, ScoreInit};
use crate::nn::{LayoutBuilder, Scorer};
use crate::{Device, Error, Result};

/// A reward model: its score at the last token of a completion.
pub struct ModelReward {
    scorer: Scorer<f32>,
    /// Its tokenizer, where that is another than the policy's.
    own: Option<Tokenizer>,
    batch_size: usize,
}

impl ModelReward {
    /// Opens the reward model in `path`, for completions of the policy in `policy`. Where both have the
    /// same tokenizer.json the model sees the policy's tokens, and so whether a completion has ended;
    /// else it reads the texts.
    ///
    /// # Errors
    /// As [`ModelFolder::open`], and [`Error::File`] for a model that gives no scores.
    pub fn open(path: &Path, policy: &Path, batch_size: usize, device: &Device) -> Result<Self> {
        let folder = ModelFolder::open(path)?;
        if folder.head != Head::Score {
            let message = "expected a reward model (...ForSequenceClassification), got a language \
                           model: `collimate reward` makes one";
            return Err(Error::file(path, message));
        }
        let scorer = folder.load_scorer(ScoreInit::Zero, device)?;
        let json = |folder: &Path| {
            let path = folder.join("tokenizer.json");
            std::fs::read(&path).map_err(|e| Error::io(&path, e))
        };
        let own = match json(path)? == json(policy)? {
            true => None,
            false => Some(Tokenizer::load(path)?),
        };
        Ok(ModelReward { scorer, own, batch_size: batch_size.max(1) })
    }
}

impl Reward for ModelReward {
    /// A sequence that is longer than the model can read has no reward.
    fn score(&mut self, answers: &[Answer]) -> Result<Vec<Option<f64>>> {
        let limit = self.scorer.decoder.config().max_positions;
        let mut rewards = Vec::with_capacity(answers.len());
        for batch in answers.chunks(self.batch_size) {
            let mut layout = LayoutBuilder::whole();
            let mut fits = Vec::with_capacity(batch.len());
            for answer in batch {
                let (prompt, completion) = (answer.prompt, answer.completion);
                let own = self.own.as_ref().map(|t| t.completions(prompt, [completion]));
                let own = own.transpose()?;
                let (prompt, completion) = match &own {
                    None => (answer.prompt_ids, answer.completion_ids),
                    Some((prompt, [completion])) => (&prompt[..], &completion[..]),
                };
                fits.push(!completion.is_empty() && prompt.len() + completion.len() <= limit);
                if fits.last() == Some(&true) {
                    layout.push(prompt, completion);
                }
            }
            let layout = layout.finish()?;
            let scores = match layout.sequences() {
                0 => Vec::new(),
                _ => self.scorer.score(&layout)?,
            };
            let mut scores = scores.into_iter();
            rewards.extend(fits.into_iter().map(|fits| if fits { scores.next() } else { None }));
        }
        Ok(rewards)
    }
}
