use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::truth;
use super::judge::JudgeArgs;
use super::machine::MachineArgs;
use super::progress::Progress;
use super::sample::{SampleArgs, Sampler};
use crate::data::formats::PairText;
use crate::data::{ReadOptions, Record, Table};
use crate::judge::{Comparison, Judge};
use crate::models::write_atomically;
use crate::train::{Means, Observer};
use crate::{Error, Result};

/// Preferences of a judge model: pairs of a file, or pairs sampled for the prompts of a file, each shown in
/// both orders; the mean is written as `target_prob`, which dpo and psi_po read.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of the model that judges
    #[arg(long, value_name = "DIR")]
    judge: PathBuf,
    #[command(flatten)]
    judging: JudgeArgs,
    /// Folder of a policy: two answers to each prompt are sampled from it; without it the pairs of the
    /// data are judged
    #[arg(long, alias = "model", value_name = "DIR")]
    model_name_or_path: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
    /// Pairs to judge, or with --model any rows with a prompt: .jsonl, .json, .csv, .tsv (each also with .gz) or .parquet
    #[arg(long, alias = "dataset", value_name = "FILE")]
    dataset_name: PathBuf,
    /// Where the judged pairs are written, as JSON lines
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Leave `target_prob` out: the likelier answer is the chosen one, for losses without soft labels
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    hard_labels: bool,
    /// Skip and count rows of the data that are wrong, instead of stopping
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    skip_bad_rows: bool,
    #[command(flatten)]
    sampling: SampleArgs,
    /// Seeds the draws
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,
}

/// Pairs judged between two looks at the progress.
const TOGETHER: usize = 64;
/// A judge that answers fewer than one in so many pairs does not judge them.
const FEWEST_JUDGED: usize = 10;

/// Runs `collimate rlaif`.
pub fn run(args: Args) -> Result<()> {
    let device = args.machine.device()?;
    let judge = args.judging.open(&args.judge, &device)?;
    let mut progress = Progress::new()?;
    let read = ReadOptions { skip_bad_rows: args.skip_bad_rows, ..ReadOptions::default() };
    let (pairs, labelled) = match &args.model_name_or_path {
        Some(model) => {
            let sampler = Sampler::open(model, &args.sampling, args.seed, &device)?;
            (sampled(&sampler, &args.dataset_name, &read, &mut progress)?, false)
        }
        None => (from_file(&args.dataset_name, &read, &mut progress)?, true),
    };
    let mut count = Count::default();
    let mut lines = String::new();
    progress.label("judging");
    progress.start(0, pairs.len());
    let differ = |pair: &&PairText| pair.chosen != pair.rejected && !pair.chosen.is_empty();
    for (part, pairs) in pairs.chunks(TOGETHER).enumerate() {
        if progress.stop() {
            return Err(Error::Interrupted("interrupted: nothing is written; run it again".into()));
        }
        let asked: Vec<&PairText> =
            pairs.iter().filter(differ).filter(|pair| !pair.rejected.is_empty()).collect();
        count.same += pairs.len() - asked.len();
        for (pair, said) in asked.iter().zip(compare(&judge, &asked)?) {
            if let Some(p) = count.take(&said) {
                let _ = writeln!(lines, "{}", row(pair, p, args.hard_labels));
            }
        }
        progress.step(part * TOGETHER + pairs.len(), &Means::default());
    }
    drop(progress);
    if count.judged == 0 {
        let message = format!("the judge had no answer to any of its {} pairs", count.silent);
        return Err(Error::file(&args.dataset_name, message));
    }
    let path = &args.output;
    write_atomically(path, |out| out.write_all(lines.as_bytes()).map_err(|e| Error::io(path, e)))?;
    match std::io::stdout().write_all(count.table(path, labelled).as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => return Err(Error::io("stdout", e)),
        _ => {}
    }
    let all = count.judged + count.silent;
    if FEWEST_JUDGED * count.judged < all {
        let message = format!(
            "the judge answered {} of {all} pairs, fewer than one in {FEWEST_JUDGED}: its templates or its \
             model are not made for these; its few labels are in {}",
            count.judged,
            path.display()
        );
        return Err(Error::file(&args.dataset_name, message));
    }
    Ok(())
}

/// On the pool's own threads: each operation is spared waking another one.
fn compare(judge: &Judge, pairs: &[&PairText]) -> Result<Vec<Comparison>> {
    let texts: Vec<(&str, &str, &str)> =
        pairs.iter().map(|p| (&*p.prompt, &*p.chosen, &*p.rejected)).collect();
    rayon::scope(|_| judge.compare(&texts))
}

