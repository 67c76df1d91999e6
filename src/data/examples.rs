//! Tokenised examples, truncated as TRL truncates them.

use std::ops::Range;
use std::str::FromStr;

use super::formats::{ExampleText, PairText, UnpairedText};
use super::head::head;
use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Which end of a sequence stays when it is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Truncation {
    /// The start: the completion is cut at its end.
    #[default]
    KeepStart,
    /// The end: the prompt is cut at its start, and then the completion at its.
    KeepEnd,
    /// Neither: the example goes, as with TRL's reward models.
    Drop,
}

impl FromStr for Truncation {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "keep_start" => Ok(Truncation::KeepStart),
            "keep_end" => Ok(Truncation::KeepEnd),
            "drop" => Ok(Truncation::Drop),
            _ => Err(Error::setting("truncation_mode", "keep_start, keep_end or drop", name)),
        }
    }
}

/// How long a sequence may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a prompt and one completion together; of a prompt alone in [`Prompt`].
    pub max_length: Option<usize>,
    /// What is cut from a longer one.
    pub truncation: Truncation,
    /// Tokens of a prompt, whose end stays; before `max_length`.
    pub max_prompt: Option<usize>,
    /// Tokens of a completion, whose start stays; before `max_length`.
    pub max_completion: Option<usize>,
}

impl Limits {
    /// Cuts a prompt to its own limit.
    pub(super) fn bound_prompt(&self, prompt: &mut Vec<i32>) {
        if let Some(max) = self.max_prompt {
            prompt.drain(..prompt.len().saturating_sub(max));
        }
    }

    /// Cuts a completion to its own limit.
    pub(super) fn bound_completion(&self, completion: &mut Vec<i32>) {
        completion.truncate(self.max_completion.unwrap_or(usize::MAX));
    }

    /// What of a text of a row has to be tokenised.
    fn needed<'a>(&self, text: &'a str, tokenizer: &Tokenizer) -> Result<&'a str> {
        match (self.max_length, self.truncation, self.max_prompt) {
            (Some(max), Truncation::KeepStart, None) => head(tokenizer, text, max),
            _ => Ok(text),
        }
    }

    /// How many tokens go, from the prompt and from the completion.
    fn cut(&self, prompt: usize, completion: usize) -> (usize, usize) {
        let Some(max) = self.max_length else { return (0, 0) };
        let excess = (prompt + completion).saturating_sub(max);
        match self.truncation {
            Truncation::KeepStart | Truncation::Drop => {
                (excess.saturating_sub(completion), excess.min(completion))
            }
            Truncation::KeepEnd => (excess.min(prompt), excess.saturating_sub(prompt)),
        }
    }

    /// Truncates; false where nothing of the completion is left, or where what is too long is to be
    /// dropped.
    pub(super) fn apply(&self, prompt: &mut Vec<i32>, completion: &mut Vec<i32>) -> bool {
        let (from_prompt, from_completion) = self.cut(prompt.len(), completion.len());
        match self.truncation {
            Truncation::KeepStart | Truncation::Drop => {
                prompt.truncate(prompt.len() - from_prompt);
                completion.truncate(completion.len() - from_completion);
            }
            Truncation::KeepEnd => {
                prompt.drain(..from_prompt);
                completion.drain(..from_completion);
            }
        }
        let whole = (from_prompt, from_completion) == (0, 0);
        !completion.is_empty() && (whole || self.truncation != Truncation::Drop)
    }
}

/// A prompt and one completion of it: what a model sees as one sequence.
///
/// Every token of the completion is scored, but for the first one of all where the prompt is empty:
/// nothing precedes it that could predict it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side<'a> {
    /// Given; not scored.
    pub prompt: &'a [i32],
    /// Scored.
    pub completion: &'a [i32],
}

impl Side<'_> {
    /// Tokens of the sequence.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.completion.len()
    }

    /// Tokens that are scored.
    pub fn scored(&self) -> usize {
        self.completion.len().saturating_sub(usize::from(self.prompt.is_empty()))
    }
}

/// Two completions of one prompt, the first preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The prompt, as the side that sees more of it sees it.
    pub prompt: Vec<i32>,
    /// The preferred completion.
    pub chosen: Vec<i32>,
    /// The other one.
    pub rejected: Vec<i32>,
    /// Prompt tokens that the chosen side does not see: 0 unless [`Truncation::KeepEnd`] cut them.
    pub chosen_unseen: usize,
    /// Prompt tokens that the rejected side does not see.
    pub rejected_unseen: usize,
    /// By how much the reward model should prefer the chosen one.
    pub margin: Option<f64>,
    /// What the pair's loss is multiplied by.
    pub weight: Option<f64>,
    /// The probability that the chosen one is better.
    pub target_prob: Option<f64>,
    /// The line of the file it came from.
    pub line: usize,
}

