//! Kinds of records, and how rows become them.
//!
//! The first row with the fields of a format settles the format of the whole file, and every later
//! row is held to it. A row that fits several is taken by the first of these, and its other fields
//! are left alone:
//!
//! 1. `chosen`, `rejected`, `prompt`: [`Format::Pairs`]
//! 2. `chosen`, `rejected`: [`Format::ImplicitPairs`]
//! 3. `responses`, `probabilities`, `prompt`: [`Format::Candidates`]
//! 4. `responses`, `prompt`, and `ranks` where there are any: [`Format::Ranked`]
//! 5. `completion`, `label`, `prompt`: [`Format::Unpaired`]
//! 6. `completion`, `prompt`: [`Format::PromptCompletion`]
//! 7. `instruction`, `output`, and `input` where there is one: [`Format::Instruction`]
//! 8. `messages`: [`Format::Messages`]
//! 9. `text`: [`Format::Text`]
//! 10. `prompt`: [`Format::Prompts`]
//!
//! Where `prompt`, `chosen`, `rejected` or `completion` of the first row is a list of messages, all rows
//! hold conversations, of which the model's chat template makes the texts.

use std::ops::Range;

use serde_json::{Map, Value};

use super::candidates::{Candidates, CandidatesText};
use super::fields::Fields;
use super::prompt;
use crate::losses::check_candidates;
use crate::{Error, Result};

/// How the rows of a file are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// `prompt, chosen, rejected`.
    Pairs,
    /// `chosen, rejected`, which begin with their prompt.
    ImplicitPairs,
    /// `prompt, responses, ranks`.
    Ranked,
    /// `prompt, responses, probabilities`.
    Candidates,
    /// `prompt, completion, label`.
    Unpaired,
    /// `prompt, completion`.
    PromptCompletion,
    /// `instruction, input, output`.
    Instruction,
    /// `messages`.
    Messages,
    /// `text`.
    Text,
    /// `prompt`.
    Prompts,
}

impl Format {
    /// Its fields, as messages name them.
    pub fn fields(self) -> &'static str {
        match self {
            Format::Pairs => "prompt, chosen, rejected",
            Format::ImplicitPairs => "chosen, rejected",
            Format::Ranked => "prompt, responses, ranks",
            Format::Candidates => "prompt, responses, probabilities",
            Format::Unpaired => "prompt, completion, label",
            Format::PromptCompletion => "prompt, completion",
            Format::Instruction => "instruction, input, output",
            Format::Messages => "messages",
            Format::Text => "text",
            Format::Prompts => "prompt",
        }
    }

    /// Whether a column of such rows is read, beside [`Format::fields`] the ones that may be there.
    pub(super) fn reads(self, column: &str) -> bool {
        let more: &[&str] = match self {
            Format::Pairs | Format::ImplicitPairs => &["margin", "weight", "target_prob"],
            _ => &[],
        };
        let conversations = ["tools", "chat_template_kwargs"];
        self.fields()
            .split(", ")
            .chain(more.iter().copied())
            .chain(conversations)
            .any(|c| c == column)
    }

    /// The format that a row's fields make it one of.
    pub(super) fn of(row: &Map<String, Value>) -> Option<Format> {
        let has = |name: &str| row.contains_key(name);
        Some(if has("chosen") && has("rejected") {
            if has("prompt") { Format::Pairs } else { Format::ImplicitPairs }
        } else if has("responses") && has("probabilities") && has("prompt") {
            Format::Candidates
        } else if has("responses") && has("prompt") {
            Format::Ranked
        } else if has("completion") && has("label") && has("prompt") {
            Format::Unpaired
        } else if has("completion") && has("prompt") {
            Format::PromptCompletion
        } else if has("instruction") && has("output") {
            Format::Instruction
        } else if has("messages") {
            Format::Messages
        } else if has("text") {
            Format::Text
        } else if has("prompt") && !has("chosen") && !has("rejected") {
            Format::Prompts
        } else {
            return None;
        })
    }
}

/// Two answers to one prompt, the first preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct PairText {
    /// What both answer.
    pub prompt: String,
    /// The preferred answer.
    pub chosen: String,
    /// The other one.
    pub rejected: String,
    /// `margin`: by how much the reward model should prefer the chosen one; finite.
    pub margin: Option<f64>,
    /// `weight`: what the pair's loss is multiplied by; finite and not negative.
    pub weight: Option<f64>,
    /// `target_prob`: the probability that the chosen one is better; in [0, 1].
    pub target_prob: Option<f64>,
    /// Where the two are of a row of several answers.
    pub candidates: Option<Candidates>,
}

