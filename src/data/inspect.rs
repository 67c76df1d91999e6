//! Rows as a training sees them, and what is remarkable about a whole file.

use std::collections::HashSet;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::dataset::Lines;
use super::examples::{Example, Limits, Truncation};
use super::formats::{ExampleText, Record};
use super::table::{Row, Table};
use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What a training does with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The model sees it and is not taught it.
    Given,
    /// The model is taught to say it.
    Learnt,
    /// `max_length` takes it away.
    Cut,
}

impl Use {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Use::Given => "given",
            Use::Learnt => "learnt",
            Use::Cut => "cut",
        }
    }
}

/// A sequence that a training makes of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// `chosen`, `rejected`, `completion`, `text`, `prompt`, or a response's number.
    pub name: String,
    /// Tokens of the prompt, which come first.
    pub prompt: usize,
    /// All its tokens, those that are cut included.
    pub tokens: Vec<(i32, Use)>,
}

impl Sequence {
    /// How many of its tokens are used so.
    pub fn count(&self, of: Use) -> usize {
        self.tokens.iter().filter(|(_, used)| *used == of).count()
    }

    /// A sequence of which the tokens behind the prompt are learnt where `mask` says so.
    fn new(name: &str, prompt: usize, ids: &[i32], mask: &[bool], limits: &Limits) -> Self {
        // Each part has a limit of its own first, then both together.
        let start = prompt.saturating_sub(limits.max_prompt.unwrap_or(prompt));
        let end = limits.max_completion.map_or(ids.len(), |most| ids.len().min(prompt + most));
        let excess = limits.max_length.map_or(0, |most| (end - start).saturating_sub(most));
        let kept = match limits.truncation {
            _ if excess == 0 => start..end,
            Truncation::KeepStart => start..end - excess,
            Truncation::KeepEnd => start + excess..end,
            Truncation::Drop => 0..0,
        };
        let used = |(at, &id): (usize, &i32)| match () {
            () if !kept.contains(&at) => (id, Use::Cut),
            // Nothing precedes the first token that could predict it.
            () if at >= prompt && mask[at] && at > kept.start => (id, Use::Learnt),
            () => (id, Use::Given),
        };
        let tokens = ids.iter().enumerate().map(used).collect();
        Sequence { name: name.into(), prompt, tokens }
    }

    /// Whether something behind the prompt is left.
    fn is_left(&self) -> bool {
        self.tokens[self.prompt..].iter().any(|(_, used)| *used != Use::Cut)
    }
}

/// The sequences that a training makes of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// In the order of the row.
    pub sequences: Vec<Sequence>,
    /// Whether the row is left out: nothing is left of what is learnt.
    pub dropped: bool,
}

