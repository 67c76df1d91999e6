//! What a reward model learns from: pairs, or several ranked answers to one prompt.

use super::dataset::Item;
use super::examples::{Limits, Pair, Side};
use super::formats::{PairText, RankedText, Record};
use super::tokenizer::Tokenizer;
use crate::Result;

/// Answers to one prompt, tokenised.
#[derive(Clone, Debug, PartialEq)]
pub enum Preference {
    /// Two, the first preferred.
    Pair(Pair),
    /// Several, ranked.
    Ranked(Ranked),
}

/// What a [`Preference`] is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum PreferenceText {
    /// Two answers.
    Pair(PairText),
    /// Several.
    Ranked(RankedText),
}

/// Ranked completions of one prompt, of at least two different ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// The prompt, as the completion that sees most of it sees it.
    pub prompt: Vec<i32>,
    /// The completions that are left.
    pub responses: Vec<Response>,
    /// The line of the file it came from.
    pub line: usize,
}

/// One of several ranked completions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its tokens.
    pub completion: Vec<i32>,
    /// A smaller one is better; equal ones are a tie.
    pub rank: usize,
    /// Prompt tokens that it does not see: 0 unless
    /// [`Truncation::KeepEnd`](super::Truncation::KeepEnd) cut them.
    pub unseen: usize,
}

impl Preference {
    /// Every sequence: chosen and rejected, or the responses in the order of the file.
    pub fn sides(&self) -> Vec<Side<'_>> {
        match self {
            Preference::Pair(pair) => vec![pair.chosen_side(), pair.rejected_side()],
            Preference::Ranked(ranked) => ranked.sides().collect(),
        }
    }

    /// Whether all sequences see the same prompt, so that one copy of it serves all.
    pub fn shares_prompt(&self) -> bool {
        match self {
            Preference::Pair(pair) => pair.shares_prompt(),
            Preference::Ranked(ranked) => {
                let mut unseen = ranked.responses.iter().map(|response| response.unseen);
                let first = unseen.next();
                unseen.all(|unseen| Some(unseen) == first)
            }
        }
    }
}

impl Ranked {
    /// Every sequence.
    pub fn sides(&self) -> impl Iterator<Item = Side<'_>> {
        self.responses.iter().map(|response| Side {
            prompt: &self.prompt[response.unseen..],
            completion: &response.completion,
        })
    }

    /// Tokenises and truncates. Responses of which nothing is left are left out; none where no two
    /// of different ranks remain.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn tokenise(
        text: &RankedText,
        line: usize,
        tokenizer: &Tokenizer,
        limits: &Limits,
    ) -> Result<Option<Ranked>> {
        let texts: Vec<&str> = text.responses.iter().map(|(text, _)| text.as_str()).collect();
        let (mut prompt, completions) = tokenizer.many(&text.prompt, &texts)?;
        let mut responses = Vec::with_capacity(completions.len());
        for (mut completion, &(_, rank)) in completions.into_iter().zip(&text.responses) {
            let mut seen = prompt.clone();
            if limits.apply(&mut seen, &mut completion) {
                let unseen = prompt.len() - seen.len();
                responses.push(Response { completion, rank, unseen });
            }
        }
        let ranks = || responses.iter().map(|response| response.rank);
        if ranks().min() == ranks().max() {
            return Ok(None);
        }
        // What no response sees is no part of the prompt.
        let least = responses.iter().map(|response| response.unseen).min().unwrap_or_default();
        prompt.drain(..least);
        responses.iter_mut().for_each(|response| response.unseen -= least);
        Ok(Some(Ranked { prompt, responses, line }))
    }
}

impl Item for Preference {
    type Text = PreferenceText;
    const ACCEPTS: &'static str =
        "prompt, chosen, rejected | chosen, rejected | prompt, responses, ranks";
    const DROPPED: &'static str = "of which max_length or ties leave no pair";
    const NEEDS: &'static str = " and has two answers of unequal rank";

    fn text(record: Record) -> Option<PreferenceText> {
        match record {
            Record::Pair(pair) => Some(PreferenceText::Pair(pair)),
            Record::Ranked(ranked) => Some(PreferenceText::Ranked(ranked)),
            _ => None,
        }
    }

    fn parts(text: &PreferenceText) -> (&str, Vec<&str>) {
        match text {
            PreferenceText::Pair(pair) => Pair::parts(pair),
            PreferenceText::Ranked(ranked) => {
                (&ranked.prompt, ranked.responses.iter().map(|(text, _)| text.as_str()).collect())
            }
        }
    }

    fn hollow(text: &PreferenceText) -> bool {
        let PreferenceText::Ranked(ranked) = text else { return false };
        let ranks = || ranked.responses.iter().map(|(_, rank)| rank);
        ranks().min() == ranks().max()
    }

    fn make(
        text: &PreferenceText,
        line: usize,
        with: &Tokenizer,
        to: &Limits,
    ) -> Result<Option<Self>> {
        Ok(match text {
            PreferenceText::Pair(pair) => {
                Pair::tokenise(pair, line, with, to)?.map(Preference::Pair)
            }
            PreferenceText::Ranked(ranked) => {
                Ranked::tokenise(ranked, line, with, to)?.map(Preference::Ranked)
            }
        })
    }
}
