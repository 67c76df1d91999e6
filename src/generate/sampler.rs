use crate::device::simd::{Isa, Kernel, dispatch, exp};
use crate::rng::Rng;
use crate::{Element, Error, Real, Result};

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

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, f32::NEG_INFINITY];

    fn support(sampling: &Sampling) -> Vec<i32> {
        let mut seen: Vec<i32> =
            (0..2000).map(|draw| sampling.next(&LOGITS, 3, draw).unwrap()).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::greedy() }
    }

    #[test]
    fn filters_keep_what_they_say() {
        assert_eq!(support(&Sampling::greedy()), [1]);
        assert_eq!(support(&warm()), [0, 1, 2]);
        assert_eq!(support(&Sampling { top_k: 2, ..warm() }), [1, 2]);
        // Probabilities .665 .245 .090.
        assert_eq!(support(&Sampling { top_p: 0.66, ..warm() }), [1]);
        assert_eq!(support(&Sampling { top_p: 0.67, ..warm() }), [1, 2]);
        assert_eq!(support(&Sampling { min_p: 0.3, ..warm() }), [1, 2]);
        assert_eq!(support(&Sampling { min_p: 0.3, top_p: 0.95, ..warm() }), [1, 2]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let sampling = Sampling { temperature: 2.0, ..warm() };
        let draws = 20_000;
        let ones = (0..draws).filter(|&d| sampling.next(&LOGITS, 0, d).unwrap() == 1).count();
        let expected = 1.0 / (1.0 + (-0.5f64).exp() + (-1.0f64).exp());
        let sigma = (expected * (1.0 - expected) / draws as f64).sqrt();
        assert!((ones as f64 / draws as f64 - expected).abs() < 4.0 * sigma);
    }

    #[test]
    fn a_draw_is_fixed_by_seed_sequence_and_position() {
        let sampling = Sampling { seed: 9, ..warm() };
        let draw = |s, d| sampling.next(&LOGITS, s, d).unwrap();
        let once: Vec<i32> = (0..64).map(|d| draw(1, d)).collect();
        let again: Vec<i32> = (0..64).map(|d| draw(1, d)).collect();
        assert_eq!(once, again);
        assert_ne!(once, (0..64).map(|d| draw(2, d)).collect::<Vec<_>>());
    }

    #[test]
    fn nan_is_an_error() {
        assert!(warm().next(&[f32::NAN, 0.0], 0, 0).is_err());
        assert!(Sampling { top_p: f64::NAN, ..warm() }.validate().is_err());
    }
}
