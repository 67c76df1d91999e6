use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::train::{FILES, Means, TrainConfig};
use crate::{Error, Result};

/// Everything of a run beside weights and moments. No times: a resumed run and an unbroken one
/// write the same bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: usize,
    /// Tokens seen, by TRL's count.
    pub num_tokens: u64,
    /// Means since the last logged line.
    pub means: Means,
    /// Gradient norm of the last step, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Steps skipped because something was not finite.
    pub skipped: u64,
    /// Whether a step had a gradient that is not 0.
    #[serde(default)]
    pub learnt: bool,
    /// Whether it was told that the chosen answers become unlikely.
    pub warned: bool,
    /// Steps of the optimisers.
    pub updates: u64,
    /// Completions sampled so far; 0 in a run that samples none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub episodes: u64,
    /// The weight of the KL penalty, where it adapts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_coef: Option<f64>,
    /// The best evaluation, where the best checkpoint becomes the model.
    #[serde(default, skip_serializing_if = "BestSoFar::is_none")]
    pub best: BestSoFar,
    /// Lines of metrics.jsonl that belong to the steps done.
    pub metrics_lines: u64,
    /// What decides which examples a step sees.
    pub order: Order,
    /// What else decides the bytes of the run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub decides: BTreeMap<String, String>,
}

/// The best evaluation so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BestSoFar {
    /// Its metric.
    pub value: Option<f64>,
    /// The step behind which it came.
    pub step: usize,
    /// The checkpoint of the best evaluation that has one.
    pub checkpoint: Option<usize>,
}

impl BestSoFar {
    fn is_none(&self) -> bool {
        self.value.is_none()
    }

    /// A checkpoint of `step` is about to be made in `output_dir`.
    pub fn saved(&mut self, step: usize, output_dir: &Path) {
        let exists = output_dir.join(format!("checkpoint-{}", self.step)).exists();
        if self.value.is_some() && (step == self.step || exists) {
            self.checkpoint = Some(self.step);
        }
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What decides which examples a step sees: a resumed run must agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    examples: usize,
    per_device_train_batch_size: usize,
    gradient_accumulation_steps: usize,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    num_generations: usize,
    seed: u64,
    shuffle: bool,
}

fn one() -> usize {
    1
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

impl Order {
    fn of(config: &TrainConfig, examples: usize, num_generations: usize) -> Self {
        Order {
            examples,
            num_generations,
            per_device_train_batch_size: config.batch_size,
            gradient_accumulation_steps: config.accumulation,
            seed: config.seed,
            shuffle: config.shuffle,
        }
    }

    /// An error that names what differs from the order of the run at `path`.
    pub(super) fn check(&self, path: &Path, now: &Order) -> Result<()> {
        let fields = |order: &Order| {
            [
                ("examples", order.examples.to_string()),
                ("per_device_train_batch_size", order.per_device_train_batch_size.to_string()),
                ("gradient_accumulation_steps", order.gradient_accumulation_steps.to_string()),
                ("num_generations", order.num_generations.to_string()),
                ("seed", order.seed.to_string()),
                ("shuffle", order.shuffle.to_string()),
            ]
        };
        let differ: Vec<String> = fields(self)
            .into_iter()
            .zip(fields(now))
            .filter(|(then, now)| then != now)
            .map(|((name, then), (_, now))| format!("{name}: expected {then}, got {now}"))
            .collect();
        if differ.is_empty() {
            return Ok(());
        }
        let message = format!("another run's checkpoint, by its batches: {}", differ.join("; "));
        Err(Error::file(path, message))
    }
}

impl State {
    /// A run before its first step, over `examples` of which each is sampled `num_generations`
    /// times.
    pub fn new(config: &TrainConfig, examples: usize, num_generations: usize) -> Self {
        State {
            step: 0,
            num_tokens: 0,
            means: Means::default(),
            grad_norm: 0.0,
            learning_rate: 0.0,
            skipped: 0,
            learnt: false,
            warned: false,
            updates: 0,
            episodes: 0,
            kl_coef: None,
            best: BestSoFar::default(),
            metrics_lines: 0,
            order: Order::of(config, examples, num_generations),
            decides: config.decides.clone(),
        }
    }

    /// An error that names what of the run at `path` differs from the one `now`, whose order is another or
    /// which is decided by something else.
    pub(super) fn check(&self, path: &Path, now: &State) -> Result<()> {
        self.order.check(path, &now.order)?;
        if self.decides.is_empty() || now.decides.is_empty() {
            return Ok(());
        }
        let names: BTreeSet<&String> = self.decides.keys().chain(now.decides.keys()).collect();
        let value = |of: &'_ State, name: &String| {
            of.decides.get(name).cloned().unwrap_or_else(|| "nothing".into())
        };
        let differ: Vec<String> = names
            .into_iter()
            .map(|name| (name, value(self, name), value(now, name)))
            .filter(|(_, then, now)| then != now)
            .map(|(name, then, now)| match then.starts_with(FILES) && now.starts_with(FILES) {
                true => format!("{name}: expected the contents that it had, got others"),
                false => format!("{name}: expected {then}, got {now}"),
            })
            .collect();
        if differ.is_empty() {
            return Ok(());
        }
        let message = format!("another run's checkpoint, by its settings: {}", differ.join("; "));
        Err(Error::file(path, message))
    }
}
