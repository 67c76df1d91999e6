//! The decoder against central differences in f64, against copies of shared prompts, against its
//! own decoding, and against values of transformers.

mod adapters;
mod generation;
mod golden;
mod scores;

use collimate::nn::{
    Decoder, DecoderConfig, Keep, KvCache, Layout, LayoutBuilder, LmHead, RopeConfig, RopeScaling,
    Segment, Weights,
};
use collimate::ops::token_logprobs::Wanted;
use collimate::rng::Rng;
use collimate::{Device, Tensor};

fn llama() -> DecoderConfig {
    DecoderConfig {
        vocab: 23,
        hidden: 12,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        ff: 14,
        rms_eps: 1e-5,
        rope: RopeConfig { theta: 1e4, scaling: RopeScaling::None },
        tied: false,
        qkv_bias: false,
        qk_norm: false,
        max_positions: 64,
        padding: None,
    }
}

fn shapes() -> Vec<(&'static str, DecoderConfig)> {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 16.0,
    };
    vec![
        ("llama", llama()),
        (
            "llama, tied, scaled",
            DecoderConfig { tied: true, rope: RopeConfig { theta: 1e4, scaling }, ..llama() },
        ),
        ("qwen2", DecoderConfig { qkv_bias: true, tied: true, ..llama() }),
        ("qwen3", DecoderConfig { qk_norm: true, ..llama() }),
    ]
}

fn random_weights(config: &DecoderConfig) -> (Decoder, Weights<f64>) {
    let (decoder, table) = Decoder::new(config.clone()).unwrap();
    let mut weights = Weights::zeros(&Device::Cpu, &table).unwrap();
    let mut rng = Rng::new(7, 0);
    for param in table.params() {
        let centre = if param.name.contains("norm") { 1.0 } else { 0.0 };
        let values = weights.arena_mut().as_mut_slice().unwrap();
        values[param.range.clone()]
            .iter_mut()
            .for_each(|w| *w = centre + 0.6 * (rng.uniform() - 0.5));
    }
    (decoder, weights)
}

const PROMPT: [i32; 5] = [1, 7, 3, 3, 19];
const ANSWERS: [&[i32]; 2] = [&[4, 22, 0, 2], &[9, 2]];

fn layout(share: bool) -> Layout {
    let mut builder = LayoutBuilder::new();
    if share {
        builder.push_shared(&PROMPT, &ANSWERS);
    } else {
        ANSWERS.iter().for_each(|answer| builder.push(&PROMPT, answer));
    }
    // A text of its own behind them.
    builder.push(&[], &[5, 6, 8, 2]);
    builder.finish().unwrap()
}

/// A fixed function of the log-probs: every token has a coefficient of its own.
fn coefficient(token: usize) -> f64 {
    (token as f64 * 1.7).sin()
}

const WANTED: Wanted = Wanted { entropy: false, mean_logit: false, hit: false, log_sum_p2: false };

/// The function's value and its gradient, through chunks of one sequence at a time.
fn run(
    decoder: &Decoder,
    weights: &Weights<f64>,
    share: bool,
    keep: Keep,
) -> (f64, Vec<f64>, Weights<f64>) {
    run_with(decoder, weights, share, keep, None)
}

fn run_with(
    decoder: &Decoder,
    weights: &Weights<f64>,
    share: bool,
    keep: Keep,
    noise: Option<u64>,
) -> (f64, Vec<f64>, Weights<f64>) {
    let mut batch = decoder.batch::<f64>(&Device::Cpu, layout(share)).unwrap();
    batch.noise = noise;
    let (hidden, saved) = decoder.forward(weights, &batch, keep).unwrap();
    let mut dhidden = Tensor::zeros(&Device::Cpu, hidden.rows(), hidden.cols()).unwrap();
    let mut grads = Weights::zeros(&Device::Cpu, weights.table()).unwrap();
    let head = LmHead { chunk_bytes: 1, ..LmHead::default() };
    let (mut value, mut logps) = (0.0, Vec::new());
    for sequences in head.chunks(&batch, decoder.config().vocab, 1) {
        let chunk = head.forward(decoder, weights, &hidden, &batch, sequences, WANTED).unwrap();
        let own = chunk.stats.logps.to_vec().unwrap();
        let c: Vec<f64> = (0..own.len()).map(|i| coefficient(logps.len() + i)).collect();
        value += own.iter().zip(&c).map(|(l, c)| l * c).sum::<f64>();
        logps.extend(own);
        let c = Tensor::column(&Device::Cpu, &c).unwrap();
        chunk.backward(decoder, weights, &batch, c.view(), &mut dhidden, &mut grads).unwrap();
    }
    if let Some(saved) = saved {
        decoder.backward(weights, &batch, saved, &dhidden, &mut grads).unwrap();
    }
    (value, logps, grads)
}

