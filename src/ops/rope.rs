//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split: column `i` of a head
//! is paired with column `i + head_dim / 2`, as Hugging Face stores weights.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::simd::{Isa, Kernel, dispatch};
use crate::device::{Cuda, profile};
use crate::ffi::{self, launch};
use crate::{Element, Error, Real, Result, RowsMut, Tensor, View, ViewMut};

const OP: &str = "rope";

/// Which way a row is turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By its position's angles.
    Forward,
    /// By minus its position's angles: the gradient.
    Backward,
}

/// Cosines and sines of every row's angles, shared by all heads and layers of a step.
#[derive(Clone, Debug)]
pub struct RopeTable<R: Real> {
    /// `[T, head_dim]`: `head_dim / 2` cosines, then as many sines.
    values: Tensor<R>,
}

impl<R: Real> RopeTable<R> {
    /// A table for `positions [T, 1]`, on their device, from the radians per position of each of
    /// the `head_dim / 2` pairs. Angles are computed in `f64`.
    ///
    /// # Errors
    /// [`Error::Shape`] where `positions` is not a column, or there is no pair.
    pub fn new(positions: View<'_, i32>, inv_freq: &[f64]) -> Result<Self> {
        const OP: &str = "rope_table";
        positions.expect(OP, "positions", positions.rows(), 1)?;
        if inv_freq.is_empty() {
            return Err(Error::shape(OP, "at least one frequency", "none"));
        }
        if let Some(cuda) = positions.cuda() {
            return launch_table(OP, cuda, positions, inv_freq);
        }
        let (positions, half) = (positions.host(OP)?, inv_freq.len());
        let mut values = vec![R::ZERO; positions.rows * 2 * half];
        values.par_chunks_mut(2 * half).with_min_len(64).enumerate().for_each(|(row, values)| {
            let position = f64::from(positions.row(row)[0]);
            let (cos, sin) = values.split_at_mut(half);
            for ((cos, sin), freq) in cos.iter_mut().zip(sin).zip(inv_freq) {
                let (s, c) = (position * freq).sin_cos();
                (*cos, *sin) = (R::of(c), R::of(s));
            }
        });
        Ok(RopeTable { values: Tensor::from_vec(values, positions.rows, 2 * half)? })
    }

    /// T, the number of rows.
    pub fn rows(&self) -> usize {
        self.values.rows()
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.values.cols()
    }
}

/// Turns the pairs of every head of `x [T, heads head_dim]` in place.
///
/// # Errors
/// [`Error::Shape`] where rows or columns do not fit the table.
pub fn rope<T: Element>(
    x: ViewMut<'_, T>,
    table: &RopeTable<T::Stat>,
    direction: Direction,
) -> Result<()> {
    let _scope = profile::scope("rope", 0, 2 * x.rows() * x.cols() * size_of::<T>());
    let width = table.head_dim();
    x.expect(OP, "x", table.rows(), x.cols() / width * width)?;
    if let Some(cuda) = x.cuda() {
        return launch_rope(cuda, x, table.values.view(), direction);
    }
    let values = table.values.view().host(OP)?.data;
    let block = (16384 / x.cols().max(1)).max(1);
    x.host(OP)?.blocks(block).into_par_iter().for_each(|(first, x)| {
        let values = &values[first * width..][..x.rows * width];
        dispatch(Rotate { x, values, half: width / 2, direction });
    });
    Ok(())
}

fn launch_table<R: Real>(
    op: &'static str,
    cuda: &Cuda,
    positions: View<'_, i32>,
    inv_freq: &[f64],
) -> Result<RopeTable<R>> {
    ffi::dtype::<R>(op)?;
    let (rows, half) = (positions.rows(), inv_freq.len());
    let inv_freq = Tensor::column(&cuda.device(), inv_freq)?;
    let mut values = Tensor::<R>::unset(cuda, rows, 2 * half)?;
    let (to, inv_freq_at) = (values.view_mut().on(op, cuda)?.cast(), inv_freq.view().on(op, cuda)?);
    let positions_at = positions.packed_on(op, cuda)?;
    // SAFETY: R is f32; the sizes are those of the tensors, all on this device.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_rope_table(
                to,
                positions_at,
                inv_freq_at,
                rows as i64,
                half as i64,
                cuda.stream(),
            )
        )
    }?;
    Ok(RopeTable { values })
}

fn launch_rope<T: Element>(
    cuda: &Cuda,
    x: ViewMut<'_, T>,
    table: View<'_, T::Stat>,
    direction: Direction,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(OP)?;
    let (to, table_at) = (x.on(OP, cuda)?.cast(), table.packed_on(OP, cuda)?.cast());
    // SAFETY: the sizes are those of the views, both on this device, and were compared; the table
    // is f32 where there is a dtype for T.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_rope(
                to,
                table_at,
                x.rows() as i64,
                (x.cols() / table.cols()) as i64,
                (table.cols() / 2) as i64,
                x.stride() as i64,
                i32::from(direction == Direction::Backward),
                dtype,
                cuda.stream(),
            )
        )
    }
}

struct Rotate<'a, T: Element> {
    x: RowsMut<'a, T>,
    values: &'a [T::Stat],
    half: usize,
    direction: Direction,
}

impl<T: Element> Kernel for Rotate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        match self.half {
            half if half % 8 == 0 => self.rotate::<I, 8>(),
            half if half % 4 == 0 => self.rotate::<I, 4>(),
            _ => self.rotate::<I, 1>(),
        }
    }
}

impl<T: Element> Rotate<'_, T> {
    #[inline(always)]
    fn rotate<I: Isa, const W: usize>(mut self) {
        let sign = match self.direction {
            Direction::Forward => T::Stat::ONE,
            Direction::Backward => -T::Stat::ONE,
        };
        for (row, table) in self.values.chunks_exact(2 * self.half).enumerate() {
            let (cos, sin) = table.split_at(self.half);
            for head in self.x.row(row).chunks_exact_mut(2 * self.half) {
                let (a, b) = head.split_at_mut(self.half);
                let pairs = a.chunks_exact_mut(W).zip(b.chunks_exact_mut(W));
                for ((a, b), (cos, sin)) in pairs.zip(cos.chunks_exact(W).zip(sin.chunks_exact(W)))
                {
                    for i in 0..W {
                        let (x, y) = (a[i].to_stat(), b[i].to_stat());
                        let (cos, sin) = (cos[i], sign * sin[i]);
                        a[i] = T::from_stat(I::fma(x, cos, -(y * sin)));
                        b[i] = T::from_stat(I::fma(y, cos, x * sin));
                    }
                }
            }
        }
    }
}
