//! Small operations on every element: additions, biases, scales, fills and conversions.

mod launch;
#[cfg(test)]
mod tests;

use super::cpu::{add_partials, block_rows, each, each_pair, run};
use crate::device::profile;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Real, Result, Rows, View, ViewMut};

/// Rows whose bias gradients are summed into one partial result.
const BIAS_ROWS: usize = 64;

/// `y += x`.
///
/// `x [N, C]`, `y [N, C]` +=.
pub fn add<T: Element>(x: View<T>, y: ViewMut<T>) -> Result<()> {
    const OP: &str = "add";
    x.expect(OP, "x", y.rows(), y.cols())?;
    if let Some(cuda) = y.cuda() {
        return launch::add(OP, cuda, x, x.stride(), y);
    }
    each_pair(x.host(OP)?, y.host(OP)?, |x, y| dispatch(Add(x, y)));
    Ok(())
}

/// Adds a bias to every row.
///
/// `bias [1, C]`, `y [N, C]` +=.
pub fn add_bias<T: Element>(bias: View<T>, y: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("add_bias", 0, 2 * y.rows() * y.cols() * size_of::<T>());
    const OP: &str = "add_bias";
    bias.expect(OP, "bias", 1, y.cols())?;
    if let Some(cuda) = y.cuda() {
        return launch::add(OP, cuda, bias, 0, y);
    }
    let (bias, y) = (bias.host(OP)?.row(0), y.host(OP)?);
    let values = y.rows * y.cols;
    let block = block_rows(y.cols);
    run(values, y.blocks(block), |(_, mut y)| {
        (0..y.rows).for_each(|r| dispatch(Add(bias, y.row(r))));
    });
    Ok(())
}

/// The gradient of [`add_bias`]: the sum of the rows, over fixed blocks, then over the blocks.
///
/// `dy [N, C]`, `dbias [1, C]` +=.
pub fn bias_backward<T: Element>(dy: View<T>, dbias: ViewMut<T::Stat>) -> Result<()> {
    let _scope = profile::scope("bias backward", 0, dy.rows() * dy.cols() * size_of::<T>());
    const OP: &str = "bias_backward";
    dbias.expect(OP, "dbias", 1, dy.cols())?;
    if let Some(cuda) = dbias.cuda() {
        return launch::bias_backward(OP, cuda, dy, dbias);
    }
    let (dy, mut dbias) = (dy.host(OP)?, dbias.host(OP)?);
    if dy.cols == 0 {
        return Ok(());
    }
    let mut partials = vec![T::Stat::ZERO; dy.rows.div_ceil(BIAS_ROWS) * dy.cols];
    let tasks = partials.chunks_exact_mut(dy.cols).enumerate().collect();
    run(dy.rows * dy.cols, tasks, |(block, sums)| {
        let first = block * BIAS_ROWS;
        dispatch(SumRows { dy, first, rows: BIAS_ROWS.min(dy.rows - first), sums });
    });
    add_partials(&partials, dbias.row(0));
    Ok(())
}

/// `x *= factor`.
///
/// `x [N, C]` =.
pub fn scale<T: Element>(factor: f64, x: ViewMut<T>) -> Result<()> {
    const OP: &str = "scale";
    if let Some(cuda) = x.cuda() {
        return launch::scale(OP, cuda, None, factor, x);
    }
    let factor = T::Stat::of(factor);
    each(x.host(OP)?, |x| dispatch(Scale(factor, x)));
    Ok(())
}

/// Multiplies every row by its own factor.
///
/// `factors [N, 1]`, `x [N, C]` =.
pub fn scale_rows<T: Element>(factors: View<T::Stat>, x: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("scale_rows", 0, 2 * x.rows() * x.cols() * size_of::<T>());
    const OP: &str = "scale_rows";
    factors.expect(OP, "factors", x.rows(), 1)?;
    if let Some(cuda) = x.cuda() {
        return launch::scale(OP, cuda, Some(factors), 1.0, x);
    }
    let (factors, x) = (factors.host(OP)?, x.host(OP)?);
    let values = x.rows * x.cols;
    let block = block_rows(x.cols);
    run(values, x.blocks(block), |(first, mut x)| {
        (0..x.rows).for_each(|r| dispatch(Scale(factors.row(first + r)[0], x.row(r))));
    });
    Ok(())
}

/// Sets every element to `value`.
///
/// `x [N, C]` =.
pub fn fill<T: Element>(value: f64, x: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("fill", 0, x.rows() * x.cols() * size_of::<T>());
    const OP: &str = "fill";
    if let Some(cuda) = x.cuda() {
        return launch::fill(OP, cuda, value, x);
    }
    let value = T::from_stat(T::Stat::of(value));
    each(x.host(OP)?, |x| x.fill(value));
    Ok(())
}

/// Converts to another type: exact when it is wider, else rounded to nearest, ties to even (from
/// `f64` to 16 bits by way of `f32`).
///
/// `x [N, C]`, `out [N, C]` =.
pub fn cast<T: Element, U: Element>(x: View<T>, out: ViewMut<U>) -> Result<()> {
    let _scope =
        profile::scope("cast", 0, out.rows() * out.cols() * (size_of::<T>() + size_of::<U>()));
    const OP: &str = "cast";
    x.expect(OP, "x", out.rows(), out.cols())?;
    if let Some(cuda) = out.cuda() {
        return launch::cast(OP, cuda, x, out);
    }
    each_pair(x.host(OP)?, out.host(OP)?, |x, out| dispatch(Cast(x, out)));
    Ok(())
}

struct Add<'a, T: Element>(&'a [T], &'a mut [T]);

impl<T: Element> Kernel for Add<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        for (y, x) in self.1.iter_mut().zip(self.0) {
            *y = T::from_stat(y.to_stat() + x.to_stat());
        }
    }
}

struct SumRows<'a, T: Element> {
    dy: Rows<'a, T>,
    first: usize,
    rows: usize,
    sums: &'a mut [T::Stat],
}

impl<T: Element> Kernel for SumRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        for r in self.first..self.first + self.rows {
            for (sum, dy) in self.sums.iter_mut().zip(self.dy.row(r)) {
                *sum += dy.to_stat();
            }
        }
    }
}

struct Scale<'a, T: Element>(T::Stat, &'a mut [T]);

impl<T: Element> Kernel for Scale<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        for x in self.1 {
            *x = T::from_stat(x.to_stat() * self.0);
        }
    }
}

struct Cast<'a, T: Element, U: Element>(&'a [T], &'a mut [U]);

impl<T: Element, U: Element> Kernel for Cast<'_, T, U> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        for (out, x) in self.1.iter_mut().zip(self.0) {
            *out = U::from_stat(U::Stat::of(x.to_stat().f64()));
        }
    }
}
