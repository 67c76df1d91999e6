//! What this machine can do at most: the measure for what the operations reach.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::simd::{Isa, Kernel, dispatch};

/// Rates of all threads together.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// Floating-point operations a second, in `f32`: multiply-adds in registers.
    pub flops: f64,
    /// Bytes a second, read and written: a copy of what no cache holds.
    pub bytes: f64,
}

impl Peak {
    /// Measures, in about a tenth of a second.
    pub fn measure() -> Self {
        const ROUNDS: usize = 1 << 19;
        let threads = rayon::current_num_threads();
        let flops = (threads * ROUNDS * 2 * LANES * CHAINS) as f64;
        let flops = best(flops, || {
            (0..threads).into_par_iter().for_each(|_| {
                black_box(dispatch(Multiply { rounds: black_box(ROUNDS) }));
            });
        });
        const VALUES: usize = 1 << 23;
        let (from, mut to) = (vec![1f32; VALUES], vec![0f32; VALUES]);
        let bytes = best((2 * VALUES * size_of::<f32>()) as f64, || {
            let chunks = to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16));
            chunks.for_each(|(to, from)| to.copy_from_slice(from));
            black_box(&mut to);
        });
        Peak { flops, bytes }
    }
}

/// The highest rate of some runs, of which each does as much.
fn best(amount: f64, mut run: impl FnMut()) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        run();
        amount / start.elapsed().as_secs_f64().max(1e-9)
    };
    (0..4).map(rate).fold(0.0, f64::max)
}

const LANES: usize = 8;
/// Sums that do not wait for each other: as many as hide the latency of an addition.
const CHAINS: usize = 12;

struct Multiply {
    rounds: usize,
}

impl Kernel for Multiply {
    type Output = [[f32; LANES]; CHAINS];
    #[inline(always)]
    fn run<I: Isa>(self) -> Self::Output {
        let mut sums = [[1f32; LANES]; CHAINS];
        let (factor, more) = black_box(([0.999f32; LANES], [1e-3f32; LANES]));
        for _ in 0..self.rounds {
            for sum in &mut sums {
                for i in 0..LANES {
                    sum[i] = I::fma(sum[i], factor[i], more[i]);
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn rates_are_those_of_a_machine() {
        let peak = super::Peak::measure();
        assert!((1e8..1e16).contains(&peak.flops) && (1e7..1e15).contains(&peak.bytes), "{peak:?}");
    }
}
