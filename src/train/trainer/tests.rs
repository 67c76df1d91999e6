//! When a run on a GPU waits for it: once for each logged line, and to save.

use std::sync::Arc;

use half::bf16;
use serde_json::json;

use super::*;
use crate::data::tokenizer::{Tokenizer, train_bpe};
use crate::data::{Dataset, Options};
use crate::device::Cuda;
use crate::device::testing::{captured, gpu, is_gpu};
use crate::losses::{BradleyTerry, Kto, LossOptions, PairObjective};
use crate::models::{SpecialTokens, init_weights};
use crate::nn::{Decoder, DecoderConfig, LmHead, RopeConfig, RopeScaling};
use crate::train::methods::{Paired, Reward, Sft, Unpaired};
use crate::train::{DeviceScores, Every, Schedule, Warmup};

/// What a run had done when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Start,
    Step(usize),
    Line,
    End,
}

/// A moment of a run: how often it had waited, and how many copies to the host it had queued that a
/// GPU may wait for.
type Moment = (At, usize, usize);

/// Takes the moments of a run.
struct Watch {
    cuda: Cuda,
    moments: Vec<Moment>,
}

impl Watch {
    fn look(&mut self, at: At) {
        self.moments.push((at, self.cuda.waits(), self.cuda.downloads()));
    }
}

impl Observer for Watch {
    fn start(&mut self, _: usize, _: usize) {
        self.look(At::Start);
    }
    fn step(&mut self, step: usize, _: &Means) {
        self.look(At::Step(step));
    }
    fn record(&mut self, _: &Record) {
        self.look(At::Line);
    }
}

/// A folder with a model's configuration and pairs.
struct Fixture {
    dir: tempfile::TempDir,
    folder: ModelFolder,
    tokenizer: Arc<Tokenizer>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows: String = (0..10)
            .map(|i| {
                let (prompt, chosen) = (format!("Tell me {i}."), " so".repeat(1 + i % 3));
                format!("{}\n", json!({"prompt": prompt, "chosen": chosen, "rejected": " no"}))
            })
            .collect();
        std::fs::write(dir.path().join("rows.jsonl"), &rows).unwrap();
        let special = SpecialTokens { bos: Some(1), eos: Some(2), pad: None };
        let config = DecoderConfig {
            vocab: 270,
            hidden: 8,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ff: 12,
            rms_eps: 1e-5,
            rope: RopeConfig { theta: 1e4, scaling: RopeScaling::None },
            tied: true,
            qkv_bias: false,
            qk_norm: false,
            max_positions: 128,
            padding: None,
        };
        let model = dir.path().join("model");
        let folder = ModelFolder::create(&model, &config, &special, DType::F32).unwrap();
        let tokenizer = train_bpe(rows.lines().map(String::from), 270).unwrap();
        std::fs::write(model.join("tokenizer.json"), tokenizer).unwrap();
        let tokenizer = Arc::new(Tokenizer::load(&model).unwrap());
        Fixture { dir, folder, tokenizer }
    }

    fn rows<I: crate::data::Item>(&self, unpair: bool) -> Dataset<I> {
        let options = Options { unpair, ..Options::default() };
        Dataset::open(self.dir.path().join("rows.jsonl"), self.tokenizer.clone(), &options).unwrap()
    }

    /// What `method` trains.
    fn policy<T: Element<Stat = f32>>(
        &self,
        device: &Device,
        method: &dyn Method,
        scores: bool,
        checkpointing: bool,
    ) -> Policy<T> {
        let shape = self.folder.config.clone();
        let (decoder, table) = match scores {
            true => Decoder::scoring(shape),
            false => Decoder::new(shape),
        }
        .unwrap();
        let full = init_weights::<f32>(&table, 3, &Device::Cpu).unwrap();
        let weights = full.cast::<T>().unwrap().to_device(device).unwrap();
        let reference = method.needs_reference().then(|| weights.try_clone().unwrap());
        Policy {
            decoder,
            head: LmHead { chunk_bytes: 4096, ..LmHead::default() },
            weights,
            reference,
            checkpointing,
            device: device.clone(),
            noise: None,
        }
    }

    /// The moments of a run, counted from before it. Clipped, with decay, warm-up and a schedule, and
    /// two micro-batches a step.
    fn run<T: Element<Stat = f32>>(
        &self,
        method: &dyn Method,
        scores: bool,
        change: impl Fn(&mut TrainConfig),
    ) -> Vec<Moment> {
        let device = gpu().unwrap();
        let out = tempfile::tempdir().unwrap();
        let mut config = TrainConfig {
            output_dir: out.path().into(),
            batch_size: 2,
            accumulation: 2,
            max_steps: Some(7),
            learning_rate: 1e-2,
            schedule: Schedule::COSINE,
            warmup: Warmup::Steps(2),
            weight_decay: 0.1,
            max_grad_norm: 0.1,
            ..TrainConfig::default()
        };
        change(&mut config);
        let policy = self.policy::<T>(&device, method, scores, config.gradient_checkpointing);
        let cuda = is_gpu(&device).unwrap().clone();
        let (waits, downloads) = (cuda.waits(), cuda.downloads());
        let mut watch = Watch { cuda, moments: Vec::new() };
        let folder = &self.folder;
        let observer = &mut watch;
        Trainer { config: &config, folder, policy, method, evaluation: None, observer }
            .train()
            .unwrap();
        watch.look(At::End);
        let from_here = |(at, w, d): Moment| (at, w - waits, d - downloads);
        watch.moments.into_iter().map(from_here).collect()
    }

    /// Every method, with what is particular about its run.
    fn each(&self, mut run: impl FnMut(&str, &dyn Method, bool, &dyn Fn(&mut TrainConfig))) {
        let dpo = Paired {
            pairs: self.rows(false),
            objective: PairObjective::parse("sigmoid", &LossOptions::default()).unwrap(),
            share_prompts: true,
            targets: None,
        };
        run("dpo", &dpo, false, &|_| {});
        run("dpo, precomputed", &dpo, false, &|config| config.precompute_ref_log_probs = true);
        run("dpo, following", &dpo, false, &|config| {
            config.sync_ref_model = Some(SyncRefModel { steps: 2, alpha: 0.5 });
        });
        run("sft", &Sft { examples: self.rows(false) }, false, &|config| {
            config.gradient_checkpointing = true;
        });
        run("kto", &Unpaired { examples: self.rows(true), loss: Kto::default() }, false, &|_| {});
        let loss = BradleyTerry::default();
        run("reward", &Reward { preferences: self.rows(false), loss }, true, &|_| {});
    }
}

