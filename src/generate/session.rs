use super::GenerateOptions;
use crate::nn::{Decoder, KvCache, LmHead, Segment, Weights};
use crate::ops::sampling::Draw;
use crate::{Element, Error, Result};

/// One sequence that grows, as a conversation does: keys and values of the tokens that a prompt has in
/// common with what came before it are not computed again.
///
/// ```
/// use collimate::generate::{GenerateOptions, Sampling, Session};
/// use collimate::models::init_weights;
/// # use collimate::nn::{Decoder, DecoderConfig, RopeConfig, RopeScaling};
/// # fn main() -> collimate::Result<()> {
/// # let rope = RopeConfig { theta: 1e4, scaling: RopeScaling::None };
/// # let config = DecoderConfig { vocab: 16, hidden: 8, layers: 1, heads: 1, kv_heads: 1, head_dim: 8, ff: 8,
/// #     rms_eps: 1e-5, rope, tied: true, qkv_bias: false, qk_norm: false, max_positions: 32, padding: None };
/// let (decoder, table) = Decoder::new(config)?;
/// let weights = init_weights::<f32>(&table, 1, &collimate::Device::Cpu)?;
/// let mut session = Session::new(&decoder, &weights);
/// let options =
///     GenerateOptions { sampling: Sampling::greedy(), max_new_tokens: 4, eos: vec![2], batch_size: 1 };
/// let mut shown = Vec::new();
/// let answer = session.generate(&[1, 5, 7], &options, &mut |token| {
///     shown.push(token);
///     true
/// })?;
/// assert_eq!(answer, shown);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Session<'a, T: Element> {
    decoder: &'a Decoder,
    weights: &'a Weights<T>,
    cache: Option<KvCache<T>>,
    /// Rows of the cache.
    rows: usize,
    /// The tokens whose keys and values are in its first rows.
    cached: Vec<i32>,
    /// How many completions were generated: each draws numbers of its own.
    completions: u64,
}

impl<'a, T: Element> Session<'a, T> {
    /// A session that nothing was said in.
    pub fn new(decoder: &'a Decoder, weights: &'a Weights<T>) -> Self {
        let (cache, cached) = (None, Vec::new());
        Session { decoder, weights, cache, rows: 0, cached, completions: 0 }
    }

    /// How many tokens of `prompt` need not be computed again.
    pub fn known(&self, prompt: &[i32]) -> usize {
        let same = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last one's hidden state is what predicts the next token.
        same.min(prompt.len().saturating_sub(1))
    }

    /// A completion of `prompt`, with the token that ended it. Every token is given to `each` as soon as
    /// it is drawn; where that returns false, it is the last one.
    ///
    /// # Errors
    /// [`Error::Setting`] where the prompt is empty or leaves the model no position, or for options out of
    /// their range; [`Error::Device`].
    pub fn generate(
        &mut self,
        prompt: &[i32],
        options: &GenerateOptions,
        each: &mut dyn FnMut(i32) -> bool,
    ) -> Result<Vec<i32>> {
        options.sampling.validate()?;
        let limit = self.decoder.config().max_positions;
        if prompt.is_empty() || prompt.len() >= limit {
            let (expected, got) = (format!("1 to {} tokens", limit - 1), prompt.len());
            return Err(Error::setting("prompt", expected, format!("{got} tokens")));
        }
        let sequence = self.completions;
        self.completions += 1;
        let mut completion = Vec::new();
        let mut tokens = self.make_room(prompt, options.max_new_tokens)?;
        while completion.len() < options.max_new_tokens && self.cached.len() < limit {
            let draw = Draw { sequence, number: completion.len() as u64 };
            let token = self.next(&tokens, options, draw)?;
            completion.push(token);
            if !each(token) || options.eos.contains(&token) {
                break;
            }
            tokens = vec![token];
        }
        Ok(completion)
    }

    /// Keeps what the cache has of the prompt and makes room for the rest, which it returns.
    fn make_room(&mut self, prompt: &[i32], new: usize) -> Result<Vec<i32>> {
        let config = self.decoder.config();
        let needed = prompt.len().saturating_add(new).min(config.max_positions);
        if needed > self.rows {
            // Half as much again, so that a long conversation is not computed anew at every turn.
            self.rows = (needed + needed / 2).min(config.max_positions);
            (self.cache, self.cached) = (None, Vec::new());
        }
        self.cached.truncate(self.known(prompt));
        Ok(prompt[self.cached.len()..].to_vec())
    }

    /// Puts tokens behind those in the cache and draws the one that follows them.
    fn next(&mut self, tokens: &[i32], options: &GenerateOptions, draw: Draw) -> Result<i32> {
        let (decoder, weights) = (self.decoder, self.weights);
        let device = weights.arena().device();
        let mut cache = match self.cache.take() {
            Some(cache) => cache,
            None => KvCache::new(&device, decoder.config(), self.rows)?,
        };
        let (first, n) = (self.cached.len() as i32, tokens.len() as i32);
        let positions: Vec<i32> = (first..first + n).collect();
        let segment =
            Segment { q_start: 0, q_len: n, kv_start: first, prefix_start: 0, prefix_len: first };
        let hidden =
            decoder.decode(weights, tokens, &positions, &vec![segment].into(), &mut cache)?;
        self.cache = Some(cache);
        self.cached.extend_from_slice(tokens);
        let logits = LmHead::logits_of(decoder, weights, &hidden, &[n - 1])?;
        let drawn = options.sampling.rows(logits.view(), &[draw])?.to_vec()?;
        drawn.first().copied().ok_or_else(|| Error::shape("sampling", "a token", "none"))
    }
}
