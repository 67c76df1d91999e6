//! What the CPU code of the operations shares: tasks over fixed blocks, sums over fixed lanes.

use rayon::prelude::*;

use crate::{Plain, Real, Rows, RowsMut};

/// Values of one task over contiguous memory.
pub const CHUNK: usize = 1 << 14;
/// Below this many values a loop is not worth the other threads.
const SERIAL: usize = 1 << 15;
/// Partial sums of a reduction; its order is fixed by them alone.
pub const LANES: usize = 16;

/// Runs `f` over the tasks, on the pool when they touch enough `values` together. The tasks are
/// the same either way, so the results are.
pub fn run<W: Send>(values: usize, tasks: Vec<W>, f: impl Fn(W) + Send + Sync) {
    if values < SERIAL || tasks.len() < 2 {
        tasks.into_iter().for_each(f);
    } else {
        tasks.into_par_iter().for_each(f);
    }
}

/// Rows of one task, where a row is `cols` values.
pub fn block_rows(cols: usize) -> usize {
    (CHUNK / cols.max(1)).max(1)
}

/// The values of a matrix whose rows follow one another without gaps.
pub fn flat<'a, T: Plain>(x: &Rows<'a, T>) -> Option<&'a [T]> {
    if x.rows == 0 {
        return Some(&[]);
    }
    (x.stride == x.cols || x.rows == 1).then(|| &x.data[..x.rows * x.cols])
}

/// [`flat`], to write to; the matrix itself where its rows have gaps.
pub fn flat_mut<'a, T: Plain>(x: RowsMut<'a, T>) -> Result<&'a mut [T], RowsMut<'a, T>> {
    if x.rows == 0 {
        return Ok(&mut []);
    }
    if x.stride == x.cols || x.rows == 1 { Ok(&mut x.data[..x.rows * x.cols]) } else { Err(x) }
}

/// Calls `f` on runs of values that together are the whole matrix, in parallel.
pub fn each<T: Plain>(y: RowsMut<T>, f: impl Fn(&mut [T]) + Send + Sync) {
    let values = y.rows * y.cols;
    match flat_mut(y) {
        Ok(y) => run(values, y.chunks_mut(CHUNK).collect(), f),
        Err(y) => {
            let block = block_rows(y.cols);
            run(values, y.blocks(block), |(_, mut y)| (0..y.rows).for_each(|r| f(y.row(r))));
        }
    }
}

/// Calls `f` on matching runs of values of two matrices of one shape, in parallel.
pub fn each_pair<T: Plain, U: Plain>(
    x: Rows<T>,
    y: RowsMut<U>,
    f: impl Fn(&[T], &mut [U]) + Send + Sync,
) {
    let values = y.rows * y.cols;
    let y = match (flat(&x), flat_mut(y)) {
        (Some(x), Ok(y)) => {
            let tasks = x.chunks(CHUNK).zip(y.chunks_mut(CHUNK)).collect();
            return run(values, tasks, |(x, y)| f(x, y));
        }
        (None, Ok(y)) => RowsMut { rows: x.rows, cols: x.cols, stride: x.cols, data: y },
        (_, Err(y)) => y,
    };
    let block = block_rows(y.cols);
    run(values, y.blocks(block), |(first, mut y)| {
        (0..y.rows).for_each(|r| f(x.row(first + r), y.row(r)));
    });
}

/// `out[c] += sum over p of partials[p][c]`, in the order of `p`.
pub fn add_partials<R: Real>(partials: &[R], out: &mut [R]) {
    const COLS: usize = 256;
    let width = out.len();
    let tasks = out.chunks_mut(COLS).enumerate().collect();
    run(partials.len(), tasks, |(i, out)| {
        let mut sums = [R::ZERO; COLS];
        let sums = &mut sums[..out.len()];
        for partial in partials.chunks_exact(width) {
            let partial = &partial[i * COLS..][..sums.len()];
            sums.iter_mut().zip(partial).for_each(|(sum, &value)| *sum += value);
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum);
    });
}

/// Adds the lanes pairwise.
#[inline(always)]
pub fn fold<R: Real>(mut lanes: [R; LANES]) -> R {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
pub mod testing {
    use crate::Real;

    /// Values in -1..1, the same for the same seed.
    pub fn values<R: Real>(seed: u64, n: usize) -> Vec<R> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                R::of((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
            })
            .collect()
    }

    /// The result of `f` on pools of 1, 2 and 4 threads, which must be the same.
    pub fn same_on_any_pool<T: PartialEq + std::fmt::Debug + Send>(
        f: impl Fn() -> T + Sync + Send,
    ) -> T {
        let on = |threads| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&f)
        };
        let one = on(1);
        assert!(one == on(2) && one == on(4), "the result depends on the number of threads");
        one
    }

    /// Central differences of `loss` at `x` against `dx`.
    pub fn check_gradient(x: &[f64], dx: &[f64], loss: impl Fn(&[f64]) -> f64) {
        let h = 1e-5;
        let mut moved = x.to_vec();
        for i in 0..x.len() {
            moved[i] = x[i] + h;
            let up = loss(&moved);
            moved[i] = x[i] - h;
            let down = loss(&moved);
            moved[i] = x[i];
            let numeric = (up - down) / (2.0 * h);
            let error = (numeric - dx[i]).abs();
            assert!(error <= 1e-7 * (1.0 + dx[i].abs()), "{i}: {numeric} but {}", dx[i]);
        }
    }

    pub fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    pub fn assert_close<R: Real>(got: &[R], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len());
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let error = (g.f64() - w).abs();
            assert!(error <= tolerance * (1.0 + w.abs()), "{i}: {g} but {w}");
        }
    }
}
