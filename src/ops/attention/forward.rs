//! Online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) over tiles of keys, as in
//! FlashAttention-2 (Dao 2023, arXiv:2307.08691). The lanes of a vector are rows.

use std::array::from_fn;

use super::pack::{Block, Cells, Inputs, Keys, Lines, from_lanes, panels, to_lanes, unpack};
use super::plan::{self, Item};
use super::tile::{GROUP, KEYS, add_to_lanes, logits, logits_of_few};
use super::vector::{add, before, exp2, larger, mul, sub};
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Real, RowsMut};

/// See [`super::forward`] and [`super::decode`].
pub fn run<T: Element>(
    inputs: &Inputs<'_, T>,
    out: RowsMut<'_, T>,
    lse: Option<RowsMut<'_, T::Stat>>,
) {
    let (out, lse) = (Cells::new(out), lse.map(Cells::new));
    let mut items = plan::items(inputs.segments, &inputs.heads);
    items.sort_by_key(|item| std::cmp::Reverse(item.cost()));
    plan::run(items, Scratch::default, |scratch, item| {
        let (item, out, lse) = (&item, &out, lse.as_ref());
        let attend = AttendItem { inputs, item, scratch, out, lse };
        // A row's bits do not depend on how many are computed beside it.
        match item.queries.len() * inputs.group() {
            ..=2 => dispatch(Few::<T, 2>(attend)),
            3..=4 => dispatch(Few::<T, 4>(attend)),
            _ => dispatch(Many(attend)),
        }
    });
}

#[derive(Default)]
struct Scratch<R> {
    /// `[panels][keys, padded][W]`
    k: Lines<R>,
    v: Lines<R>,
    /// `[panels][N][W]`
    q: Lines<R>,
    out: Lines<R>,
    /// `[panels][W][N]`
    qt: Lines<R>,
    outt: Lines<R>,
    /// `[KEYS][N]`
    tile: Lines<R>,
}

struct AttendItem<'a, T: Element> {
    inputs: &'a Inputs<'a, T>,
    item: &'a Item,
    scratch: &'a mut Scratch<T::Stat>,
    out: &'a Cells<'a, T>,
    lse: Option<&'a Cells<'a, T::Stat>>,
}

/// An item of at most `N` rows, which are fewer than fill a vector: a token's that is decoded.
struct Few<'a, T: Element, const N: usize>(AttendItem<'a, T>);

impl<T: Element, const N: usize> Kernel for Few<'_, T, N> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        self.0.panels::<I, N>()
    }
}

struct Many<'a, T: Element>(AttendItem<'a, T>);

impl<T: Element> Kernel for Many<'_, T> {
    type Output = ();
    const WIDE: bool = true;

    #[inline(always)]
    fn run<I: Isa>(self) {
        if I::BITS == 512 { self.0.panels::<I, 16>() } else { self.0.panels::<I, 8>() }
    }
}

impl<T: Element> AttendItem<'_, T> {
    #[inline(always)]
    fn panels<I: Isa, const N: usize>(self) {
        if self.inputs.heads.head_dim <= 8 {
            self.attend::<I, 8, N>()
        } else {
            self.attend::<I, 16, N>()
        }
    }

    #[inline(always)]
    fn attend<I: Isa, const W: usize, const N: usize>(self) {
        let AttendItem { inputs, item, scratch, out, lse } = self;
        let (heads, segment) = (&inputs.heads, &inputs.segments[item.segment]);
        let d = heads.head_dim;
        let one = T::Stat::ONE;
        let padded = item.keys.next_multiple_of(GROUP);
        let width = d.div_ceil(W) * W;
        let (k, v) =
            (scratch.k.get::<W>(width / W * padded), scratch.v.get::<W>(width / W * padded));
        panels(&Keys::new(inputs.k, segment, heads, item), one, d, padded, k);
        panels(&Keys::new(inputs.v, segment, heads, item), one, d, padded, v);
        let [q, sums] =
            [&mut scratch.q, &mut scratch.out].map(|lines| lines.get::<W>(width / W * N));
        let [qt, outt] = [&mut scratch.qt, &mut scratch.outt].map(|lines| lines.get::<N>(width));
        let tile = scratch.tile.get::<N>(KEYS).first_chunk_mut().expect("its length");
        let to_log2 = T::Stat::of(heads.scale * std::f64::consts::LOG2_E);
        for block in Block::<N>::of(segment, inputs.group(), item) {
            panels(&block.slices(inputs.q, d), to_log2, d, N, q);
            if !few::<N>() {
                to_lanes::<I, _, W, N>(q, N, qt);
            }
            let keys: [usize; N] = from_fn(|n| block.keys[n.min(block.rows - 1)]);
            let attend = Attend { q, qt, k, v, padded, keys: &keys, tile, out: sums, outt };
            let Sums { max, sum } = attend.run::<I>();
            if !few::<N>() {
                from_lanes::<I, _, W, N>(outt, N, sums);
            }
            for r in 0..block.rows {
                // SAFETY: segments do not overlap, so only this block has this row and head.
                let to = unsafe { out.slice(block.row[r], block.head[r] * d, d) };
                unpack(sums, N, r, one / sum[r], to);
                if let Some(lse) = lse {
                    let log = max[r].f64() * std::f64::consts::LN_2 + sum[r].f64().ln();
                    // SAFETY: as above.
                    let to = unsafe { lse.slice(block.row[r], block.head[r], 1) };
                    to[0] = T::Stat::of(log);
                }
            }
        }
    }
}

