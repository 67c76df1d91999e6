//! Flags of low-rank adapters: TRL's names, and PEFT's for what TRL leaves out.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::args::truth;
use super::train::{Start, split};
use crate::models::{Adapted, Allow, Bias, Head, LoraConfig, ModelFolder, Targets, read_adapter};
use crate::nn::{Decoder, Weights};
use crate::ops::elementwise;
use crate::{Device, Element, Error, Result};

/// Defaults, which are TRL's.
pub const RANK: usize = 16;
pub const ALPHA: f64 = 32.0;
pub const DROPOUT: f64 = 0.05;

/// Whether a command leaves nothing out unless it is told to, as in TRL.
pub fn disables_dropout(command: &str) -> bool {
    !["sft", "grpo", "rloo"].contains(&command)
}

/// Low-rank adapters on a frozen model.
#[derive(Args, Debug)]
pub struct LoraArgs {
    /// Train low-rank adapters (LoRA) on the frozen model, saved as PEFT saves them
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    pub use_peft: bool,
    /// Go on from the adapters of this folder, with their own settings; the reference keeps them as they are
    /// [default: none]
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The adapters of the reference, of the same shapes: a folder, or none for the model alone [default:
    /// those that the run starts from]
    #[arg(long, value_name = "DIR|none")]
    ref_adapter: Option<String>,
    /// Rank of the adapters [default: 16]
    #[arg(long, value_name = "N")]
    lora_r: Option<usize>,
    /// Adapters are multiplied by this number over their rank [default: 32]
    #[arg(long, value_name = "X")]
    lora_alpha: Option<f64>,
    /// Share of an adapter's inputs that each training step leaves out [default: 0.05]
    #[arg(long, value_name = "X")]
    lora_dropout: Option<f64>,
    /// Modules that get adapters: names or ends of names, all-linear, or a regular expression [default:
    /// q_proj,v_proj]
    #[arg(long, value_name = "NAME,...")]
    lora_target_modules: Option<String>,
    /// Modules that get none, though they are targets [default: none]
    #[arg(long, value_name = "NAME,...")]
    lora_exclude_modules: Option<String>,
    /// Layers whose modules get adapters [default: all]
    #[arg(long, value_name = "N,...")]
    lora_layers: Option<String>,
    /// Ranks of some modules: {"q_proj": 8} [default: none]
    #[arg(long, value_name = "JSON")]
    lora_rank_pattern: Option<String>,
    /// Alphas of some modules: {"q_proj": 16} [default: none]
    #[arg(long, value_name = "JSON")]
    lora_alpha_pattern: Option<String>,
    /// Modules that are trained in full beside the adapters, such as lm_head [default: none]
    #[arg(long, value_name = "NAME,...")]
    lora_modules_to_save: Option<String>,
    /// Biases that are trained [default: none]
    #[arg(long)]
    lora_bias: Option<BiasName>,
    /// Multiply by alpha over the root of the rank (rsLoRA) [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    use_rslora: Option<bool>,
    /// Leave nothing out, whatever the adapters' dropout [default: false for sft, grpo and rloo, as in TRL,
    /// else true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    disable_dropout: Option<bool>,
    /// At the end, write the whole model too, adapters merged, to the folder merged of the output directory
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    pub merge: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum BiasName {
    None,
    All,
    LoraOnly,
}

/// Adapters to train.
pub struct Adapters {
    /// What they are.
    pub config: LoraConfig,
    /// The share of their inputs that training leaves out.
    pub dropout: f64,
    /// Where they start; none: new ones.
    pub from: Option<PathBuf>,
    /// Where those of the reference are read; none: they are those that the run starts from.
    pub reference: Option<Reference>,
}

/// The adapters of a reference.
pub enum Reference {
    /// None: the model alone.
    Base,
    /// Those of a folder.
    Folder(PathBuf),
}

impl LoraArgs {
    /// The adapters that a command is asked for.
    ///
    /// # Errors
    /// [`Error::Setting`] for a setting out of its range or that needs adapters, [`Error::File`] for a
    /// folder of adapters that is none.
    pub fn adapters(&self, command: &str) -> Result<Option<Adapters>> {
        if !self.use_peft && self.adapter.is_none() {
            if self.merge {
                let expected = "--use-peft or --adapter beside it: there are no adapters to merge";
                return Err(Error::setting("merge", expected, true));
            }
            if let Some(folder) = &self.ref_adapter {
                let expected = "--use-peft or --adapter beside it";
                return Err(Error::setting("ref_adapter", expected, folder));
            }
            return Ok(None);
        }
        let config = match &self.adapter {
            Some(folder) => LoraConfig::read(folder)?.0,
            None => self.config()?,
        };
        let reference = self.ref_adapter.as_deref().map(|folder| match folder {
            "none" => Reference::Base,
            folder => Reference::Folder(folder.into()),
        });
        let disabled = self.disable_dropout.unwrap_or(disables_dropout(command));
        let dropout = if disabled { 0.0 } else { config.dropout };
        Ok(Some(Adapters { config, dropout, from: self.adapter.clone(), reference }))
    }

    /// A sentence on settings of adapters that were given and have no effect.
    pub fn idle(&self) -> Option<String> {
        let given = [
            ("lora_r", self.lora_r.is_some()),
            ("lora_alpha", self.lora_alpha.is_some()),
            ("lora_dropout", self.lora_dropout.is_some()),
            ("lora_target_modules", self.lora_target_modules.is_some()),
            ("lora_exclude_modules", self.lora_exclude_modules.is_some()),
            ("lora_layers", self.lora_layers.is_some()),
            ("lora_rank_pattern", self.lora_rank_pattern.is_some()),
            ("lora_alpha_pattern", self.lora_alpha_pattern.is_some()),
            ("lora_modules_to_save", self.lora_modules_to_save.is_some()),
            ("lora_bias", self.lora_bias.is_some()),
            ("use_rslora", self.use_rslora == Some(true)),
        ];
        let given: Vec<&str> =
            given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        let why = match (&self.adapter, self.use_peft) {
            (Some(_), _) => "the adapters that the run goes on from have settings of their own",
            (None, true) => return None,
            (None, false) => "no effect without use_peft",
        };
        (!given.is_empty()).then(|| format!("{why}: {}", given.join(", ")))
    }

    fn config(&self) -> Result<LoraConfig> {
        let (rank, alpha) = (self.lora_r.unwrap_or(RANK), self.lora_alpha.unwrap_or(ALPHA));
        let dropout = self.lora_dropout.unwrap_or(DROPOUT);
        if rank == 0 || rank > 1 << 16 {
            return Err(Error::setting("lora_r", "1 to 65536", rank));
        }
        if !(alpha.is_finite() && alpha > 0.0) {
            return Err(Error::setting("lora_alpha", "a positive number", alpha));
        }
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::setting("lora_dropout", "at least 0 and below 1", dropout));
        }
        let layers =
            self.lora_layers.as_deref().map(|text| {
                names(text).iter().map(|n| n.parse()).collect::<Result<Vec<usize>, _>>().map_err(
                    |_| Error::setting("lora_layers", "numbers of layers, with commas", text),
                )
            });
        let whole =
            |x: &f64| (x.fract() == 0.0 && *x >= 1.0 && *x <= 65536.0).then_some(*x as usize);
        let ranks = pattern("lora_rank_pattern", self.lora_rank_pattern.as_deref())?;
        let ranks = ranks.into_iter().map(|(name, rank)| {
            let expected = "ranks from 1 to 65536";
            let bad = || Error::setting("lora_rank_pattern", expected, rank);
            Ok((name, whole(&rank).ok_or_else(bad)?))
        });
        Ok(LoraConfig {
            rank,
            alpha,
            dropout,
            targets: self.lora_target_modules.as_deref().map_or(Targets::Usual, targets),
            exclude: self.lora_exclude_modules.as_deref().map(names).unwrap_or_default(),
            layers: layers.transpose()?,
            rank_pattern: ranks.collect::<Result<_>>()?,
            alpha_pattern: pattern("lora_alpha_pattern", self.lora_alpha_pattern.as_deref())?,
            rslora: self.use_rslora.unwrap_or(false),
            bias: match self.lora_bias {
                None | Some(BiasName::None) => Bias::None,
                Some(BiasName::All) => Bias::All,
                Some(BiasName::LoraOnly) => Bias::LoraOnly,
            },
            modules_to_save: self.lora_modules_to_save.as_deref().map(names).unwrap_or_default(),
        })
    }
}