#[test]
fn the_gradient_of_every_parameter_is_that_of_central_differences() {
    for (name, config) in shapes() {
        let (decoder, mut weights) = random_weights(&config);
        for share in [false, true] {
            let (_, _, grads) = run(&decoder, &weights, share, Keep::Activations);
            let grads = grads.arena().to_vec().unwrap();
            for param in weights.table().clone().params() {
                // A few values of each parameter: its ends and some between.
                let len = param.range.len();
                for at in [0, len / 3, len / 2, len - 1] {
                    let i = param.range.start + at;
                    let step = 1e-5;
                    let mut value = |shift: f64| {
                        weights.arena_mut().as_mut_slice().unwrap()[i] += shift;
                        let value = run(&decoder, &weights, share, Keep::Nothing).0;
                        weights.arena_mut().as_mut_slice().unwrap()[i] -= shift;
                        value
                    };
                    let numeric = (value(step) - value(-step)) / (2.0 * step);
                    let error = (numeric - grads[i]).abs();
                    assert!(
                        error < 1e-8 + 1e-6 * numeric.abs(),
                        "{name}, share {share}, {} [{at}]: {numeric} against {}",
                        param.name,
                        grads[i],
                    );
                }
            }
        }
    }
}

#[test]
fn a_shared_prompt_is_exact() {
    for (name, config) in shapes() {
        let (decoder, weights) = random_weights(&config);
        let (_, apart, apart_grads) = run(&decoder, &weights, false, Keep::Activations);
        let (_, shared, shared_grads) = run(&decoder, &weights, true, Keep::Activations);
        for (a, s) in apart.iter().zip(&shared) {
            assert!((a - s).abs() < 1e-13, "{name}: {a} {s}");
        }
        let (a, s) =
            (apart_grads.arena().to_vec().unwrap(), shared_grads.arena().to_vec().unwrap());
        for (a, s) in a.iter().zip(&s) {
            assert!((a - s).abs() < 1e-12, "{name}: {a} {s}");
        }
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    for (_, config) in shapes() {
        let (decoder, weights) = random_weights(&config);
        let (_, _, kept) = run(&decoder, &weights, true, Keep::Activations);
        let (_, _, recomputed) = run(&decoder, &weights, true, Keep::Inputs);
        assert_eq!(kept.arena().to_vec().unwrap(), recomputed.arena().to_vec().unwrap());
    }
}

#[test]
fn decoding_with_the_cache_gives_the_bits_of_the_forward() {
    for (name, config) in shapes() {
        let (decoder, weights) = random_weights(&config);
        let tokens = [1, 7, 3, 3, 19, 4, 22, 0, 11];
        let mut builder = LayoutBuilder::new();
        builder.push(&[], &tokens);
        let batch = decoder.batch::<f64>(&Device::Cpu, builder.finish().unwrap()).unwrap();
        let (hidden, _) = decoder.forward(&weights, &batch, Keep::Nothing).unwrap();
        let mut cache = KvCache::new(&Device::Cpu, &config, tokens.len()).unwrap();
        // A prompt of three, then one token at a time.
        let mut at = 0;
        for len in [3, 1, 1, 1, 1, 1] {
            let positions: Vec<i32> = (at..at + len).map(|p| p as i32).collect();
            let segment = Segment {
                q_start: 0,
                q_len: len as i32,
                kv_start: at as i32,
                prefix_start: 0,
                prefix_len: at as i32,
            };
            let own = &tokens[at..at + len];
            let out =
                decoder.decode(&weights, own, &positions, &[segment].into(), &mut cache).unwrap();
            let (own, whole) = (out.to_vec().unwrap(), hidden.to_vec().unwrap());
            let h = config.hidden;
            assert_eq!(own, whole[at * h..(at + len) * h], "{name} at {at}");
            at += len;
        }
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error() {
    let (decoder, _) = random_weights(&llama());
    let mut builder = LayoutBuilder::new();
    builder.push(&[1], &[23, 2]);
    let error = decoder.batch::<f64>(&Device::Cpu, builder.finish().unwrap()).unwrap_err();
    assert!(error.to_string().contains("23"), "{error}");
}
