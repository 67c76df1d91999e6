//! Copies of queries, keys and values in the order in which the products read them.

use std::marker::PhantomData;

use super::plan::Item;
use super::tile::{LANES, ROWS, STRIP};
use super::{Heads, Segment};
use crate::{Element, Real, Rows, RowsMut};

/// What every pass reads; shapes are checked.
pub struct Inputs<'a, T> {
    /// `[T, heads head_dim]`
    pub q: Rows<'a, T>,
    /// `[Tk, kv_heads head_dim]`
    pub k: Rows<'a, T>,
    /// `[Tk, kv_heads head_dim]`
    pub v: Rows<'a, T>,
    /// Cover the T rows.
    pub segments: &'a [Segment],
    /// The shape.
    pub heads: Heads,
}

impl<T: Element> Inputs<'_, T> {
    /// Query heads of one key head.
    pub fn group(&self) -> usize {
        self.heads.heads / self.heads.kv_heads
    }
}

/// Rows of one head of a matrix, in some order.
pub trait Slices<'a, T> {
    /// Number of rows.
    fn len(&self) -> usize;
    /// `head_dim` values of a row.
    fn get(&self, at: usize) -> &'a [T];
}

/// Keys or values of an item, in the segment's own order: its prefix, then itself.
pub struct Keys<'a, T> {
    of: Rows<'a, T>,
    head_dim: usize,
    col: usize,
    prefix_start: usize,
    prefix: usize,
    start: usize,
    len: usize,
}

impl<'a, T> Keys<'a, T> {
    /// The item's head of `of`.
    pub fn new(of: Rows<'a, T>, segment: &Segment, heads: &Heads, item: &Item) -> Self {
        Keys {
            of,
            head_dim: heads.head_dim,
            col: item.kv_head * heads.head_dim,
            prefix_start: segment.prefix_start as usize,
            prefix: segment.prefix_len as usize,
            start: segment.kv_start as usize,
            len: item.keys,
        }
    }
}

impl<'a, T> Slices<'a, T> for Keys<'a, T> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }
    #[inline(always)]
    fn get(&self, at: usize) -> &'a [T] {
        let row = match at.checked_sub(self.prefix) {
            None => self.prefix_start + at,
            Some(own) => self.start + own,
        };
        &self.of.data[row * self.of.stride + self.col..][..self.head_dim]
    }
}

/// A block of an item's rows. A row is one query of one head of the group; heads vary fastest.
pub struct Block {
    /// Number of rows, at most [`ROWS`].
    pub rows: usize,
    /// The row of `q` of each row.
    pub row: [usize; ROWS],
    /// The query head of each row.
    pub head: [usize; ROWS],
    /// Number of keys that each row sees, never fewer than the row before.
    pub keys: [usize; ROWS],
}

impl Block {
    /// The blocks of an item.
    pub fn of(segment: &Segment, group: usize, item: &Item) -> impl Iterator<Item = Block> {
        let (start, prefix) = (segment.q_start as usize, segment.prefix_len as usize);
        let (first_head, end) = (item.kv_head * group, item.queries.end);
        let (mut query, mut head) = (item.queries.start, 0);
        std::iter::from_fn(move || {
            let mut block = Block { rows: 0, row: [0; ROWS], head: [0; ROWS], keys: [0; ROWS] };
            while block.rows < ROWS && query < end {
                block.row[block.rows] = start + query;
                block.head[block.rows] = first_head + head;
                block.keys[block.rows] = prefix + query + 1;
                block.rows += 1;
                head += 1;
                if head == group {
                    (query, head) = (query + 1, 0);
                }
            }
            (block.rows > 0).then_some(block)
        })
    }

    /// The block's rows of a matrix with a column for each head.
    #[inline(always)]
    pub fn slices<'a, T>(&self, of: Rows<'a, T>, head_dim: usize) -> Queries<'a, '_, T> {
        Queries { of, head_dim, block: self }
    }
}

/// See [`Block::slices`].
pub struct Queries<'a, 'b, T> {
    of: Rows<'a, T>,
    head_dim: usize,
    block: &'b Block,
}

