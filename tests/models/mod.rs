//! Model folders: config.json, weights, saving.

mod configs;
mod hostile;
mod round_trips;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use collimate::models::{ModelFolder, SaveOptions, SpecialTokens, init_weights, save};
use collimate::nn::{DecoderConfig, ParamTable, RopeConfig, RopeScaling, Weights};
use collimate::{DType, Device, Result};

/// A decoder of two blocks that is as small as they come.
fn small() -> DecoderConfig {
    DecoderConfig {
        vocab: 13,
        hidden: 8,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        ff: 10,
        rms_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        tied: false,
        qkv_bias: false,
        qk_norm: false,
        max_positions: 64,
        padding: None,
    }
}

/// The parameters of a decoder.
fn table(config: &DecoderConfig) -> Arc<ParamTable> {
    let mut table = ParamTable::default();
    let (hidden, dim) = (config.hidden, config.head_dim);
    let (q, kv) = (config.heads * dim, config.kv_heads * dim);
    table.matrix("model.embed_tokens.weight", config.vocab, hidden);
    for i in 0..config.layers {
        let name = |part: &str| format!("model.layers.{i}.{part}");
        table.vector(name("input_layernorm.weight"), hidden);
        table.matrix(name("self_attn.q_proj.weight"), q, hidden);
        table.continued(name("self_attn.k_proj.weight"), kv, hidden);
        table.continued(name("self_attn.v_proj.weight"), kv, hidden);
        if config.qkv_bias {
            table.vector(name("self_attn.q_proj.bias"), q);
            table.continued_vector(name("self_attn.k_proj.bias"), kv);
            table.continued_vector(name("self_attn.v_proj.bias"), kv);
        }
        if config.qk_norm {
            table.vector(name("self_attn.q_norm.weight"), dim);
            table.vector(name("self_attn.k_norm.weight"), dim);
        }
        table.matrix(name("self_attn.o_proj.weight"), hidden, q);
        table.vector(name("post_attention_layernorm.weight"), hidden);
        table.matrix(name("mlp.gate_proj.weight"), config.ff, hidden);
        table.continued(name("mlp.up_proj.weight"), config.ff, hidden);
        table.matrix(name("mlp.down_proj.weight"), hidden, config.ff);
    }
    table.vector("model.norm.weight", hidden);
    if !config.tied {
        table.matrix("lm_head.weight", config.vocab, hidden);
    }
    Arc::new(table)
}

/// A folder with a new model in it.
fn fresh(path: &Path, config: &DecoderConfig, dtype: DType) -> (ModelFolder, Weights<f32>) {
    let special = SpecialTokens { bos: Some(1), eos: Some(2), pad: None };
    let folder = ModelFolder::create(path, config, &special, dtype).unwrap();
    let weights = init_weights::<f32>(&table(config), 42, &Device::Cpu).unwrap();
    save(&folder, path, &weights, &SaveOptions::default()).unwrap();
    (ModelFolder::open(path).unwrap(), weights)
}

/// The files of the small model: its config.json and its weights.
fn small_files() -> &'static (String, Vec<u8>) {
    static FILES: LazyLock<(String, Vec<u8>)> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        fresh(dir.path(), &small(), DType::F32);
        let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        (config, std::fs::read(dir.path().join("model.safetensors")).unwrap())
    });
    &FILES
}

/// A folder with these files.
fn folder_of(config: &str, weights: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    dir
}

/// Opens a folder and loads its weights.
fn load(path: &Path) -> Result<Weights<f32>> {
    let folder = ModelFolder::open(path)?;
    folder.load_weights(&table(&folder.config), &Device::Cpu)
}

/// What an error says, which must fit one line.
fn message<T>(result: Result<T>) -> String {
    let message = match result {
        Ok(_) => panic!("no error"),
        Err(e) => e.to_string(),
    };
    assert!(!message.contains('\n') && message.len() < 2000, "{message}");
    message
}

fn values(weights: &Weights<f32>) -> &[f32] {
    weights.arena().as_slice().unwrap()
}
