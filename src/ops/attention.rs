//! Causal attention over the segments of a `nn::Layout`, with grouped queries and
//! shared prefixes.
//!
//! `out = softmax(scale q k^T) v`, head by head. A query sees all keys of its segment's prefix, then
//! the keys of its own segment up to itself. Queries, keys and values lie side by side, as one
//! product made them: `qkv [T, (heads + 2 kv_heads) head_dim]`, columns q, then k, then v.
//!
//! A row's result does not depend on the rows computed beside it: the same bits come from a
//! sequence alone or in a batch, on its own copy of a prompt or on a shared one, in training or
//! decoded token by token against a cache, and on any number of threads. On a GPU that holds but
//! for decoding, which differs from training by rounding.

mod add_up;
mod backward;
mod blocks;
mod device;
#[cfg(test)]
mod device_tests;
mod forward;
mod pack;
mod plan;
mod segments;
#[cfg(test)]
mod tests;
mod tile;
mod vector;

pub use segments::{Segment, Segments};

use crate::device::profile;
use crate::{Element, Error, Result, View, ViewMut};

/// The heads of an attention and the scale of its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the logits, commonly `head_dim^-1/2`.
    pub scale: f64,
}

impl Heads {
    /// These heads with the common scale, `head_dim^-1/2`.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Heads { heads, kv_heads, head_dim, scale: (head_dim as f64).powf(-0.5) }
    }

    /// Columns of the queries, and of the output.
    pub fn q_cols(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys, and of the values.
    pub fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Products of a query's and a key's elements, over all heads. Segments are not checked.
    fn pairs(&self, segments: &[Segment]) -> usize {
        let pairs = segments.iter().map(|s| {
            let (own, prefix) = (s.q_len.max(0) as usize, s.prefix_len.max(0) as usize);
            own.saturating_mul(prefix).saturating_add(own * (own + 1) / 2)
        });
        let pairs = pairs.fold(0usize, usize::saturating_add);
        pairs.saturating_mul(self.heads).saturating_mul(self.head_dim).min(usize::MAX / 16)
    }

    fn check(&self, op: &'static str) -> Result<()> {
        let Heads { heads, kv_heads, head_dim, .. } = *self;
        let bounded = |n: usize| (1..=1 << 20).contains(&n);
        if bounded(heads) && bounded(kv_heads) && bounded(head_dim) && heads % kv_heads == 0 {
            return Ok(());
        }
        Err(Error::shape(
            op,
            "heads a multiple of kv_heads, and a head_dim",
            format!("{heads} heads, {kv_heads} kv_heads, head_dim {head_dim}"),
        ))
    }
}

/// Training: every sequence of a batch at once.
///
/// - `qkv`: `[T, (heads + 2 kv_heads) head_dim]`
/// - `segments`: cover the T rows without overlap; `kv_start == q_start`
/// - `out`: `[T, heads head_dim]`, `=`
/// - `lse`: `[T, heads]`, `=`, the natural logarithm of each softmax's denominator, for
///   [`backward`]
///
/// # Errors
/// [`Error::Shape`] where shapes or segments do not fit.
pub fn forward<T: Element>(
    qkv: View<'_, T>,
    segments: &Segments,
    heads: &Heads,
    out: ViewMut<'_, T>,
    lse: ViewMut<'_, T::Stat>,
) -> Result<()> {
    let _scope = profile::scope("attention", 4 * heads.pairs(segments), 0);
    const OP: &str = "attention";
    heads.check(OP)?;
    let rows = qkv.rows();
    let (q_cols, kv_cols) = (heads.q_cols(), heads.kv_cols());
    qkv.expect(OP, "qkv", rows, q_cols + 2 * kv_cols)?;
    out.expect(OP, "out", rows, q_cols)?;
    lse.expect(OP, "lse", rows, heads.heads)?;
    plan::check_training(OP, segments, rows)?;
    let [q, k, v] = split(qkv, heads)?;
    if let Some(cuda) = qkv.cuda() {
        return device::forward(OP, cuda, [q, k, v], segments, heads, out, Some(lse));
    }
    let inputs =
        pack::Inputs { q: q.host(OP)?, k: k.host(OP)?, v: v.host(OP)?, segments, heads: *heads };
    forward::run(&inputs, out.host(OP)?, Some(lse.host(OP)?));
    Ok(())
}