impl Adapters {
    /// A model with these adapters, which start as those of the folder `from` or new; without a reference.
    ///
    /// # Errors
    /// As [`ModelFolder::load_adapted`].
    pub fn start<T: Element>(
        &self,
        folder: &ModelFolder,
        structure: Decoder,
        from: Option<&Path>,
        seed: u64,
        device: &Device,
    ) -> Result<Start<T>> {
        let config = LoraConfig { dropout: self.dropout, ..self.config.clone() };
        let Adapted { decoder, frozen, trained } =
            folder.load_adapted::<T>(structure, &config, from, seed, device)?;
        let (weights, master) = split::<T>(trained)?;
        Ok(Start { decoder, weights: weights.with_frozen(frozen)?, master, reference: None })
    }

    /// Gives a reference the adapters that it is to have, where they are not those that the run starts from.
    ///
    /// # Errors
    /// [`Error::File`] for adapters of other shapes.
    pub fn of_reference<T: Element>(
        &self,
        folder: &ModelFolder,
        reference: &mut Weights<T>,
    ) -> Result<()> {
        let Some(other) = &self.reference else { return Ok(()) };
        let mut own = Weights::<f32>::zeros(&Device::Cpu, reference.table())?;
        match other {
            Reference::Folder(other) => read_adapter(other, &mut own)?,
            // An adapter of zeros adds nothing; what is trained in full is the model's.
            Reference::Base => {
                let allow = Allow { missing: &|_| true, extra: &|_| true };
                own = folder.load_trained(reference.table(), &Device::Cpu, allow)?;
            }
        }
        let own = own.to_device(&reference.arena().device())?;
        elementwise::cast(own.arena().view(), reference.arena_mut().view_mut())
    }

