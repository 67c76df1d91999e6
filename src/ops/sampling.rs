//! The next token from logits.
//!
//! On a GPU probabilities are counted in whole shares of 2^-45 of the likeliest token's: a token
//! less likely than that is never drawn, and a draw differs from the CPU's only where it falls on
//! the rounding of a sum.

#[cfg(test)]
mod tests;

use crate::device::Cuda;
use crate::device::simd::{Isa, Kernel, dispatch, exp};
use crate::ffi::{self, launch};
use crate::rng::Rng;
use crate::{Element, Error, Real, Result, Tensor, View};

const OP: &str = "sampling";

/// Which of its random numbers a sequence uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The sequence's number.
    pub sequence: u64,
    /// How many it has drawn before.
    pub number: u64,
}

/// How the next token is drawn. Filters apply in Hugging Face's order: temperature, top-k, top-p,
/// min-p; each sees the probabilities that the one before it left, renormalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token (greedy).
    pub temperature: f64,
    /// Only the `k` most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities reach `p` together; 1: all.
    pub top_p: f64,
    /// Only tokens at least this share as likely as the most likely one; 0: all.
    pub min_p: f64,
    /// With the sequence's number and the position it fixes every draw.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }

    /// Checks every range.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, value: f64, expected: &str, ok: bool| match ok {
            true => Ok(()),
            false => Err(Error::setting(name, expected, value)),
        };
        let (t, p, m) = (self.temperature, self.top_p, self.min_p);
        check("temperature", t, "a number >= 0", t.is_finite() && t >= 0.0)?;
        check("top_p", p, "0 < p <= 1", p > 0.0 && p <= 1.0)?;
        check("min_p", m, "0 <= p <= 1", (0.0..=1.0).contains(&m))
    }

    /// The token after each row of `logits` `[N, V]`, `[N, 1]`, by the draw of each.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::NonFinite`] for a row with NaN or +inf, or with nothing but -inf.
    /// On a GPU such a row's token is -1, and the error an [`Error::Kernel`] of the next
    /// synchronisation.
    pub fn rows<T: Element>(&self, logits: View<T>, draws: &[Draw]) -> Result<Tensor<i32>> {
        logits.expect(OP, "logits", draws.len(), logits.cols())?;
        if let Some(cuda) = logits.cuda() {
            return launch_rows(cuda, self, logits, draws);
        }
        let logits = logits.host(OP)?;
        let tokens = draws.iter().enumerate();
        let tokens =
            tokens.map(|(row, draw)| self.next(logits.row(row), draw.sequence, draw.number));
        Tensor::from_vec(tokens.collect::<Result<_>>()?, draws.len(), 1)
    }

    /// The token after `logits`, as draw number `draw` of sequence `sequence`. Ties go to the
    /// lower id.
    pub fn next<T: Element>(&self, logits: &[T], sequence: u64, draw: u64) -> Result<i32> {
        let bad = || {
            Error::NonFinite(format!(
                "sequence {sequence}: a logit is not a number, or all are -inf"
            ))
        };
        let (top, odds) = dispatch(Odds { logits, temperature: self.temperature });
        let total: f64 = odds.iter().map(|odds| odds.f64()).sum();
        if !(total.is_finite() && total > 0.0) {
            return Err(bad());
        }
        let likelier = |&a: &usize, &b: &usize| {
            let (x, y) = (logits[a].to_stat().f64(), logits[b].to_stat().f64());
            y.total_cmp(&x).then(a.cmp(&b))
        };
        if self.temperature == 0.0 {
            let best = logits.iter().position(|logit| logit.to_stat() == top);
            return best.map(|best| best as i32).ok_or_else(bad);
        }
        let uniform = Rng::at(self.seed, sequence, 2 * draw).uniform();
        if self.top_k == 0 && self.top_p == 1.0 && self.min_p == 0.0 {
            let all = odds.iter().map(|odds| odds.f64()).enumerate();
            return pick(all, uniform * total).ok_or_else(bad);
        }
        let mut ids: Vec<usize> = (0..odds.len()).collect();
        if self.top_k > 0 && self.top_k < ids.len() {
            ids.select_nth_unstable_by(self.top_k - 1, likelier);
            ids.truncate(self.top_k);
        }
        ids.sort_unstable_by(likelier);
        let sum = |ids: &[usize]| ids.iter().map(|&id| odds[id].f64()).sum::<f64>();
        if self.top_p < 1.0 {
            let goal = self.top_p * sum(&ids);
            let mut reached = 0.0;
            let kept = ids.iter().take_while(|&&id| (reached < goal, reached += odds[id].f64()).0);
            ids.truncate(kept.count().max(1));
        }
        // The likeliest has odds of 1.
        ids.retain(|&id| odds[id].f64() >= self.min_p);
        let rest = uniform * sum(&ids);
        pick(ids.iter().map(|&id| (id, odds[id].f64())), rest).ok_or_else(bad)
    }
}