impl Pair {
    /// The chosen sequence.
    pub fn chosen_side(&self) -> Side<'_> {
        Side { prompt: &self.prompt[self.chosen_unseen..], completion: &self.chosen }
    }

    /// The rejected sequence.
    pub fn rejected_side(&self) -> Side<'_> {
        Side { prompt: &self.prompt[self.rejected_unseen..], completion: &self.rejected }
    }

    /// Whether both sides see the same prompt, so that one copy of it serves both.
    pub fn shares_prompt(&self) -> bool {
        self.chosen_unseen == self.rejected_unseen
    }
}

/// One completion, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpaired {
    /// The prompt.
    pub prompt: Vec<i32>,
    /// The completion.
    pub completion: Vec<i32>,
    /// Whether it is desirable.
    pub desirable: bool,
    /// The line of the file it came from.
    pub line: usize,
    /// Prompt and completion before truncation, where it cut any.
    uncut: Option<Box<(Vec<i32>, Vec<i32>)>>,
}

impl Unpaired {
    /// The sequence.
    pub fn side(&self) -> Side<'_> {
        Side { prompt: &self.prompt, completion: &self.completion }
    }

    fn whole(&self) -> (&[i32], &[i32]) {
        match &self.uncut {
            Some(uncut) => (&uncut.0, &uncut.1),
            None => (&self.prompt, &self.completion),
        }
    }

    /// KTO's mismatched sequences: each prompt with the completion of the example before it in the
    /// micro-batch, the first with the last one's. Truncated anew, from the whole texts.
    pub fn mismatched(batch: &[&Unpaired], limits: &Limits) -> Vec<Example> {
        (0..batch.len())
            .map(|i| {
                let before = batch[(i + batch.len() - 1) % batch.len()];
                let mut prompt = batch[i].whole().0.to_vec();
                let mut completion = before.whole().1.to_vec();
                limits.apply(&mut prompt, &mut completion);
                Example { prompt, completion, learnt: None, line: batch[i].line }
            })
            .collect()
    }
}

/// A text to imitate; in a plain text the prompt is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The prompt.
    pub prompt: Vec<i32>,
    /// The completion.
    pub completion: Vec<i32>,
    /// Which tokens of the completion are learnt, where not all of them are: the others are what is said
    /// between two turns of the assistant.
    pub learnt: Option<Vec<bool>>,
    /// The line of the file it came from.
    pub line: usize,
}

impl Example {
    /// The sequence.
    pub fn side(&self) -> Side<'_> {
        Side { prompt: &self.prompt, completion: &self.completion }
    }
}

/// A prompt to complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The prompt.
    pub prompt: Vec<i32>,
    /// The line of the file it came from.
    pub line: usize,
}

impl Pair {
    /// Tokenises and truncates; none where truncation leaves nothing of a completion.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn tokenise(
        text: &PairText,
        line: usize,
        tokenizer: &Tokenizer,
        limits: &Limits,
    ) -> Result<Option<Pair>> {
        let need = |text| limits.needed(text, tokenizer);
        let (prompt, chosen, rejected) =
            (need(&text.prompt)?, need(&text.chosen)?, need(&text.rejected)?);
        let (mut prompt, [mut chosen, mut rejected]) =
            tokenizer.completions(prompt, [chosen, rejected])?;
        limits.bound_prompt(&mut prompt);
        limits.bound_completion(&mut chosen);
        limits.bound_completion(&mut rejected);
        let mut seen = prompt.clone();
        let chosen_left = limits.apply(&mut seen, &mut chosen);
        let mut other = prompt.clone();
        if !(limits.apply(&mut other, &mut rejected) && chosen_left) {
            return Ok(None);
        }
        let longer = seen.len().max(other.len());
        prompt.drain(..prompt.len() - longer);
        Ok(Some(Pair {
            prompt,
            chosen,
            rejected,
            chosen_unseen: longer - seen.len(),
            rejected_unseen: longer - other.len(),
            margin: text.margin,
            weight: text.weight,
            target_prob: text.target_prob,
            line,
        }))
    }
}

