//! Online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) over tiles of keys, as in
//! FlashAttention-2 (Dao 2023, arXiv:2307.08691).

use std::array::from_fn;

use super::exp::exp2;
use super::pack::{Block, Cells, Inputs, Keys, panels, strips, unpack};
use super::plan::{self, Item};
use super::tile::{KEYS, LANES, ROWS, STRIP, Tile, add_to_rows, by_lanes, fold, larger, logits};
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Real, RowsMut};

/// See [`super::forward`] and [`super::decode`].
pub fn run<T: Element>(
    inputs: &Inputs<'_, T>,
    out: RowsMut<'_, T>,
    lse: Option<RowsMut<'_, T::Stat>>,
) {
    if inputs.heads.head_dim <= LANES {
        run_panels::<T, LANES>(inputs, out, lse);
    } else {
        run_panels::<T, STRIP>(inputs, out, lse);
    }
}

fn run_panels<T: Element, const W: usize>(
    inputs: &Inputs<'_, T>,
    out: RowsMut<'_, T>,
    lse: Option<RowsMut<'_, T::Stat>>,
) {
    let (out, lse) = (Cells::new(out), lse.map(Cells::new));
    let mut items = plan::items(inputs.segments, &inputs.heads);
    items.sort_by_key(|item| std::cmp::Reverse(item.cost()));
    plan::run(items, Scratch::<T::Stat, W>::new, |scratch, item| {
        let (item, out, lse) = (&item, &out, lse.as_ref());
        dispatch(AttendItem { inputs, item, scratch, out, lse });
    });
}

struct Scratch<R, const W: usize> {
    /// `[strips][d][STRIP]`
    k: Vec<[R; STRIP]>,
    /// `[panels][keys][W]`
    v: Vec<[R; W]>,
    /// `[panels][ROWS][W]`
    q: Vec<[R; W]>,
    out: Vec<[R; W]>,
    tile: Box<Tile<R>>,
}

impl<R: Real, const W: usize> Scratch<R, W> {
    fn new() -> Self {
        let tile = Box::new([[R::ZERO; KEYS]; ROWS]);
        Scratch { k: vec![], v: vec![], q: vec![], out: vec![], tile }
    }
}

struct AttendItem<'a, T: Element, const W: usize> {
    inputs: &'a Inputs<'a, T>,
    item: &'a Item,
    scratch: &'a mut Scratch<T::Stat, W>,
    out: &'a Cells<'a, T>,
    lse: Option<&'a Cells<'a, T::Stat>>,
}

impl<T: Element, const W: usize> Kernel for AttendItem<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let AttendItem { inputs, item, scratch, out, lse } = self;
        let (heads, segment) = (&inputs.heads, &inputs.segments[item.segment]);
        let d = heads.head_dim;
        let one = T::Stat::ONE;
        strips(&Keys::new(inputs.k, segment, heads, item), d, &mut scratch.k);
        panels(&Keys::new(inputs.v, segment, heads, item), one, item.keys, d, &mut scratch.v);
        scratch.out.resize(d.div_ceil(W) * ROWS, [T::Stat::ZERO; W]);
        let to_log2 = T::Stat::of(heads.scale * std::f64::consts::LOG2_E);
        for block in Block::of(segment, inputs.group(), item) {
            panels(&block.slices(inputs.q, d), to_log2, ROWS, d, &mut scratch.q);
            let sums = dispatch(Attend {
                d,
                q: &scratch.q,
                k: &scratch.k,
                v: &scratch.v,
                keys: &block.keys[..block.rows],
                tile: &mut scratch.tile,
                out: &mut scratch.out,
            });
            for r in 0..block.rows {
                let (row, head) = (block.row[r], block.head[r]);
                // SAFETY: segments do not overlap, so only this block has this row and head.
                let to = unsafe { out.slice(row, head * d, d) };
                unpack(&scratch.out, ROWS, r, one / sums.sum[r], to);
                if let Some(lse) = lse {
                    let log = sums.max[r].f64() * std::f64::consts::LN_2 + sums.sum[r].f64().ln();
                    // SAFETY: as above.
                    let to = unsafe { lse.slice(row, head, 1) };
                    to[0] = T::Stat::of(log);
                }
            }
        }
    }
}