    /// Checks that adapters of a folder are of such a model.
    ///
    /// # Errors
    /// [`Error::File`] where they are of one with another head.
    pub fn check_head(&self, head: Head) -> Result<()> {
        let Some(folder) = &self.from else { return Ok(()) };
        let (_, _, own) = LoraConfig::read(folder)?;
        if own == head {
            return Ok(());
        }
        let name = |head| match head {
            Head::Language => "a language model",
            Head::Score => "a reward model",
        };
        let message = format!("expected adapters of {}, got those of {}", name(head), name(own));
        Err(Error::file(folder, message))
    }
}

fn names(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_string).collect()
}

/// Names, unless it has what only a regular expression has.
fn targets(text: &str) -> Targets {
    match text {
        _ if text.eq_ignore_ascii_case("all-linear") => Targets::AllLinear,
        _ if text.contains(|c| "*+?()[]|^$\\{}".contains(c)) => Targets::Pattern(text.into()),
        _ => Targets::Names(names(text)),
    }
}

fn pattern(setting: &'static str, text: Option<&str>) -> Result<Vec<(String, f64)>> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let expected = "JSON of names and positive numbers, such as {\"q_proj\": 8}";
    let map: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|_| Error::setting(setting, expected, text))?;
    let number = |value: &serde_json::Value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
    let each = map.iter().map(|(name, value)| Some((name.clone(), number(value)?)));
    each.collect::<Option<_>>().ok_or_else(|| Error::setting(setting, expected, text))
}