/// The pairs of a file.
fn from_file(path: &Path, read: &ReadOptions, progress: &mut Progress) -> Result<Vec<PairText>> {
    let table = Table::read(path, read)?;
    if table.skipped.rows > 0 {
        let first = table.skipped.first.join("; ");
        progress.note(&format!("skipped {} bad rows: {first}", table.skipped.rows));
    }
    let fields = table.format.fields();
    let pairs = table.rows.into_iter().map(|row| match row.record {
        Record::Pair(pair) => Some(pair),
        _ => None,
    });
    pairs.collect::<Option<_>>().ok_or_else(|| {
        let message =
            format!("expected pairs, or --model to sample them from, got rows of {fields}");
        Error::file(path, message)
    })
}

/// Two answers of the policy to every prompt of a file.
fn sampled(
    sampler: &Sampler,
    path: &Path,
    read: &ReadOptions,
    progress: &mut Progress,
) -> Result<Vec<PairText>> {
    let prompts = sampler.prompts(path, read)?;
    let twice: Vec<Vec<i32>> =
        prompts.iter().flat_map(|p| [p.ids.clone(), p.ids.clone()]).collect();
    progress.label("sampling");
    let answers = sampler.texts(&twice, progress)?;
    let pair = |(prompt, two): (super::sample::Asked, &[String])| PairText {
        prompt: prompt.text,
        chosen: two[0].clone(),
        rejected: two[1].clone(),
        margin: None,
        weight: None,
        target_prob: None,
        candidates: None,
    };
    Ok(prompts.into_iter().zip(answers.chunks(2)).map(pair).collect())
}

/// The pair with the likelier answer chosen; a pair's weight stays.
fn row(pair: &PairText, p: f64, hard: bool) -> Value {
    let (chosen, rejected, p) = match p < 0.5 {
        true => (&pair.rejected, &pair.chosen, 1.0 - p),
        false => (&pair.chosen, &pair.rejected, p),
    };
    let mut row = json!({ "prompt": pair.prompt, "chosen": chosen, "rejected": rejected });
    if !hard {
        row["target_prob"] = p.into();
    }
    if let Some(weight) = pair.weight {
        row["weight"] = weight.into();
    }
    row
}

/// What a judge did with all pairs.
#[derive(Default)]
struct Count {
    judged: usize,
    silent: usize,
    same: usize,
    /// Pairs whose winner changes with the order.
    torn: usize,
    /// Pairs whose chosen answer is the judge's too; ties count half.
    agree: f64,
    first_position: f64,
    sureness: f64,
}

impl Count {
    /// Counts a comparison: its label, unless there is none.
    fn take(&mut self, said: &Comparison) -> Option<f64> {
        let Some(p) = said.prob() else {
            self.silent += 1;
            return None;
        };
        self.judged += 1;
        self.first_position += said.first_position();
        self.sureness += p.max(1.0 - p);
        self.agree += if p == 0.5 { 0.5 } else { f64::from(p > 0.5) };
        let wins = [said.straight.first_prob(), said.swapped.second_prob()].map(|p| p > 0.5);
        self.torn += usize::from(wins[0] != wins[1]);
        Some(p)
    }

    fn table(&self, path: &Path, labelled: bool) -> String {
        let n = self.judged as f64;
        let percent = |sum: f64| format!("{:.1}%", 100.0 * sum / n);
        let rows = [
            ("judged", self.judged.to_string(), format!("pairs, in {}", path.display())),
            ("no answer", self.silent.to_string(), "pairs dropped".into()),
            ("equal or empty", self.same.to_string(), "pairs dropped".into()),
            (
                "position bias",
                format!("{:+.1}%", 100.0 * (self.first_position / n - 0.5)),
                "what the first place adds to an answer's probability".into(),
            ),
            (
                "orders disagree",
                percent(self.torn as f64),
                "of pairs: the first, or the second, wins both".into(),
            ),
            (
                "target_prob",
                format!("{:.3}", self.sureness / n),
                "of the chosen answer, mean".into(),
            ),
            ("agreement", percent(self.agree), "of the labels that the pairs had".into()),
        ];
        let shown = rows.iter().take(if labelled { 7 } else { 6 });
        shown.map(|(name, value, about)| format!("{name:<16}{value:>10}   {about}\n")).collect()
    }
}