/// Several answers to one prompt, ranked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankedText {
    /// What all of them answer.
    pub prompt: String,
    /// `responses`: the answers, each with its rank; a smaller one is better, equal ones are a tie.
    /// The ranks are those of `ranks`, else the order of the answers: the best comes first.
    pub responses: Vec<(String, usize)>,
}

/// One answer, judged good or bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpairedText {
    /// What it answers.
    pub prompt: String,
    /// The answer.
    pub completion: String,
    /// `label`: whether it is desirable.
    pub desirable: bool,
}

/// A text to imitate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExampleText {
    /// What is given; none in a plain text and in a whole conversation, all of which is learnt.
    pub prompt: Option<String>,
    /// What is learnt.
    pub completion: String,
    /// Bytes of prompt and completion together outside which nothing is learnt: what the assistant says,
    /// where that was asked for.
    pub learnt: Option<Vec<Range<usize>>>,
}

/// One record of a file.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// Of [`Format::Pairs`] and [`Format::ImplicitPairs`].
    Pair(PairText),
    /// Of [`Format::Ranked`].
    Ranked(RankedText),
    /// Of [`Format::Candidates`].
    Candidates(CandidatesText),
    /// Of [`Format::Unpaired`].
    Unpaired(UnpairedText),
    /// Of [`Format::PromptCompletion`], [`Format::Instruction`], [`Format::Messages`] and
    /// [`Format::Text`].
    Example(ExampleText),
    /// Of [`Format::Prompts`].
    Prompt(String),
}

/// The record of a row of texts.
pub(super) fn record(format: Format, fields: &Fields) -> Result<Record> {
    Ok(match format {
        Format::Pairs | Format::ImplicitPairs => {
            let (prompt, chosen, rejected) = if format == Format::Pairs {
                (fields.text("prompt")?, fields.filled("chosen")?, fields.filled("rejected")?)
            } else {
                fields.no_prompt_of_another_name()?;
                prompt::split(fields.filled("chosen")?, fields.filled("rejected")?)
            };
            let [margin, weight, target_prob] = fields.of_a_pair()?;
            Record::Pair(PairText {
                prompt: prompt.into(),
                chosen: chosen.into(),
                rejected: rejected.into(),
                margin,
                weight,
                target_prob,
                candidates: None,
            })
        }
        Format::Ranked => Record::Ranked(RankedText {
            prompt: fields.text("prompt")?.into(),
            responses: fields.ranked("responses", "ranks")?,
        }),
        Format::Candidates => {
            let responses = fields.filled_list("responses")?;
            let (field, k) = ("probabilities", responses.len());
            let probabilities = fields.table(field, k)?;
            check_candidates(&probabilities, k).map_err(|e| match e {
                Error::Shape { expected, got, .. } => {
                    fields.error(field, format!("expected {expected}, got {got}"))
                }
                e => e,
            })?;
            let prompt = fields.text("prompt")?.into();
            let probabilities = probabilities.into();
            Record::Candidates(CandidatesText { prompt, responses, probabilities })
        }
        Format::Unpaired => Record::Unpaired(UnpairedText {
            prompt: fields.text("prompt")?.into(),
            completion: fields.filled("completion")?.into(),
            desirable: fields.label("label")?,
        }),
        Format::PromptCompletion => Record::Example(ExampleText {
            prompt: Some(fields.text("prompt")?.into()),
            completion: fields.filled("completion")?.into(),
            learnt: None,
        }),
        Format::Instruction => {
            let input = fields.optional_text("input")?.unwrap_or_default();
            Record::Example(ExampleText {
                prompt: Some(prompt::instruction(fields.filled("instruction")?, input)),
                completion: fields.filled("output")?.into(),
                learnt: None,
            })
        }
        // `messages` are always conversations, which are not read here.
        Format::Text | Format::Messages => Record::Example(ExampleText {
            prompt: None,
            completion: fields.filled("text")?.into(),
            learnt: None,
        }),
        Format::Prompts => Record::Prompt(fields.filled("prompt")?.into()),
    })
}
