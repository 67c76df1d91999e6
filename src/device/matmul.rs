//! Matrix products.
//!
//! On the host the same bits whatever the number of threads: work is cut by shape alone. Where `a` is not
//! transposed, a row of the product has the same bits whatever rows stand around it, and however
//! many. On a GPU the same bits for the same shapes and strides.

#[cfg(test)]
mod tests;

// One of three files with one interface, as for the device itself.
#[cfg_attr(feature = "emulate", path = "matmul/emulated.rs")]
#[cfg_attr(all(feature = "cuda", not(feature = "emulate")), path = "matmul/cuda.rs")]
#[cfg_attr(not(any(feature = "cuda", feature = "emulate")), path = "matmul/absent.rs")]
mod gpu;

use rayon::prelude::*;

use crate::device::pool::Values;
use crate::device::profile;
use crate::device::simd::{self, Isa, Kernel, dispatch};
use crate::{Element, Error, Plain, Real, Result, Rows, RowsMut, View, ViewMut};

const OP: &str = "matmul";

/// Whether an operand is used as it is or transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trans {
    /// As it is.
    No,
    /// Transposed.
    Yes,
}

/// What happens to the values that the output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// They are overwritten: `=`.
    Set,
    /// They are added to: `+=`.
    Add,
}

/// `c (= or +=) op(a) op(b)`, with `op(a)` of `[m, k]`, `op(b)` of `[k, n]` and `c` of `[m, n]`.
/// Sums are kept in the statistic type; where `c` is narrower, each element is rounded once.
///
/// # Errors
/// [`Error::Shape`] where the shapes do not fit.
pub fn matmul<T: Element, C: Element<Stat = T::Stat>>(
    a: View<'_, T>,
    ta: Trans,
    b: View<'_, T>,
    tb: Trans,
    c: ViewMut<'_, C>,
    output: Output,
) -> Result<()> {
    let (m, k) = oriented(&a, ta);
    let (kb, n) = oriented(&b, tb);
    if k != kb || c.rows() != m || c.cols() != n {
        return Err(Error::shape(
            OP,
            "[m, k] [k, n] -> [m, n]",
            format!("[{m}, {k}] [{kb}, {n}] -> [{}, {}]", c.rows(), c.cols()),
        ));
    }
    let _scope = profile::scope(label(ta, tb), 2 * m * n * k, 0);
    match c.cuda() {
        Some(cuda) => gpu::queue(cuda, (a, ta), (b, tb), c, output),
        None => on_host((a.host(OP)?, ta), (b.host(OP)?, tb), c.host(OP)?, output),
    }
}