/// What a training makes of a record, by a tokenizer that is [verbatim](Tokenizer::verbatim) where the record is
/// of conversations. `completion_only` false learns prompts of texts to imitate too.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn inspect(
    record: &Record,
    tokenizer: &Tokenizer,
    limits: &Limits,
    completion_only: Option<bool>,
) -> Result<Inspected> {
    let answers = |prompt: &str, names: &[String], texts: &[&str]| -> Result<Inspected> {
        let (prompt, tails) = tokenizer.many(prompt, texts)?;
        let sequence = |(name, tail): (&String, &Vec<i32>)| {
            let ids = [&prompt[..], tail].concat();
            Sequence::new(name, prompt.len(), &ids, &vec![true; ids.len()], limits)
        };
        let sequences: Vec<_> = names.iter().zip(&tails).map(sequence).collect();
        let dropped = !sequences.iter().all(Sequence::is_left);
        Ok(Inspected { sequences, dropped })
    };
    match record {
        Record::Pair(pair) => answers(
            &pair.prompt,
            &["chosen", "rejected"].map(String::from),
            &[&pair.chosen, &pair.rejected],
        ),
        Record::Unpaired(text) => {
            answers(&text.prompt, &["completion".into()], &[&text.completion])
        }
        Record::Candidates(text) => {
            let texts: Vec<&str> = text.responses.iter().map(String::as_str).collect();
            let names: Vec<String> = (1..=texts.len()).map(|i| format!("response {i}")).collect();
            answers(&text.prompt, &names, &texts)
        }
        Record::Ranked(text) => {
            let texts: Vec<&str> = text.responses.iter().map(|(text, _)| text.as_str()).collect();
            let ranks = text.responses.iter().map(|(_, rank)| rank).enumerate();
            let names: Vec<String> =
                ranks.map(|(i, rank)| format!("response {} of rank {rank}", i + 1)).collect();
            let seen = answers(&text.prompt, &names, &texts)?;
            // What a response loses costs the others nothing, as long as two ranks are left.
            let left = seen.sequences.iter().zip(&text.responses);
            let ranks: Vec<usize> =
                left.filter(|(s, _)| s.is_left()).map(|(_, (_, rank))| *rank).collect();
            let dropped = ranks.iter().min() == ranks.iter().max();
            Ok(Inspected { dropped, ..seen })
        }
        Record::Example(text) => example(text, tokenizer, limits, completion_only),
        Record::Prompt(text) => {
            let ids = tokenizer.encode(text)?;
            let sequence =
                Sequence::new("prompt", ids.len(), &ids, &vec![false; ids.len()], limits);
            let cut = sequence.count(Use::Cut) > 0;
            let dropped = ids.is_empty() || cut && limits.truncation != Truncation::KeepEnd;
            Ok(Inspected { sequences: vec![sequence], dropped })
        }
    }
}

fn example(
    text: &ExampleText,
    tokenizer: &Tokenizer,
    limits: &Limits,
    completion_only: Option<bool>,
) -> Result<Inspected> {
    let mut text = text.clone();
    if let (Some(false), Some(prompt)) = (completion_only, &text.prompt) {
        text.completion.insert_str(0, prompt);
        text.prompt = None;
    }
    let name = if text.prompt.is_some() { "completion" } else { "text" };
    let whole = Limits::default();
    let Some(made) = Example::tokenise(&text, 0, tokenizer, &whole)? else {
        return Ok(Inspected { sequences: Vec::new(), dropped: true });
    };
    let ids = [&made.prompt[..], &made.completion].concat();
    let learnt = made.learnt.unwrap_or_else(|| vec![true; made.completion.len()]);
    let mask = [vec![false; made.prompt.len()], learnt].concat();
    let sequence = Sequence::new(name, made.prompt.len(), &ids, &mask, limits);
    // Of a conversation, what is left must be the assistant's in part.
    let left =
        (made.prompt.len()..ids.len()).any(|at| mask[at] && sequence.tokens[at].1 != Use::Cut);
    Ok(Inspected { sequences: vec![sequence], dropped: !left })
}

/// How many tokens the parts of rows have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// The fewest.
    pub shortest: usize,
    /// Half have no more.
    pub median: usize,
    /// 19 of 20 have no more.
    pub p95: usize,
    /// The most.
    pub longest: usize,
    /// All together.
    pub tokens: usize,
}

impl Lengths {
    fn of(mut lengths: Vec<usize>) -> Option<Self> {
        lengths.sort_unstable();
        let at = |share: f64| lengths[((lengths.len() - 1) as f64 * share).round() as usize];
        Some(Lengths {
            shortest: *lengths.first()?,
            median: at(0.5),
            p95: at(0.95),
            longest: *lengths.last()?,
            tokens: lengths.iter().sum(),
        })
    }
}

/// How the answers of pairs differ in length: a preference for length is learnt first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LengthBias {
    /// Pairs whose chosen answer has more tokens.
    pub chosen_longer: usize,
    /// Pairs whose rejected answer has more tokens.
    pub rejected_longer: usize,
    /// By how many tokens the chosen answer is longer, on average.
    pub mean_difference: f64,
}

