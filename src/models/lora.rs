//! adapter_config.json, as PEFT writes it: what of a model low-rank adapters are put on.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;

use fancy_regex::Regex;
use serde_json::{Map, Value, json};

use super::fields::{Fields, describe, parse_object, read_text};
use super::folder::Head;
use super::load::{EMBEDDING, HEAD};
use super::one_line;
use crate::nn::{Lora, LoraModule, ParamTable, SCORE};
use crate::{Error, Result};

/// The file that describes adapters in their folder.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
const MAX_CONFIG: u64 = 1 << 20;

/// What adapters there are to be: LoRA as PEFT's `LoraConfig` describes it (Hu et al., arXiv 2106.09685).
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// The rank.
    pub rank: usize,
    /// An adapter is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// The share of an adapter's inputs that training leaves out.
    pub dropout: f64,
    /// Which modules are adapted.
    pub targets: Targets,
    /// Modules that are not, though they are targets, by their names or the ends of them.
    pub exclude: Vec<String>,
    /// The layers whose targets are adapted; none: all.
    pub layers: Option<Vec<usize>>,
    /// Ranks of modules by patterns of their names.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of modules by patterns of their names.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Multiply by `alpha / sqrt(rank)` (Kalajdzievski, arXiv 2312.03732).
    pub rslora: bool,
    /// Which biases are trained.
    pub bias: Bias,
    /// Modules that are trained in full, such as `lm_head`, by their names or the ends of them.
    pub modules_to_save: Vec<String>,
}

/// The modules that adapters are put on.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Queries and values: what PEFT takes where nothing is said.
    Usual,
    /// Every linear module of the blocks.
    AllLinear,
    /// Those of these names, or whose names end so: `q_proj`.
    Names(Vec<String>),
    /// Those whose whole name a regular expression matches.
    Pattern(String),
}

/// Which biases are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// None.
    None,
    /// All.
    All,
    /// Those of adapted modules.
    LoraOnly,
}

impl Default for LoraConfig {
    /// TRL's usual settings, without dropout.
    fn default() -> Self {
        LoraConfig {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Targets::Usual,
            exclude: Vec::new(),
            layers: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            rslora: false,
            bias: Bias::None,
            modules_to_save: Vec::new(),
        }
    }
}

const USUAL: [&str; 2] = ["q_proj", "v_proj"];

/// Fields that change what an adapter computes, and that only these values are read of.
const ONLY: [(&str, &[&str]); 10] = [
    ("fan_in_fan_out", &["false"]),
    ("use_dora", &["false"]),
    ("use_qalora", &["false"]),
    ("lora_bias", &["false"]),
    ("layer_replication", &["[]", "{}"]),
    ("target_parameters", &["[]"]),
    ("trainable_token_indices", &["[]", "{}"]),
    ("alora_invocation_tokens", &["[]"]),
    ("layers_pattern", &["[]", "\"layers\"", "[\"layers\"]"]),
    ("init_lora_weights", &["true", "false", "\"gaussian\""]),
];

