//! What a dataset may hold, and which records it is made of.

use super::dataset::{Item, Options};
use super::examples::{Example, Limits, Pair, Prompt, Unpaired};
use super::formats::{ExampleText, PairText, Record, UnpairedText};
use super::table::Row;
use super::tokenizer::Tokenizer;
use crate::Result;

impl Item for Pair {
    type Text = PairText;
    const ACCEPTS: &'static str =
        "prompt, chosen, rejected | chosen, rejected | prompt, responses, probabilities";

    fn text(record: Record) -> Option<PairText> {
        match record {
            Record::Pair(pair) => Some(pair),
            _ => None,
        }
    }

    /// Every pair of the answers of a row that has several.
    fn texts(rows: Vec<Row>, _: &Options) -> Option<Vec<(usize, PairText)>> {
        let mut all = Vec::with_capacity(rows.len());
        for Row { line, record } in rows {
            match record {
                Record::Candidates(text) => {
                    all.extend(text.pairs().into_iter().map(|pair| (line, pair)));
                }
                record => all.push((line, Self::text(record)?)),
            }
        }
        Some(all)
    }

    fn parts(text: &PairText) -> (&str, Vec<&str>) {
        (&text.prompt, vec![&text.chosen, &text.rejected])
    }

    fn make(text: &PairText, line: usize, with: &Tokenizer, to: &Limits) -> Result<Option<Self>> {
        Pair::tokenise(text, line, with, to)
    }
}

impl Item for Unpaired {
    type Text = UnpairedText;
    const ACCEPTS: &'static str = "prompt, completion, label | pairs that are to be unpaired";

    fn text(record: Record) -> Option<UnpairedText> {
        match record {
            Record::Unpaired(text) => Some(text),
            _ => None,
        }
    }

    fn texts(rows: Vec<Row>, options: &Options) -> Option<Vec<(usize, UnpairedText)>> {
        if !options.unpair || rows.iter().any(|row| !matches!(row.record, Record::Pair(_))) {
            return rows.into_iter().map(|row| Some((row.line, Self::text(row.record)?))).collect();
        }
        let mut all = Vec::with_capacity(2 * rows.len());
        let mut later = Vec::with_capacity(rows.len());
        for row in rows {
            let Record::Pair(pair) = row.record else { continue };
            let prompt = pair.prompt.clone();
            let good = UnpairedText { prompt, completion: pair.chosen, desirable: true };
            let bad =
                UnpairedText { prompt: pair.prompt, completion: pair.rejected, desirable: false };
            all.push((row.line, good));
            later.push((row.line, bad));
        }
        all.append(&mut later);
        Some(all)
    }

    fn parts(text: &UnpairedText) -> (&str, Vec<&str>) {
        (&text.prompt, vec![&text.completion])
    }

    fn make(text: &UnpairedText, line: usize, t: &Tokenizer, to: &Limits) -> Result<Option<Self>> {
        Unpaired::tokenise(text, line, t, to)
    }
}

impl Item for Example {
    type Text = ExampleText;
    const ACCEPTS: &'static str = "prompt, completion | messages | instruction, input, output | text \
                                   | pairs, whose chosen is learnt";

    fn text(record: Record) -> Option<ExampleText> {
        match record {
            Record::Example(text) => Some(text),
            Record::Pair(pair) => Some(ExampleText {
                prompt: Some(pair.prompt),
                completion: pair.chosen,
                learnt: None,
            }),
            _ => None,
        }
    }

    fn texts(rows: Vec<Row>, options: &Options) -> Option<Vec<(usize, ExampleText)>> {
        let text = |record: Record| {
            let mut text = Self::text(record)?;
            if let (Some(false), Some(prompt)) = (options.completion_only, &text.prompt) {
                text.completion.insert_str(0, prompt);
                text.prompt = None;
            }
            Some(text)
        };
        rows.into_iter().map(|row| Some((row.line, text(row.record)?))).collect()
    }

    fn parts(text: &ExampleText) -> (&str, Vec<&str>) {
        (text.prompt.as_deref().unwrap_or_default(), vec![&text.completion])
    }

    /// What is learnt of some of a text can be anywhere in it.
    fn hollow(text: &ExampleText) -> bool {
        text.learnt.is_some()
    }

    fn make(text: &ExampleText, line: usize, t: &Tokenizer, to: &Limits) -> Result<Option<Self>> {
        Example::tokenise(text, line, t, to)
    }
}

impl Item for Prompt {
    type Text = String;
    const ACCEPTS: &'static str = "prompt, or of any format that has one";

    fn text(record: Record) -> Option<String> {
        match record {
            Record::Prompt(prompt) => Some(prompt),
            Record::Pair(pair) => Some(pair.prompt),
            Record::Ranked(text) => Some(text.prompt),
            Record::Candidates(text) => Some(text.prompt),
            Record::Unpaired(text) => Some(text.prompt),
            Record::Example(text) => text.prompt,
        }
    }

    fn parts(text: &String) -> (&str, Vec<&str>) {
        (text, vec![])
    }

    fn never_empty(tokenizer: &Tokenizer) -> bool {
        tokenizer.adds_bos()
    }

    fn make(text: &String, line: usize, with: &Tokenizer, to: &Limits) -> Result<Option<Self>> {
        Prompt::tokenise(text, line, with, to)
    }
}
