//! Sums of per-token values over sequences: log-probabilities of tokens to those of completions.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::Cuda;
use crate::device::profile;
use crate::ffi::{self, launch, nullable};
use crate::{Error, Real, Result, Tensor, View, ViewMut};

const OP: &str = "sequence_sum";

/// `logps` `[N, 1]`, offsets `cu` `[S + 1, 1]` (sequence `s` is rows `cu[s]..cu[s + 1]`) and
/// optional `weights` `[N, 1]` -> the (weighted) sum of every sequence `[S, 1]` and its number of
/// tokens `[S, 1]`.
///
/// Each sequence is summed in row order, in f64 for both types, and rounded once. An empty
/// sequence sums to 0. Rows before `cu[0]` and from `cu[S]` on belong to no sequence.
///
/// On a GPU the offsets must have been uploaded from the host ([`Tensor::column`]) and not been
/// written to since: then they can be checked without waiting.
///
/// # Errors
/// [`Error::Shape`] for columns that are none, and for offsets that decrease or leave `0..=N`.
pub fn forward<S: Real>(
    logps: View<'_, S>,
    cu: View<'_, i32>,
    weights: Option<View<'_, S>>,
) -> Result<(Tensor<S>, Tensor<i32>)> {
    let _scope = profile::scope("sequence_sum", 0, logps.rows() * size_of::<S>());
    let n = logps.rows();
    logps.expect(OP, "logps", n, 1)?;
    let offsets = offsets(OP, cu, n)?;
    if let Some(cuda) = logps.cuda() {
        return launch_forward(cuda, logps, cu, offsets.len() - 1, weights);
    }
    let weights = weights_of(weights, n)?;
    let logps = logps.host(OP)?;
    let sums = offsets
        .par_windows(2)
        .with_min_len(16)
        .map(|w| {
            let rows = w[0]..w[1];
            S::of(rows.fold(0.0, |sum, r| {
                let weight = weights.as_ref().map_or(1.0, |weights| weights.row(r)[0].f64());
                sum + logps.row(r)[0].f64() * weight
            }))
        })
        .collect::<Vec<S>>();
    let counts = offsets.windows(2).map(|w| (w[1] - w[0]) as i32).collect();
    let sequences = sums.len();
    Ok((Tensor::from_vec(sums, sequences, 1)?, Tensor::from_vec(counts, sequences, 1)?))
}

/// Gradient of the sums: `dlogps[r] = dsums[s] * weights[r]` (`=`) for the rows of sequence `s`,
/// and 0 for rows of no sequence. `dsums` is `[S, 1]`, the rest as in [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn backward<S: Real>(
    dsums: View<'_, S>,
    cu: View<'_, i32>,
    weights: Option<View<'_, S>>,
    mut dlogps: ViewMut<'_, S>,
) -> Result<()> {
    let _scope = profile::scope("sequence_sum backward", 0, dlogps.rows() * size_of::<S>());
    let n = dlogps.rows();
    dlogps.expect(OP, "dlogps", n, 1)?;
    let offsets = offsets(OP, cu, n)?;
    dsums.expect(OP, "dsums", offsets.len() - 1, 1)?;
    if let Some(cuda) = dlogps.cuda() {
        let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
        launch_backward(cuda, dsums, cu, weights, dlogps.reborrow())?;
        dlogps.zero_rows(0, first)?;
        return dlogps.zero_rows(last, n - last);
    }
    let weights = weights_of(weights, n)?;
    let dsums = dsums.host(OP)?;
    let mut dlogps = dlogps.host(OP)?;
    for r in (0..offsets[0]).chain(offsets[offsets.len() - 1]..n) {
        dlogps.row(r)[0] = S::ZERO;
    }
    for (s, w) in offsets.windows(2).enumerate() {
        for r in w[0]..w[1] {
            let weight = weights.as_ref().map_or(S::ONE, |weights| weights.row(r)[0]);
            dlogps.row(r)[0] = dsums.row(s)[0] * weight;
        }
    }
    Ok(())
}

fn launch_forward<S: Real>(
    cuda: &Cuda,
    logps: View<'_, S>,
    cu: View<'_, i32>,
    sequences: usize,
    weights: Option<View<'_, S>>,
) -> Result<(Tensor<S>, Tensor<i32>)> {
    ffi::dtype::<S>(OP)?;
    let mut sums = Tensor::<S>::unset(cuda, sequences, 1)?;
    let mut counts = Tensor::<i32>::unset(cuda, sequences, 1)?;
    let (sums_at, counts_at) = (sums.view_mut().on(OP, cuda)?, counts.view_mut().on(OP, cuda)?);
    let weights = launched_weights(cuda, weights, logps.rows())?;
    let (logps, cu) = (logps.packed_on(OP, cuda)?.cast(), cu.packed_on(OP, cuda)?);
    // SAFETY: S is f32; the offsets were checked to rise within the rows of `logps` and `weights`.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_sequence_sum_forward(
                sums_at.cast(),
                counts_at,
                logps,
                weights,
                std::ptr::null(),
                cu,
                sequences as i64,
                cuda.stream(),
            )
        )
    }?;
    Ok((sums, counts))
}

fn launch_backward<S: Real>(
    cuda: &Cuda,
    dsums: View<'_, S>,
    cu: View<'_, i32>,
    weights: Option<View<'_, S>>,
    dlogps: ViewMut<'_, S>,
) -> Result<()> {
    ffi::dtype::<S>(OP)?;
    let sequences = dsums.rows() as i64;
    let weights = launched_weights(cuda, weights, dlogps.rows())?;
    let (dlogps, dsums) = (dlogps.packed_on(OP, cuda)?.cast(), dsums.packed_on(OP, cuda)?.cast());
    let cu = cu.packed_on(OP, cuda)?;
    // SAFETY: S is f32; the offsets were checked to rise within the rows of `dlogps` and `weights`.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_sequence_sum_backward(
                dlogps,
                dsums,
                weights,
                std::ptr::null(),
                cu,
                sequences,
                cuda.stream(),
            )
        )
    }
}

fn launched_weights<S: Real>(
    cuda: &Cuda,
    weights: Option<View<'_, S>>,
    n: usize,
) -> Result<*const f32> {
    let weights = weights
        .map(|weights| {
            weights.expect(OP, "weights", n, 1).and_then(|()| weights.packed_on(OP, cuda))
        })
        .transpose()?;
    Ok(nullable(weights).cast())
}

fn weights_of<S: Real>(
    weights: Option<View<'_, S>>,
    n: usize,
) -> Result<Option<crate::Rows<'_, S>>> {
    weights
        .map(|weights| {
            weights.expect(OP, "weights", n, 1)?;
            weights.host(OP)
        })
        .transpose()
}

/// The offsets as places within `n` rows, where they rise.
pub(super) fn offsets(op: &'static str, cu: View<'_, i32>, n: usize) -> Result<Vec<usize>> {
    cu.expect(op, "cu", cu.rows().max(1), 1)?;
    let rows = cu.known().ok_or_else(|| {
        Error::shape(op, "offsets that were uploaded from the host", "offsets made on the device")
    })?;
    let mut last = 0;
    (0..rows.rows)
        .map(|s| {
            let offset = rows.row(s)[0];
            match usize::try_from(offset) {
                Ok(offset) if offset >= last && offset <= n => {
                    last = offset;
                    Ok(offset)
                }
                _ => Err(Error::shape(
                    op,
                    format!("offsets that rise from 0 to at most {n}"),
                    format!("cu[{s}] = {offset} after {last}"),
                )),
            }
        })
        .collect()
}