/// One block against all its keys.
struct Attend<'a, R, const W: usize, const N: usize> {
    /// Times the scale and log2 e.
    q: &'a [[R; W]],
    /// Of many rows.
    qt: &'a [[R; N]],
    k: &'a [[R; W]],
    v: &'a [[R; W]],
    padded: usize,
    /// Never fewer than the row before.
    keys: &'a [usize; N],
    tile: &'a mut [[R; N]; KEYS],
    /// Of few rows, not yet divided by the sums.
    out: &'a mut [[R; W]],
    /// Of many rows.
    outt: &'a mut [[R; N]],
}

/// Statistics of each row.
struct Sums<R, const N: usize> {
    /// The largest logit, base 2.
    max: [R; N],
    /// The sum of powers of 2, relative to the largest.
    sum: [R; N],
}

/// Whether the rows do not fill a vector.
const fn few<const N: usize>() -> bool {
    N < 8
}

/// Partial sums of a row, which are added up once a tile.
const PARTS: usize = 4;

#[inline(always)]
fn fold<V>([a, b, c, d]: [V; PARTS], op: impl Fn(&V, &V) -> V) -> V {
    op(&op(&a, &b), &op(&c, &d))
}

impl<R: Real, const W: usize, const N: usize> Attend<'_, R, W, N> {
    #[inline(always)]
    fn run<I: Isa>(self) -> Sums<R, N> {
        let Attend { q, qt, k, v, padded, keys, tile, out, outt } = self;
        let (least, most) = (keys[0], keys[N - 1]);
        let mut sums = Sums { max: [R::NEG_INFINITY; N], sum: [R::ZERO; N] };
        out.fill([R::ZERO; W]);
        outt.fill([R::ZERO; N]);
        for first in (0..most).step_by(KEYS) {
            let count = (most - first).next_multiple_of(GROUP).min(KEYS);
            if few::<N>() {
                logits_of_few::<I, R, W, N>((&k[first..], padded), q, count, tile);
            } else {
                logits::<I, R, W, N>((&k[first..], padded), qt, (0, count), |_| R::ZERO, tile);
            }
            let tile = &mut tile[..count];
            let seen: [R; N] = from_fn(|n| R::of(keys[n].saturating_sub(first).min(KEYS) as f64));
            for (j, x) in tile.iter_mut().enumerate().skip(least.saturating_sub(first)) {
                *x = before::<I, R, N>(x, &[R::of(j as f64); N], &seen);
            }
            let mut parts = [sums.max; PARTS];
            for x in tile.as_chunks::<PARTS>().0 {
                parts = from_fn(|i| larger::<I, R, N>(&parts[i], &x[i]));
            }
            let max = fold(parts, larger::<I, R, N>);
            let mut parts = [[R::ZERO; N]; PARTS];
            for x in tile.as_chunks_mut::<PARTS>().0 {
                for (x, part) in x.iter_mut().zip(&mut parts) {
                    *x = exp2::<I, R, N>(&sub::<I, R, N>(x, &max));
                    *part = add::<I, R, N>(part, x);
                }
            }
            let shrink = exp2::<I, R, N>(&sub::<I, R, N>(&sums.max, &max));
            sums.max = max;
            let part = fold(parts, add::<I, R, N>);
            sums.sum = add::<I, R, N>(&mul::<I, R, N>(&sums.sum, &shrink), &part);
            let v = v.chunks_exact(padded).map(|v| &v[first..]);
            if few::<N>() {
                for (out, v) in out.as_chunks_mut::<N>().0.iter_mut().zip(v) {
                    for n in 0..N {
                        out[n] = mul::<I, R, W>(&out[n], &[shrink[n]; W]);
                    }
                    add_to_lanes::<I, R, N, W>(tile, v, out);
                }
            } else {
                for (out, v) in outt.as_chunks_mut::<W>().0.iter_mut().zip(v) {
                    for x in out.iter_mut() {
                        *x = mul::<I, R, N>(x, &shrink);
                    }
                    add_to_lanes::<I, R, W, N>(v, tile, out);
                }
            }
        }
        sums
    }
}
