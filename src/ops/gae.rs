//! Advantages of the tokens of many sequences, and their whitening.

#[cfg(test)]
mod tests;

use super::sequence_sum::offsets;
use crate::device::Cuda;
use crate::ffi::{self, launch};
use crate::losses::{gae, whiten as whiten_values};
use crate::{Real, Result, Tensor, View, ViewMut};

const OP: &str = "gae";

/// [`gae`] of every sequence: `rewards` `[N, 1]`, `values` `[N, 1]` and offsets `cu` `[S + 1, 1]`
/// (sequence `s` is rows `cu[s]..cu[s + 1]`) -> advantages and returns, `[N, 1]` each, 0 in rows of
/// no sequence. In f64, rounded once.
///
/// On a GPU the offsets must have been uploaded from the host ([`Tensor::column`]) and not been
/// written to since: then they can be checked without waiting.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for columns that are none, and for offsets that decrease or
/// leave `0..=N`.
pub fn forward<S: Real>(
    rewards: View<'_, S>,
    values: View<'_, S>,
    cu: View<'_, i32>,
    gamma: f64,
    lambda: f64,
) -> Result<(Tensor<S>, Tensor<S>)> {
    let n = rewards.rows();
    rewards.expect(OP, "rewards", n, 1)?;
    values.expect(OP, "values", n, 1)?;
    let offsets = offsets(OP, cu, n)?;
    if let Some(cuda) = rewards.cuda() {
        return launch_forward(cuda, rewards, values, cu, gamma, lambda);
    }
    let (rewards, values) = (wide(rewards)?, wide(values)?);
    let (mut advantages, mut returns) = (vec![S::ZERO; n], vec![S::ZERO; n]);
    for rows in offsets.windows(2) {
        let rows = rows[0]..rows[1];
        let out = gae(&rewards[rows.clone()], &values[rows.clone()], gamma, lambda)?;
        for (i, row) in rows.enumerate() {
            advantages[row] = S::of(out.advantages[i]);
            returns[row] = S::of(out.returns[i]);
        }
    }
    Ok((Tensor::from_vec(advantages, n, 1)?, Tensor::from_vec(returns, n, 1)?))
}

/// Shifts and scales all values `[N, 1]` (=) to mean 0 and variance 1, in f64:
/// [`whiten`](crate::losses::whiten).
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape).
pub fn whiten<S: Real>(x: ViewMut<'_, S>) -> Result<()> {
    x.expect(OP, "advantages", x.rows(), 1)?;
    if let Some(cuda) = x.cuda() {
        ffi::dtype::<S>(OP)?;
        let (at, n) = (x.packed_on(OP, cuda)?.cast(), x.rows() as i64);
        // SAFETY: S is f32, and there are that many values without gaps.
        return unsafe { launch!(OP, cuda, collimate_whiten(at, n, cuda.stream())) };
    }
    let mut values = wide(x.view())?;
    whiten_values(&mut values);
    let mut x = x.host(OP)?;
    (0..x.rows).for_each(|r| x.row(r)[0] = S::of(values[r]));
    Ok(())
}

fn wide<S: Real>(x: View<'_, S>) -> Result<Vec<f64>> {
    let x = x.host(OP)?;
    Ok((0..x.rows).map(|r| x.row(r)[0].f64()).collect())
}

fn launch_forward<S: Real>(
    cuda: &Cuda,
    rewards: View<'_, S>,
    values: View<'_, S>,
    cu: View<'_, i32>,
    gamma: f64,
    lambda: f64,
) -> Result<(Tensor<S>, Tensor<S>)> {
    ffi::dtype::<S>(OP)?;
    let column = || Tensor::<S>::zeros(&cuda.device(), rewards.rows(), 1);
    let (mut advantages, mut returns) = (column()?, column()?);
    let advantages_at = advantages.view_mut().on(OP, cuda)?.cast();
    let returns_at = returns.view_mut().on(OP, cuda)?.cast();
    let (rewards_at, values_at) =
        (rewards.packed_on(OP, cuda)?.cast(), values.packed_on(OP, cuda)?.cast());
    let cu_at = cu.packed_on(OP, cuda)?;
    // SAFETY: S is f32; the offsets were checked to rise within the rows, and all is on this device.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_gae(
                advantages_at,
                returns_at,
                rewards_at,
                values_at,
                cu_at,
                cu.rows() as i64 - 1,
                gamma,
                lambda,
                cuda.stream(),
            )
        )
    }?;
    Ok((advantages, returns))
}
