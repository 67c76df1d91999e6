//! Root-mean-square norm, alone or fused with the residual addition before it.
//!
//! Every row is cut into `G` groups of `W` columns, `W` being the width of the weight, and each
//! group is normalised by itself: `out = x * rstd * weight`, `rstd = 1 / sqrt(mean(x^2) + eps)`.
//! `G` is 1 for the norms of a block and the number of heads for those of queries and keys.

mod launch;
#[cfg(test)]
mod tests;

use super::Mode;
use super::cpu::{LANES, add_partials, block_rows, fold, run};
use crate::device::profile;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Error, Real, Result, Rows, RowsMut, View, ViewMut};

const OP: &str = "rmsnorm";
/// Rows whose weight gradients are summed into one partial result.
const BACKWARD_ROWS: usize = 32;

/// Normalises.
///
/// `x [T, G*W]`, `weight [1, W]`, `out [T, G*W]` =, `rstd [T, G]` =.
pub fn forward<T: Element>(
    x: View<T>,
    weight: View<T>,
    eps: f64,
    out: ViewMut<T>,
    rstd: ViewMut<T::Stat>,
) -> Result<()> {
    let _scope = profile::scope("rmsnorm", 0, 2 * x.rows() * x.cols() * size_of::<T>());
    check(&x, &weight, &out.view(), &rstd.view())?;
    if let Some(cuda) = out.cuda() {
        return launch::forward(cuda, x, None, weight, eps, out, rstd);
    }
    let (x, weight) = (x.host(OP)?, weight.host(OP)?.row(0));
    let (out, rstd) = (out.host(OP)?, rstd.host(OP)?);
    let (values, block) = (x.rows * x.cols, block_rows(x.cols));
    let tasks = out.blocks(block).into_iter().zip(rstd.blocks(block)).collect();
    run(values, tasks, |((first, out), (_, rstd))| {
        dispatch(Forward { x, first, weight, eps, out, rstd });
    });
    Ok(())
}

/// Adds to the residual stream and normalises the sum, in one pass.
///
/// `x [T, G*W]`, `residual [T, G*W]` +=, `weight [1, W]`, `out [T, G*W]` =, `rstd [T, G]` =.
pub fn add_forward<T: Element>(
    x: View<T>,
    residual: ViewMut<T>,
    weight: View<T>,
    eps: f64,
    out: ViewMut<T>,
    rstd: ViewMut<T::Stat>,
) -> Result<()> {
    let _scope = profile::scope("rmsnorm", 0, 4 * x.rows() * x.cols() * size_of::<T>());
    check(&x, &weight, &out.view(), &rstd.view())?;
    residual.expect(OP, "residual", x.rows(), x.cols())?;
    if let Some(cuda) = out.cuda() {
        return launch::forward(cuda, x, Some(residual), weight, eps, out, rstd);
    }
    let (x, weight) = (x.host(OP)?, weight.host(OP)?.row(0));
    let (residual, out, rstd) = (residual.host(OP)?, out.host(OP)?, rstd.host(OP)?);
    let (values, block) = (x.rows * x.cols, block_rows(x.cols));
    let outputs = out.blocks(block).into_iter().zip(rstd.blocks(block));
    let tasks = residual.blocks(block).into_iter().zip(outputs).collect();
    run(values, tasks, |((first, residual), ((_, out), (_, rstd)))| {
        dispatch(AddForward { x, first, residual, weight, eps, out, rstd });
    });
    Ok(())
}

/// The gradients of [`forward`]; `x` is what was normalised (after [`add_forward`]: the residual).
///
/// `dout [T, G*W]`, `x [T, G*W]`, `weight [1, W]`, `rstd [T, G]`, `dx [T, G*W]` = or += by `mode`,
/// `dweight [1, W]` +=, summed over fixed blocks of rows, then over the blocks.
pub fn backward<T: Element>(
    dout: View<T>,
    x: View<T>,
    weight: View<T>,
    rstd: View<T::Stat>,
    dx: ViewMut<T>,
    mode: Mode,
    dweight: ViewMut<T::Stat>,
) -> Result<()> {
    let _scope = profile::scope("rmsnorm backward", 0, 3 * x.rows() * x.cols() * size_of::<T>());
    check(&x, &weight, &dx.view(), &rstd)?;
    dout.expect(OP, "dout", x.rows(), x.cols())?;
    dweight.expect(OP, "dweight", 1, weight.cols())?;
    if let Some(cuda) = dx.cuda() {
        return launch::backward(cuda, dout, x, weight, rstd, dx, mode, dweight);
    }
    let (dout, x, rstd) = (dout.host(OP)?, x.host(OP)?, rstd.host(OP)?);
    let weight = weight.host(OP)?.row(0);
    let (dx, mut dweight) = (dx.host(OP)?, dweight.host(OP)?);
    let width = weight.len();
    let values = x.rows * x.cols;
    let mut partials = vec![T::Stat::ZERO; x.rows.div_ceil(BACKWARD_ROWS) * width];
    let tasks =
        dx.blocks(BACKWARD_ROWS).into_iter().zip(partials.chunks_exact_mut(width)).collect();
    run(values, tasks, |((first, dx), dweight)| {
        dispatch(Backward { dout, x, first, weight, rstd, dx, mode, dweight });
    });
    add_partials(&partials, dweight.row(0));
    Ok(())
}

fn check<T: Element>(
    x: &View<T>,
    weight: &View<T>,
    out: &View<T>,
    rstd: &View<T::Stat>,
) -> Result<()> {
    let width = weight.cols();
    weight.expect(OP, "weight", 1, width)?;
    if width == 0 || !x.cols().is_multiple_of(width) {
        return Err(Error::shape(
            OP,
            format!("columns in groups of the weight's {width}"),
            format!("{} columns", x.cols()),
        ));
    }
    out.expect(OP, "out", x.rows(), x.cols())?;
    rstd.expect(OP, "rstd", x.rows(), x.cols() / width)
}

