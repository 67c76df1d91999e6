//! config.json of the Llama family: what its members have in common.

use serde_json::{Map, Value, json};

use super::fields::{Fields, describe};
use super::{Architecture, one_line};
use crate::nn::{DecoderConfig, RopeConfig, RopeScaling};
use crate::{DType, Error, Result};

/// What tells one architecture from the others.
#[derive(Clone, Copy)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// What its class names start with.
    pub class: &'static str,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: bool,
    /// `head_dim` where the file has none; else `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings` where the file has none.
    pub max_positions: usize,
    /// Refuses what only this architecture's files may ask for; is given `max_positions`.
    pub refuse: fn(&Fields, usize) -> Result<()>,
}

/// Reads the architecture and the shape of the decoder.
pub fn read(fields: &Fields) -> Result<(Architecture, DecoderConfig)> {
    let architecture = architecture(fields)?;
    let family = architecture.family();
    refuse(fields)?;
    let heads = fields.required_size("num_attention_heads")?;
    let hidden = fields.required_size("hidden_size")?;
    let head_dim = match fields.size("head_dim")?.or(family.head_dim) {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let expected = format!("a multiple of num_attention_heads ({heads})");
            return Err(fields.wrong("hidden_size", &expected, hidden));
        }
    };
    let kv_heads = match fields.map.get("num_key_value_heads") {
        // Other families have a constant here when the field is absent: too easily wrong.
        None if architecture != Architecture::Llama => {
            return Err(fields.missing("num_key_value_heads"));
        }
        _ => fields.size("num_key_value_heads")?.unwrap_or(heads),
    };
    let max_positions = fields.size("max_position_embeddings")?.unwrap_or(family.max_positions);
    let mut config = DecoderConfig {
        vocab: fields.required_size("vocab_size")?,
        hidden,
        layers: fields.required_size("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        ff: fields.required_size("intermediate_size")?,
        rms_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
        rope: rope(fields, max_positions)?,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: family.qkv_bias,
        qk_norm: family.qk_norm,
        max_positions,
        padding: None,
    };
    config.padding = padding(fields, config.vocab);
    config.validate().map_err(|e| Error::file(fields.path, e.to_string()))?;
    (family.refuse)(fields, max_positions)?;
    Ok((architecture, config))
}

/// `pad_token_id` as PyTorch's embedding reads it, from the end where it is negative; one that is no token
/// has no effect.
fn padding(fields: &Fields, vocab: usize) -> Option<usize> {
    let id = fields.map.get("pad_token_id")?.as_i64()?;
    let id = if id < 0 { id.checked_add_unsigned(vocab as u64)? } else { id };
    usize::try_from(id).ok().filter(|&id| id < vocab)
}

fn architecture(fields: &Fields) -> Result<Architecture> {
    let name = fields.text("model_type")?.ok_or_else(|| fields.missing("model_type"))?;
    Architecture::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
        let known: Vec<_> = Architecture::ALL.iter().map(|a| a.name()).collect();
        let name = one_line(name);
        fields.unsupported(format!("model_type `{name}`; supported are {}", known.join(", ")))
    })
}

/// Refuses what no architecture here has.
fn refuse(fields: &Fields) -> Result<()> {
    if fields.get("quantization_config").is_some() {
        return Err(fields.unsupported("quantized weights (quantization_config)"));
    }
    for name in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if fields.get(name).is_some() {
            return Err(fields.unsupported(format!("mixture of experts ({name})")));
        }
    }
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => {
            return Err(fields.unsupported(format!("hidden_act `{}`; only silu", one_line(other))));
        }
    }
    for (name, what) in [
        ("attention_bias", "a bias on the attention's output projection"),
        ("mlp_bias", "biases in the feed-forward"),
    ] {
        if fields.flag(name)? == Some(true) {
            return Err(fields.unsupported(format!("{what} ({name})")));
        }
    }
    for kind in fields.list("layer_types")?.into_iter().flatten() {
        if kind != "full_attention" {
            let kind = describe(kind);
            return Err(fields.unsupported(format!("layer_types {kind}; only full_attention")));
        }
    }
    Ok(())
}

