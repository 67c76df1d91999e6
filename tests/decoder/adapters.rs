//! Low-rank adapters against central differences in f64, and against the same weights merged.

use std::collections::BTreeMap;
use std::sync::Arc;

use collimate::nn::{Decoder, Keep, Lora, LoraModule, Weights};
use collimate::rng::Rng;
use collimate::{Device, Tensor};

use super::{llama, random_weights, run, run_with, shapes};

/// Adapters of several ranks on every module of the first block and on some of the second; a norm and
/// the head are trained in full.
fn lora(dropout: f64) -> Lora {
    let modules = [
        ("0.self_attn.q_proj", 3, 0.5),
        ("0.self_attn.k_proj", 2, 2.0),
        ("0.self_attn.v_proj", 1, 1.0),
        ("0.self_attn.o_proj", 4, 0.7),
        ("0.mlp.gate_proj", 2, 1.5),
        ("0.mlp.up_proj", 2, 0.3),
        ("0.mlp.down_proj", 3, 1.1),
        ("1.self_attn.q_proj", 2, 0.9),
        ("1.self_attn.v_proj", 2, 0.9),
        ("1.mlp.up_proj", 1, 0.4),
    ];
    let modules = modules
        .map(|(name, rank, scale)| (format!("model.layers.{name}"), LoraModule { rank, scale }));
    let trained = ["lm_head.weight", "model.layers.1.input_layernorm.weight"];
    Lora { modules: modules.into(), dropout, trained: trained.map(String::from).into() }
}

/// The decoder of [`llama`] with adapters whose B are not 0, and the same weights without them.
fn adapted(dropout: f64) -> (Decoder, Weights<f64>, Weights<f64>) {
    let (plain, base) = random_weights(&llama());
    let (decoder, table) = plain.adapted(&lora(dropout)).unwrap();
    let of: BTreeMap<_, _> = base.table().params().iter().map(|p| (p.name.clone(), p)).collect();
    let values = base.arena().to_vec().unwrap();
    let mut frozen = vec![0.0; table.frozen_len()];
    let mut weights = Weights::zeros(&Device::Cpu, &table).unwrap();
    let arena = weights.arena_mut().as_mut_slice().unwrap();
    let mut rng = Rng::new(3, 1);
    for param in table.params() {
        let into = if param.frozen {
            &mut frozen[param.range.clone()]
        } else {
            &mut arena[param.range.clone()]
        };
        match of.get(&param.name) {
            Some(own) => into.copy_from_slice(&values[own.range.clone()]),
            None => into.iter_mut().for_each(|w| *w = rng.uniform() - 0.5),
        }
    }
    let frozen = Tensor::from_vec(frozen, table.frozen_len(), 1).unwrap();
    (decoder, weights.with_frozen(Arc::new(frozen)).unwrap(), base)
}

#[test]
fn gradients_of_what_is_trained_are_those_of_central_differences() {
    for (dropout, noise) in [(0.0, None), (0.3, Some(5))] {
        let (decoder, mut weights, _) = adapted(dropout);
        for share in [false, true] {
            let (_, _, grads) = run_with(&decoder, &weights, share, Keep::Activations, noise);
            let grads = grads.arena().to_vec().unwrap();
            for param in weights.table().clone().trained() {
                let len = param.range.len();
                for at in [0, len / 3, len / 2, len - 1] {
                    let i = param.range.start + at;
                    let step = 1e-5;
                    let mut value = |shift: f64| {
                        weights.arena_mut().as_mut_slice().unwrap()[i] += shift;
                        // One that keeps something: else nothing is left out.
                        let value = run_with(&decoder, &weights, share, Keep::Inputs, noise).0;
                        weights.arena_mut().as_mut_slice().unwrap()[i] -= shift;
                        value
                    };
                    let numeric = (value(step) - value(-step)) / (2.0 * step);
                    let error = (numeric - grads[i]).abs();
                    assert!(
                        error < 1e-8 + 1e-6 * numeric.abs(),
                        "dropout {dropout}, share {share}, {} [{at}]: {numeric} against {}",
                        param.name,
                        grads[i],
                    );
                }
            }
        }
    }
}

