//! Sampling from a decoder with a key-value cache.

mod session;

pub use crate::ops::sampling::Sampling;
pub use session::Session;

use rayon::prelude::*;

use crate::nn::{Decoder, KvCache, LmHead, Segment, Weights};
use crate::ops::sampling::Draw;
use crate::{Device, Element, Error, Result};

/// What to generate and how far.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Which token follows.
    pub sampling: Sampling,
    /// New tokens per prompt at most.
    pub max_new_tokens: usize,
    /// Tokens that end a sequence.
    pub eos: Vec<i32>,
    /// Prompts that are decoded together.
    pub batch_size: usize,
}

/// The completions of `prompts`, the token that ended each included.
///
/// A completion depends on its prompt, its number and the seed alone, not on the prompts around
/// it: so a batch is shared out among the threads.
pub fn generate<T: Element>(
    decoder: &Decoder,
    weights: &Weights<T>,
    prompts: &[Vec<i32>],
    options: &GenerateOptions,
) -> Result<Vec<Vec<i32>>> {
    options.sampling.validate()?;
    let limit = decoder.config().max_positions;
    for (i, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() || prompt.len() >= limit {
            return Err(Error::setting(
                format!("prompt {}", i + 1),
                format!("1 to {} tokens", limit - 1),
                format!("{} tokens", prompt.len()),
            ));
        }
    }
    let numbered: Vec<(usize, &[i32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
    let mut completions = Vec::with_capacity(prompts.len());
    for batch in numbered.chunks(options.batch_size.max(1)) {
        // A GPU has one stream.
        let shares = match weights.arena().device() {
            Device::Cpu => rayon::current_num_threads(),
            _ => 1,
        };
        let share = batch.len().div_ceil(shares);
        let shares: Vec<_> = batch
            .par_chunks(share)
            .map(|share| generate_together(decoder, weights, share, options))
            .collect::<Result<_>>()?;
        completions.extend(shares.into_iter().flatten());
    }
    Ok(completions)
}

/// A sequence under way: where it stands among its companions, its number, where its cache rows
/// start, and its next input.
struct Running {
    slot: usize,
    number: usize,
    cache: usize,
    position: usize,
    token: i32,
}

fn generate_together<T: Element>(
    decoder: &Decoder,
    weights: &Weights<T>,
    prompts: &[(usize, &[i32])],
    options: &GenerateOptions,
) -> Result<Vec<Vec<i32>>> {
    let device = weights.arena().device();
    let limit = decoder.config().max_positions;
    let (mut tokens, mut positions, mut segments) = (Vec::new(), Vec::new(), Vec::new());
    let (mut last_rows, mut running, mut rows) = (Vec::new(), Vec::new(), 0);
    let mut completions = vec![Vec::new(); prompts.len()];
    for (slot, &(number, prompt)) in prompts.iter().enumerate() {
        segments.push(Segment {
            q_start: tokens.len() as i32,
            q_len: prompt.len() as i32,
            kv_start: rows as i32,
            ..Segment::default()
        });
        tokens.extend_from_slice(prompt);
        positions.extend((0..prompt.len()).map(|p| p as i32));
        last_rows.push(tokens.len() as i32 - 1);
        let position = prompt.len();
        running.push(Running { slot, number, cache: rows, position, token: 0 });
        rows += (prompt.len() + options.max_new_tokens).min(limit);
    }
    if options.max_new_tokens == 0 || running.is_empty() {
        return Ok(completions);
    }
    let mut cache = KvCache::new(&device, decoder.config(), rows)?;
    loop {
        let hidden = decoder.decode(weights, &tokens, &positions, &segments.into(), &mut cache)?;
        let logits = LmHead::logits_of(decoder, weights, &hidden, &last_rows)?;
        let draws: Vec<Draw> = running
            .iter()
            .map(|sequence| Draw {
                sequence: sequence.number as u64,
                number: completions[sequence.slot].len() as u64,
            })
            .collect();
        let drawn = options.sampling.rows(logits.view(), &draws)?.to_vec()?;
        for (sequence, token) in running.iter_mut().zip(drawn) {
            sequence.token = token;
            completions[sequence.slot].push(token);
        }
        running.retain(|sequence| {
            !options.eos.contains(&sequence.token)
                && completions[sequence.slot].len() < options.max_new_tokens
                && sequence.position + 1 < limit
        });
        if running.is_empty() {
            return Ok(completions);
        }
        tokens = running.iter().map(|s| s.token).collect();
        positions = running.iter().map(|s| s.position as i32).collect();
        last_rows = (0..running.len() as i32).collect();
        segments = running
            .iter_mut()
            .enumerate()
            .map(|(row, sequence)| {
                let prefix_len = sequence.position as i32;
                sequence.position += 1;
                Segment {
                    q_start: row as i32,
                    q_len: 1,
                    kv_start: sequence.cache as i32 + prefix_len,
                    prefix_start: sequence.cache as i32,
                    prefix_len,
                }
            })
            .collect();
    }
}
