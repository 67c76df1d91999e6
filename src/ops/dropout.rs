//! Dropout (Srivastava et al., JMLR 15, 2014): a share of the values is left out, and the rest is scaled up.
//!
//! Which values stay follows from a seed, a stream and the value's row and column alone, so no mask is
//! stored, and the bits are the same on every number of threads and on every device.

#[cfg(test)]
mod tests;

use super::Mode;
use super::cpu::{block_rows, run};
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::device::{Cuda, profile};
use crate::ffi::{self, launch};
use crate::{Element, Error, Real, Result, Rows, RowsMut, View, ViewMut};

const OP: &str = "dropout";
/// Values of one block of random bits.
const DRAWS: usize = 8;
/// Blocks that are computed together.
const LANES: usize = 16;

/// Which values are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The share: at least 0 and below 1, to the nearest 2^-16.
    pub share: f64,
    /// The seed.
    pub seed: u64,
    /// The stream of random numbers: other streams leave out other values.
    pub stream: u64,
}

impl Dropout {
    /// A value whose 16 random bits are below it is left out.
    fn threshold(&self) -> Result<u32> {
        match self.share {
            share if (0.0..1.0).contains(&share) => {
                Ok(((share * 65536.0).round() as u32).min(65535))
            }
            share => Err(Error::setting("dropout", "at least 0 and below 1", share)),
        }
    }
}

/// Leaves values out. Of gradients the same call gives the gradients.
///
/// `x [N, C]`, `y [N, C]` = or += by `mode`.
///
/// # Errors
/// [`Error::Setting`] for a share out of its range, [`Error::Shape`].
pub fn forward<T: Element>(dropout: Dropout, x: View<T>, y: ViewMut<T>, mode: Mode) -> Result<()> {
    let _scope = profile::scope(OP, 0, 3 * y.rows() * y.cols() * size_of::<T>());
    x.expect(OP, "x", y.rows(), y.cols())?;
    let threshold = dropout.threshold()?;
    if let Some(cuda) = y.cuda() {
        return on_device(cuda, dropout, threshold, x, y, mode);
    }
    let (x, y) = (x.host(OP)?, y.host(OP)?);
    let (values, block) = (y.rows * y.cols, block_rows(y.cols));
    run(values, y.blocks(block), |(first, y)| {
        dispatch(Forward { dropout, threshold, x, first, y, mode });
    });
    Ok(())
}

fn on_device<T: Element>(
    cuda: &Cuda,
    dropout: Dropout,
    threshold: u32,
    x: View<T>,
    y: ViewMut<T>,
    mode: Mode,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(OP)?;
    let (to, from) = (y.on(OP, cuda)?.cast(), x.on(OP, cuda)?.cast());
    // SAFETY: the sizes are those of the views, both on this device, and were compared.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_dropout(
                to,
                from,
                dropout.seed,
                dropout.stream,
                threshold as i32,
                y.rows() as i64,
                y.cols() as i64,
                y.stride() as i64,
                x.stride() as i64,
                i32::from(mode == Mode::Add),
                dtype,
                cuda.stream(),
            )
        )
    }
}

struct Forward<'a, T: Element> {
    dropout: Dropout,
    threshold: u32,
    x: Rows<'a, T>,
    first: usize,
    y: RowsMut<'a, T>,
    mode: Mode,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let scale = T::Stat::of(65536.0 / f64::from(65536 - self.threshold));
        let blocks = self.y.cols.div_ceil(DRAWS);
        for r in 0..self.y.rows {
            let row = self.first + r;
            let xs = self.x.row(row).chunks(LANES * DRAWS);
            let ys = self.y.row(r).chunks_mut(LANES * DRAWS);
            for (i, (x, y)) in xs.zip(ys).enumerate() {
                let draws = draws((row * blocks + i * LANES) as u64, &self.dropout);
                for ((y, x), draw) in y.iter_mut().zip(x).zip(draws) {
                    let kept = match draw < self.threshold {
                        true => T::Stat::ZERO,
                        false => x.to_stat() * scale,
                    };
                    *y = match self.mode {
                        Mode::Set => T::from_stat(kept),
                        Mode::Add => T::from_stat(y.to_stat() + kept),
                    };
                }
            }
        }
    }
}

/// The random bits of the values of blocks `first..first + LANES`: [`philox4x32`](crate::rng::philox4x32)
/// of all of them side by side.
#[inline(always)]
fn draws(first: u64, dropout: &Dropout) -> [u32; LANES * DRAWS] {
    let (mut a, mut b) = ([0u32; LANES], [0u32; LANES]);
    for i in 0..LANES {
        let block = first + i as u64;
        (a[i], b[i]) = (block as u32, (block >> 32) as u32);
    }
    let (mut c, mut d) = ([dropout.stream as u32; LANES], [(dropout.stream >> 32) as u32; LANES]);
    let (mut k0, mut k1) = (dropout.seed as u32, (dropout.seed >> 32) as u32);
    for _ in 0..10 {
        for i in 0..LANES {
            let x = u64::from(a[i]) * 0xD251_1F53;
            let y = u64::from(c[i]) * 0xCD9E_8D57;
            a[i] = (y >> 32) as u32 ^ b[i] ^ k0;
            c[i] = (x >> 32) as u32 ^ d[i] ^ k1;
            (b[i], d[i]) = (y as u32, x as u32);
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    let mut draws = [0; LANES * DRAWS];
    for (i, of_block) in draws.chunks_exact_mut(DRAWS).enumerate() {
        for (w, word) in [a[i], b[i], c[i], d[i]].into_iter().enumerate() {
            (of_block[2 * w], of_block[2 * w + 1]) = (word & 0xFFFF, word >> 16);
        }
    }
    draws
}