/// One block against all its keys.
struct Attend<'a, R, const W: usize> {
    d: usize,
    /// Times the scale and log2 e.
    q: &'a [[R; W]],
    k: &'a [[R; STRIP]],
    v: &'a [[R; W]],
    keys: &'a [usize],
    tile: &'a mut Tile<R>,
    /// Not yet divided by the sums.
    out: &'a mut [[R; W]],
}

/// Statistics of each row.
struct Sums<R> {
    /// The largest logit, base 2.
    max: [R; ROWS],
    /// The sum of powers of 2, relative to the largest.
    sum: [R; ROWS],
}

impl<R: Real, const W: usize> Kernel for Attend<'_, R, W> {
    type Output = Sums<R>;

    #[inline(always)]
    fn run<I: Isa>(self) -> Sums<R> {
        let Attend { d, q, k, v, keys, tile, out } = self;
        let (rows, total) = (keys.len(), keys[keys.len() - 1]);
        let all_keys = v.len() / d.div_ceil(W);
        let mut sums = Sums { max: [R::NEG_INFINITY; ROWS], sum: [R::ZERO; ROWS] };
        out.fill([R::ZERO; W]);
        for first in (0..total).step_by(KEYS) {
            let seen_by: [usize; ROWS] = from_fn(|r| match keys.get(r) {
                Some(keys) => keys.saturating_sub(first).min(KEYS),
                None => 0,
            });
            let seen = &seen_by[..rows];
            let start = seen.iter().position(|&n| n > 0).unwrap_or(0) / 2 * 2;
            let limit = seen[rows - 1].next_multiple_of(STRIP);

            logits::<I, R, W>(q, &k[first / STRIP * d..], d, start, seen, tile);
            let mut partial = [[R::NEG_INFINITY; LANES]; ROWS];
            for r in start..rows {
                let row = &mut tile[r][..limit];
                let (lanes, rest) = row.split_at_mut(seen[r].next_multiple_of(LANES));
                rest.fill(R::ZERO);
                lanes[seen[r]..].fill(R::NEG_INFINITY);
                let mut max = [R::NEG_INFINITY; LANES];
                for x in lanes.as_chunks::<LANES>().0 {
                    for i in 0..LANES {
                        max[i] = larger(max[i], x[i]);
                    }
                }
                partial[r] = max;
            }
            let mut shrink = [R::ONE; ROWS];
            for r in start..rows {
                let max = larger(sums.max[r], fold(partial[r], larger));
                shrink[r] = sums.max[r] - max;
                sums.max[r] = max;
            }
            for x in &mut shrink[start..rows] {
                *x = exp2::<I, R>(*x);
            }
            for r in start..rows {
                let max = sums.max[r];
                let lanes = &mut tile[r][..seen[r].next_multiple_of(LANES)];
                let mut sum = [R::ZERO; LANES];
                for x in lanes.as_chunks_mut::<LANES>().0 {
                    let mut y = [R::ZERO; LANES];
                    for i in 0..LANES {
                        y[i] = exp2::<I, R>(x[i] - max);
                    }
                    *x = y;
                    for i in 0..LANES {
                        sum[i] += y[i];
                    }
                    by_lanes();
                }
                partial[r] = sum;
            }
            for r in start..rows {
                sums.sum[r] = I::fma(sums.sum[r], shrink[r], fold(partial[r], |a, b| a + b));
            }
            for (out, v) in out.chunks_exact_mut(ROWS).zip(v.chunks_exact(all_keys)) {
                for r in start..rows {
                    for x in &mut out[r] {
                        *x *= shrink[r];
                    }
                }
                add_to_rows::<I, R, W>(tile, &v[first..], start, seen, out);
            }
        }
        sums
    }
}
