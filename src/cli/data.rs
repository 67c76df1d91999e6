//! Data files as a training sees them.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value as Json, json};

use super::args::{PartLimits, TruncationName, truth};
use super::rows::DataArgs;
use crate::data::inspect::{Inspected, Sequence, Summary, Use, inspect};
use crate::data::{Limits, Lines, Row, Skipped, Table, Tokenizer};
use crate::{Error, Result};

/// Look at data files as a training sees them.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// What a training makes of a file: lengths, what is cut or left out and why, rows that repeat or teach
    /// nothing, and its first row as tokens; with --row, that row alone.
    Show(Show),
}

/// `collimate data show`.
#[derive(clap::Args, Debug)]
struct Show {
    /// The data: .jsonl, .json, .csv, .tsv (each also with .gz) or .parquet
    file: PathBuf,
    /// Folder of the model whose tokenizer and chat template are used
    #[arg(long, alias = "model", value_name = "DIR")]
    model_name_or_path: PathBuf,
    /// Show this row alone; the first one is 1
    #[arg(long, value_name = "N")]
    row: Option<usize>,
    /// Show every token of a row on a line of its own
    #[arg(long)]
    tokens: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// Longest prompt and completion together, in tokens
    #[arg(long, default_value_t = 1024, value_name = "N")]
    max_length: usize,
    /// Which end of a sequence that is too long stays
    #[arg(long, default_value = "keep_start")]
    truncation_mode: TruncationName,
    #[command(flatten)]
    parts: PartLimits,
    #[command(flatten)]
    data: DataArgs,
    /// As in sft: of rows with a prompt and a completion, learn the completion alone; false: both
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    completion_only_loss: Option<bool>,
    /// As in sft: of conversations, learn every turn of the assistant and nothing else
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    assistant_only_loss: bool,
}

/// Runs `collimate data`.
pub fn run(args: Args) -> Result<()> {
    let Command::Show(args) = args.command;
    if args.max_length < 2 {
        return Err(Error::setting("max_length", "at least 2", args.max_length));
    }
    let (max_prompt, max_completion) = args.parts.checked()?;
    let limits = Limits {
        max_length: Some(args.max_length),
        truncation: args.truncation_mode.into(),
        max_prompt,
        max_completion,
    };
    let mut read = args.data.read(&args.model_name_or_path)?;
    read.assistant_only = args.assistant_only_loss;
    let tokenizer = Tokenizer::load(&args.model_name_or_path)?;
    let table = Table::read(&args.file, &read)?;
    let tokenizer = if table.rendered { tokenizer.verbatim() } else { tokenizer };
    let number = args.row.unwrap_or(1);
    let row = number
        .checked_sub(1)
        .and_then(|at| table.rows.get(at))
        .ok_or_else(|| Error::setting("row", format!("1 to {}", table.rows.len()), number))?;
    let shown = inspect(&row.record, &tokenizer, &limits, args.completion_only_loss)?;
    let summary = match args.row {
        Some(_) => None,
        None => Some(Summary::new(&table, &tokenizer, &limits, args.completion_only_loss)?),
    };
    let page = Page { args: &args, table: &table, tokenizer: &tokenizer };
    let text = match args.json {
        true => format!("{}\n", page.json(number, row, &shown, summary.as_ref())?),
        false => {
            let mut text =
                summary.as_ref().map(|summary| page.summary(summary)).unwrap_or_default();
            text += &page.row(number, row, &shown)?;
            text
        }
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
        _ => Ok(()),
    }
}

struct Page<'a> {
    args: &'a Show,
    table: &'a Table,
    tokenizer: &'a Tokenizer,
}

