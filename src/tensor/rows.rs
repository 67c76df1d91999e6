//! Views that are known to be in host memory: what the CPU code of an op works on.

/// A [`View`](super::View) known to be in host memory.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// The values; row `r` starts at `r * stride`.
    pub data: &'a [T],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Values from the start of one row to the start of the next.
    pub stride: usize,
}

impl<'a, T> Rows<'a, T> {
    /// One row.
    #[inline(always)]
    pub fn row(&self, r: usize) -> &'a [T] {
        &self.data[r * self.stride..][..self.cols]
    }
}

/// A [`ViewMut`](super::ViewMut) known to be in host memory.
#[derive(Debug)]
pub struct RowsMut<'a, T> {
    /// The values; row `r` starts at `r * stride`.
    pub data: &'a mut [T],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Values from the start of one row to the start of the next.
    pub stride: usize,
}

impl<'a, T> RowsMut<'a, T> {
    /// One row.
    #[inline(always)]
    pub fn row(&mut self, r: usize) -> &mut [T] {
        &mut self.data[r * self.stride..][..self.cols]
    }

    /// The rows in blocks of `block`, each as `(first row, block)`, for parallel loops. Rows of a
    /// view that is narrower than its stride are cut from one another without overlap.
    pub fn blocks(self, block: usize) -> Vec<(usize, RowsMut<'a, T>)> {
        let RowsMut { mut data, rows, cols, stride } = self;
        let block = block.max(1);
        let mut out = Vec::with_capacity(rows.div_ceil(block));
        let mut first = 0;
        while first < rows {
            let n = block.min(rows - first);
            let end = if first + n == rows { data.len() } else { n * stride };
            let (head, tail) = data.split_at_mut(end);
            out.push((first, RowsMut { data: head, rows: n, cols, stride }));
            data = tail;
            first += n;
        }
        out
    }
}
