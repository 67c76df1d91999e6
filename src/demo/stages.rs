use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files;
use super::model::{Model, Samples};
use super::outcome::{Estimate, Example, Measured, Point, Summary};
use super::{DemoConfig, DemoMethod, MAX_LENGTH, world};
use crate::data::tokenizer::{Special, train_bpe};
use crate::data::{Dataset, Item, Limits, Options, Pair, Tokenizer};
use crate::losses::math::sigmoid;
use crate::losses::{LossOptions, PairObjective};
use crate::models::{ModelFolder, SaveOptions, SpecialTokens, init_weights, save};
use crate::nn::Decoder;
use crate::rng::Rng;
use crate::train::Every;
use crate::train::methods::{Paired, Sft, Unpaired};
use crate::train::{
    Method, Observer, Schedule, TrainConfig, Trainer, Warmup, checkpoints, evaluate,
};
use crate::{DType, Device, Error, Result};

/// Who watches a demo: its stages, and within a stage what there is to count.
pub trait Watcher: Observer {
    /// A stage begins.
    fn stage(&mut self, _name: &str) {}
    /// It is done, and this came of it.
    fn done(&mut self, _facts: &str) {}
}

/// Where random numbers are drawn: each has a seed of its own, made of the demo's.
#[derive(Clone, Copy)]
pub(super) enum Draw {
    Prompts,
    Corpus,
    First,
    Second,
    Labels,
    HeldOutFirst,
    HeldOutSecond,
    Fresh,
    Judge,
    Targets,
    Bound,
}

pub(super) struct Demo<'a> {
    pub config: &'a DemoConfig,
    pub dir: &'a Path,
    /// The folder of the alignment's own folder.
    pub runs: PathBuf,
    pub device: Device,
    pub watcher: &'a mut dyn Watcher,
    /// Prompts to train on, and those that no training sees.
    pub prompts: Vec<String>,
    pub held_out: Vec<String>,
}

/// Runs the demo and writes it to `dir`, a folder that is empty or absent.
///
/// # Errors
/// [`Error::Setting`] for a setting out of range, [`Error::File`] for a folder that is not empty,
/// [`Error::Interrupted`] when the watcher asks to stop.
pub fn run(config: &DemoConfig, dir: &Path, watcher: &mut dyn Watcher) -> Result<Summary> {
    config.validate()?;
    files::claim(dir)?;
    let mut demo = Demo::new(config, dir, watcher);
    let (reference, pairs, label_accuracy) = demo.prepare()?;
    demo.align(&reference, &dir.join("train.jsonl"))?;
    demo.evaluate(&reference, pairs, label_accuracy)
}

fn stream(config: &DemoConfig, draw: Draw) -> Rng {
    // Far from the streams of epochs and of sampled sequences, which count from 0.
    Rng::new(config.seed, 1 << 40 | draw as u64)
}

pub(super) fn seed(config: &DemoConfig, draw: Draw) -> u64 {
    stream(config, draw).next_u64()
}

impl<'a> Demo<'a> {
    pub fn new(config: &'a DemoConfig, dir: &'a Path, watcher: &'a mut dyn Watcher) -> Self {
        let mut held_out = world::prompts(&mut stream(config, Draw::Prompts));
        let prompts = held_out.split_off(config.held_out);
        Demo { config, dir, runs: dir.into(), device: Device::Cpu, watcher, prompts, held_out }
    }

    /// Corpus, model and pairs: the reference, how many pairs there are to train on, and the share of
    /// held-out labels that the true reward agrees with.
    pub fn prepare(&mut self) -> Result<(Model, usize, f64)> {
        let corpus = self.corpus()?;
        self.create(&corpus)?;
        self.fine_tune()?;
        let reference = Model::open(&self.sft(), None, &self.device)?;
        let (pairs, label_accuracy) = self.pairs(&reference)?;
        Ok((reference, pairs, label_accuracy))
    }

    fn init(&self) -> PathBuf {
        self.dir.join("init")
    }

    fn sft(&self) -> PathBuf {
        self.dir.join("sft")
    }

    pub fn aligned(&self) -> PathBuf {
        self.runs.join(self.config.method.command())
    }