impl Page<'_> {
    fn summary(&self, summary: &Summary) -> String {
        let (table, args) = (self.table, self.args);
        let kind = if table.rendered { "conversations" } else { "text" };
        let mut text = format!(
            "{}: {} rows of {}, as {kind}\n",
            table.path.display(),
            summary.rows,
            table.format.fields()
        );
        let heads = ["tokens", "shortest", "median", "95%", "longest", "all"];
        let [name, rest @ ..] = heads;
        let _ = write!(text, "  {name:<12}");
        rest.iter().for_each(|head| _ = write!(text, "{head:>10}"));
        text.push('\n');
        for (name, l) in &summary.lengths {
            let _ = write!(text, "  {name:<12}");
            for value in [l.shortest, l.median, l.p95, l.longest, l.tokens] {
                let _ = write!(text, "{value:>10}");
            }
            text.push('\n');
        }
        let mut say = |line: String| text += &format!("  {line}\n");
        say(format!("{} tokens are learnt", summary.learnt));
        let limit = format!("max_length {}", args.max_length);
        for (lines, what) in [
            (&summary.cut, format!("rows that lose tokens to {limit}")),
            (&summary.dropped, format!("rows left out, as {limit} leaves nothing that is learnt")),
            (&summary.repeated, "rows that repeat an earlier one".into()),
            (&summary.same, "rows that teach nothing, as chosen and rejected are the same".into()),
        ] {
            if lines.rows > 0 {
                say(format!("{what}: {} (line {})", lines.rows, list(lines)));
            }
        }
        if table.skipped.rows > 0 {
            let Skipped { rows, first } = &table.skipped;
            say(format!("rows that are wrong and were skipped: {rows} ({})", first.join("; ")));
        }
        if let Some(bias) = summary.bias {
            say(format!(
                "pairs whose chosen answer is the longer one: {}, the shorter one: {}; it is {:+.1} tokens \
                 longer on average",
                bias.chosen_longer, bias.rejected_longer, bias.mean_difference
            ));
        }
        if let Some((good, bad)) = summary.labels {
            say(format!("labels: {good} good, {bad} bad"));
        }
        if !table.unread.is_empty() {
            say(format!("columns that are not read: {}", table.unread.join(", ")));
        }
        text.push('\n');
        text
    }

    fn row(&self, number: usize, row: &Row, shown: &Inspected) -> Result<String> {
        let mut text = format!("row {number}, line {} of {}", row.line, self.table.path.display());
        if shown.dropped {
            text += ": left out, as nothing is left of what is learnt";
        }
        text.push('\n');
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        for sequence in &shown.sequences {
            let of = |used| format!("{} {}", sequence.count(used), Use::name(used));
            let counts = [of(Use::Given), of(Use::Learnt), of(Use::Cut)];
            let _ = writeln!(
                text,
                "{}: {} tokens: {}",
                sequence.name,
                sequence.tokens.len(),
                counts.join(", ")
            );
            for (used, start, end) in runs(sequence) {
                let paint = match (colour, used) {
                    (false, _) => ["", ""],
                    (true, Use::Given) => ["\x1b[2m", "\x1b[0m"],
                    (true, Use::Learnt) => ["\x1b[32m", "\x1b[0m"],
                    (true, Use::Cut) => ["\x1b[9;31m", "\x1b[0m"],
                };
                let ids: Vec<i32> = sequence.tokens[start..end].iter().map(|t| t.0).collect();
                if self.args.tokens {
                    for (at, id) in ids.iter().enumerate() {
                        let name = self.tokenizer.name_of(*id).unwrap_or_default();
                        let _ = writeln!(
                            text,
                            "  {:>6} {:<6} {id:>7} {}{name:?}{}",
                            start + at,
                            used.name(),
                            paint[0],
                            paint[1]
                        );
                    }
                    continue;
                }
                let piece = self.text(sequence, start, end)?;
                let _ = writeln!(text, "  {:<7}{}{piece:?}{}", used.name(), paint[0], paint[1]);
                let ids: Vec<String> = ids.iter().map(i32::to_string).collect();
                let _ = writeln!(text, "  ids    {}", ids.join(" "));
            }
        }
        Ok(text)
    }

    /// The text of some tokens of a sequence as it stands in the whole.
    fn text(&self, sequence: &Sequence, start: usize, end: usize) -> Result<String> {
        let ids: Vec<i32> = sequence.tokens[..end].iter().map(|token| token.0).collect();
        let before = self.tokenizer.decode_with_special(&ids[..start])?;
        let whole = self.tokenizer.decode_with_special(&ids)?;
        match whole.strip_prefix(&before) {
            Some(text) => Ok(text.into()),
            None => self.tokenizer.decode_with_special(&ids[start..]),
        }
    }

    fn json(
        &self,
        number: usize,
        row: &Row,
        shown: &Inspected,
        summary: Option<&Summary>,
    ) -> Result<Json> {
        let sequences: Vec<Json> = shown
            .sequences
            .iter()
            .map(|sequence| {
                let ids: Vec<i32> = sequence.tokens.iter().map(|token| token.0).collect();
                let used: Vec<&str> = sequence.tokens.iter().map(|token| token.1.name()).collect();
                let text = self.tokenizer.decode_with_special(&ids)?;
                Ok(json!({ "name": sequence.name, "text": text, "ids": ids, "use": used }))
            })
            .collect::<Result<_>>()?;
        let mut all = json!({ "row": number, "line": row.line, "dropped": shown.dropped, "sequences": sequences });
        if let Some(s) = summary {
            let lengths = s.lengths.iter().map(|(name, l)| {
                let value = json!({
                    "shortest": l.shortest, "median": l.median, "p95": l.p95, "longest": l.longest, "tokens": l.tokens,
                });
                (name.clone(), value)
            });
            let lines = |lines: &Lines| json!({ "rows": lines.rows, "lines": lines.lines });
            all["file"] = json!({
                "rows": s.rows,
                "columns": self.table.format.fields(),
                "conversations": self.table.rendered,
                "unread_columns": self.table.unread,
                "lengths": lengths.collect::<serde_json::Map<_, _>>(),
                "learnt_tokens": s.learnt,
                "cut": lines(&s.cut),
                "dropped": lines(&s.dropped),
                "repeated": lines(&s.repeated),
                "same_answers": lines(&s.same),
                "skipped": self.table.skipped.rows,
            });
            if let Some(bias) = s.bias {
                all["file"]["chosen_longer"] = json!(bias.chosen_longer);
                all["file"]["rejected_longer"] = json!(bias.rejected_longer);
                all["file"]["mean_length_difference"] = json!(bias.mean_difference);
            }
            if let Some((good, bad)) = s.labels {
                all["file"]["labels"] = json!({ "good": good, "bad": bad });
            }
        }
        Ok(all)
    }
}

/// Neighbours that are used alike: how, and from where to where.
fn runs(sequence: &Sequence) -> Vec<(Use, usize, usize)> {
    let mut runs: Vec<(Use, usize, usize)> = Vec::new();
    for (at, &(_, used)) in sequence.tokens.iter().enumerate() {
        match runs.last_mut().filter(|last| last.0 == used) {
            Some(last) => last.2 = at + 1,
            None => runs.push((used, at, at + 1)),
        }
    }
    runs
}

fn list(lines: &Lines) -> String {
    let mut text = lines.lines.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    if lines.rows > lines.lines.len() {
        text += " and more";
    }
    text
}
