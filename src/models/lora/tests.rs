use super::*;
use crate::nn::{Decoder, DecoderConfig, RopeConfig, RopeScaling};

fn table(tied: bool) -> std::sync::Arc<ParamTable> {
    let config = DecoderConfig {
        vocab: 9,
        hidden: 8,
        layers: 12,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        ff: 6,
        rms_eps: 1e-5,
        rope: RopeConfig { theta: 1e4, scaling: RopeScaling::None },
        tied,
        qkv_bias: true,
        qk_norm: false,
        max_positions: 8,
        padding: None,
    };
    Decoder::new(config).unwrap().1
}

fn modules(config: &LoraConfig) -> Vec<String> {
    let lora = config.resolve(&table(false)).unwrap();
    lora.modules.into_keys().map(|name| name.replace("model.layers.", "")).collect()
}

#[test]
fn targets_are_what_peft_makes_of_them() {
    let names = |names: &[&str]| Targets::Names(names.iter().map(|n| n.to_string()).collect());
    let with = |targets| LoraConfig { targets, layers: Some(vec![1, 11]), ..LoraConfig::default() };
    let q = ["1.self_attn.q_proj", "11.self_attn.q_proj"];
    assert_eq!(modules(&with(names(&["q_proj"]))), q);
    assert_eq!(modules(&with(names(&["self_attn.q_proj"]))), q);
    // An end of a name begins behind a dot.
    let error = with(names(&["_proj"])).resolve(&table(false)).unwrap_err().to_string();
    assert!(error.contains("q_proj") && error.contains("all-linear"), "{error}");
    assert_eq!(modules(&with(Targets::AllLinear)).len(), 2 * 7);
    assert_eq!(modules(&with(Targets::Usual)).len(), 2 * 2);
    // A pattern must match whole names, and layers are its own matter.
    let pattern = |text: &str| with(Targets::Pattern(text.into()));
    assert_eq!(modules(&pattern(r".*\.1\.self_attn\.(q|o)_proj")).len(), 2);
    assert!(pattern("q_proj").resolve(&table(false)).is_err());
    let exclude = vec!["q_proj".to_string(), "layers.1.mlp.up_proj".into()];
    let config = LoraConfig { exclude, ..with(Targets::AllLinear) };
    assert_eq!(modules(&config).len(), 2 * 6 - 1);
}

#[test]
fn patterns_give_modules_ranks_and_alphas_of_their_own() {
    let config = LoraConfig {
        rank: 4,
        alpha: 8.0,
        rank_pattern: vec![("k_proj".into(), 2), (r"layers\.3\..*".into(), 16)],
        alpha_pattern: vec![("mlp.up_proj".into(), 6.0)],
        targets: Targets::AllLinear,
        ..LoraConfig::default()
    };
    let of = |config: &LoraConfig, name: &str| {
        config.resolve(&table(true)).unwrap().modules[&format!("model.layers.{name}")]
    };
    assert_eq!(of(&config, "0.mlp.down_proj"), LoraModule { rank: 4, scale: 2.0 });
    assert_eq!(of(&config, "0.self_attn.k_proj"), LoraModule { rank: 2, scale: 4.0 });
    // The first pattern that matches.
    assert_eq!(of(&config, "3.self_attn.k_proj"), LoraModule { rank: 2, scale: 4.0 });
    assert_eq!(of(&config, "3.mlp.up_proj"), LoraModule { rank: 16, scale: 6.0 / 16.0 });
    let rslora = LoraConfig { rslora: true, ..config };
    assert_eq!(of(&rslora, "0.mlp.down_proj"), LoraModule { rank: 4, scale: 4.0 });
}

#[test]
fn what_is_trained_in_full() {
    let trained = |config: LoraConfig, tied| -> Result<Vec<String>> {
        Ok(config.resolve(&table(tied))?.trained.into_iter().collect())
    };
    let saves = |names: &[&str]| LoraConfig {
        modules_to_save: names.iter().map(|n| n.to_string()).collect(),
        ..LoraConfig::default()
    };
    let both = saves(&["lm_head", "embed_tokens"]);
    assert_eq!(trained(both.clone(), false).unwrap(), ["lm_head.weight", EMBEDDING]);
    let error = trained(both, true).unwrap_err().to_string();
    assert!(error.contains("tie_word_embeddings"), "{error}");
    assert!(trained(saves(&["nothing"]), false).is_err());
    let bias = |bias| LoraConfig {
        bias,
        targets: Targets::Names(vec!["q_proj".into()]),
        ..LoraConfig::default()
    };
    assert_eq!(trained(bias(Bias::None), false).unwrap().len(), 0);
    assert_eq!(trained(bias(Bias::LoraOnly), false).unwrap().len(), 12);
    assert_eq!(trained(bias(Bias::All), false).unwrap().len(), 36);
}