impl LoraConfig {
    /// Reads the adapter_config.json of a folder, and the base model that it names.
    ///
    /// # Errors
    /// [`Error::File`] that names the field, and [`Error::Unsupported`] for an adapter of another kind.
    pub fn read(folder: &Path) -> Result<(Self, Option<String>, Head)> {
        let path = folder.join(ADAPTER_CONFIG);
        let map = parse_object(&path, &read_text(&path, MAX_CONFIG)?)?;
        let fields = Fields { path: &path, map: &map };
        match fields.text("peft_type")? {
            Some("LORA") => {}
            Some(other) => {
                let other = one_line(other);
                return Err(fields.unsupported(format!("peft_type {other}; supported is LORA")));
            }
            None => return Err(fields.missing("peft_type")),
        }
        for (name, accepted) in ONLY {
            if let Some(value) = fields.get(name)
                && !accepted.contains(&&*value.to_string())
            {
                return Err(fields.unsupported(format!("{name} {}", describe(value))));
            }
        }
        let targets = match fields.get("target_modules") {
            None => Targets::Usual,
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
                Targets::AllLinear
            }
            Some(Value::String(text)) => Targets::Pattern(text.clone()),
            Some(_) => Targets::Names(names(&fields, "target_modules")?),
        };
        let bias = match fields.text("bias")? {
            None | Some("none") => Bias::None,
            Some("all") => Bias::All,
            Some("lora_only") => Bias::LoraOnly,
            Some(other) => {
                return Err(fields.wrong("bias", "none, all or lora_only", one_line(other)));
            }
        };
        let layers = match fields.get("layers_to_transform") {
            None => None,
            Some(value) => Some(layers(value).ok_or_else(|| {
                fields.wrong("layers_to_transform", "numbers of layers", describe(value))
            })?),
        };
        let rank = fields.required_size("r")?;
        let config = LoraConfig {
            rank,
            alpha: fields.positive("lora_alpha")?.unwrap_or(8.0),
            dropout: match fields.get("lora_dropout") {
                None => 0.0,
                Some(value) => {
                    value.as_f64().filter(|p| (0.0..1.0).contains(p)).ok_or_else(|| {
                        fields.wrong("lora_dropout", "at least 0 and below 1", describe(value))
                    })?
                }
            },
            targets,
            exclude: names(&fields, "exclude_modules")?,
            layers,
            rank_pattern: pattern(&fields, "rank_pattern", |value| {
                value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)
            })?,
            alpha_pattern: pattern(&fields, "alpha_pattern", |value| {
                value.as_f64().filter(|x| x.is_finite() && *x > 0.0)
            })?,
            rslora: fields.flag("use_rslora")?.unwrap_or(false),
            bias,
            modules_to_save: names(&fields, "modules_to_save")?,
        };
        let head = match fields.text("task_type")? {
            Some("SEQ_CLS") => Head::Score,
            _ => Head::Language,
        };
        Ok((config, fields.text("base_model_name_or_path")?.map(str::to_string), head))
    }

    /// The same as PEFT writes it, of adapters of that base model.
    pub fn to_json(&self, base: &str, head: Head) -> Map<String, Value> {
        let targets = match &self.targets {
            Targets::Usual => json!(USUAL),
            Targets::AllLinear => json!("all-linear"),
            Targets::Names(names) => json!(names),
            Targets::Pattern(pattern) => json!(pattern),
        };
        let modules = (!self.modules_to_save.is_empty()).then_some(&self.modules_to_save);
        let exclude = (!self.exclude.is_empty()).then_some(&self.exclude);
        let whole = |x: f64| if x.fract() == 0.0 { json!(x as i64) } else { json!(x) };
        let ranks: Map<_, _> =
            self.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank))).collect();
        let alphas: Map<_, _> =
            self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), whole(*alpha))).collect();
        let json = json!({
            "alpha_pattern": alphas,
            "base_model_name_or_path": base,
            "bias": match self.bias {
                Bias::None => "none",
                Bias::All => "all",
                Bias::LoraOnly => "lora_only",
            },
            "exclude_modules": exclude,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_to_transform": self.layers,
            "lora_alpha": whole(self.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": modules,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": ranks,
            "target_modules": targets,
            "task_type": match head {
                Head::Language => "CAUSAL_LM",
                Head::Score => "SEQ_CLS",
            },
            "use_dora": false,
            "use_rslora": self.rslora,
        });
        match json {
            Value::Object(map) => map,
            _ => unreachable!("json! of braces is an object"),
        }
    }

    /// The modules of a model that this means.
    ///
    /// # Errors
    /// [`Error::Setting`] where it means none, or one that cannot be adapted.
    pub fn resolve(&self, table: &ParamTable) -> Result<Lora> {
        let mut lora = Lora { dropout: self.dropout, ..Lora::default() };
        let pattern = match &self.targets {
            Targets::Pattern(text) => Some(whole_name("lora_target_modules", text)?),
            _ => None,
        };
        for param in table.params().iter().filter(|p| !p.vector) {
            let Some(module) = param.name.strip_suffix(".weight") else { continue };
            let in_block = module.starts_with("model.layers.");
            let named = match &self.targets {
                Targets::Usual => USUAL.iter().any(|name| ends(module, name)),
                Targets::AllLinear => in_block,
                Targets::Names(names) => names.iter().any(|name| ends(module, name)),
                Targets::Pattern(_) => {
                    pattern.as_ref().is_some_and(|p| p.is_match(module).unwrap_or(false))
                }
            };
            let left_out = self.exclude.iter().any(|name| ends(module, name))
                || self.modules_to_save.iter().any(|name| module.ends_with(&**name));
            if !named || left_out || !self.in_layers(module) {
                continue;
            }
            if !in_block {
                let expected = "linear modules of the blocks: the embedding and the head are trained in \
                                full with lora_modules_to_save";
                return Err(Error::setting("lora_target_modules", expected, module));
            }
            let rank = match matching("rank_pattern", &self.rank_pattern, module)? {
                Some(rank) => rank,
                None => self.rank,
            };
            let alpha = match matching("alpha_pattern", &self.alpha_pattern, module)? {
                Some(alpha) => alpha,
                None => self.alpha,
            };
            let by = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
            lora.modules.insert(module.into(), LoraModule { rank, scale: alpha / by });
        }
        self.check_targets(table, &lora)?;
        self.add_trained(table, &mut lora)?;
        Ok(lora)
    }

    fn in_layers(&self, module: &str) -> bool {
        let (Some(layers), false) = (&self.layers, matches!(self.targets, Targets::Pattern(_)))
        else {
            return true;
        };
        let layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        layer.and_then(|layer| layer.parse().ok()).is_some_and(|layer| layers.contains(&layer))
    }

    /// Every name that was asked for must be one.
    fn check_targets(&self, table: &ParamTable, lora: &Lora) -> Result<()> {
        let modules = || table.params().iter().filter_map(|p| p.name.strip_suffix(".weight"));
        if let Targets::Names(names) = &self.targets
            && let Some(name) = names.iter().find(|name| !modules().any(|m| ends(m, name)))
        {
            let linear: BTreeSet<&str> = table
                .params()
                .iter()
                .filter(|p| !p.vector && p.name.starts_with("model.layers."))
                .filter_map(|p| p.name.strip_suffix(".weight")?.rsplit('.').next())
                .collect();
            let linear: Vec<_> = linear.into_iter().collect();
            let expected = format!("modules of the model ({}) or all-linear", linear.join(", "));
            return Err(Error::setting("lora_target_modules", expected, one_line(name)));
        }
        if lora.modules.is_empty() {
            let expected = "at least one module of the model";
            return Err(Error::setting("lora_target_modules", expected, "none that matches"));
        }
        Ok(())
    }

    /// Biases, and modules that are trained in full.
    fn add_trained(&self, table: &ParamTable, lora: &mut Lora) -> Result<()> {
        let biases = table.params().iter().filter(|p| p.name.ends_with(".bias"));
        for bias in biases {
            let module = bias.name.trim_end_matches(".bias");
            let trained = match self.bias {
                Bias::None => false,
                Bias::All => true,
                Bias::LoraOnly => lora.modules.contains_key(module),
            };
            if trained {
                lora.trained.insert(bias.name.clone());
            }
        }
        let tied = !table.params().iter().any(|p| p.name == HEAD || p.name == SCORE);
        for name in &self.modules_to_save {
            let of = |param: &str| {
                let module = param.strip_suffix(".weight").or_else(|| param.strip_suffix(".bias"));
                module.is_some_and(|module| module.ends_with(&**name))
            };
            if tied && (ends("lm_head", name) || of(EMBEDDING)) {
                let expected = "modules of their own: this model's head is its embedding \
                                (tie_word_embeddings), and one trained without the other would be \
                                another model";
                return Err(Error::setting("lora_modules_to_save", expected, one_line(name)));
            }
            let params: Vec<_> = table.params().iter().filter(|p| of(&p.name)).collect();
            if params.is_empty() {
                let expected = "modules of the model, such as lm_head or embed_tokens";
                return Err(Error::setting("lora_modules_to_save", expected, one_line(name)));
            }
            lora.trained.extend(params.into_iter().map(|p| p.name.clone()));
        }
        // A new score is nothing that could stay as it was.
        lora.trained
            .extend(table.params().iter().filter(|p| p.name == SCORE).map(|p| p.name.clone()));
        Ok(())
    }
}

