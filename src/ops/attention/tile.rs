//! The register-blocked products and the tile sizes that everything here is counted in.
//!
//! Each output value is one chain of fused multiply-adds in index order, whatever block it is
//! computed in: that is why a row's bits do not depend on its neighbours.

use std::array::from_fn;

use crate::Real;
use crate::device::simd::Isa;

/// Rows of a block: pairs of a query and a head of its group. A multiple of 24.
pub const ROWS: usize = 48;
/// Keys of a tile.
pub const KEYS: usize = 128;
/// Keys of a strip: the width at which keys are transposed.
pub const STRIP: usize = 16;
/// Partial sums of a row.
pub const LANES: usize = 8;

/// One block of logits or of their gradients: `[ROWS][KEYS]`.
pub type Tile<R> = [[R; KEYS]; ROWS];

/// `acc[i] + sum over l of a[l][i0 + i] b[l]`
#[inline(always)]
fn outer<I: Isa, R: Real, const M: usize, const W: usize, const A: usize>(
    a: &[[R; A]],
    i0: usize,
    b: &[[R; W]],
    mut acc: [[R; W]; M],
) -> [[R; W]; M] {
    assert!(i0 + M <= A);
    for (a, b) in a.iter().zip(b) {
        for i in 0..M {
            for w in 0..W {
                acc[i][w] = I::fma(a[i0 + i], b[w], acc[i][w]);
            }
        }
    }
    acc
}

/// `acc[i] + sum over l of a[i][l] b[l]`
#[inline(always)]
fn inner<I: Isa, R: Real, const M: usize, const W: usize, const A: usize>(
    a: &[[R; A]; M],
    b: &[[R; W]],
    mut acc: [[R; W]; M],
) -> [[R; W]; M] {
    for (l, b) in b.iter().enumerate().take(A) {
        for i in 0..M {
            for w in 0..W {
                acc[i][w] = I::fma(a[i][l], b[w], acc[i][w]);
            }
        }
    }
    acc
}

/// `tile[r][j] = sum over l of a[r][l] keys[j][l]` for rows `start..rows`, and for every strip of
/// keys of which a row of its group sees one. `a` is panels of [`ROWS`] rows, `strips` is
/// `[strips][d][STRIP]`.
#[inline(always)]
pub fn logits<I: Isa, R: Real, const W: usize>(
    a: &[[R; W]],
    strips: &[[R; STRIP]],
    d: usize,
    start: usize,
    seen: &[usize],
    tile: &mut Tile<R>,
) {
    let rows = seen.len();
    let mut r = start;
    while r + 6 <= rows {
        logit_rows::<I, R, 6, W>(a, strips, d, r, seen[r + 5], tile);
        r += 6;
    }
    while r < rows {
        logit_rows::<I, R, 2, W>(a, strips, d, r, seen[(r + 1).min(rows - 1)], tile);
        r += 2;
    }
}

#[inline(always)]
fn logit_rows<I: Isa, R: Real, const M: usize, const W: usize>(
    a: &[[R; W]],
    strips: &[[R; STRIP]],
    d: usize,
    r: usize,
    seen: usize,
    tile: &mut Tile<R>,
) {
    for (s, strip) in strips.chunks_exact(d).take(seen.div_ceil(STRIP)).enumerate() {
        let mut acc = [[R::ZERO; STRIP]; M];
        for (panel, strip) in a.chunks_exact(ROWS).zip(strip.chunks(W)) {
            let a: &[[R; W]; M] = panel[r..].first_chunk().expect("rows are even");
            acc = inner::<I, R, M, STRIP, W>(a, strip, acc);
        }
        for (row, acc) in tile[r..r + M].iter_mut().zip(acc) {
            row[s * STRIP..][..STRIP].copy_from_slice(&acc);
        }
    }
}

/// `out[r] += sum over j of tile[r][j] panel[j]` for rows `start..rows`, over the keys that a row of
/// its group sees. `out` and `panel` are one panel of `W` columns.
#[inline(always)]
pub fn add_to_rows<I: Isa, R: Real, const W: usize>(
    tile: &Tile<R>,
    panel: &[[R; W]],
    start: usize,
    seen: &[usize],
    out: &mut [[R; W]],
) {
    let rows = seen.len();
    let mut r = start;
    if W <= LANES {
        while r + 12 <= rows {
            row_group::<I, R, 12, W>(tile, panel, r, seen[r + 11], out);
            r += 12;
        }
        while r + 4 <= rows {
            row_group::<I, R, 4, W>(tile, panel, r, seen[r + 3], out);
            r += 4;
        }
    } else {
        while r + 6 <= rows {
            row_group::<I, R, 6, W>(tile, panel, r, seen[r + 5], out);
            r += 6;
        }
    }
    while r < rows {
        row_group::<I, R, 2, W>(tile, panel, r, seen[(r + 1).min(rows - 1)], out);
        r += 2;
    }
}

#[inline(always)]
fn row_group<I: Isa, R: Real, const M: usize, const W: usize>(
    tile: &Tile<R>,
    panel: &[[R; W]],
    r: usize,
    seen: usize,
    out: &mut [[R; W]],
) {
    let a: &[[R; KEYS]; M] = tile[r..].first_chunk().expect("rows are even");
    let out = &mut out[r..r + M];
    let acc = inner::<I, R, M, W, KEYS>(a, &panel[..seen], from_fn(|i| out[i]));
    out.copy_from_slice(&acc);
}

/// `out[j] += sum over r of tile[r][j] panel[r]` for keys `0..keys`, over the rows that see a key of
/// its group. `out` and `panel` are one panel of `W` columns.
#[inline(always)]
pub fn add_to_keys<I: Isa, R: Real, const W: usize>(
    tile: &Tile<R>,
    panel: &[[R; W]],
    first_row: impl Fn(usize) -> usize,
    keys: usize,
    out: &mut [[R; W]],
) {
    let mut j = 0;
    if W <= LANES {
        while j + 12 <= keys {
            key_group::<I, R, 12, W>(tile, panel, first_row(j), j, out);
            j += 12;
        }
        while j + 4 <= keys {
            key_group::<I, R, 4, W>(tile, panel, first_row(j), j, out);
            j += 4;
        }
    } else {
        while j + 6 <= keys {
            key_group::<I, R, 6, W>(tile, panel, first_row(j), j, out);
            j += 6;
        }
    }
    while j < keys {
        key_group::<I, R, 2, W>(tile, panel, first_row(j), j, out);
        j += 2;
    }
}

#[inline(always)]
fn key_group<I: Isa, R: Real, const M: usize, const W: usize>(
    tile: &Tile<R>,
    panel: &[[R; W]],
    r: usize,
    j: usize,
    out: &mut [[R; W]],
) {
    let out = &mut out[j..j + M];
    let acc = outer::<I, R, M, W, KEYS>(&tile[r..panel.len()], j, &panel[r..], from_fn(|i| out[i]));
    out.copy_from_slice(&acc);
}

/// Partial sums in eight lanes to one, in a fixed order.
#[inline(always)]
pub fn fold<R: Copy>(mut lanes: [R; LANES], op: impl Fn(R, R) -> R) -> R {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = op(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Keeps a loop over chunks of lanes from being vectorised across its iterations, which would
/// transpose the chunks; the lanes of each are vectorised instead.
#[inline(always)]
pub fn by_lanes() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it is empty.
    unsafe {
        std::arch::asm!("", options(nomem, nostack, preserves_flags))
    }
}

/// The larger one, in one instruction.
#[inline(always)]
pub fn larger<R: Real>(a: R, b: R) -> R {
    if a > b { a } else { b }
}