/// What is remarkable about the rows of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Rows that were read.
    pub rows: usize,
    /// Tokens of prompts, answers and texts, before anything is cut.
    pub lengths: Vec<(String, Lengths)>,
    /// Tokens that are learnt.
    pub learnt: usize,
    /// Rows of which something is cut and something stays.
    pub cut: Lines,
    /// Rows that a training leaves out: nothing is left of what is learnt.
    pub dropped: Lines,
    /// Rows that repeat an earlier one.
    pub repeated: Lines,
    /// Pairs whose two answers are the same: they teach nothing.
    pub same: Lines,
    /// Of pairs.
    pub bias: Option<LengthBias>,
    /// Answers that are judged good, and bad.
    pub labels: Option<(usize, usize)>,
}

impl Summary {
    /// Looks at every row of a file, which is tokenised for it.
    ///
    /// # Errors
    /// As [`inspect`], naming the row.
    pub fn new(
        table: &Table,
        tokenizer: &Tokenizer,
        limits: &Limits,
        completion_only: Option<bool>,
    ) -> Result<Self> {
        let inspected = table.rows.par_iter().map(|row| {
            inspect(&row.record, tokenizer, limits, completion_only).map_err(|e| Error::Data {
                path: table.path.clone(),
                line: row.line,
                field: "-".into(),
                message: e.to_string(),
            })
        });
        let inspected = inspected.collect::<Result<Vec<_>>>()?;
        let mut summary = Summary {
            rows: table.rows.len(),
            lengths: Vec::new(),
            learnt: 0,
            cut: Lines::default(),
            dropped: Lines::default(),
            repeated: Lines::default(),
            same: Lines::default(),
            bias: None,
            labels: None,
        };
        let mut lengths: Vec<(String, Vec<usize>)> = Vec::new();
        let mut length = |name: &str, tokens: usize| match lengths.iter_mut().find(|l| l.0 == name)
        {
            Some((_, all)) => all.push(tokens),
            None => lengths.push((name.into(), vec![tokens])),
        };
        let (mut earlier, mut difference) = (HashSet::new(), 0);
        for (row, seen) in table.rows.iter().zip(&inspected) {
            let Row { line, record } = row;
            let cut = seen.sequences.iter().any(|sequence| sequence.count(Use::Cut) > 0);
            match seen.dropped {
                true => summary.dropped.add(*line),
                false if cut => summary.cut.add(*line),
                false => {}
            }
            if !seen.dropped {
                summary.learnt +=
                    seen.sequences.iter().map(|s| s.count(Use::Learnt)).sum::<usize>();
            }
            // Every field of a record is in what it prints.
            if !earlier.insert(Sha256::digest(format!("{record:?}"))) {
                summary.repeated.add(*line);
            }
            for (i, sequence) in seen.sequences.iter().enumerate() {
                let whole = matches!(record, Record::Prompt(_)) || sequence.name == "text";
                if !whole && i == 0 {
                    length("prompt", sequence.prompt);
                }
                // Responses are one part of a row, however many there are.
                let name = sequence.name.split(' ').next().unwrap_or_default();
                length(name, sequence.tokens.len() - if whole { 0 } else { sequence.prompt });
            }
            match (record, &seen.sequences[..]) {
                (Record::Pair(pair), [chosen, rejected]) => {
                    if pair.chosen == pair.rejected {
                        summary.same.add(*line);
                    }
                    let bias = summary.bias.get_or_insert_default();
                    let (c, r) = (chosen.tokens.len(), rejected.tokens.len());
                    bias.chosen_longer += usize::from(c > r);
                    bias.rejected_longer += usize::from(r > c);
                    difference += c as i64 - r as i64;
                }
                (Record::Unpaired(text), _) => {
                    let (good, bad) = summary.labels.get_or_insert_default();
                    *if text.desirable { good } else { bad } += 1;
                }
                _ => {}
            }
        }
        if let Some(bias) = &mut summary.bias {
            bias.mean_difference = difference as f64 / summary.rows.max(1) as f64;
        }
        let lengths = lengths.into_iter().filter_map(|(name, all)| Some((name, Lengths::of(all)?)));
        summary.lengths = lengths.collect();
        Ok(summary)
    }
}