    fn corpus(&mut self) -> Result<Vec<String>> {
        self.watcher.stage("corpus");
        let mut rng = stream(self.config, Draw::Corpus);
        let prompts = self.prompts.iter().cycle().take(self.config.sentences);
        let corpus: Vec<[String; 2]> =
            prompts.map(|prompt| [prompt.clone(), world::completion(prompt, &mut rng)]).collect();
        let rows = corpus.iter().map(|[prompt, completion]| {
            serde_json::json!({ "prompt": prompt, "completion": completion })
        });
        files::rows(&self.dir.join("corpus.jsonl"), rows)?;
        let rows = self.held_out.iter().map(|prompt| serde_json::json!({ "prompt": prompt }));
        files::rows(&self.dir.join("prompts.jsonl"), rows)?;
        let mut rng = stream(self.config, Draw::Judge);
        super::judge::write(self.dir, &self.prompts, self.config.sentences, &mut rng)?;
        super::chat::write(self.dir, &corpus)?;
        let (sentences, held_out) = (self.config.sentences, self.held_out.len());
        self.watcher.done(&format!("{sentences} sentences; {held_out} prompts held out"));
        Ok(corpus.iter().map(|row| row.concat()).collect())
    }

    /// A tokenizer of the corpus, and a model that has learnt nothing.
    fn create(&mut self, corpus: &[String]) -> Result<()> {
        self.watcher.stage("tokenizer and model");
        let dir = self.init();
        let json = train_bpe(corpus.iter(), self.config.vocab)?;
        let vocab = Tokenizer::from_json(&json, &Special::sentence())?.vocab_size();
        let config = self.config.decoder(vocab);
        let special = SpecialTokens { bos: Some(1), eos: Some(2), pad: None };
        let folder = ModelFolder::create(&dir, &config, &special, DType::F32)?;
        let (_, table) = Decoder::new(config)?;
        let weights = init_weights::<f32>(&table, self.config.seed, &self.device)?;
        save(&folder, &dir, &weights, &SaveOptions::default())?;
        files::tokenizer(&dir, &json)?;
        let parameters = Model::open(&dir, None, &self.device)?.parameters();
        self.watcher.done(&format!("{vocab} tokens; a Llama of {parameters} parameters"));
        Ok(())
    }

    fn fine_tune(&mut self) -> Result<()> {
        self.watcher.stage("supervised fine-tuning");
        let model = Model::open(&self.init(), None, &self.device)?;
        let corpus = self.dir.join("corpus.jsonl");
        let method = Sft { examples: open(&corpus, &model.tokenizer, false)? };
        let config = TrainConfig {
            model: self.init(),
            output_dir: self.sft(),
            batch_size: self.config.batch_size,
            epochs: self.config.sft_epochs as f64,
            learning_rate: self.config.sft_learning_rate,
            schedule: Schedule::COSINE,
            warmup: Warmup::Ratio(0.05),
            seed: self.config.seed,
            save_steps: Every::No,
            ..TrainConfig::default()
        };
        files::settings(&config, "sft", &corpus, None, vec![])?;
        let policy = model.start(false);
        self.train(&config, &model.folder, policy, &method, None)
    }

    fn train(
        &mut self,
        config: &TrainConfig,
        folder: &ModelFolder,
        policy: crate::train::Policy<f32>,
        method: &dyn Method,
        evaluation: Option<&dyn Method>,
    ) -> Result<()> {
        config.validate()?;
        let observer: &mut dyn Observer = self.watcher;
        let outcome = Trainer { config, folder, policy, method, evaluation, observer }.train()?;
        let path = config.output_dir.join("metrics.jsonl");
        let losses = files::column(&path, "loss")?;
        let (first, last) = (losses.first(), losses.last());
        let facts = |(first, last): (&(f64, f64), &(f64, f64))| {
            format!("{} steps, loss {:.3} to {:.3}", outcome.steps, first.1, last.1)
        };
        self.watcher.done(&first.zip(last).map(facts).unwrap_or_default());
        Ok(())
    }