struct Forward<'a, T: Element> {
    x: Rows<'a, T>,
    first: usize,
    weight: &'a [T],
    eps: f64,
    out: RowsMut<'a, T>,
    rstd: RowsMut<'a, T::Stat>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        for r in 0..self.out.rows {
            let x = self.x.row(self.first + r);
            norm_row::<I, T>(x, self.weight, self.eps, self.out.row(r), self.rstd.row(r));
        }
    }
}

struct AddForward<'a, T: Element> {
    x: Rows<'a, T>,
    first: usize,
    residual: RowsMut<'a, T>,
    weight: &'a [T],
    eps: f64,
    out: RowsMut<'a, T>,
    rstd: RowsMut<'a, T::Stat>,
}

impl<T: Element> Kernel for AddForward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        for r in 0..self.out.rows {
            let residual = self.residual.row(r);
            for (sum, x) in residual.iter_mut().zip(self.x.row(self.first + r)) {
                *sum = T::from_stat(sum.to_stat() + x.to_stat());
            }
            norm_row::<I, T>(residual, self.weight, self.eps, self.out.row(r), self.rstd.row(r));
        }
    }
}

#[inline(always)]
fn norm_row<I: Isa, T: Element>(
    x: &[T],
    weight: &[T],
    eps: f64,
    out: &mut [T],
    rstd: &mut [T::Stat],
) {
    let width = weight.len();
    let groups = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
    for ((x, out), rstd) in groups.zip(rstd) {
        let mean = sum_squares::<I, T>(x) / T::Stat::of(width as f64);
        let scale = T::Stat::ONE / (mean + T::Stat::of(eps)).sqrt();
        *rstd = scale;
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = T::from_stat(x.to_stat() * scale * w.to_stat());
        }
    }
}

#[inline(always)]
fn sum_squares<I: Isa, T: Element>(x: &[T]) -> T::Stat {
    let mut lanes = [T::Stat::ZERO; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = I::fma(x.to_stat(), x.to_stat(), *lane);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = I::fma(x.to_stat(), x.to_stat(), *lane);
    }
    fold(lanes)
}

struct Backward<'a, T: Element> {
    dout: Rows<'a, T>,
    x: Rows<'a, T>,
    first: usize,
    weight: &'a [T],
    rstd: Rows<'a, T::Stat>,
    dx: RowsMut<'a, T>,
    mode: Mode,
    dweight: &'a mut [T::Stat],
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let (weight, mode, width) = (self.weight, self.mode, self.weight.len());
        for r in 0..self.dx.rows {
            let row = self.first + r;
            let groups = self.dout.row(row).chunks_exact(width);
            let groups = groups.zip(self.x.row(row).chunks_exact(width));
            let groups = groups.zip(self.dx.row(r).chunks_exact_mut(width));
            for (((dout, x), dx), &rstd) in groups.zip(self.rstd.row(row)) {
                let dot = accumulate::<I, T>(dout, x, weight, rstd, self.dweight);
                // dx = rstd * (dout w - xhat mean(dout w xhat))
                let c = -(dot * rstd * rstd / T::Stat::of(width as f64));
                let inputs = dout.iter().zip(x).zip(weight);
                match mode {
                    Mode::Set => {
                        for (dx, ((dout, x), w)) in dx.iter_mut().zip(inputs) {
                            let dnorm = dout.to_stat() * w.to_stat();
                            *dx = T::from_stat(I::fma(x.to_stat(), c, dnorm) * rstd);
                        }
                    }
                    Mode::Add => {
                        for (dx, ((dout, x), w)) in dx.iter_mut().zip(inputs) {
                            let dnorm = I::fma(x.to_stat(), c, dout.to_stat() * w.to_stat());
                            *dx = T::from_stat(I::fma(dnorm, rstd, dx.to_stat()));
                        }
                    }
                }
            }
        }
    }
}

/// `dweight += dout * x * rstd`; the sum of `dout * weight * x`.
#[inline(always)]
fn accumulate<I: Isa, T: Element>(
    dout: &[T],
    x: &[T],
    weight: &[T],
    rstd: T::Stat,
    dweight: &mut [T::Stat],
) -> T::Stat {
    let mut lanes = [T::Stat::ZERO; LANES];
    let step = |lane: &mut T::Stat, dout: &T, x: &T, w: &T, dw: &mut T::Stat| {
        let dx = dout.to_stat() * x.to_stat();
        *dw = I::fma(dx, rstd, *dw);
        *lane = I::fma(dx, w.to_stat(), *lane);
    };
    let whole = dout.len() / LANES * LANES;
    let (dout, dout_tail) = dout.split_at(whole);
    let (x, x_tail) = x.split_at(whole);
    let (weight, weight_tail) = weight.split_at(whole);
    let (dweight, dweight_tail) = dweight.split_at_mut(whole);
    let chunks = dout.chunks_exact(LANES).zip(x.chunks_exact(LANES));
    let chunks = chunks.zip(weight.chunks_exact(LANES)).zip(dweight.chunks_exact_mut(LANES));
    for (((dout, x), w), dw) in chunks {
        for i in 0..LANES {
            step(&mut lanes[i], &dout[i], &x[i], &w[i], &mut dw[i]);
        }
    }
    for i in 0..dout_tail.len() {
        step(&mut lanes[i], &dout_tail[i], &x_tail[i], &weight_tail[i], &mut dweight_tail[i]);
    }
    fold(lanes)
}
