//! The register-blocked products and the tile sizes that everything here is counted in.
//!
//! A tile holds logits of items, one a line, with lanes: the forward's items are keys and its lanes
//! rows, the backward's are rows and keys. So neither a softmax's maximum and sum nor the gradients
//! of a key are folded across lanes.
//!
//! Each output value is one chain of fused multiply-adds in index order, whatever block it is
//! computed in: that is why a row's bits do not depend on its neighbours.

use std::array::from_fn;

use super::vector::{scale_add, transpose};
use crate::Real;
use crate::device::simd::Isa;

/// Keys of a tile of the forward.
pub const KEYS: usize = 128;
/// Rows of a block of the backward. A row is a pair of a query and a head of its group.
pub const ROWS: usize = 64;
/// Items are computed in groups of as many; what lies beyond the last is masked.
pub const GROUP: usize = 8;

/// `tile[i] = start(i) + sum over l of items[i][l] lanes[l]` for items `from..to`, multiples of
/// [`GROUP`]. `items` is panels of `padded` rows, `lanes` is `[panels][W]`.
#[inline(always)]
pub fn logits<I: Isa, R: Real, const W: usize, const N: usize>(
    (items, padded): (&[[R; W]], usize),
    lanes: &[[R; N]],
    (from, to): (usize, usize),
    start: impl Fn(usize) -> R,
    tile: &mut [[R; N]],
) {
    for at in (from..to).step_by(GROUP) {
        let mut acc: [[R; N]; GROUP] = from_fn(|i| [start(at + i); N]);
        for (panel, lanes) in lanes.as_chunks::<W>().0.iter().enumerate() {
            let a = items[panel * padded + at..].first_chunk().expect("items are padded");
            acc = inner::<I, R, GROUP, N, W>(a, lanes, acc);
        }
        tile[at..at + GROUP].copy_from_slice(&acc);
    }
}

/// [`logits`] from nothing, of fewer lanes than fill a vector: those of the products are items here.
/// `lanes` is `[panels][N][W]`. The bits are the same.
#[inline(always)]
pub fn logits_of_few<I: Isa, R: Real, const W: usize, const N: usize>(
    (items, padded): (&[[R; W]], usize),
    lanes: &[[R; W]],
    to: usize,
    tile: &mut [[R; N]],
) {
    for at in (0..to).step_by(GROUP) {
        let mut acc = [[R::ZERO; GROUP]; N];
        for (panel, lanes) in lanes.as_chunks::<N>().0.iter().enumerate() {
            let b = items[panel * padded + at..].first_chunk().expect("items are padded");
            let mut columns = [[R::ZERO; GROUP]; W];
            transpose::<I, R, W, GROUP>(b, &mut columns);
            acc = inner::<I, R, N, GROUP, W>(lanes, &columns, acc);
        }
        let tile = tile[at..].first_chunk_mut().expect("items are padded");
        transpose::<I, R, GROUP, N>(&acc, tile);
    }
}

/// `out[i] += sum over n of tile[i][n] lanes[n]` for items `from..to`, multiples of [`GROUP`]. `out`
/// and `lanes` are one panel.
#[inline(always)]
pub fn add_to_items<I: Isa, R: Real, const W: usize, const N: usize>(
    tile: &[[R; N]],
    lanes: &[[R; W]; N],
    (from, to): (usize, usize),
    out: &mut [[R; W]],
) {
    for at in (from..to).step_by(GROUP) {
        let a = tile[at..].first_chunk().expect("items are padded");
        let out: &mut [_; GROUP] = out[at..].first_chunk_mut().expect("items are padded");
        *out = inner::<I, R, GROUP, W, N>(a, lanes, *out);
    }
}

/// `out[l] += sum over i of items[i][l] tile[i]`. `out` and `items` are one panel. With the tile as
/// `items`, it adds to few lanes what [`add_to_items`] adds to items.
#[inline(always)]
pub fn add_to_lanes<I: Isa, R: Real, const W: usize, const N: usize>(
    items: &[[R; W]],
    tile: &[[R; N]],
    out: &mut [[R; N]; W],
) {
    let mut acc = *out;
    for (a, b) in items.iter().zip(tile) {
        for l in 0..W {
            acc[l] = scale_add::<I, R, N>(a[l], b, &acc[l]);
        }
    }
    *out = acc;
}

/// `acc[i] + sum over l of a[i][l] b[l]`
#[inline(always)]
fn inner<I: Isa, R: Real, const M: usize, const N: usize, const L: usize>(
    a: &[[R; L]; M],
    b: &[[R; N]; L],
    mut acc: [[R; N]; M],
) -> [[R; N]; M] {
    for l in 0..L {
        for i in 0..M {
            acc[i] = scale_add::<I, R, N>(a[i][l], &b[l], &acc[i]);
        }
    }
    acc
}
