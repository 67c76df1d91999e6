use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::truth;
use super::judge::JudgeArgs;
use super::machine::MachineArgs;
use super::progress::Progress;
use super::rewards::ProgramArgs;
use super::rows::DataArgs;
use super::sample::{Asked, SampleArgs, prompts, sample};
use crate::data::{ReadOptions, Table};
use crate::eval::{
    Answers, Batching, Findings, LanguageModel, Policies, RewardModel, Sample, Wins, kl,
    policy_on_file, rewards_on_file, win_by_judge,
};
use crate::models::write_atomically;
use crate::rewards::{self, Answer};
use crate::train::Observer;
use crate::{Device, Error, Result};

/// On the answers of --dataset: a reward model's scores, their accuracy and margins; a policy's perplexity,
/// and on pairs its implicit rewards against --reference-model. On fresh samples for --prompts: a policy's
/// KL to --reference-model, its rewards, and its win rate by them, or by a judge, against it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of the policy to measure
    #[arg(long, alias = "model", value_name = "DIR")]
    model_name_or_path: Option<PathBuf>,
    /// Folder of the model that the policy is measured against
    #[arg(long, value_name = "DIR", requires = "model_name_or_path")]
    reference_model: Option<PathBuf>,
    /// Folder of a reward model
    #[arg(long, value_name = "DIR")]
    reward_model: Option<PathBuf>,
    /// Folder of a model that judges both answers, in both orders
    #[arg(long, value_name = "DIR", conflicts_with = "reward_model")]
    judge: Option<PathBuf>,
    #[command(flatten)]
    program: ProgramArgs,
    #[command(flatten)]
    judging: JudgeArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Rows with answers: .jsonl, .json, .csv, .tsv (each also with .gz) or .parquet
    #[arg(
        long,
        alias = "dataset",
        value_name = "FILE",
        required_unless_present = "prompts",
        conflicts_with = "prompts"
    )]
    dataset_name: Option<PathBuf>,
    /// Rows with a prompt, for fresh samples
    #[arg(long, value_name = "FILE", requires = "model_name_or_path")]
    prompts: Option<PathBuf>,
    /// Where scored rows, or samples, are written as JSON lines
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON object, not a table
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    json: bool,
    /// What the policy's log-ratios are multiplied by in implicit rewards
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    beta: f64,
    /// Longest prompt and answer together, in tokens; longer ones have no score
    #[arg(long, default_value_t = 1024, value_name = "N")]
    max_length: usize,
    /// Prompts that pass through a model together, with all of their answers
    #[arg(long, default_value_t = 8, value_name = "N")]
    per_device_eval_batch_size: usize,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    sampling: SampleArgs,
    /// Seeds the draws
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,
}

/// Runs `collimate eval`.
pub fn run(args: Args) -> Result<()> {
    for (name, value, least) in [
        ("max_length", args.max_length, 2),
        ("per_device_eval_batch_size", args.per_device_eval_batch_size, 1),
    ] {
        if value < least || value > 1 << 30 {
            return Err(Error::setting(name, format!("at least {least}"), value));
        }
    }
    if !args.beta.is_finite() || args.beta <= 0.0 {
        return Err(Error::setting("beta", "a positive number", args.beta));
    }
    let sources = usize::from(args.reward_model.is_some())
        + usize::from(args.judge.is_some())
        + args.program.count();
    if sources > 1 {
        let expected = "one of --reward-model, --judge, --reward-command and --reward at most";
        return Err(Error::setting("reward", expected, sources));
    }
    let mut progress = Progress::new()?;
    let mut findings = Findings::default();
    let rows = match (&args.dataset_name, &args.prompts) {
        (Some(path), _) => args.on_file(path, &mut progress, &mut findings)?,
        (None, Some(path)) => args.on_samples(path, &mut progress, &mut findings)?,
        (None, None) => Vec::new(),
    };
    drop(progress);
    if let Some(path) = &args.output {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        write_atomically(path, |out| {
            out.write_all(lines.as_bytes()).map_err(|e| Error::io(path, e))
        })?;
    }
    let text = if args.json { findings.to_json() } else { findings.to_table() };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
        _ => Ok(()),
    }
}

impl Args {
    fn batching(&self) -> Batching {
        Batching { prompts: self.per_device_eval_batch_size, max_length: self.max_length }
    }

    /// How files are read: conversations by the template of the policy, or else of the reward model.
    fn read(&self) -> Result<ReadOptions> {
        let folder = self.model_name_or_path.as_ref().or(self.reward_model.as_ref());
        self.data.read(folder.map_or(Path::new("."), PathBuf::as_path))
    }

