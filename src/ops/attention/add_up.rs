//! The last step of the backward: gradients of keys and values that several items have parts of.

use rayon::prelude::*;

use super::Heads;
use super::pack::{Inputs, unpack};
use super::plan::Item;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Real, RowsMut};

/// Rows of `dqkv` that one task adds up.
const SUM_ROWS: usize = 32;

/// Adds the items' gradients of their first `shared` keys and values up, row by row in the order of
/// the items. `arena` is `[items][dk, dv][panels][shared][W]`.
pub fn add_up<T: Element, const W: usize>(
    inputs: &Inputs<'_, T>,
    items: &[Item],
    shared: &[usize],
    arena: &[[T::Stat; W]],
    dqkv: RowsMut<'_, T>,
) {
    let panels = inputs.heads.head_dim.div_ceil(W);
    let mut parts: Vec<Vec<Part<'_, T::Stat, W>>> = Vec::new();
    parts.resize_with(dqkv.rows.div_ceil(SUM_ROWS), Vec::new);
    let mut rest = arena;
    for (item, &shared) in items.iter().zip(shared) {
        let (values, tail) = rest.split_at(2 * panels * shared);
        rest = tail;
        let s = &inputs.segments[item.segment];
        let prefix = s.prefix_len as usize;
        for (mut key, mut row, len) in
            [(0, s.prefix_start as usize, prefix), (prefix, s.kv_start as usize, shared - prefix)]
        {
            let end = row + len;
            while row < end {
                let rows = (SUM_ROWS - row % SUM_ROWS).min(end - row);
                let (kv_head, first) = (item.kv_head, row % SUM_ROWS);
                parts[row / SUM_ROWS].push(Part { kv_head, values, shared, key, first, rows });
                (key, row) = (key + rows, row + rows);
            }
        }
    }
    dqkv.blocks(SUM_ROWS).into_par_iter().zip(parts).for_each_init(
        Vec::new,
        |sums, ((_, rows), parts)| {
            if !parts.is_empty() {
                dispatch(AddUp { heads: &inputs.heads, parts: &parts, sums, rows });
            }
        },
    );
}

/// What an item has for some rows of a task: keys from `key` belong to rows from `first`.
struct Part<'a, R, const W: usize> {
    kv_head: usize,
    /// `[dk, dv][panels][shared][W]`
    values: &'a [[R; W]],
    shared: usize,
    key: usize,
    first: usize,
    rows: usize,
}

struct AddUp<'a, 'b, T: Element, const W: usize> {
    heads: &'a Heads,
    parts: &'a [Part<'a, T::Stat, W>],
    sums: &'a mut Vec<[T::Stat; W]>,
    rows: RowsMut<'b, T>,
}

impl<T: Element, const W: usize> Kernel for AddUp<'_, '_, T, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let AddUp { heads, parts, sums, mut rows } = self;
        let (d, kv_heads) = (heads.head_dim, heads.kv_heads);
        let panels = d.div_ceil(W);
        // `[kv_heads][dk, dv][panels][SUM_ROWS][W]`
        sums.clear();
        sums.resize(kv_heads * 2 * panels * SUM_ROWS, [T::Stat::ZERO; W]);
        let mut summed = [false; SUM_ROWS];
        for part in parts {
            summed[part.first..][..part.rows].fill(true);
            let to = sums.chunks_exact_mut(SUM_ROWS).skip(part.kv_head * 2 * panels);
            for (to, from) in to.zip(part.values.chunks_exact(part.shared)) {
                let (to, from) = (&mut to[part.first..], &from[part.key..]);
                for (to, from) in to.iter_mut().zip(from).take(part.rows) {
                    for i in 0..W {
                        to[i] += from[i];
                    }
                }
            }
        }
        let of_q = T::Stat::of(std::f64::consts::LN_2);
        for r in (0..rows.rows).filter(|&r| summed[r]) {
            let out = rows.row(r)[heads.q_cols()..].split_at_mut(heads.kv_cols());
            let (dk, dv) = (out.0.chunks_exact_mut(d), out.1.chunks_exact_mut(d));
            for ((dk, dv), sums) in dk.zip(dv).zip(sums.chunks_exact(2 * panels * SUM_ROWS)) {
                let (of_k, of_v) = sums.split_at(panels * SUM_ROWS);
                unpack(of_k, SUM_ROWS, r, of_q, dk);
                unpack(of_v, SUM_ROWS, r, T::Stat::ONE, dv);
            }
        }
    }
}
