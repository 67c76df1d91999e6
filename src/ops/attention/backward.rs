//! The gradient, with the probabilities recomputed from the saved `lse`, as in FlashAttention-2
//! (Dao 2023, arXiv:2307.08691).
//!
//! Every item has gradients of keys and values of its own. Those of keys that several items see are
//! added up afterwards, row by row in the order of the items: no two threads add to one place.

use std::array::from_fn;

use super::add_up::add_up;
use super::exp::exp2;
use super::pack::{Block, Cells, Inputs, Keys, Slices, panels, strips, unpack};
use super::plan::{self, Item};
use super::tile::{
    KEYS, LANES, ROWS, STRIP, Tile, add_to_keys, add_to_rows, by_lanes, fold, logits,
};
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
    if inputs.heads.head_dim <= LANES {
        run_panels::<T, LANES>(inputs, saved, dqkv);
    } else {
        run_panels::<T, STRIP>(inputs, saved, dqkv);
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
    plan::run(jobs, Scratch::<T::Stat, W>::new, |scratch, job| {
        dispatch(DifferentiateItem { inputs, saved, job, scratch, dqkv: &cells });
    });
    add_up(inputs, &items, &shared, arena, dqkv);
}

struct Scratch<R, const W: usize> {
    /// `[strips][d][STRIP]`
    kt: Vec<[R; STRIP]>,
    vt: Vec<[R; STRIP]>,
    /// `[panels][keys][W]`
    k: Vec<[R; W]>,
    /// `[panels][ROWS][W]`
    q: Vec<[R; W]>,
    dout: Vec<[R; W]>,
    dq: Vec<[R; W]>,
    /// `[panels][keys, padded][W]`
    dk: Vec<[R; W]>,
    dv: Vec<[R; W]>,
    p: Box<Tile<R>>,
    ds: Box<Tile<R>>,
}

impl<R: Real, const W: usize> Scratch<R, W> {
    fn new() -> Self {
        Scratch {
            kt: vec![],
            vt: vec![],
            k: vec![],
            q: vec![],
            dout: vec![],
            dq: vec![],
            dk: vec![],
            dv: vec![],
            p: Box::new([[R::ZERO; KEYS]; ROWS]),
            ds: Box::new([[R::ZERO; KEYS]; ROWS]),
        }
    }
}

struct DifferentiateItem<'a, 'j, T: Element, const W: usize> {
    inputs: &'a Inputs<'a, T>,
    saved: &'a Saved<'a, T>,
    job: Job<'j, T::Stat, W>,
    scratch: &'a mut Scratch<T::Stat, W>,
    dqkv: &'a Cells<'a, T>,
}

impl<T: Element, const W: usize> Kernel for DifferentiateItem<'_, '_, T, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let DifferentiateItem { inputs, saved, job, scratch, dqkv } = self;
        let Job { item, shared, dkv } = job;
        let (heads, segment) = (&inputs.heads, &inputs.segments[item.segment]);
        let d = heads.head_dim;
        let one = T::Stat::ONE;
        let scale = T::Stat::of(heads.scale);
        let to_log2 = T::Stat::of(heads.scale * std::f64::consts::LOG2_E);
        let log2_e = T::Stat::of(std::f64::consts::LOG2_E);
        strips(&Keys::new(inputs.k, segment, heads, item), d, &mut scratch.kt);
        strips(&Keys::new(inputs.v, segment, heads, item), d, &mut scratch.vt);
        panels(&Keys::new(inputs.k, segment, heads, item), one, item.keys, d, &mut scratch.k);
        scratch.dq.resize(d.div_ceil(W) * ROWS, [T::Stat::ZERO; W]);
        let padded = item.keys.next_multiple_of(STRIP);
        for sums in [&mut scratch.dk, &mut scratch.dv] {
            sums.clear();
            sums.resize(d.div_ceil(W) * padded, [T::Stat::ZERO; W]);
        }
        let mut first_row = item.queries.start * inputs.group();
        for block in Block::of(segment, inputs.group(), item) {
            let (q, dout) = (block.slices(inputs.q, d), block.slices(saved.dout, d));
            let out = block.slices(saved.out, d);
            let mut lse = [T::Stat::ZERO; ROWS];
            let mut delta = [T::Stat::ZERO; ROWS];
            for r in 0..block.rows {
                lse[r] = saved.lse.row(block.row[r])[block.head[r]] * log2_e;
                delta[r] = dot::<I, T>(dout.get(r), out.get(r));
            }
            panels(&q, to_log2, ROWS, d, &mut scratch.q);
            panels(&dout, one, ROWS, d, &mut scratch.dout);
            dispatch(Differentiate {
                d,
                q: &scratch.q,
                dout: &scratch.dout,
                kt: &scratch.kt,
                vt: &scratch.vt,
                k: &scratch.k,
                lse: &lse,
                delta: &delta,
                keys: &block.keys[..block.rows],
                first_row: (first_row, inputs.group(), segment.prefix_len as usize),
                p: &mut scratch.p,
                ds: &mut scratch.ds,
                dq: &mut scratch.dq,
                dk: &mut scratch.dk,
                dv: &mut scratch.dv,
            });
            first_row += block.rows;
            for r in 0..block.rows {
                // SAFETY: segments do not overlap, so only this block has this row and head.
                let to = unsafe { dqkv.slice(block.row[r], block.head[r] * d, d) };
                unpack(&scratch.dq, ROWS, r, scale, to);
            }
        }
        let panels = scratch.dk.chunks_exact(padded).chain(scratch.dv.chunks_exact(padded));
        if shared > 0 {
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
            unpack(&scratch.dk, padded, key, T::Stat::of(std::f64::consts::LN_2), to_k);
            unpack(&scratch.dv, padded, key, one, to_v);
        }
    }
}

