//! The gradient, with the probabilities recomputed from the saved `lse`, as in FlashAttention-2
//! (Dao 2023, arXiv:2307.08691). The lanes of a vector are keys.
//!
//! Every item has gradients of keys and values of its own. Those of keys that several items see are
//! added up afterwards, row by row in the order of the items: no two threads add to one place.

use std::array::from_fn;

use super::add_up::add_up;
use super::pack::{Block, Cells, Inputs, Keys, Lines, from_lanes, panels, to_lanes, unpack};
use super::plan::{self, Item};
use super::tile::{GROUP, ROWS, add_to_items, add_to_lanes, logits};
use super::vector::{before, exp2, mul, transpose};
use crate::device::pool::Values;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Real, Rows, RowsMut};

/// What the forward left, and the gradient of its output.
pub struct Saved<'a, T: Element> {
    /// `[T, heads head_dim]`
    pub dout: Rows<'a, T>,
    /// `[T, heads head_dim]`
    pub out: Rows<'a, T>,
    /// `[T, heads]`
    pub lse: Rows<'a, T::Stat>,
}

/// See [`super::backward`].
pub fn run<T: Element>(inputs: &Inputs<'_, T>, saved: &Saved<'_, T>, dqkv: RowsMut<'_, T>) {
    if inputs.heads.head_dim <= 8 {
        run_panels::<T, 8>(inputs, saved, dqkv);
    } else {
        run_panels::<T, 16>(inputs, saved, dqkv);
    }
}

/// An item, and what becomes of its gradients of keys and values.
struct Job<'a, R, const W: usize> {
    item: &'a Item,
    /// The gradients of the first `shared` keys are for [`add_up`]; the others are the results.
    shared: usize,
    /// `[dk, dv][panels][shared][W]`, `=`, dk times log2 e
    dkv: &'a mut [[R; W]],
}

fn run_panels<T: Element, const W: usize>(
    inputs: &Inputs<'_, T>,
    saved: &Saved<'_, T>,
    mut dqkv: RowsMut<'_, T>,
) {
    let panels = inputs.heads.head_dim.div_ceil(W);
    let items = plan::items(inputs.segments, &inputs.heads);
    let shared = plan::shared_keys(inputs.segments, &items, dqkv.rows);
    let mut arena = Values::unset(2 * panels * shared.iter().sum::<usize>() * W);
    let arena = arena.as_chunks_mut::<W>().0;

    let mut rest = &mut *arena;
    let mut jobs = Vec::with_capacity(items.len());
    for (item, &shared) in items.iter().zip(&shared) {
        let (dkv, tail) = rest.split_at_mut(2 * panels * shared);
        rest = tail;
        jobs.push(Job { item, shared, dkv });
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.item.cost()));
    let RowsMut { data, rows, cols, stride } = &mut dqkv;
    let cells = Cells::new(RowsMut { data, rows: *rows, cols: *cols, stride: *stride });
    plan::run(jobs, Scratch::default, |scratch, job| {
        dispatch(DifferentiateItem { inputs, saved, job, scratch, dqkv: &cells });
    });
    add_up(inputs, &items, &shared, arena, dqkv);
}

#[derive(Default)]
struct Scratch<R> {
    /// `[panels][keys, padded][W]`
    k: Lines<R>,
    v: Lines<R>,
    /// `[strips][panels][W][N]`
    kt: Lines<R>,
    vt: Lines<R>,
    dkt: Lines<R>,
    dvt: Lines<R>,
    /// `[panels][ROWS][W]`
    q: Lines<R>,
    dout: Lines<R>,
    out: Lines<R>,
    dq: Lines<R>,
    /// `[ROWS][N]`
    p: Lines<R>,
    ds: Lines<R>,
}

struct DifferentiateItem<'a, 'j, T: Element, const W: usize> {
    inputs: &'a Inputs<'a, T>,
    saved: &'a Saved<'a, T>,
    job: Job<'j, T::Stat, W>,
    scratch: &'a mut Scratch<T::Stat>,
    dqkv: &'a Cells<'a, T>,
}

impl<T: Element, const W: usize> Kernel for DifferentiateItem<'_, '_, T, W> {
    type Output = ();
    const WIDE: bool = true;

    #[inline(always)]
    fn run<I: Isa>(self) {
        if I::BITS == 512 { self.differentiate::<I, 16>() } else { self.differentiate::<I, 8>() }
    }
}