/// How often the end of a run waits: to find weights that are not finite, and to save them.
const AT_THE_END: usize = 2;

/// Asserts that a run of `steps` steps waited once for each of its `lines`, which needed no copy that
/// is waited for on its own, and at the end to save; and that it copied nothing to the host but then. Gives
/// how often it had waited before its first step.
fn assert_waits(name: &str, moments: &[Moment], steps: usize, lines: usize) -> usize {
    let (_, before, _) = moments[0];
    // A reference that follows is looked at too.
    let at_the_end = AT_THE_END + usize::from(name.contains("following"));
    for pair in moments.windows(2) {
        let [(_, waits, downloads), (at, waits_after, downloads_after)] = [pair[0], pair[1]];
        let (waited, copied) = (waits_after - waits, downloads_after - downloads);
        match at {
            At::Start => panic!("{name}: a second start"),
            At::Step(_) => assert_eq!((waited, copied), (0, 0), "{name}: {at:?} of {moments:?}"),
            At::Line => assert_eq!((waited, copied), (1, 0), "{name}: {moments:?}"),
            At::End => assert!(waited == at_the_end && copied > 0, "{name}: {moments:?}"),
        }
    }
    let count = |is: fn(&At) -> bool| moments.iter().filter(|(at, ..)| is(at)).count();
    assert_eq!(count(|at| matches!(at, At::Step(_))), steps, "{name}");
    assert_eq!(count(|at| *at == At::Line), lines, "{name}");
    let (_, waits, _) = moments[moments.len() - 1];
    assert_eq!(waits, before + lines + at_the_end, "{name}");
    before
}

fn no_step_waits<T: Element<Stat = f32>>() {
    let fixture = Fixture::new();
    fixture.each(|name, method, scores, change| {
        for (every, lines) in [(1, 7), (3, 3)] {
            let moments = fixture.run::<T>(method, scores, |config| {
                config.logging_steps = Every::Steps(every);
                change(config);
            });
            let before = assert_waits(name, &moments, 7, lines);
            // A reference that is scored beforehand is scored to the end.
            assert_eq!(before > 0, name.contains("precomputed"), "{name}: {moments:?}");
        }
    });
}

#[test]
fn no_step_waits_in_float32() {
    no_step_waits::<f32>();
}

#[test]
fn no_step_waits_in_bf16() {
    no_step_waits::<bf16>();
}

/// Steps that nothing is logged of are looked at fifty at a time, so that what they keep is bounded.
#[test]
fn fifty_steps_wait_once() {
    let fixture = Fixture::new();
    let sft = Sft { examples: fixture.rows(false) };
    let moments = fixture.run::<f32>(&sft, false, |config| {
        (config.max_steps, config.logging_steps) = (Some(51), Every::Steps(100));
        (config.batch_size, config.accumulation) = (1, 1);
    });
    let waits: Vec<usize> = moments.iter().map(|&(_, waits, _)| waits).collect();
    let mut want = vec![0; 50];
    want.extend([1, 1, 2, 2 + AT_THE_END]);
    assert_eq!(waits, want, "at the start, after 51 steps, a line, and the end");
}

/// A micro-batch of every method could be captured into a CUDA graph: neither the launches of its
/// kernels nor what lies between them waits, or copies to memory that is not page-locked.
#[test]
fn a_micro_batch_can_be_captured() {
    let fixture = Fixture::new();
    let device = gpu().unwrap();
    fixture.each(|name, method, scores, _| {
        let policy = fixture.policy::<bf16>(&device, method, scores, true);
        let micro = method.micro_batch(&[0, 1, 2]).unwrap();
        let totals = StepTotals::of(std::slice::from_ref(&micro));
        let mut grads = Weights::<f32>::zeros(&device, policy.weights.table()).unwrap();
        let (result, launched) = captured(|| {
            policy.queue_forward_backward(method, &micro, &totals, None, &mut grads).unwrap()
        });
        let launched = launched.unwrap_or_else(|fault| panic!("{name}: {fault}"));
        for kernel in ["attention", "rmsnorm", "swiglu", "rope"] {
            let count = launched.iter().filter(|launched| launched.contains(kernel)).count();
            assert!(count >= 2, "{name}: {count} launches of {kernel} in {launched:?}");
        }
        // What the host reads of it is a wait, which no capture survives.
        let (_, read) = captured(|| DeviceScores::read(&[&result], &[]).unwrap());
        assert_eq!(read.unwrap_err(), "a wait for the device", "{name}");
    });
}