    /// Samples pairs and labels them: how many there are to train on, and the share of held-out
    /// labels that the true reward agrees with.
    fn pairs(&mut self, reference: &Model) -> Result<(usize, f64)> {
        self.watcher.stage("sampling pairs");
        let config = self.config;
        let mut labels = stream(config, Draw::Labels);
        let prompts: Vec<String> =
            self.prompts.iter().cycle().take(config.pairs).cloned().collect();
        let mut counts = Vec::new();
        for (name, prompts, first, second) in [
            ("train.jsonl", &prompts, Draw::First, Draw::Second),
            ("test.jsonl", &self.held_out, Draw::HeldOutFirst, Draw::HeldOutSecond),
        ] {
            let mut sample = |draw| reference.sample(prompts, seed(config, draw), self.watcher);
            let (first, second) = (sample(first)?.texts, sample(second)?.texts);
            let (mut rows, mut agree) = (Vec::new(), 0);
            for ((prompt, first), second) in prompts.iter().zip(&first).zip(&second) {
                // Drawn in any case: a pair's label does not hang on the pairs before it.
                let draw = labels.uniform();
                if first == second || first.is_empty() || second.is_empty() {
                    continue;
                }
                let [a, b] = [first, second].map(|text| world::reward(text));
                let (chosen, rejected, margin) = if draw < sigmoid(a - b) {
                    (first, second, a - b)
                } else {
                    (second, first, b - a)
                };
                agree += usize::from(margin >= 0.0);
                rows.push(serde_json::json!(
                    { "prompt": prompt, "chosen": chosen, "rejected": rejected }
                ));
            }
            if rows.is_empty() {
                return Err(Error::setting("pairs", "samples that differ", "none"));
            }
            counts.push((rows.len(), agree as f64 / rows.len() as f64));
            if name == "train.jsonl" {
                let rows = rows.iter().map(super::chat::pair);
                files::rows(&self.dir.join("chat-pairs.jsonl"), rows)?;
            }
            files::rows(&self.dir.join(name), rows.into_iter())?;
        }
        let (pairs, accuracy) = (counts[0].0, counts[1].1);
        self.watcher.done(&format!(
            "{pairs} pairs, and {} held out; {:.0}% of their labels follow the reward",
            counts[1].0,
            100.0 * accuracy
        ));
        Ok((pairs, accuracy))
    }

    /// Trains the method of the settings on these pairs.
    pub fn align(&mut self, reference: &Model, train: &Path) -> Result<()> {
        let demo = self.config;
        self.watcher.stage(&format!("alignment: {}", demo.method.name()));
        let test = self.dir.join("test.jsonl");
        let mut config = TrainConfig {
            model: self.sft(),
            output_dir: self.aligned(),
            batch_size: demo.batch_size,
            epochs: demo.epochs as f64,
            learning_rate: demo.learning_rate,
            seed: demo.seed,
            logging_steps: Every::Steps(4),
            ..TrainConfig::default()
        };
        let mut methods: Vec<Box<dyn Method>> = Vec::new();
        for path in [train, &test] {
            methods.push(match &demo.method {
                DemoMethod::Paired { objective, .. } => {
                    let pairs = open(path, &reference.tokenizer, false)?;
                    let targets = objective.needs_target_logp();
                    Box::new(Paired {
                        targets: targets.then(|| self.targets(reference, &pairs)).transpose()?,
                        pairs,
                        objective: objective.clone(),
                        share_prompts: true,
                    })
                }
                DemoMethod::Kto(loss) => Box::new(Unpaired {
                    examples: open(path, &reference.tokenizer, true)?,
                    loss: *loss,
                }),
            });
        }
        let [method, evaluation] = [&*methods[0], &*methods[1]];
        let steps = method.examples().div_ceil(demo.batch_size) * demo.epochs;
        config.save_steps = match demo.checkpoints {
            0 => Every::No,
            checkpoints => Every::Steps((steps / (checkpoints + 1)).max(1)),
        };
        let command = demo.method.command();
        files::settings(&config, command, train, Some(&test), files::loss(&demo.method))?;
        let policy = reference.start(method.needs_reference());
        self.train(&config, &reference.folder, policy, method, Some(evaluation))
    }