/// Refuses a window of attention that is narrower than the model's longest sequence.
pub fn refuse_window(fields: &Fields, window: Option<usize>, max_positions: usize) -> Result<()> {
    match window {
        Some(window) if window < max_positions => Err(fields.unsupported(format!(
            "a sliding_window of {window}, below max_position_embeddings ({max_positions})"
        ))),
        _ => Ok(()),
    }
}

/// Rotary positions, in the spelling of transformers 4 (`rope_theta`, `rope_scaling`) or of
/// transformers 5 (`rope_parameters` with everything inside).
fn rope(fields: &Fields, max_positions: usize) -> Result<RopeConfig> {
    let rope = match (fields.object("rope_scaling")?, fields.object("rope_parameters")?) {
        (Some(_), Some(_)) => {
            let message = "`rope_scaling` and `rope_parameters` are both given";
            return Err(Error::file(fields.path, message));
        }
        (old, new) => old.or(new).filter(|rope| !rope.map.is_empty()),
    };
    let theta = fields.positive("rope_theta")?;
    let none = RopeConfig { theta: theta.unwrap_or(10_000.0), scaling: RopeScaling::None };
    if fields.positive("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
        return Err(fields.unsupported("partial_rotary_factor"));
    }
    let Some(rope) = rope else { return Ok(none) };
    let theta = rope.positive("rope_theta")?.unwrap_or(none.theta);
    if rope.positive("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
        return Err(fields.unsupported("partial_rotary_factor"));
    }
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let (scaling, known): (_, &[&str]) = match kind {
        "default" => (RopeScaling::None, &[]),
        "linear" => {
            (RopeScaling::Linear { factor: rope.required_positive("factor")? }, &["factor"])
        }
        "llama3" => {
            let low_freq_factor = rope.required_positive("low_freq_factor")?;
            let high_freq_factor = rope.required_positive("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                let expected = format!("more than low_freq_factor ({low_freq_factor})");
                return Err(rope.wrong("high_freq_factor", &expected, high_freq_factor));
            }
            let original = rope.positive("original_max_position_embeddings")?;
            let scaling = RopeScaling::Llama3 {
                factor: rope.required_positive("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_positions: original.unwrap_or(max_positions as f64),
            };
            let known: &[&str] = &[
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ];
            (scaling, known)
        }
        other => {
            let other = one_line(other);
            return Err(fields.unsupported(format!("rope_type `{other}`; only linear and llama3")));
        }
    };
    let always = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    for name in rope.map.keys().filter(|name| rope.get(name).is_some()) {
        if !always.contains(&name.as_str()) && !known.contains(&name.as_str()) {
            let name = one_line(name);
            return Err(fields.unsupported(format!("`{name}` with rope_type `{kind}`")));
        }
    }
    Ok(RopeConfig { theta, scaling })
}

/// The ids of tokens with a meaning, for a fresh config.json.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Fills a batch.
    pub pad: Option<u32>,
}

/// A fresh config.json.
pub fn write(
    config: &DecoderConfig,
    special: &SpecialTokens,
    dtype: DType,
) -> Result<(Architecture, Map<String, Value>)> {
    config.validate()?;
    let architecture = Architecture::ALL
        .into_iter()
        .find(|a| (a.family().qkv_bias, a.family().qk_norm) == (config.qkv_bias, config.qk_norm))
        .ok_or_else(|| Error::Unsupported("biases and norms on queries and keys".into()))?;
    let family = architecture.family();
    let rope_scaling = match config.rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions as u64,
        }),
    };
    let json = json!({
        "architectures": [format!("{}ForCausalLM", family.class)],
        "model_type": family.model_type,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ff,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_scaling,
        "tie_word_embeddings": config.tied,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad.or(config.padding.map(|id| id as u32)),
        "torch_dtype": torch_name(dtype),
    });
    let Value::Object(map) = json else { unreachable!("json! of braces is an object") };
    Ok((architecture, map))
}

/// The name of a type in config.json.
pub fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F64 => "float64",
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
    }
}