    /// The policy, and the reference where there is one.
    fn policies(
        &self,
        path: &Path,
        device: &Device,
    ) -> Result<(LanguageModel, Option<LanguageModel>)> {
        let model = LanguageModel::open(path, device)?;
        let open = |path: &PathBuf| LanguageModel::open(path, device);
        Ok((model, self.reference_model.as_ref().map(open).transpose()?))
    }

    /// Measures on a file's answers: the rows that were scored.
    fn on_file(
        &self,
        path: &Path,
        progress: &mut Progress,
        into: &mut Findings,
    ) -> Result<Vec<Value>> {
        let expected = |name: &str, what: &str| Err(Error::setting(name, what, "none"));
        if self.judge.is_some() {
            return expected("prompts", "--prompts to sample the answers for that --judge judges");
        }
        if self.program.count() > 0 {
            return expected("prompts", "--prompts to sample the answers for that are rewarded");
        }
        if self.reward_model.is_none() && self.model_name_or_path.is_none() {
            return expected("reward_model", "a --reward-model or a --model to measure");
        }
        if self.reward_model.is_none() && self.output.is_some() {
            return expected("reward_model", "a --reward-model whose scores --output is to hold");
        }
        let device = self.machine.device()?;
        let table = Table::read(path, &self.read()?)?;
        if table.skipped.rows > 0 {
            let first = table.skipped.first.join("; ");
            progress.note(&format!("skipped {} bad rows: {first}", table.skipped.rows));
        }
        let answers = Answers::of(&table);
        if answers.iter().all(|row| row.answers.is_empty()) {
            let got = table.format.fields();
            return Err(Error::file(
                path,
                format!("expected rows with answers, got rows of {got}"),
            ));
        }
        into.count("rows", answers.len(), "");
        let mut scored = Vec::new();
        if let Some(path) = &self.reward_model {
            progress.label("scoring");
            let model = RewardModel::open(path, &device)?;
            scored = rewards_on_file(&model, &answers, &self.batching(), progress, into)?;
        }
        if let Some(path) = &self.model_name_or_path {
            progress.label("reading");
            let (model, reference) = self.policies(path, &device)?;
            if let Some(reference) = &reference {
                self.same_tokens(&model, reference)?;
            }
            let reference = reference.as_ref();
            let policies = Policies { model: &model, reference, beta: self.beta };
            policy_on_file(policies, &answers, &self.batching(), progress, into)?;
        }
        Ok(scored)
    }

    fn same_tokens(&self, model: &LanguageModel, reference: &LanguageModel) -> Result<()> {
        if model.shares_tokens(reference) {
            return Ok(());
        }
        let path = self.reference_model.clone().unwrap_or_default();
        Err(Error::file(path, "expected the tokenizer of the --model, got another one"))
    }

    /// Measures on fresh samples, which are returned.
    fn on_samples(
        &self,
        path: &Path,
        progress: &mut Progress,
        into: &mut Findings,
    ) -> Result<Vec<Value>> {
        let Some(model) = &self.model_name_or_path else { return Ok(Vec::new()) };
        let rewarded = self.reward_model.is_some() || self.program.count() > 0;
        if self.reference_model.is_none() && !rewarded {
            let what = "a --reference-model or a source of rewards to measure by";
            return Err(Error::setting("reference_model", what, "none"));
        }
        let device = self.machine.device()?;
        let (model, reference) = self.policies(model, &device)?;
        let read = self.read()?;
        progress.label("sampling");
        let (asked, own) = self.samples(&model, path, &read, progress)?;
        into.count("prompts", asked.len(), "");
        let tokens: Vec<f64> = own.iter().map(|s| s.completion.len() as f64).collect();
        into.mean("completion_tokens", &tokens, "");
        let other = match &reference {
            Some(reference) => Some(self.samples(reference, path, &read, progress)?.1),
            None => None,
        };
        if let Some(other) = other.as_ref().filter(|other| other.len() != own.len()) {
            let (own, other) = (own.len(), other.len());
            let message =
                format!("its prompts are {own} to one tokenizer and {other} to the other");
            return Err(Error::file(path, message));
        }
        if let Some(reference) = &reference {
            match (self.sampling.is_plain(), model.shares_tokens(reference)) {
                (true, true) => kl(&model, reference, &own, &self.batching(), progress, into)?,
                (false, _) => {
                    progress.note("no kl: it needs samples of --temperature 1 and all tokens")
                }
                (_, false) => progress.note("no kl: the two models have different tokenizers"),
            }
        }
        let texts = |model: &LanguageModel, samples: &[Sample]| -> Result<Vec<String>> {
            let text = |s: &Sample| model.tokenizer.decode_after(&s.prompt, &s.completion);
            samples.iter().map(text).collect()
        };
        let sampled: Vec<&[Sample]> =
            [Some(&own), other.as_ref()].into_iter().flatten().map(Vec::as_slice).collect();
        let sides = std::iter::once(&model).chain(&reference).zip(&sampled);
        let sides: Vec<Vec<String>> =
            sides.map(|(model, samples)| texts(model, samples)).collect::<Result<_>>()?;
        let scores = match self.program.count() {
            0 => None,
            _ => Some(self.rewards(&asked, &sampled, &sides)?),
        };
        let answers: Vec<Answers> = (0..asked.len())
            .map(|i| Answers {
                prompt: asked[i].text.clone(),
                answers: sides.iter().map(|texts| texts[i].clone()).collect(),
                ranks: None,
                rendered: false,
                line: 0,
            })
            .collect();
        self.compare(&answers, scores, &device, progress, into)
    }

