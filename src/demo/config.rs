use crate::losses::{Kto, LossOptions, PairObjective};
use crate::nn::{DecoderConfig, RopeConfig, RopeScaling};
use crate::{Error, Result};

/// What the demo does, and how large.
#[derive(Clone, Debug)]
pub struct DemoConfig {
    /// How the policy is aligned.
    pub method: DemoMethod,
    /// Peak learning rate of the alignment.
    pub learning_rate: f64,
    /// Seeds everything: the same seed writes the same files, but for times.
    pub seed: u64,
    /// Sentences of the corpus.
    pub sentences: usize,
    /// Tokens of the vocabulary, at most.
    pub vocab: usize,
    /// Width of the model; a multiple of 16, the width of a head.
    pub hidden: usize,
    /// Blocks of the model.
    pub layers: usize,
    /// Passes over the corpus.
    pub sft_epochs: usize,
    /// Peak learning rate of the supervised fine-tuning.
    pub sft_learning_rate: f64,
    /// Prompts that no training sees; one fresh sample of each is scored.
    pub held_out: usize,
    /// Preference pairs to train on, two samples each.
    pub pairs: usize,
    /// Passes over the pairs.
    pub epochs: usize,
    /// Sentences, or pairs, of a step.
    pub batch_size: usize,
    /// Checkpoints of the alignment, at which fresh samples are scored too.
    pub checkpoints: usize,
}

/// A way to align, with its strength.
#[derive(Clone, Debug)]
pub enum DemoMethod {
    /// A loss over pairs.
    Paired {
        /// Its name on the command line, which may be a weighted list.
        name: String,
        /// The settings of `collimate dpo`.
        options: Box<LossOptions>,
        /// What they make.
        objective: PairObjective,
    },
    /// KTO on the pairs' answers, each judged on its own.
    Kto(Kto),
}

/// Settings under which a method raises the reward of this world: a learning rate, beta, and what
/// SimPO and SLiC-HF have for a margin.
struct Tuned {
    learning_rate: f64,
    beta: f64,
    margin: Option<f64>,
}

/// The settings of a method, or of the first of a list.
fn tuned(name: &str) -> Tuned {
    let first = name.split([',', ':']).next().unwrap_or_default();
    let (learning_rate, beta, margin) = match first {
        // Where both answers may sink, or a margin is far, a weak hold is none.
        "apo_down" => (3e-4, 1.0, None),
        "aot_unpaired" => (5e-4, 0.5, None),
        "exo_pair" | "hinge" => (1e-3, 0.5, None),
        "ipo" => (1e-3, 0.5, None),
        "ipo_sum" => (1e-3, 0.05, None),
        "simpo" => (1e-3, 2.0, Some(1.0)),
        "orpo" => (1e-3, 1.0, None),
        "slic_hf" => (1e-3, 0.1, Some(1.0)),
        _ => (1e-3, 0.1, None),
    };
    Tuned { learning_rate, beta, margin }
}

impl DemoMethod {
    /// A method by its name on the command line: `kto`, or any loss of `collimate dpo`. Without a
    /// beta it has the one that suits this world.
    ///
    /// # Errors
    /// [`Error::Setting`] for a name that nobody knows and a beta out of range.
    pub fn parse(name: &str, beta: Option<f64>) -> Result<Self> {
        let tuned = tuned(name);
        let beta = beta.unwrap_or(tuned.beta);
        if name == "kto" {
            let kto = Kto { beta, ..Kto::default() };
            kto.validate()?;
            return Ok(DemoMethod::Kto(kto));
        }
        let default = LossOptions::default();
        let options = LossOptions {
            beta,
            simpo_gamma: tuned.margin.unwrap_or(default.simpo_gamma),
            slic_delta: tuned.margin.unwrap_or(default.slic_delta),
            ..default
        };
        let objective = PairObjective::parse(name, &options)?;
        Ok(DemoMethod::Paired { name: name.into(), options: options.into(), objective })
    }

    /// Its name on the command line.
    pub fn name(&self) -> &str {
        match self {
            DemoMethod::Paired { name, .. } => name,
            DemoMethod::Kto(_) => "kto",
        }
    }

    /// The command that trains with it, which its run's folder is named after.
    pub fn command(&self) -> &'static str {
        match self {
            DemoMethod::Paired { .. } => "dpo",
            DemoMethod::Kto(_) => "kto",
        }
    }

    /// Strength of the hold on the reference.
    pub fn beta(&self) -> f64 {
        match self {
            DemoMethod::Paired { options, .. } => options.beta,
            DemoMethod::Kto(kto) => kto.beta,
        }
    }

    /// A peak learning rate that suits it in this world.
    pub fn learning_rate(&self) -> f64 {
        tuned(self.name()).learning_rate
    }
}

impl DemoConfig {
    /// The demo at its full size: half a minute on two cores.
    pub fn new(method: DemoMethod) -> Self {
        DemoConfig {
            learning_rate: method.learning_rate(),
            method,
            seed: 42,
            sentences: 8192,
            vocab: 512,
            hidden: 64,
            layers: 2,
            sft_epochs: 2,
            sft_learning_rate: 4e-3,
            held_out: 512,
            pairs: 2048,
            epochs: 2,
            batch_size: 32,
            checkpoints: 4,
        }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        for (name, value, most) in [
            ("sentences", self.sentences, 1 << 20),
            ("layers", self.layers, 64),
            ("sft_epochs", self.sft_epochs, 1 << 20),
            ("held_out", self.held_out, 2000),
            ("pairs", self.pairs, 1 << 20),
            ("epochs", self.epochs, 1 << 20),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Error::setting(name, format!("1 to {most}"), value));
            }
        }
        if self.checkpoints > 1 << 20 {
            return Err(Error::setting("checkpoints", "0 to 1048576", self.checkpoints));
        }
        if self.held_out < 2 || self.batch_size < 2 {
            let got = format!("{} and {}", self.held_out, self.batch_size);
            return Err(Error::setting("held_out and batch_size", "at least 2", got));
        }
        if self.hidden == 0 || !self.hidden.is_multiple_of(16) || self.hidden > 4096 {
            return Err(Error::setting("hidden", "a multiple of 16", self.hidden));
        }
        Ok(())
    }

    /// The model's shape, for a vocabulary of `vocab`.
    pub(super) fn decoder(&self, vocab: usize) -> DecoderConfig {
        DecoderConfig {
            vocab,
            hidden: self.hidden,
            layers: self.layers,
            heads: self.hidden / 16,
            kv_heads: self.hidden / 16,
            head_dim: 16,
            ff: self.hidden * 8 / 3 / 16 * 16 + 16,
            rms_eps: 1e-5,
            rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
            tied: true,
            qkv_bias: false,
            qk_norm: false,
            max_positions: super::MAX_LENGTH,
            padding: None,
        }
    }
}
