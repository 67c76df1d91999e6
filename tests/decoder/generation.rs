//! Sampling with the cache against the training forward.

#[cfg(feature = "emulate")]
use approx::assert_abs_diff_eq;
use collimate::generate::{GenerateOptions, Sampling, generate};
use collimate::nn::{DecoderConfig, Keep, KvCache, LayoutBuilder, LmHead, Segment, Weights};
use collimate::ops::token_logprobs::{self, TokenLogprobsOptions};
use collimate::{Device, Element, Tensor};

use super::{WANTED, random_weights, shapes};

const LENGTH: usize = 12;
const PROMPTS: [&[i32]; 3] = [&[1, 7, 3], &[5, 19, 2, 2, 8], &[4]];

#[test]
fn the_cache_changes_neither_tokens_nor_the_bits_of_their_log_probs() {
    for (name, config) in shapes() {
        let (cached, trained) = with_and_without::<f32>(&Device::Cpu, name, &config, true);
        let bits = |all: &[f32]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&cached), bits(&trained), "{name}");
    }
}

/// On a GPU decoding adds up in another order than training: tokens are the same in float32, and
/// their log-probabilities to 1e-5; to 0.02 in bf16.
#[cfg(feature = "emulate")]
#[test]
fn on_a_gpu_the_cache_changes_no_more_than_rounding() {
    let device = Device::cuda(0).unwrap();
    for (name, config) in shapes() {
        let (cached, trained) = with_and_without::<f32>(&device, name, &config, true);
        assert_abs_diff_eq!(&cached[..], &trained[..], epsilon = 1e-5);
        let (cached, trained) = with_and_without::<half::bf16>(&device, name, &config, false);
        assert_abs_diff_eq!(&cached[..], &trained[..], epsilon = 0.02);
    }
}

/// Log-probabilities of greedy completions, through the cache and in one training forward. The
/// completions are compared with those of a forward for every token where `compares`.
fn with_and_without<T: Element<Stat = f32>>(
    device: &Device,
    name: &str,
    config: &DecoderConfig,
    compares: bool,
) -> (Vec<f32>, Vec<f32>) {
    let (decoder, wide) = random_weights(config);
    let narrow: Vec<T> =
        wide.arena().to_vec().unwrap().iter().map(|&w| T::from_stat(w as f32)).collect();
    let mut weights: Weights<T> = Weights::zeros(&Device::Cpu, wide.table()).unwrap();
    weights.arena_mut().as_mut_slice().unwrap().copy_from_slice(&narrow);
    let weights = weights.to_device(device).unwrap();
    let options = GenerateOptions {
        sampling: Sampling::greedy(),
        max_new_tokens: LENGTH,
        eos: vec![],
        batch_size: 3,
    };
    let prompts: Vec<Vec<i32>> = PROMPTS.iter().map(|p| p.to_vec()).collect();
    let cached = generate(&decoder, &weights, &prompts, &options).unwrap();

    // Without a cache: everything again for every token.
    for (prompt, cached) in prompts.iter().zip(&cached).filter(|_| compares) {
        let mut tokens = prompt.clone();
        for _ in 0..LENGTH {
            let mut builder = LayoutBuilder::new();
            // The last token of a layout is no input: any will do.
            builder.push(&tokens, &[0]);
            let batch = decoder.batch::<T>(device, builder.finish().unwrap()).unwrap();
            let (hidden, _) = decoder.forward(&weights, &batch, Keep::Nothing).unwrap();
            let last = [tokens.len() as i32 - 1];
            let logits = LmHead::logits_of(&decoder, &weights, &hidden, &last).unwrap();
            let logits = logits.to_vec().unwrap();
            let best = logits.iter().map(|l| l.to_stat()).fold(f32::NEG_INFINITY, f32::max);
            tokens.push(logits.iter().position(|l| l.to_stat() == best).unwrap() as i32);
        }
        assert_eq!(tokens[prompt.len()..], cached[..], "{name}");
    }

    // All of them in one training forward, at a temperature.
    let mut builder = LayoutBuilder::new();
    prompts.iter().zip(&cached).for_each(|(prompt, own)| builder.push(prompt, own));
    let batch = decoder.batch::<T>(device, builder.finish().unwrap()).unwrap();
    let (hidden, _) = decoder.forward(&weights, &batch, Keep::Activations).unwrap();
    let temperature = TokenLogprobsOptions { temperature: 0.7, ..Default::default() };
    let head = LmHead { options: temperature, ..LmHead::default() };
    let chunk = head.forward(&decoder, &weights, &hidden, &batch, 0..3, WANTED).unwrap();
    let trained = chunk.stats.logps.to_vec().unwrap();

    // One by one through a cache.
    let mut decoded = Vec::new();
    for (prompt, own) in prompts.iter().zip(&cached) {
        let rows = prompt.len() + LENGTH;
        let mut cache = KvCache::new(device, config, rows).unwrap();
        let (mut at, mut input) = (0, prompt.clone());
        for &target in own {
            let positions: Vec<i32> = (at..at + input.len()).map(|p| p as i32).collect();
            let segment = Segment {
                q_start: 0,
                q_len: input.len() as i32,
                kv_start: at as i32,
                prefix_start: 0,
                prefix_len: at as i32,
            };
            let hidden = decoder
                .decode(&weights, &input, &positions, &[segment].into(), &mut cache)
                .unwrap();
            let last = [input.len() as i32 - 1];
            let logits = LmHead::logits_of(&decoder, &weights, &hidden, &last).unwrap();
            let target = Tensor::column(device, &[target]).unwrap();
            let (logits, ids) = (logits.view(), target.view());
            let stats = token_logprobs::forward(logits, ids, &temperature, WANTED).unwrap();
            decoded.extend(stats.logps.to_vec().unwrap());
            at += input.len();
            input = target.to_vec().unwrap();
        }
    }
    (decoded, trained)
}
