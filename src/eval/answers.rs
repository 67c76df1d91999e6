use rayon::prelude::*;

use super::Batching;
use crate::Result;
use crate::data::{Record, Table, Tokenizer};
use crate::nn::LayoutBuilder;

/// A prompt with the answers of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// The prompt; empty for a plain text.
    pub prompt: String,
    /// Its answers.
    pub answers: Vec<String>,
    /// The rank of each answer, where the row prefers some to others; a smaller one is better.
    pub ranks: Option<Vec<usize>>,
    /// Whether the texts are conversations as a chat template writes them.
    pub rendered: bool,
    /// The line of the file, from 1; 0 where there is none.
    pub line: usize,
}

impl Answers {
    /// The answers of every row of a file; rows that are a prompt alone have none.
    pub fn of(table: &Table) -> Vec<Answers> {
        let rendered = table.rendered;
        let row = |row: &crate::data::Row| {
            let (prompt, answers, ranks) = match &row.record {
                Record::Pair(pair) => (
                    &pair.prompt,
                    vec![pair.chosen.clone(), pair.rejected.clone()],
                    Some(vec![0, 1]),
                ),
                Record::Ranked(ranked) => {
                    let (answers, ranks) = ranked.responses.iter().cloned().unzip();
                    (&ranked.prompt, answers, Some(ranks))
                }
                Record::Candidates(text) => (&text.prompt, text.responses.clone(), None),
                Record::Unpaired(text) => (&text.prompt, vec![text.completion.clone()], None),
                Record::Example(text) => {
                    let prompt = text.prompt.clone().unwrap_or_default();
                    let answers = vec![text.completion.clone()];
                    return Answers { prompt, answers, ranks: None, rendered, line: row.line };
                }
                Record::Prompt(prompt) => (prompt, Vec::new(), None),
            };
            Answers { prompt: prompt.clone(), answers, ranks, rendered, line: row.line }
        };
        table.rows.iter().map(row).collect()
    }
}

/// Tokenised answers: those that can be read stand in a layout, in order.
pub(super) struct Tokenised {
    pub builder: LayoutBuilder,
    /// Of each answer of each prompt, whether it is there.
    pub fits: Vec<Vec<bool>>,
}

/// Brings some rows into a layout, the answers of a prompt on one copy of it.
pub(super) fn tokenise(
    tokenizer: &Tokenizer,
    rows: &[Answers],
    mut builder: LayoutBuilder,
    batching: &Batching,
) -> Result<Tokenised> {
    let verbatim = tokenizer.verbatim();
    let ids: Vec<(Vec<i32>, Vec<Vec<i32>>)> = rows
        .par_iter()
        .map(|row| {
            let tokenizer = if row.rendered { &verbatim } else { tokenizer };
            tokenizer.many(&row.prompt, &row.answers)
        })
        .collect::<Result<_>>()?;
    let mut fits = Vec::with_capacity(rows.len());
    for (prompt, answers) in &ids {
        let fit = |answer: &Vec<i32>| {
            !answer.is_empty() && prompt.len() + answer.len() <= batching.max_length
        };
        let there: Vec<&[i32]> =
            answers.iter().filter(|answer| fit(answer)).map(Vec::as_slice).collect();
        if !there.is_empty() {
            builder.push_shared(prompt, &there);
        }
        fits.push(answers.iter().map(fit).collect());
    }
    Ok(Tokenised { builder, fits })
}

impl Tokenised {
    /// The values of the answers that are there, each in its place.
    pub fn place<T>(fits: &[Vec<bool>], values: Vec<T>) -> Vec<Vec<Option<T>>> {
        let mut values = values.into_iter();
        let mut own = |&there: &bool| if there { values.next() } else { None };
        fits.iter().map(|row| row.iter().map(&mut own).collect()).collect()
    }
}