fn launch_rows<T: Element>(
    cuda: &Cuda,
    sampling: &Sampling,
    logits: View<T>,
    draws: &[Draw],
) -> Result<Tensor<i32>> {
    let dtype = ffi::dtype::<T>(OP)?;
    let upload = |word: fn(&Draw) -> u64| {
        let words: Vec<u64> = draws.iter().map(word).collect();
        Tensor::<i32>::column(&cuda.device(), bytemuck::cast_slice(&words))
    };
    let (sequences, numbers) = (upload(|draw| draw.sequence)?, upload(|draw| draw.number)?);
    let sequences_at = sequences.view().on(OP, cuda)?.cast();
    let numbers_at = numbers.view().on(OP, cuda)?.cast();
    let mut tokens = Tensor::unset(cuda, draws.len(), 1)?;
    let (to, from) = (tokens.view_mut().on(OP, cuda)?, logits.on(OP, cuda)?.cast());
    let settings = ffi::collimate_sampling {
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        top_k: i64::try_from(sampling.top_k).unwrap_or(i64::MAX),
        seed: sampling.seed,
    };
    // SAFETY: the sizes are those of the view and of the new tensors, all on this device.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_sample(
                to,
                from,
                sequences_at,
                numbers_at,
                &settings,
                logits.rows() as i64,
                logits.cols() as i64,
                logits.stride() as i64,
                dtype,
                cuda.error_word(),
                cuda.stream(),
            )
        )
    }?;
    Ok(tokens)
}

/// The token in whose share of the odds `rest` falls.
fn pick(odds: impl Iterator<Item = (usize, f64)>, mut rest: f64) -> Option<i32> {
    let mut last = None;
    for (id, odds) in odds.filter(|&(_, odds)| odds > 0.0) {
        last = Some(id as i32);
        rest -= odds;
        if rest < 0.0 {
            break;
        }
    }
    last
}

/// The largest logit, and the probability of every token over that of the likeliest one.
struct Odds<'a, T: Element> {
    logits: &'a [T],
    temperature: f64,
}

impl<T: Element> Kernel for Odds<'_, T> {
    type Output = (T::Stat, Vec<T::Stat>);

    #[inline(always)]
    fn run<I: Isa>(self) -> (T::Stat, Vec<T::Stat>) {
        let mut top = T::Stat::NEG_INFINITY;
        for logit in self.logits {
            let logit = logit.to_stat();
            top = if logit > top { logit } else { top };
        }
        // Greedy asks for the largest logit alone.
        let scale = T::Stat::of(if self.temperature > 0.0 { 1.0 / self.temperature } else { 1.0 });
        let mut odds = vec![T::Stat::ZERO; self.logits.len()];
        for (odds, logit) in odds.iter_mut().zip(self.logits) {
            *odds = exp::<I, _>((logit.to_stat() - top) * scale);
        }
        (top, odds)
    }
}