    /// An answer of the reference to each pair's prompt.
    fn targets(&mut self, reference: &Model, pairs: &Dataset<Pair>) -> Result<Vec<Vec<i32>>> {
        let prompts = (0..pairs.len()).map(|i| Ok(pairs.get(i)?.chosen_side().prompt.to_vec()));
        let prompts = prompts.collect::<Result<Vec<_>>>()?;
        reference.continue_all(&prompts, seed(self.config, Draw::Targets), self.watcher)
    }

    fn evaluate(
        &mut self,
        reference: &Model,
        pairs: usize,
        label_accuracy: f64,
    ) -> Result<Summary> {
        self.watcher.stage("fresh samples");
        let config = self.config;
        let mut all = vec![(0, self.fresh(reference)?, Estimate { mean: 0.0, ci95: 0.0 })];
        let mut paths = checkpoints(&self.aligned())?;
        let last = files::column(&self.aligned().join("metrics.jsonl"), "loss")?;
        let last = last.last().map_or(0, |line| line.0 as usize);
        paths.retain(|(step, _)| *step < last);
        paths.push((last, self.aligned()));
        let mut policy = None;
        for (step, path) in paths {
            let model = Model::open(&path, Some(reference), &self.device)?;
            let samples = self.fresh(&model)?;
            let kl = model.kl(&samples)?;
            all.push((step, samples, kl));
            policy = Some(model);
        }
        let accuracy = self.accuracy(policy.as_ref().unwrap_or(reference))?;
        let trajectory = all.iter().map(|(step, samples, kl)| Point {
            step: *step,
            reward: samples.measure(&self.held_out).reward,
            kl: *kl,
        });
        let trajectory = trajectory.collect();
        let [(_, first, _), .., (_, last, kl)] = &all[..] else {
            unreachable!("the reference and at least one policy");
        };
        let [before, after] = [first, last].map(|samples| samples.measure(&self.held_out));
        let summary = Summary {
            method: config.method.name().into(),
            beta: config.method.beta(),
            learning_rate: config.learning_rate,
            seed: config.seed,
            parameters: reference.parameters(),
            pairs,
            kl: *kl,
            accuracy,
            label_accuracy,
            trajectory,
            examples: self.examples(first, last, &before, &after),
            before,
            after,
        };
        files::summary(&self.dir.join("summary.json"), &summary)?;
        super::chart::write(self.dir, config.method.command(), &summary)?;
        let (before, after) = (summary.before.reward, summary.after.reward);
        self.watcher.done(&format!("reward {before} before, {after} after"));
        Ok(summary)
    }

    /// One completion of every held-out prompt. All models are given the same random numbers.
    pub fn fresh(&mut self, model: &Model) -> Result<Samples> {
        model.sample(&self.held_out, seed(self.config, Draw::Fresh), self.watcher)
    }

    /// Share of held-out pairs that the policy's log-ratios to the reference order rightly.
    fn accuracy(&self, policy: &Model) -> Result<f64> {
        let method = Paired {
            pairs: open(&self.dir.join("test.jsonl"), &policy.tokenizer, false)?,
            objective: PairObjective::parse("sigmoid", &LossOptions::default())?,
            share_prompts: true,
            targets: None,
        };
        let means = evaluate(&policy.policy, &method, method.pairs.len())?;
        Ok(means.get("rewards/accuracies").unwrap_or_default())
    }

    fn examples(
        &self,
        first: &Samples,
        last: &Samples,
        before: &Measured,
        after: &Measured,
    ) -> Vec<Example> {
        let example = |i: usize| Example {
            prompt: self.held_out[i].clone(),
            before: first.texts[i].clone(),
            after: last.texts[i].clone(),
            rewards: [before.rewards[i], after.rewards[i]],
        };
        (0..self.held_out.len().min(8)).map(example).collect()
    }
}

fn open<T: Item>(path: &Path, tokenizer: &Arc<Tokenizer>, unpair: bool) -> Result<Dataset<T>> {
    let limits = Limits { max_length: Some(MAX_LENGTH), ..Limits::default() };
    Dataset::open(path, tokenizer.clone(), &Options { limits, unpair, ..Options::default() })
}
