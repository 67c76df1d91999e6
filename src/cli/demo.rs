use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::args::output_dir;
use super::progress::Progress;
use crate::demo::world::WORST_TO_BEST;
use crate::demo::{DemoConfig, DemoMethod, Measured, Summary, Watcher};
use crate::report::{histogram, sparkline};
use crate::train::{Means, Observer};
use crate::{Error, Result};

/// A corpus from a small grammar, a tokenizer and a tiny Llama trained on it, pairs sampled from
/// that model and labelled by a reward that is known, and a policy aligned on these pairs.
///
/// Fresh samples for prompts that no training saw are scored by that reward, before and after.
/// Everything that is written is what the other commands read; the same seed writes the same files,
/// but for times.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How to align: kto, or any loss of `collimate dpo --loss-type`
    #[arg(long, default_value = "sigmoid", value_name = "METHOD")]
    method: String,
    /// Strength of the pull to the reference [default: what suits the method in this world]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta: Option<f64>,
    /// Peak learning rate of the alignment [default: what suits the method in this world]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    learning_rate: Option<f64>,
    /// Seeds every generator
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,
    /// Where everything is written [default: runs/demo-TIME]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

/// Runs `collimate demo`.
pub fn run(args: Args) -> Result<()> {
    let method = DemoMethod::parse(&args.method, args.beta).map_err(|e| match e {
        Error::Setting { name, expected, got } if name == "--loss-type" => {
            Error::setting("--method", expected, got)
        }
        e => e,
    })?;
    let mut config = DemoConfig::new(method);
    config.seed = args.seed;
    if let Some(rate) = args.learning_rate {
        config.learning_rate = rate;
    }
    let dir = args.output_dir.unwrap_or_else(|| output_dir("demo"));
    let begin = Instant::now();
    let mut stages = Stages::new()?;
    let summary = crate::demo::run(&config, &dir, &mut stages).map_err(|e| match e {
        Error::Interrupted(_) => {
            Error::Interrupted("interrupted: run it again, with another --output-dir".into())
        }
        e => e,
    })?;
    drop(stages);
    let mut text = table(&summary);
    let seconds = begin.elapsed().as_secs_f64();
    let _ = write!(text, "\n{seconds:.1} s in all; chart: {}\n", dir.join("chart.svg").display());
    text += &follow_ups(&config, &dir, &summary);
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
        _ => Ok(()),
    }
}

/// A bar for the stage under way, a line for each that is done.
pub struct Stages {
    progress: Progress,
    name: String,
    begin: Instant,
}

impl Stages {
    /// Watches for signals from now on.
    pub fn new() -> Result<Self> {
        Ok(Stages { progress: Progress::new()?, name: String::new(), begin: Instant::now() })
    }
}

impl Observer for Stages {
    fn start(&mut self, done: usize, total: usize) {
        self.progress.start(done, total);
    }

    fn step(&mut self, step: usize, means: &Means) {
        self.progress.step(step, means);
    }

    fn note(&mut self, message: &str) {
        self.progress.note(message);
    }

    /// A seed fixes every byte of a demo.
    fn timed(&self) -> bool {
        false
    }

    fn stop(&self) -> bool {
        self.progress.stop()
    }
}

impl Watcher for Stages {
    fn stage(&mut self, name: &str) {
        self.name = name.into();
        self.begin = Instant::now();
        self.progress.label(name);
    }

    fn done(&mut self, facts: &str) {
        self.progress.clear();
        let seconds = self.begin.elapsed().as_secs_f64();
        eprintln!("{:<22} {seconds:>5.1} s  {facts}", self.name);
    }
}

/// Before and after, in numbers and samples.
fn table(summary: &Summary) -> String {
    let (before, after) = (&summary.before, &summary.after);
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut text = String::new();
    let mut row = |name: &str, before: &str, after: &str, remark: &str| {
        let line = format!("{name:<26}{before:>14}{after:>14}   {remark}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    row("", "", "", "");
    row("", "before", "after", "");
    let of = format!("from -{WORST_TO_BEST} to {WORST_TO_BEST}; 95% confidence");
    row("reward", &before.reward.to_string(), &after.reward.to_string(), &of);
    let bars = |measured: &Measured| {
        let bins = histogram(&measured.rewards, -WORST_TO_BEST, WORST_TO_BEST, 12);
        sparkline(&bins.iter().map(|&count| count as f64).collect::<Vec<_>>(), 12)
    };
    row("", &bars(before), &bars(after), "its histogram");
    let kl = summary.kl.to_string();
    row("KL to the reference", "0", &kl, "nats a completion");
    let good = [before, after].map(|measured| percent(measured.well_formed));
    row("well-formed", &good[0], &good[1], "of the samples, by the grammar");
    let remark = format!("of held-out pairs; {} is possible", percent(summary.label_accuracy));
    row("reward accuracy", "", &percent(summary.accuracy), &remark);
    let way: Vec<f64> = summary.trajectory.iter().map(|point| point.reward.mean).collect();
    row("reward, step by step", "", &sparkline(&way, 12), "");
    for example in summary.examples.iter().take(4) {
        let [before, after] = example.rewards;
        let _ = writeln!(text, "\n{}", example.prompt);
        let _ = writeln!(text, "  before {before:>5.2} {}", example.before.escape_debug());
        let _ = writeln!(text, "  after  {after:>5.2} {}", example.after.escape_debug());
    }
    text
}

/// Commands that go on from here.
fn follow_ups(config: &DemoConfig, dir: &Path, summary: &Summary) -> String {
    let path = |name: &str| quoted(&dir.join(name).display().to_string());
    let command = config.method.command();
    let prompt = summary.examples.first().map_or("", |example| &example.prompt);
    let other = if config.method.name() == "ipo" { "sigmoid" } else { "ipo" };
    let (beta, rate) = match DemoMethod::parse(other, None) {
        Ok(method) => (method.beta(), method.learning_rate()),
        Err(_) => (config.method.beta(), config.learning_rate),
    };
    format!(
        "\ngo on with:\n  \
         collimate generate --model {} --prompt {} --num-return-sequences 4\n  \
         collimate dpo --model {} --dataset {} --eval-dataset {} --loss-type {other} --beta {beta} \
         --learning-rate {rate} --num-train-epochs {} --per-device-train-batch-size {} \
         --output-dir {}\n",
        path(command),
        quoted(prompt),
        path("sft"),
        path("train.jsonl"),
        path("test.jsonl"),
        config.epochs,
        config.batch_size,
        path(other),
    )
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
