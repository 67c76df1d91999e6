//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split: column `i` of a head
//! is paired with column `i + head_dim / 2`, as Hugging Face stores weights.

use rayon::prelude::*;

use crate::device::profile;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Error, Real, Result, RowsMut, View, ViewMut};

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
pub struct RopeTable<R> {
    /// `[T, head_dim]`: `head_dim / 2` cosines, then as many sines.
    values: Vec<R>,
    rows: usize,
    half: usize,
}

impl<R: Real> RopeTable<R> {
    /// A table for `positions [T, 1]`, from the radians per position of each of the `head_dim / 2`
    /// pairs. Angles are computed in `f64`.
    ///
    /// # Errors
    /// [`Error::Shape`] where `positions` is not a column, or there is no pair.
    pub fn new(positions: View<'_, i32>, inv_freq: &[f64]) -> Result<Self> {
        const OP: &str = "rope_table";
        positions.expect(OP, "positions", positions.rows(), 1)?;
        if inv_freq.is_empty() {
            return Err(Error::shape(OP, "at least one frequency", "none"));
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
        Ok(RopeTable { values, rows: positions.rows, half })
    }

    /// T, the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        2 * self.half
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
    const OP: &str = "rope";
    let width = table.head_dim();
    x.expect(OP, "x", table.rows, x.cols() / width * width)?;
    let block = (16384 / x.cols().max(1)).max(1);
    x.host(OP)?.blocks(block).into_par_iter().for_each(|(first, x)| {
        let values = &table.values[first * width..][..x.rows * width];
        dispatch(Rotate { x, values, half: table.half, direction });
    });
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Tensor};
    use half::bf16;

    fn inv_freq(head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2).map(|i| 10000f64.powf(-2.0 * i as f64 / head_dim as f64)).collect()
    }

    fn noise(n: usize) -> Vec<f64> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn pairs_turn_by_their_angle_and_back() {
        for (rows, heads, d) in [(0, 2, 8), (1, 1, 2), (5, 3, 6), (7, 2, 8), (3, 2, 48), (2, 1, 80)]
        {
            let positions: Vec<i32> = (0..rows as i32).map(|i| i * 37 % 101).collect();
            let column = Tensor::column(&Device::Cpu, &positions).unwrap();
            let table = RopeTable::<f64>::new(column.view(), &inv_freq(d)).unwrap();
            let (cols, stride) = (heads * d, heads * d + 3);
            let before = noise(rows * stride);
            let mut x = before.clone();
            let view = ViewMut::from_slice(&mut x, rows, cols, stride).unwrap();
            rope(view, &table, Direction::Forward).unwrap();
            for (at, &y) in x.iter().enumerate() {
                let (row, col) = (at / stride, at % stride);
                if col >= cols {
                    assert_eq!(y, before[at], "padding");
                    continue;
                }
                let (pair, second) = (col % d % (d / 2), col % d >= d / 2);
                let (s, c) = (f64::from(positions[row]) * inv_freq(d)[pair]).sin_cos();
                let other = if second { before[at - d / 2] } else { -before[at + d / 2] };
                assert!((y - (before[at] * c + other * s)).abs() < 1e-14);
            }
            let view = ViewMut::from_slice(&mut x, rows, cols, stride).unwrap();
            rope(view, &table, Direction::Backward).unwrap();
            assert!(x.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-14));
        }
    }

    #[test]
    fn bf16_rounds_once_and_a_far_position_keeps_its_angle() {
        let table = |positions: &[i32]| {
            let column = Tensor::column(&Device::Cpu, positions).unwrap();
            RopeTable::<f32>::new(column.view(), &inv_freq(8)).unwrap()
        };
        let mut x: Vec<bf16> = noise(8).iter().map(|&x| bf16::from_f64(x)).collect();
        let mut wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        let table = table(&[1_000_003]);
        rope(ViewMut::from_slice(&mut x, 1, 8, 8).unwrap(), &table, Direction::Forward).unwrap();
        let view = ViewMut::from_slice(&mut wide, 1, 8, 8).unwrap();
        rope(view, &table, Direction::Forward).unwrap();
        assert!(x.iter().zip(&wide).all(|(a, b)| *a == bf16::from_f32(*b)));
        assert_eq!(table.values[0], 1_000_003f64.cos() as f32);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let column = Tensor::column(&Device::Cpu, &[0, 1]).unwrap();
        assert!(RopeTable::<f32>::new(column.view(), &[]).is_err());
        let table = RopeTable::<f32>::new(column.view(), &inv_freq(4)).unwrap();
        let mut x = vec![0f32; 64];
        for (rows, cols) in [(3, 4), (2, 6), (1, 4)] {
            let view = ViewMut::from_slice(&mut x, rows, cols, cols).unwrap();
            assert!(rope(view, &table, Direction::Forward).is_err());
        }
    }
}