    /// The rewards of a program or a function, of every prompt's answers.
    fn rewards(
        &self,
        asked: &[Asked],
        sampled: &[&[Sample]],
        texts: &[Vec<String>],
    ) -> Result<Vec<Vec<Option<f64>>>> {
        let mut source = self.program.open()?;
        let mut all = vec![Vec::new(); asked.len()];
        for (samples, texts) in sampled.iter().zip(texts) {
            let answers = asked.iter().zip(samples.iter().zip(texts));
            let answers: Vec<Answer> = answers
                .map(|(asked, (sample, completion))| Answer {
                    prompt: &asked.text,
                    completion,
                    prompt_ids: &sample.prompt,
                    completion_ids: &sample.completion,
                })
                .collect();
            let scores = rewards::score(&mut *source, &answers, 1)?;
            all.iter_mut().zip(scores).for_each(|(own, score)| own.push(score));
        }
        source.finish()?;
        Ok(all)
    }

    /// A completion of each prompt by one model.
    fn samples(
        &self,
        model: &LanguageModel,
        path: &Path,
        read: &ReadOptions,
        progress: &mut Progress,
    ) -> Result<(Vec<Asked>, Vec<Sample>)> {
        let decoder = &model.policy.decoder;
        let asked = prompts(path, read, &model.tokenizer, decoder.config().max_positions)?;
        let options = self.sampling.options(self.seed, model.tokenizer.stop_ids())?;
        let ids: Vec<Vec<i32>> = asked.iter().map(|asked| asked.ids.clone()).collect();
        let completions = sample(decoder, &model.policy.weights, &ids, &options, progress)?;
        let samples = ids.into_iter().zip(completions);
        let samples = samples.map(|(prompt, completion)| Sample { prompt, completion });
        Ok((asked, samples.collect()))
    }

    /// Rewards and win rates of sampled texts.
    fn compare(
        &self,
        answers: &[Answers],
        scores: Option<Vec<Vec<Option<f64>>>>,
        device: &Device,
        progress: &mut Progress,
        into: &mut Findings,
    ) -> Result<Vec<Value>> {
        let mut rows: Vec<Value> = answers
            .iter()
            .map(|row| match &row.answers[..] {
                [own, other] => {
                    json!({ "prompt": row.prompt, "completion": own, "reference_completion": other })
                }
                own => json!({ "prompt": row.prompt, "completion": own.first() }),
            })
            .collect();
        let scores = match &self.reward_model {
            Some(path) => {
                progress.label("scoring");
                let model = RewardModel::open(path, device)?;
                Some(model.scores(answers, &self.batching(), progress)?)
            }
            None => scores,
        };
        if let Some(scores) = scores {
            for (at, name) in [(0, "reward"), (1, "reward/reference")] {
                let all: Vec<f64> =
                    scores.iter().filter_map(|own| own.get(at).copied().flatten()).collect();
                if !all.is_empty() {
                    into.mean(name, &all, "of fresh samples");
                }
            }
            for (row, scores) in rows.iter_mut().zip(&scores) {
                for (name, score) in ["score", "reference_score"].iter().zip(scores) {
                    row[*name] = json!(score);
                }
            }
            if self.reference_model.is_some() {
                Wins::by_scores(&scores).tell(into);
            }
        }
        if let (Some(path), true) = (&self.judge, self.reference_model.is_some()) {
            progress.label("judging");
            let judge = self.judging.open(path, device)?;
            let (wins, probs) = win_by_judge(&judge, answers, &self.batching(), progress)?;
            let known: Vec<f64> = probs.iter().flatten().copied().collect();
            if !known.is_empty() {
                into.mean("judge_prob", &known, "that the model's answer is the better one");
            }
            rows.iter_mut().zip(&probs).for_each(|(row, prob)| row["judge_prob"] = json!(prob));
            wins.tell(into);
        }
        Ok(rows)
    }
}