#[test]
fn recomputing_the_blocks_gives_the_same_bits() {
    let (decoder, weights, _) = adapted(0.3);
    let [whole, inputs] = [Keep::Activations, Keep::Inputs]
        .map(|keep| run_with(&decoder, &weights, true, keep, Some(9)));
    assert_eq!(whole.1, inputs.1);
    assert_eq!(whole.2.arena().to_vec().unwrap(), inputs.2.arena().to_vec().unwrap());
}

#[test]
fn adapters_are_the_weights_that_they_add_up_to() {
    let (decoder, weights, mut merged) = adapted(0.3);
    let (plain, _) = Decoder::new(llama()).unwrap();
    let table = weights.table().clone();
    let arena = weights.arena().to_vec().unwrap();
    let of = |name: &str| {
        let param = table.params().iter().find(|p| p.name == name).unwrap();
        arena[param.range.clone()].to_vec()
    };
    let base = merged.table().clone();
    let values = merged.arena_mut().as_mut_slice().unwrap();
    for param in base.params() {
        let module = param.name.trim_end_matches(".weight");
        let Some(&LoraModule { rank, scale }) = lora(0.0).modules.get(module) else { continue };
        let (a, b) =
            (of(&format!("{module}.lora_A.weight")), of(&format!("{module}.lora_B.weight")));
        for row in 0..param.rows {
            for col in 0..param.cols {
                let sum: f64 = (0..rank).map(|k| b[row * rank + k] * a[k * param.cols + col]).sum();
                values[param.range.start + row * param.cols + col] += scale * sum;
            }
        }
    }
    // Dropout is of training alone: this forward keeps nothing.
    let (_, with, _) = run_with(&decoder, &weights, false, Keep::Nothing, Some(1));
    let (_, without, _) = run(&plain, &merged, false, Keep::Nothing);
    for (a, b) in with.iter().zip(&without) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }
}

#[test]
fn frozen_parameters_have_no_gradient_and_no_memory_but_their_own() {
    for (_, config) in shapes() {
        let (plain, full) = Decoder::new(config.clone()).unwrap();
        let module = "model.layers.1.self_attn.v_proj".to_string();
        let lora = Lora {
            modules: [(module, LoraModule { rank: 2, scale: 1.0 })].into(),
            ..Lora::default()
        };
        let (_, table) = plain.adapted(&lora).unwrap();
        let width = config.kv_heads * config.head_dim;
        assert!(table.arena_len() < 2 * (config.hidden + width) + 32);
        assert_eq!(table.trained().count(), 2);
        assert_eq!(table.params().len(), full.params().len() + 2);
        let mut grads = Weights::<f64>::zeros(&Device::Cpu, &table).unwrap();
        assert_eq!(grads.arena().rows(), table.arena_len());
        let error = grads.arena_mut().view_mut().rows_range(0, table.arena_len() + 1);
        assert!(error.is_err());
    }
}

#[test]
fn modules_that_are_none_are_errors() {
    let bad = |lora: Lora| Decoder::new(llama()).unwrap().0.adapted(&lora).unwrap_err().to_string();
    let one = |name: &str, rank: usize, scale: f64| Lora {
        modules: [(name.to_string(), LoraModule { rank, scale })].into(),
        ..Lora::default()
    };
    let q = "model.layers.0.self_attn.q_proj";
    assert!(bad(one("lm_head", 1, 1.0)).contains("lm_head"));
    assert!(bad(one("model.layers.7.self_attn.q_proj", 1, 1.0)).contains("layers.7"));
    assert!(bad(one("model.layers.0.input_layernorm", 1, 1.0)).contains("input_layernorm"));
    assert!(bad(one(q, 0, 1.0)).contains("rank 0"));
    assert!(bad(one(q, 1, f64::NAN)).contains("NaN"));
    let trained = Lora { trained: ["model.x.weight".into()].into(), ..one(q, 1, 1.0) };
    assert!(bad(trained).contains("model.x.weight"));
}