/// [`matmul`] in host memory; the shapes fit.
fn on_host<T: Element, C: Element<Stat = T::Stat>>(
    (a, ta): (Rows<'_, T>, Trans),
    (b, tb): (Rows<'_, T>, Trans),
    mut c: RowsMut<'_, C>,
    output: Output,
) -> Result<()> {
    let (m, n) = (c.rows, c.cols);
    let k = if ta == Trans::No { a.cols } else { a.rows };
    let (a_wide, b_wide);
    let a = match same::<T, T::Stat>(a) {
        Some(a) => a,
        None => {
            a_wide = widened(a);
            contiguous(&a_wide, a.rows, a.cols)
        }
    };
    let b = match same::<T, T::Stat>(b) {
        Some(b) => b,
        None => {
            b_wide = widened(b);
            contiguous(&b_wide, b.rows, b.cols)
        }
    };
    let (a, b) = (Operand::new(a, ta), Operand::new(b, tb));
    if C::DTYPE == <T::Stat>::DTYPE {
        let values = bytemuck::cast_slice_mut::<C, T::Stat>(c.data);
        return product(a, b, values, [m, n, k], c.stride, output);
    }
    let mut sums = vec![T::Stat::ZERO; m * n];
    product(a, b, &mut sums, [m, n, k], n, Output::Set)?;
    for r in 0..m {
        for (c, &sum) in c.row(r).iter_mut().zip(&sums[r * n..][..n]) {
            *c = match output {
                Output::Set => C::from_stat(sum),
                Output::Add => C::from_stat(c.to_stat() + sum),
            };
        }
    }
    Ok(())
}

/// What a product is called in a profile.
fn label(ta: Trans, tb: Trans) -> &'static str {
    match (ta, tb) {
        (Trans::No, Trans::Yes) => "matmul, x W^T",
        (Trans::No, Trans::No) => "matmul, dy W",
        (Trans::Yes, Trans::No) => "matmul, dy^T x",
        (Trans::Yes, Trans::Yes) => "matmul, both transposed",
    }
}

fn oriented<T: Plain>(x: &View<'_, T>, trans: Trans) -> (usize, usize) {
    match trans {
        Trans::No => (x.rows(), x.cols()),
        Trans::Yes => (x.cols(), x.rows()),
    }
}

fn same<T: Element, S: Real>(x: Rows<'_, T>) -> Option<Rows<'_, S>> {
    let Rows { data, rows, cols, stride } = x;
    (T::DTYPE == S::DTYPE).then(|| Rows { data: bytemuck::cast_slice(data), rows, cols, stride })
}

fn widened<T: Element>(x: Rows<'_, T>) -> Vec<T::Stat> {
    (0..x.rows).flat_map(|r| x.row(r).iter().map(|&v| simd::widen(v))).collect()
}

fn contiguous<S>(values: &[S], rows: usize, cols: usize) -> Rows<'_, S> {
    Rows { data: values, rows, cols, stride: cols }
}

/// `op(x)`: element `(i, j)` is at `i * row + j * col`.
#[derive(Clone, Copy)]
struct Operand<'a, S> {
    data: &'a [S],
    row: usize,
    col: usize,
}

impl<'a, S: Real> Operand<'a, S> {
    fn new(x: Rows<'a, S>, trans: Trans) -> Self {
        match trans {
            Trans::No => Operand { data: x.data, row: x.stride, col: 1 },
            Trans::Yes => Operand { data: x.data, row: 1, col: x.stride },
        }
    }

    fn at(&self, i: usize, j: usize) -> S {
        self.data[i * self.row + j * self.col]
    }
}

fn product<S: Real>(
    a: Operand<'_, S>,
    b: Operand<'_, S>,
    c: &mut [S],
    [m, n, k]: [usize; 3],
    stride: usize,
    output: Output,
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    if n == 1 {
        column(a, b, c, [m, k], stride, output);
        return Ok(());
    }
    let least = least_rows(n, k);
    let small_of_long = a.row == 1 && k >= 8 * LEAST_DEPTH && m * n <= SMALL && m >= least;
    // Whether it is taken must not hang on the number of rows.
    let deep = a.row != 1 && k >= DEEP && n <= NARROW;
    if !small_of_long && !deep && m >= least && (m > FEW || b.row != 1) {
        tiles(a, b, c, [m, n, k], stride, output);
        return Ok(());
    }
    let rows = m.max(least);
    let padded: Vec<S>;
    let a = if rows == m {
        a
    } else {
        padded =
            (0..rows * k).map(|i| if i < m * k { a.at(i / k, i % k) } else { S::ZERO }).collect();
        Operand { data: &padded, row: k, col: 1 }
    };
    if small_of_long || deep {
        by_depth(a, b, c, [m, n, k], rows, stride, output);
    } else {
        few_rows(a, b, c, [m, n, k], rows, stride, output);
    }
    Ok(())
}

/// Up to so many rows it is dear to pack `b`.
const FEW: usize = 32;