impl<T: Element, const W: usize> DifferentiateItem<'_, '_, T, W> {
    #[inline(always)]
    fn differentiate<I: Isa, const N: usize>(self) {
        let DifferentiateItem { inputs, saved, job, scratch, dqkv } = self;
        let Job { item, shared, dkv } = job;
        let (heads, segment) = (&inputs.heads, &inputs.segments[item.segment]);
        let d = heads.head_dim;
        let (one, zero) = (T::Stat::ONE, T::Stat::ZERO);
        let scale = T::Stat::of(heads.scale);
        let to_log2 = T::Stat::of(heads.scale * std::f64::consts::LOG2_E);
        let log2_e = T::Stat::of(std::f64::consts::LOG2_E);
        let padded = item.keys.next_multiple_of(N);
        let width = d.div_ceil(W) * W;
        let [k, v] =
            [&mut scratch.k, &mut scratch.v].map(|lines| lines.get::<W>(width / W * padded));
        panels(&Keys::new(inputs.k, segment, heads, item), one, d, padded, k);
        panels(&Keys::new(inputs.v, segment, heads, item), one, d, padded, v);
        let [kt, vt, dkt, dvt] =
            [&mut scratch.kt, &mut scratch.vt, &mut scratch.dkt, &mut scratch.dvt]
                .map(|lines| lines.get::<N>(padded / N * width));
        to_lanes::<I, _, W, N>(k, padded, kt);
        to_lanes::<I, _, W, N>(v, padded, vt);
        dkt.fill([zero; N]);
        dvt.fill([zero; N]);
        let [q, dout, out, dq] =
            [&mut scratch.q, &mut scratch.dout, &mut scratch.out, &mut scratch.dq]
                .map(|lines| lines.get::<W>(width / W * ROWS));
        let [p, ds] = [&mut scratch.p, &mut scratch.ds]
            .map(|lines| lines.get::<N>(ROWS).first_chunk_mut().expect("its length"));
        for block in Block::<ROWS>::of(segment, inputs.group(), item) {
            panels(&block.slices(inputs.q, d), to_log2, d, ROWS, q);
            panels(&block.slices(saved.dout, d), one, d, ROWS, dout);
            panels(&block.slices(saved.out, d), one, d, ROWS, out);
            let delta = minus_dots::<I, _, W>(dout, out);
            // Rows past the last have no probabilities.
            let mut lse = [T::Stat::NEG_INFINITY; ROWS];
            for (r, lse) in lse[..block.rows].iter_mut().enumerate() {
                *lse = -saved.lse.row(block.row[r])[block.head[r]] * log2_e;
            }
            dq.fill([zero; W]);
            let differentiate = Differentiate {
                q,
                dout,
                k,
                kt,
                vt,
                minus_lse: &lse,
                minus_delta: &delta,
                keys: &block.keys[..block.rows],
                p,
                ds,
                dq,
                dkt,
                dvt,
            };
            differentiate.run::<I>();
            for r in 0..block.rows {
                // SAFETY: segments do not overlap, so only this block has this row and head.
                let to = unsafe { dqkv.slice(block.row[r], block.head[r] * d, d) };
                unpack(dq, ROWS, r, scale, to);
            }
        }
        from_lanes::<I, _, W, N>(dkt, padded, k);
        from_lanes::<I, _, W, N>(dvt, padded, v);
        if shared > 0 {
            let panels = k.chunks_exact(padded).chain(v.chunks_exact(padded));
            for (to, from) in dkv.chunks_exact_mut(shared).zip(panels) {
                to.copy_from_slice(&from[..shared]);
            }
        }
        let col = heads.q_cols() + item.kv_head * d;
        for key in shared..item.keys {
            let row = segment.kv_start as usize + key - segment.prefix_len as usize;
            // SAFETY: no other item sees these keys, and queries have other columns.
            let (to_k, to_v) =
                unsafe { (dqkv.slice(row, col, d), dqkv.slice(row, col + heads.kv_cols(), d)) };
            unpack(k, padded, key, T::Stat::of(std::f64::consts::LN_2), to_k);
            unpack(v, padded, key, one, to_v);
        }
    }
}

