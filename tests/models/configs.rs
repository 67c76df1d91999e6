//! config.json: what is understood and what is refused.

use collimate::models::{Architecture, Head, ModelFolder};
use collimate::nn::{DecoderConfig, RopeScaling};
use collimate::{DType, Error, Result};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{folder_of, fresh, message, small, small_files};

/// Opens the small model after `change` was merged into its config.json; `"-"` removes a field.
fn open(change: Value) -> Result<ModelFolder> {
    let (config, weights) = small_files();
    let mut json: Value = serde_json::from_str(config).unwrap();
    let map = json.as_object_mut().unwrap();
    for (key, value) in change.as_object().unwrap() {
        match value == "-" {
            true => drop(map.remove(key)),
            false => drop(map.insert(key.clone(), value.clone())),
        }
    }
    ModelFolder::open(folder_of(&json.to_string(), weights).path())
}

fn config(change: Value) -> DecoderConfig {
    open(change).unwrap().config
}

#[test]
fn a_fresh_llama_is_read_back() {
    let folder = open(json!({})).unwrap();
    assert_eq!(folder.config, small());
    assert_eq!((folder.architecture, folder.head), (Architecture::Llama, Head::Language));
}

#[test]
fn every_family_is_read_back() {
    for (qkv_bias, qk_norm, architecture) in [
        (false, false, Architecture::Llama),
        (true, false, Architecture::Qwen2),
        (false, true, Architecture::Qwen3),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 32.0,
        };
        let rope = collimate::nn::RopeConfig { theta: 5e5, scaling: llama3 };
        let config = DecoderConfig { qkv_bias, qk_norm, rope, head_dim: 6, ..small() };
        let (folder, _) = fresh(dir.path(), &config, DType::F32);
        assert_eq!((folder.architecture, folder.config), (architecture, config));
    }
    let both = DecoderConfig { qkv_bias: true, qk_norm: true, ..small() };
    let dir = tempfile::tempdir().unwrap();
    let result = ModelFolder::create(dir.path(), &both, &Default::default(), DType::F32);
    assert!(matches!(result, Err(Error::Unsupported(_))));
}

#[test]
fn absent_fields_have_the_defaults_of_their_class() {
    let change = json!({
        "head_dim": null, "num_key_value_heads": "-", "rms_norm_eps": "-", "rope_theta": "-",
        "rope_scaling": "-", "tie_word_embeddings": "-", "max_position_embeddings": "-",
        "hidden_act": "-", "architectures": null,
    });
    let got = config(change);
    assert_eq!((got.head_dim, got.kv_heads, got.max_positions), (2, 4, 2048));
    assert_eq!((got.rms_eps, got.tied, got.rope.theta), (1e-6, false, 1e4));
    let qwen3 = json!({"model_type": "qwen3", "architectures": null, "head_dim": "-"});
    assert_eq!(config(qwen3).head_dim, 128);
}

#[test]
fn rope_is_read_in_old_and_new_spelling() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let old = config(json!({"rope_theta": 5e5, "rope_scaling": llama3}));
    let mut new = llama3.clone();
    new["rope_theta"] = json!(500000.0);
    let new = json!({"rope_theta": "-", "rope_scaling": "-", "rope_parameters": new});
    assert_eq!(config(new).rope, old.rope);
    assert!(matches!(old.rope.scaling, RopeScaling::Llama3 { factor: 8.0, .. }));

    let linear = config(json!({"rope_scaling": {"type": "linear", "factor": 2}}));
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    let default = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}});
    assert_eq!(config(default.clone()).rope.theta, 3e4);
    assert_eq!(config(default).rope.scaling, RopeScaling::None);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (change, named) in [
        (json!({"model_type": "gpt2"}), "llama, mistral, qwen2, qwen3"),
        (json!({"model_type": "mixtral"}), "mixtral"),
        (json!({"architectures": ["LlamaModel"]}), "LlamaModel"),
        (json!({"architectures": ["MistralForCausalLM"]}), "MistralForCausalLM"),
        (json!({"architectures": ["LlamaForSequenceClassification"]}), "2 labels"),
        (json!({"quantization_config": {"quant_method": "mxfp4"}}), "quantization_config"),
        (json!({"num_local_experts": 8}), "num_local_experts"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "dynamic"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "yarn"),
        (json!({"rope_parameters": {"rope_type": "default", "mscale": 1.0}}), "mscale"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "sliding_attention"),
    ] {
        let result = open(change.clone());
        assert!(matches!(result, Err(Error::Unsupported(_))), "{change}");
        let message = message(result);
        assert!(message.contains(named) && message.contains("config.json"), "{message}");
    }
}