#[inline(always)]
fn dot<I: Isa, T: Element>(a: &[T], b: &[T]) -> T::Stat {
    let mut sum = [T::Stat::ZERO; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sum[i] = I::fma(a[i].to_stat(), b[i].to_stat(), sum[i]);
        }
    }
    for (sum, (a, b)) in sum.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum = I::fma(a.to_stat(), b.to_stat(), *sum);
    }
    fold(sum, |a, b| a + b)
}

/// One block against all its keys.
struct Differentiate<'a, R, const W: usize> {
    d: usize,
    /// Times the scale and log2 e.
    q: &'a [[R; W]],
    dout: &'a [[R; W]],
    kt: &'a [[R; STRIP]],
    vt: &'a [[R; STRIP]],
    k: &'a [[R; W]],
    /// Base 2.
    lse: &'a [R; ROWS],
    /// `rowsum(dout out)`
    delta: &'a [R; ROWS],
    keys: &'a [usize],
    /// The segment's row that is the block's first, rows per query, keys before the first query.
    first_row: (usize, usize, usize),
    p: &'a mut Tile<R>,
    ds: &'a mut Tile<R>,
    /// `=`
    dq: &'a mut [[R; W]],
    /// `+=`, times log2 e
    dk: &'a mut [[R; W]],
    /// `+=`
    dv: &'a mut [[R; W]],
}

impl<R: Real, const W: usize> Kernel for Differentiate<'_, R, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Differentiate { d, q, dout, kt, vt, k, lse, delta, keys, .. } = self;
        let Differentiate { first_row, p, ds, dq, dk, dv, .. } = self;
        let (rows, total) = (keys.len(), keys[keys.len() - 1]);
        let panels = d.div_ceil(W);
        let (all_keys, padded_keys) = (k.len() / panels, dk.len() / panels);
        dq.fill([R::ZERO; W]);
        for first in (0..total).step_by(KEYS) {
            let seen_by: [usize; ROWS] = from_fn(|r| match keys.get(r) {
                Some(keys) => keys.saturating_sub(first).min(KEYS),
                None => 0,
            });
            let seen = &seen_by[..rows];
            let start = seen.iter().position(|&n| n > 0).unwrap_or(0) / 2 * 2;
            let most = seen[rows - 1];
            let limit = most.next_multiple_of(STRIP);

            logits::<I, R, W>(q, &kt[first / STRIP * d..], d, start, seen, p);
            logits::<I, R, W>(dout, &vt[first / STRIP * d..], d, start, seen, ds);
            for r in start..rows {
                let (lse, delta) = (lse[r], delta[r]);
                let lanes = seen[r].next_multiple_of(LANES);
                let (p, p_rest) = p[r][..limit].split_at_mut(lanes);
                let (ds, ds_rest) = ds[r][..limit].split_at_mut(lanes);
                p_rest.fill(R::ZERO);
                ds_rest.fill(R::ZERO);
                p[seen[r]..].fill(R::NEG_INFINITY);
                for (p, ds) in p.as_chunks_mut::<LANES>().0.iter_mut().zip(ds.as_chunks_mut().0) {
                    let mut y = [R::ZERO; LANES];
                    let mut dy = [R::ZERO; LANES];
                    for i in 0..LANES {
                        y[i] = exp2::<I, R>(p[i] - lse);
                    }
                    for i in 0..LANES {
                        dy[i] = y[i] * (ds[i] - delta);
                    }
                    (*p, *ds) = (y, dy);
                    by_lanes();
                }
            }
            let (block_start, group, prefix) = first_row;
            let first_row = |j: usize| {
                let query = (first + j).saturating_sub(prefix);
                (query * group).saturating_sub(block_start)
            };
            let of_panel = |at: usize| at * padded_keys + first..(at + 1) * padded_keys;
            for at in 0..panels {
                let block = at * ROWS..at * ROWS + rows;
                let k = &k[at * all_keys + first..(at + 1) * all_keys];
                add_to_rows::<I, R, W>(ds, k, start, seen, &mut dq[at * ROWS..][..ROWS]);
                let (dk, dv) = (&mut dk[of_panel(at)], &mut dv[of_panel(at)]);
                add_to_keys::<I, R, W>(p, &dout[block.clone()], first_row, most, dv);
                add_to_keys::<I, R, W>(ds, &q[block], first_row, most, dk);
            }
        }
    }
}