/// A product of few rows, the first `m` of `a`'s: the product's transpose is computed, for which
/// `gemm` reads a transposed `b` as it lies. The sums are the same.
fn few_rows<S: Real>(
    a: Operand<'_, S>,
    b: Operand<'_, S>,
    c: &mut [S],
    [m, n, k]: [usize; 3],
    rows: usize,
    stride: usize,
    output: Output,
) {
    assert!(c.len() >= (m - 1) * stride + n);
    let c = Shared(c.as_mut_ptr());
    let tile = |(column, columns): (usize, usize)| {
        let mut sums = vec![S::ZERO; columns * rows];
        // SAFETY: within `c`, as checked above; tiles are disjoint, and so are rows.
        let row = |i: usize| unsafe {
            std::slice::from_raw_parts_mut(c.at(i * stride + column), columns)
        };
        if output == Output::Add {
            for i in 0..m {
                let to = sums[i..].iter_mut().step_by(rows);
                to.zip(row(i)).for_each(|(sum, &mut c)| *sum = c);
            }
        }
        let b_at = b.data.as_ptr().wrapping_add(column * b.col);
        // SAFETY: the operands were checked against their shapes; `sums` is [columns, rows].
        unsafe {
            let (a, b) = ((a.data.as_ptr(), a.row, a.col), (b_at, b.row, b.col));
            gemm([rows, columns, k], a, b, (sums.as_mut_ptr(), 1, rows), output);
        }
        for i in 0..m {
            let from = sums[i..].iter().step_by(rows);
            row(i).iter_mut().zip(from).for_each(|(c, &sum)| *c = sum);
        }
    };
    if rows * n * k <= ALONE {
        return tile((0, n));
    }
    cuts(n, (n / 8).max(256)).into_par_iter().for_each(tile);
}

/// The rows from which `gemm` sums in the order that it uses for any larger number of rows: with
/// fewer it takes other kernels (up to 256 elements, one row) or cuts k otherwise (64 x 64).
fn least_rows(n: usize, k: usize) -> usize {
    let cut = if n <= 64 && k > 512 { 65 } else { 2 };
    cut.max(257usize.div_ceil(n))
}

/// A product with one column: a dot per row.
fn column<S: Real>(
    a: Operand<'_, S>,
    b: Operand<'_, S>,
    c: &mut [S],
    [m, k]: [usize; 2],
    stride: usize,
    output: Output,
) {
    struct Dot<'a, S>(&'a [S], &'a [S]);
    impl<S: Real> Kernel for Dot<'_, S> {
        type Output = S;
        #[inline(always)]
        fn run<I: Isa>(self) -> S {
            simd::dot::<I, S>(self.0, self.1)
        }
    }
    let b: Vec<S> = (0..k).map(|i| b.at(i, 0)).collect();
    let mut gathered = vec![S::ZERO; k];
    for i in 0..m {
        let row = if a.col == 1 {
            &a.data[(i * a.row).min(a.data.len())..][..k]
        } else {
            for (j, value) in gathered.iter_mut().enumerate() {
                *value = a.at(i, j);
            }
            &gathered
        };
        let sum = dispatch(Dot(row, &b));
        match output {
            Output::Set => c[i * stride] = sum,
            Output::Add => c[i * stride] += sum,
        }
    }
}

/// Memory that several tasks write to, each its own part.
#[derive(Clone, Copy)]
struct Shared<S>(*mut S);
// SAFETY: the tiles of `tiles` and `few_rows` are disjoint.
unsafe impl<S: Real> Sync for Shared<S> {}

impl<S> Shared<S> {
    fn at(&self, offset: usize) -> *mut S {
        self.0.wrapping_add(offset)
    }
}

/// A part of [`by_depth`] is at least so deep.
const LEAST_DEPTH: usize = 128;
/// The most elements of an output that is taken for small beside a depth of `8 * LEAST_DEPTH`.
const SMALL: usize = 1 << 16;
/// The depth, and the most columns, of a product whose `b` it is dear to pack for every tile.
const DEEP: usize = 1 << 13;
const NARROW: usize = 1 << 10;