/// Whether a module has that name, or one that ends so.
fn ends(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// A regular expression that a whole name must match.
fn whole_name(setting: &'static str, pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|e| {
        let got = format!("{}: {}", one_line(pattern), one_line(&e.to_string()));
        Error::setting(setting, "a regular expression", got)
    })
}

/// The value of the first pattern that is a name's, or the end of it behind a dot.
fn matching<V: Copy>(
    setting: &'static str,
    patterns: &[(String, V)],
    module: &str,
) -> Result<Option<V>> {
    for (key, value) in patterns {
        if whole_name(setting, &format!(r"(?:.*\.)?(?:{key})"))?.is_match(module).unwrap_or(false) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn layers(value: &Value) -> Option<Vec<usize>> {
    let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    match value {
        Value::Array(list) => list.iter().map(number).collect(),
        one => Some(vec![number(one)?]),
    }
}

/// A list of names; one text is a list of it.
fn names(fields: &Fields, name: &str) -> Result<Vec<String>> {
    let expected = "a list of names";
    match fields.get(name) {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| item.as_str().map(str::to_string))
            .collect::<Option<_>>()
            .ok_or_else(|| fields.wrong(name, expected, "a list of something else")),
        Some(other) => Err(fields.wrong(name, expected, describe(other))),
    }
}

fn pattern<V>(
    fields: &Fields,
    name: &str,
    convert: impl Fn(&Value) -> Option<V>,
) -> Result<Vec<(String, V)>> {
    let Some(object) = fields.object(name)? else { return Ok(Vec::new()) };
    let each = object.map.iter().map(|(key, value)| {
        let converted = convert(value)
            .ok_or_else(|| object.wrong(&one_line(key), "a positive number", describe(value)))?;
        Ok((key.clone(), converted))
    });
    each.collect()
}