/// The gradient of [`forward`].
///
/// - `dout`: `[T, heads head_dim]`
/// - `qkv`, `segments`, `heads`: as [`forward`] got them
/// - `out`, `lse`: as [`forward`] left them
/// - `dqkv`: `[T, (heads + 2 kv_heads) head_dim]`, `=`, columns as in `qkv`
///
/// Gradients of a prefix are added up in the order of the segments that share it.
///
/// # Errors
/// [`Error::Shape`] where shapes or segments do not fit.
pub fn backward<T: Element>(
    dout: View<'_, T>,
    qkv: View<'_, T>,
    out: View<'_, T>,
    lse: View<'_, T::Stat>,
    segments: &Segments,
    heads: &Heads,
    dqkv: ViewMut<'_, T>,
) -> Result<()> {
    let _scope = profile::scope("attention backward", 10 * heads.pairs(segments), 0);
    const OP: &str = "attention_backward";
    heads.check(OP)?;
    let rows = qkv.rows();
    let (q_cols, kv_cols) = (heads.q_cols(), heads.kv_cols());
    qkv.expect(OP, "qkv", rows, q_cols + 2 * kv_cols)?;
    dout.expect(OP, "dout", rows, q_cols)?;
    out.expect(OP, "out", rows, q_cols)?;
    lse.expect(OP, "lse", rows, heads.heads)?;
    dqkv.expect(OP, "dqkv", rows, q_cols + 2 * kv_cols)?;
    plan::check_training(OP, segments, rows)?;
    let [q, k, v] = split(qkv, heads)?;
    if let Some(cuda) = qkv.cuda() {
        let saved = device::Saved { dout, out, lse };
        return device::backward(OP, cuda, [q, k, v], segments, heads, &saved, dqkv);
    }
    let inputs =
        pack::Inputs { q: q.host(OP)?, k: k.host(OP)?, v: v.host(OP)?, segments, heads: *heads };
    let saved = backward::Saved { dout: dout.host(OP)?, out: out.host(OP)?, lse: lse.host(OP)? };
    backward::run(&inputs, &saved, dqkv.host(OP)?);
    Ok(())
}

/// Generation: queries against a cache of keys and values.
///
/// - `q`: `[T, heads head_dim]`
/// - `k`, `v`: `[Tk, kv_heads head_dim]`, the cache; it already holds the rows' own keys
/// - `segments`: cover the T rows without overlap; `kv_start` and the prefix are rows of the cache
/// - `out`: `[T, heads head_dim]`, `=`; the bits that [`forward`] gives
///
/// # Errors
/// [`Error::Shape`] where shapes or segments do not fit.
pub fn decode<T: Element>(
    q: View<'_, T>,
    k: View<'_, T>,
    v: View<'_, T>,
    segments: &Segments,
    heads: &Heads,
    out: ViewMut<'_, T>,
) -> Result<()> {
    let _scope = profile::scope("attention decode", 4 * heads.pairs(segments), 0);
    const OP: &str = "attention_decode";
    heads.check(OP)?;
    let (q_cols, kv_cols) = (heads.q_cols(), heads.kv_cols());
    q.expect(OP, "q", q.rows(), q_cols)?;
    k.expect(OP, "k", k.rows(), kv_cols)?;
    v.expect(OP, "v", k.rows(), kv_cols)?;
    out.expect(OP, "out", q.rows(), q_cols)?;
    plan::check(OP, segments, q.rows(), k.rows())?;
    if let Some(cuda) = q.cuda() {
        return device::decode(OP, cuda, [q, k, v], segments, heads, out);
    }
    let inputs =
        pack::Inputs { q: q.host(OP)?, k: k.host(OP)?, v: v.host(OP)?, segments, heads: *heads };
    forward::run(&inputs, out.host(OP)?, None);
    Ok(())
}

/// Queries, keys and values of `qkv`.
fn split<'a, T: Element>(qkv: View<'a, T>, heads: &Heads) -> Result<[View<'a, T>; 3]> {
    let (q_cols, kv_cols) = (heads.q_cols(), heads.kv_cols());
    Ok([
        qkv.cols_range(0, q_cols)?,
        qkv.cols_range(q_cols, kv_cols)?,
        qkv.cols_range(q_cols + kv_cols, kv_cols)?,
    ])
}