/// A product that is deep for its size, such as the gradient of a weight or that of a language
/// head's input: eight parts of the depth are multiplied in parallel and added in their order.
/// `a` has `rows` rows, the first `m` of which are wanted.
fn by_depth<S: Real>(
    a: Operand<'_, S>,
    b: Operand<'_, S>,
    c: &mut [S],
    [m, n, k]: [usize; 3],
    rows: usize,
    stride: usize,
    output: Output,
) {
    let parts: Vec<Values<S>> = cuts(k, (k / 8).max(LEAST_DEPTH))
        .into_par_iter()
        .map(|(start, depth)| {
            let part = |x: Operand<'_, S>, step: usize| x.data.as_ptr().wrapping_add(start * step);
            let mut sums = Values::unset(rows * n);
            let (a_at, b_at) = (part(a, a.col), part(b, b.row));
            // SAFETY: the operands were checked against their shapes; `sums` is [rows, n].
            unsafe {
                let c = (sums.as_mut_ptr(), n, 1);
                gemm([rows, n, depth], (a_at, a.row, a.col), (b_at, b.row, b.col), c, Output::Set);
            }
            sums
        })
        .collect();
    let add_up = |(i, row): (usize, &mut [S])| {
        let row = &mut row[..n];
        if output == Output::Set {
            row.fill(S::ZERO);
        }
        for part in &parts {
            row.iter_mut().zip(&part[i * n..]).for_each(|(c, &sum)| *c += sum);
        }
    };
    if parts.len() * m * n <= ALONE {
        c.chunks_mut(stride).take(m).enumerate().for_each(add_up);
    } else {
        c.par_chunks_mut(stride).take(m).with_min_len(32).enumerate().for_each(add_up);
    }
}

/// One thread's product. An operand is a pointer and the strides of its rows and columns.
///
/// # Safety
/// The operands must be readable and the output writable in their shapes.
unsafe fn gemm<S: Real>(
    [m, n, k]: [usize; 3],
    (a, a_row, a_col): (*const S, usize, usize),
    (b, b_row, b_col): (*const S, usize, usize),
    (c, c_row, c_col): (*mut S, usize, usize),
    output: Output,
) {
    let add = output == Output::Add;
    let [a_row, a_col, b_row, b_col, c_row, c_col] =
        [a_row, a_col, b_row, b_col, c_row, c_col].map(|stride| stride as isize);
    // SAFETY: the caller's promise.
    unsafe {
        #[rustfmt::skip]
        gemm::gemm(
            m, n, k, c, c_col, c_row, add, a, a_col, a_row, b, b_col, b_row,
            S::ONE, S::ONE, false, false, false, gemm::Parallelism::None,
        );
    }
}

/// Cuts the output into tiles that `gemm` fills, one thread each. Every tile has at least
/// [`least_rows`] rows.
fn tiles<S: Real>(
    a: Operand<'_, S>,
    b: Operand<'_, S>,
    c: &mut [S],
    [m, n, k]: [usize; 3],
    stride: usize,
    output: Output,
) {
    // `gemm` packs both operands of every tile: large tiles pack less, but every thread needs some.
    let columns = if n < 1024 { vec![(0, n)] } else { cuts(n, (n / 16).max(512)) };
    let part = match columns.len() {
        1 => (m / 8).clamp(64, 256),
        2..8 => (m / 4).clamp(64, 256),
        _ => 512,
    };
    let rows = cuts(m, part.max(least_rows(n, k)));
    assert!(c.len() >= (m - 1) * stride + n);
    let c = Shared(c.as_mut_ptr());
    let tile = |((row, rows), (column, columns))| {
        let a_at = a.data.as_ptr().wrapping_add(row * a.row);
        let b_at = b.data.as_ptr().wrapping_add(column * b.col);
        // SAFETY: the operands were checked against their shapes, `c` above; tiles are disjoint.
        unsafe {
            let c = (c.at(row * stride + column), stride, 1);
            gemm([rows, columns, k], (a_at, a.row, a.col), (b_at, b.row, b.col), c, output);
        }
    };
    if m * n * k <= ALONE {
        return tile(((0, m), (0, n)));
    }
    let tiles: Vec<_> = rows.iter().flat_map(|&r| columns.iter().map(move |&c| (r, c))).collect();
    tiles.into_par_iter().for_each(tile);
}

/// Products up to this many multiplications are faster than waking a thread.
const ALONE: usize = 1 << 19;

/// `len` in parts of nearly one size, at least `part` (if `len` is) and less than twice it.
fn cuts(len: usize, part: usize) -> Vec<(usize, usize)> {
    let part = part.next_multiple_of(8);
    let parts = (len / part).max(1);
    let start = |i: usize| if i == parts { len } else { (i * len / parts) & !7 };
    (0..parts).map(|i| (start(i), start(i + 1) - start(i))).collect()
}