impl<'a, T> Slices<'a, T> for Queries<'a, '_, T> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.block.rows
    }
    #[inline(always)]
    fn get(&self, at: usize) -> &'a [T] {
        let (row, col) = (self.block.row[at], self.block.head[at] * self.head_dim);
        &self.of.data[row * self.of.stride + col..][..self.head_dim]
    }
}

/// `[strips][d][STRIP]`: keys transposed, strip by strip. Columns past the keys are copies of the
/// last.
#[inline(always)]
pub fn strips<'a, T: Element>(
    rows: &impl Slices<'a, T>,
    d: usize,
    out: &mut Vec<[T::Stat; STRIP]>,
) {
    out.resize(rows.len().div_ceil(STRIP) * d, [T::Stat::ZERO; STRIP]);
    for (s, out) in out.chunks_exact_mut(d).enumerate() {
        for at in (0..STRIP).step_by(LANES) {
            transpose(rows, s * STRIP + at, at, out);
        }
    }
}

#[inline(always)]
fn transpose<'a, T: Element, const N: usize>(
    rows: &impl Slices<'a, T>,
    first: usize,
    at: usize,
    out: &mut [[T::Stat; N]],
) {
    let last = rows.len() - 1;
    let d = out.len();
    let mut x = [&rows.get(first.min(last))[..d]; LANES];
    for (i, x) in x.iter_mut().enumerate() {
        *x = &rows.get((first + i).min(last))[..d];
    }
    for l in 0..d {
        let mut y = [T::Stat::ZERO; LANES];
        for i in 0..LANES {
            y[i] = x[i][l].to_stat();
        }
        out[l][at..at + LANES].copy_from_slice(&y);
    }
}

/// `[d / W][padded][W]`: panels of `W` columns, times `factor`. Columns past `d` are zero; rows
/// past the rows are unspecified.
#[inline(always)]
pub fn panels<'a, T: Element, const W: usize>(
    rows: &impl Slices<'a, T>,
    factor: T::Stat,
    padded: usize,
    d: usize,
    out: &mut Vec<[T::Stat; W]>,
) {
    out.resize(d.div_ceil(W) * padded, [T::Stat::ZERO; W]);
    for j in 0..rows.len() {
        let (whole, rest) = rows.get(j).as_chunks::<W>();
        let mut at = j;
        for x in whole {
            let mut y = [T::Stat::ZERO; W];
            for i in 0..W {
                y[i] = x[i].to_stat() * factor;
            }
            out[at] = y;
            at += padded;
        }
        if !rest.is_empty() {
            let mut y = [T::Stat::ZERO; W];
            for (y, x) in y.iter_mut().zip(rest) {
                *y = x.to_stat() * factor;
            }
            out[at] = y;
        }
    }
}

/// Writes one row of panels of `padded` rows, times `factor`.
#[inline(always)]
pub fn unpack<T: Element, const W: usize>(
    panels: &[[T::Stat; W]],
    padded: usize,
    row: usize,
    factor: T::Stat,
    out: &mut [T],
) {
    let mut at = row;
    let (whole, rest) = out.as_chunks_mut::<W>();
    for out in whole {
        for i in 0..W {
            out[i] = T::from_stat(panels[at][i] * factor);
        }
        at += padded;
    }
    for (out, &x) in rest.iter_mut().zip(panels.get(at).into_iter().flatten()) {
        *out = T::from_stat(x * factor);
    }
}

/// A matrix that threads write to in disjoint places.
pub struct Cells<'a, T> {
    start: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out `&mut [T]` of places that its callers keep disjoint.
unsafe impl<T: Send> Sync for Cells<'_, T> {}

impl<'a, T> Cells<'a, T> {
    pub fn new(matrix: RowsMut<'a, T>) -> Self {
        let RowsMut { data, rows, cols, stride } = matrix;
        assert!(rows == 0 || (rows - 1) * stride + cols <= data.len());
        Cells { start: data.as_mut_ptr(), rows, cols, stride, borrow: PhantomData }
    }

    /// `len` values of a row from `col`.
    ///
    /// # Safety
    /// No two slices alive at once may overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn slice(&self, row: usize, col: usize, len: usize) -> &mut [T] {
        assert!(row < self.rows && col <= self.cols && len <= self.cols - col);
        // SAFETY: within the matrix, which lies within the slice; the caller keeps slices disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride + col), len) }
    }
}