/// The products of the rows of two panels, negated.
#[inline(always)]
fn minus_dots<I: Isa, R: Real, const W: usize>(a: &[[R; W]], b: &[[R; W]]) -> [R; ROWS] {
    const GROUP: usize = 8;
    let mut dots = [R::ZERO; ROWS];
    for (at, dots) in dots.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        let mut sums = [[R::ZERO; W]; GROUP];
        for (a, b) in a.chunks_exact(ROWS).zip(b.chunks_exact(ROWS)) {
            for ((sum, a), b) in sums.iter_mut().zip(&a[at * GROUP..]).zip(&b[at * GROUP..]) {
                for i in 0..W {
                    sum[i] = I::fma(a[i], b[i], sum[i]);
                }
            }
        }
        let mut columns = [[R::ZERO; GROUP]; W];
        transpose::<I, R, W, GROUP>(&sums, &mut columns);
        for column in columns {
            for i in 0..GROUP {
                dots[i] -= column[i];
            }
        }
    }
    dots
}

/// One block against all its keys.
struct Differentiate<'a, R, const W: usize, const N: usize> {
    /// `[panels][ROWS][W]`, times the scale and log2 e.
    q: &'a [[R; W]],
    dout: &'a [[R; W]],
    /// `[panels][keys, padded][W]`
    k: &'a [[R; W]],
    /// `[strips][panels][W][N]`
    kt: &'a [[R; N]],
    vt: &'a [[R; N]],
    /// Base 2.
    minus_lse: &'a [R; ROWS],
    /// `-rowsum(dout out)`
    minus_delta: &'a [R; ROWS],
    /// Of each row, never fewer than the row before.
    keys: &'a [usize],
    p: &'a mut [[R; N]; ROWS],
    ds: &'a mut [[R; N]; ROWS],
    /// `+=`
    dq: &'a mut [[R; W]],
    /// `+=`, times log2 e
    dkt: &'a mut [[R; N]],
    /// `+=`
    dvt: &'a mut [[R; N]],
}

impl<R: Real, const W: usize, const N: usize> Differentiate<'_, R, W, N> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Differentiate { q, dout, k, kt, vt, minus_lse, minus_delta, keys, .. } = self;
        let Differentiate { p, ds, dq, dkt, dvt, .. } = self;
        let width = q.len() / ROWS * W;
        let padded = k.len() / (width / W);
        let to = keys.len().next_multiple_of(GROUP);
        // The first row that sees the strip's first key, and the first that sees its last.
        let (mut some, mut all) = (0, 0);
        for (s, first) in (0..keys[keys.len() - 1]).step_by(N).enumerate() {
            let strip = s * width..(s + 1) * width;
            while keys[some] <= first {
                some += 1;
            }
            while all < keys.len() && keys[all] < first + N {
                all += 1;
            }
            let from = some / GROUP * GROUP;
            let at = from_fn(|n| R::of(n as f64));
            logits::<I, R, W, N>((q, ROWS), &kt[strip.clone()], (from, to), |r| minus_lse[r], p);
            logits::<I, R, W, N>(
                (dout, ROWS),
                &vt[strip.clone()],
                (from, to),
                |r| minus_delta[r],
                ds,
            );
            for r in from..all {
                let seen = R::of(keys[r].saturating_sub(first) as f64);
                p[r] = before::<I, R, N>(&p[r], &at, &[seen; N]);
            }
            for (p, ds) in p[from..to].iter_mut().zip(&mut ds[from..to]) {
                *p = exp2::<I, R, N>(p);
                *ds = mul::<I, R, N>(p, ds);
            }
            let rows = from..to;
            let (dkt, dvt) = (&mut dkt[strip.clone()], &mut dvt[strip]);
            let (dkt, dvt) = (dkt.as_chunks_mut::<W>().0, dvt.as_chunks_mut::<W>().0);
            for (at, (dkt, dvt)) in dkt.iter_mut().zip(dvt).enumerate() {
                let block = at * ROWS + from..at * ROWS + to;
                let k = k[at * padded + first..].first_chunk().expect("keys are padded");
                add_to_items::<I, R, W, N>(ds, k, (from, to), &mut dq[at * ROWS..][..ROWS]);
                add_to_lanes::<I, R, W, N>(&dout[block.clone()], &p[rows.clone()], dvt);
                add_to_lanes::<I, R, W, N>(&q[block], &ds[rows.clone()], dkt);
            }
        }
    }
}
