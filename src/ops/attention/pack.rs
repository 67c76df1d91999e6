//! Copies of queries, keys and values in the order in which the products read them.

use std::marker::PhantomData;

use super::plan::Item;
use super::vector::transpose;
use super::{Heads, Segment};
use crate::device::simd::Isa;
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
pub trait Slices<'a, T: 'a> {
    /// Number of rows.
    fn len(&self) -> usize;
    /// The rows as runs, in order.
    fn runs(&self) -> impl Iterator<Item = Run<'a, T>>;
}

/// Rows one behind the other, a `stride` apart: the head's values of the first begin `data`.
pub struct Run<'a, T> {
    data: &'a [T],
    stride: usize,
    rows: usize,
}

impl<'a, T> Run<'a, T> {
    #[inline(always)]
    fn new(of: &Rows<'a, T>, row: usize, rows: usize, col: usize) -> Self {
        let data = if rows == 0 { &[] } else { &of.data[row * of.stride + col..] };
        Run { data, stride: of.stride, rows }
    }
}

/// Keys or values of an item, in the segment's own order: its prefix, then itself.
pub struct Keys<'a, T> {
    of: Rows<'a, T>,
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
    fn runs(&self) -> impl Iterator<Item = Run<'a, T>> {
        let own = self.len - self.prefix;
        [(self.prefix_start, self.prefix), (self.start, own)]
            .into_iter()
            .map(|(row, rows)| Run::new(&self.of, row, rows, self.col))
    }
}

/// A block of an item's rows. A row is one query of one head of the group; heads vary fastest.
pub struct Block<const N: usize> {
    /// Number of rows, at most `N`.
    pub rows: usize,
    /// The row of `q` of each row.
    pub row: [usize; N],
    /// The query head of each row.
    pub head: [usize; N],
    /// Number of keys that each row sees, never fewer than the row before.
    pub keys: [usize; N],
}

impl<const N: usize> Block<N> {
    /// The blocks of an item.
    pub fn of(segment: &Segment, group: usize, item: &Item) -> impl Iterator<Item = Block<N>> {
        let (start, prefix) = (segment.q_start as usize, segment.prefix_len as usize);
        let (first_head, end) = (item.kv_head * group, item.queries.end);
        let (mut query, mut head) = (item.queries.start, 0);
        std::iter::from_fn(move || {
            let mut block = Block { rows: 0, row: [0; N], head: [0; N], keys: [0; N] };
            while block.rows < N && query < end {
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
    pub fn slices<'a, T>(&self, of: Rows<'a, T>, head_dim: usize) -> Queries<'a, '_, T, N> {
        Queries { of, head_dim, block: self }
    }
}

/// See [`Block::slices`].
pub struct Queries<'a, 'b, T, const N: usize> {
    of: Rows<'a, T>,
    head_dim: usize,
    block: &'b Block<N>,
}

impl<'a, T, const N: usize> Slices<'a, T> for Queries<'a, '_, T, N> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.block.rows
    }
    #[inline(always)]
    fn runs(&self) -> impl Iterator<Item = Run<'a, T>> {
        (0..self.block.rows)
            .map(|r| Run::new(&self.of, self.block.row[r], 1, self.block.head[r] * self.head_dim))
    }
}

/// `[panels][padded][W]`: panels of `W` columns, times `factor`. What lies past `d` and past the
/// rows is zero.
#[inline(always)]
pub fn panels<'a, T: Element, const W: usize>(
    rows: &impl Slices<'a, T>,
    factor: T::Stat,
    d: usize,
    padded: usize,
    out: &mut [[T::Stat; W]],
) {
    let mut first = 0;
    for Run { data, stride, rows } in rows.runs() {
        for (j, row) in data.chunks(stride.max(1)).take(rows).enumerate() {
            let (whole, rest) = row[..d].as_chunks::<W>();
            let mut at = first + j;
            for x in whole {
                for i in 0..W {
                    out[at][i] = x[i].to_stat() * factor;
                }
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
        first += rows;
    }
    for panel in out.chunks_exact_mut(padded) {
        panel[rows.len()..].fill([T::Stat::ZERO; W]);
    }
}

/// `[blocks][panels][W][N]`: panels of `padded` rows, `N` of them in the lanes of each block.
#[inline(always)]
pub fn to_lanes<I: Isa, R: Real, const W: usize, const N: usize>(
    panels: &[[R; W]],
    padded: usize,
    lanes: &mut [[R; N]],
) {
    let count = panels.len() / padded;
    for (at, to) in lanes.as_chunks_mut::<W>().0.iter_mut().enumerate() {
        let from = &panels[at % count * padded + at / count * N..];
        transpose::<I, R, W, N>(from.first_chunk().expect("rows are padded"), to);
    }
}

/// The inverse of [`to_lanes`].
#[inline(always)]
pub fn from_lanes<I: Isa, R: Real, const W: usize, const N: usize>(
    lanes: &[[R; N]],
    padded: usize,
    panels: &mut [[R; W]],
) {
    let count = panels.len() / padded;
    for (at, from) in lanes.as_chunks::<W>().0.iter().enumerate() {
        let to = &mut panels[at % count * padded + at / count * N..];
        transpose::<I, R, N, W>(from, to.first_chunk_mut().expect("rows are padded"));
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

/// Memory of vectors, used again and again.
#[derive(Default)]
pub struct Lines<R>(Vec<R>);

impl<R: Real> Lines<R> {
    /// `len` vectors, the first at the start of a cache line. What is in them is unspecified.
    pub fn get<const N: usize>(&mut self, len: usize) -> &mut [[R; N]] {
        const LINE: usize = 64;
        let values = len * N + LINE / size_of::<R>();
        if self.0.len() < values {
            self.0.resize(values, R::ZERO);
        }
        let skip = self.0.as_ptr().align_offset(LINE);
        self.0[skip..][..len * N].as_chunks_mut().0
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