#[test]
fn a_window_is_refused_where_it_would_matter() {
    let mistral = |change: Value| {
        let mut all = json!({"model_type": "mistral", "architectures": null});
        all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        open(all)
    };
    assert!(mistral(json!({"sliding_window": null})).is_ok());
    assert!(mistral(json!({"sliding_window": 64})).is_ok());
    assert!(message(mistral(json!({"sliding_window": 63}))).contains("sliding_window"));
    // The class's own default is 4096.
    assert!(message(mistral(json!({"max_position_embeddings": 8192}))).contains("4096"));

    let qwen = json!({"model_type": "qwen2", "architectures": null, "sliding_window": 32});
    assert!(open(qwen.clone()).is_ok());
    let mut used = qwen;
    used["use_sliding_window"] = json!(true);
    assert!(message(open(used)).contains("sliding_window"));
}

#[test]
fn wrong_values_are_named() {
    for (change, named) in [
        (json!({"model_type": "-"}), "`model_type` is missing"),
        (json!({"model_type": 3}), "`model_type`: expected a string, got 3"),
        (json!({"vocab_size": "-"}), "`vocab_size` is missing"),
        (json!({"hidden_size": "many"}), "`hidden_size`"),
        (json!({"hidden_size": 8.5}), "`hidden_size`"),
        (json!({"hidden_size": -8}), "`hidden_size`"),
        (json!({"num_attention_heads": 0}), "`num_attention_heads`"),
        (json!({"num_key_value_heads": 0}), "`num_key_value_heads`"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"num_attention_heads": 3, "head_dim": null}), "hidden_size"),
        (json!({"head_dim": 5}), "head_dim"),
        (json!({"num_hidden_layers": 1_000_000_000_000u64}), "num_hidden_layers"),
        (json!({"num_hidden_layers": 5000}), "num_hidden_layers"),
        (json!({"vocab_size": u64::MAX}), "vocab_size"),
        (json!({"intermediate_size": [1]}), "`intermediate_size`"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps"),
        (json!({"rms_norm_eps": "NaN"}), "rms_norm_eps"),
        (json!({"rope_theta": -1.0}), "rope_theta"),
        (json!({"rope_scaling": "linear"}), "rope_scaling"),
        (json!({"rope_scaling": {"type": "linear"}}), "`factor` is missing"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "`factor`"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2},
                   "rope_parameters": {"rope_type": "linear", "factor": 2}}),
            "both",
        ),
        (
            json!({"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4,
                                    "high_freq_factor": 4}}),
            "high_freq_factor",
        ),
        (json!({"tie_word_embeddings": 1}), "`tie_word_embeddings`"),
        (json!({"architectures": "LlamaForCausalLM"}), "`architectures`"),
        (json!({"layer_types": ["a\nb"]}), "a\\"),
        (json!({"model_type": "x\ny".repeat(5000)}), "..."),
    ] {
        let message = message(open(change.clone()));
        assert!(message.contains(named) && message.contains("config.json"), "{change}: {message}");
    }
}

#[test]
fn text_that_is_no_config_is_refused() {
    let huge = format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20));
    let deep = "[".repeat(100_000);
    for text in ["", "{", "[]", "null", "{\"rms_norm_eps\": NaN}", "{\"x\": 1e999}", &huge, &deep] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        assert!(message(ModelFolder::open(dir.path())).contains("config.json"));
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(message(ModelFolder::open(dir.path())).contains("config.json"));
    std::fs::create_dir(dir.path().join("config.json")).unwrap();
    assert!(message(ModelFolder::open(dir.path())).contains("regular file"));
    std::fs::remove_dir(dir.path().join("config.json")).unwrap();
    std::fs::write(dir.path().join("config.json"), [0xff, 0xfe]).unwrap();
    assert!(message(ModelFolder::open(dir.path())).contains("UTF-8"));
}

/// Any JSON value, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..100).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("rope_type|factor|type|.{0,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_value_of_a_field_panics(
        field in prop::sample::select(vec![
            "model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
            "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "torch_dtype",
            "tie_word_embeddings", "max_position_embeddings", "sliding_window", "layer_types",
            "id2label", "hidden_act", "quantization_config", "attention_bias",
        ]),
        value in any_json(),
    ) {
        if let Err(e) = open(json!({field: value})) {
            prop_assert!(!e.to_string().contains('\n'));
        }
    }
}