impl Unpaired {
    /// Tokenises and truncates; none where truncation leaves nothing of the completion.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn tokenise(
        text: &UnpairedText,
        line: usize,
        tokenizer: &Tokenizer,
        limits: &Limits,
    ) -> Result<Option<Unpaired>> {
        let prompt = limits.needed(&text.prompt, tokenizer)?;
        let completion = limits.needed(&text.completion, tokenizer)?;
        let (mut prompt, [mut completion]) = tokenizer.completions(prompt, [completion])?;
        limits.bound_prompt(&mut prompt);
        limits.bound_completion(&mut completion);
        let cut = limits.cut(prompt.len(), completion.len()) != (0, 0);
        let uncut = cut.then(|| Box::new((prompt.clone(), completion.clone())));
        let left = limits.apply(&mut prompt, &mut completion);
        let desirable = text.desirable;
        Ok(left.then_some(Unpaired { prompt, completion, desirable, line, uncut }))
    }
}

impl Example {
    /// Tokenises and truncates; none where truncation leaves nothing that is learnt.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn tokenise(
        text: &ExampleText,
        line: usize,
        tokenizer: &Tokenizer,
        limits: &Limits,
    ) -> Result<Option<Example>> {
        if let Some(learnt) = &text.learnt {
            return Self::in_part(text, learnt, line, tokenizer, limits);
        }
        let completion = limits.needed(&text.completion, tokenizer)?;
        let (mut prompt, mut completion) = match &text.prompt {
            Some(prompt) => {
                let prompt = limits.needed(prompt, tokenizer)?;
                let (prompt, [completion]) = tokenizer.completions(prompt, [completion])?;
                (prompt, completion)
            }
            None => (Vec::new(), tokenizer.encode(&tokenizer.ended(completion))?),
        };
        let left = limits.apply(&mut prompt, &mut completion);
        Ok(left.then_some(Example { prompt, completion, learnt: None, line }))
    }

    /// An example of which these bytes are learnt, where they are of the completion. As in `transformers`,
    /// a token is learnt of which any character is.
    fn in_part(
        text: &ExampleText,
        learnt: &[Range<usize>],
        line: usize,
        tokenizer: &Tokenizer,
        limits: &Limits,
    ) -> Result<Option<Example>> {
        let given = text.prompt.as_deref().unwrap_or_default();
        let whole = format!("{given}{}", text.completion);
        let (mut ids, offsets): (Vec<i32>, Vec<Range<usize>>) =
            tokenizer.encode_with_offsets(&whole)?.into_iter().unzip();
        let first = match &text.prompt {
            Some(prompt) => {
                let prompt = tokenizer.encode(prompt)?;
                prompt.iter().zip(&ids).take_while(|(a, b)| a == b).count()
            }
            None => 0,
        };
        let mut spans = characters(&whole, learnt).into_iter().peekable();
        let mut mask = Vec::with_capacity(ids.len());
        for (i, token) in offsets.into_iter().enumerate() {
            while spans.next_if(|span| token.start >= span.end).is_some() {}
            mask.push(i >= first && spans.peek().is_some_and(|span| token.end > span.start));
        }
        let excess = ids.len().saturating_sub(limits.max_length.unwrap_or(usize::MAX));
        match limits.truncation {
            _ if excess == 0 => {}
            Truncation::Drop => return Ok(None),
            Truncation::KeepStart => {
                ids.truncate(ids.len() - excess);
                mask.truncate(ids.len());
            }
            Truncation::KeepEnd => {
                ids.drain(..excess);
                mask.drain(..excess);
            }
        }
        let Some(from) = mask.iter().position(|&learnt| learnt) else { return Ok(None) };
        let (completion, mask) = (ids.split_off(from), mask.split_off(from));
        let learnt = mask.contains(&false).then_some(mask);
        Ok(Some(Example { prompt: ids, completion, learnt, line }))
    }
}

/// Ranges of bytes as ranges of characters; both in order.
fn characters(text: &str, ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let (mut at, mut count) = (0, 0);
    let mut character = |byte: usize| {
        count += text.get(at..byte).map_or(0, |between| between.chars().count());
        at = byte;
        count
    };
    ranges.iter().map(|range| character(range.start)..character(range.end)).collect()
}

impl Prompt {
    /// Tokenises; none where there is no token, or where it is too long and its start is to be kept:
    /// what is left of such a prompt would lack its question.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn tokenise(
        text: &str,
        line: usize,
        tokenizer: &Tokenizer,
        limits: &Limits,
    ) -> Result<Option<Prompt>> {
        let mut prompt = tokenizer.encode(text)?;
        limits.bound_prompt(&mut prompt);
        let excess = prompt.len().saturating_sub(limits.max_length.unwrap_or(usize::MAX));
        if prompt.is_empty() || excess > 0 && limits.truncation != Truncation::KeepEnd {
            return Ok(None);
        }
        prompt.drain(..excess);
        Ok(Some(Prompt { prompt, line }))
    }
}
