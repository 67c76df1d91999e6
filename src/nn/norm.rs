//! The norm of a structure's parameter, forward and backward.

use super::{ParamId, Weights};
use crate::ops::{Mode, rmsnorm};
use crate::{Element, Result, Tensor, View, ViewMut};

/// Rows normed by that weight, and their reciprocal root mean squares.
pub(super) fn norm<T: Element>(
    x: &Tensor<T>,
    weights: &Weights<T>,
    weight: ParamId,
    eps: f64,
) -> Result<(Tensor<T>, Tensor<T::Stat>)> {
    let device = x.device();
    let mut out = Tensor::to_fill(&device, x.rows(), x.cols())?;
    let mut rstd = Tensor::to_fill(&device, x.rows(), 1)?;
    rmsnorm::forward(x.view(), weights.get(weight)?, eps, out.view_mut(), rstd.view_mut())?;
    Ok((out, rstd))
}

/// `dx` = or +=, from the gradient of [`norm`]'s output; the weight's gradient where it is trained.
pub(super) fn backward<T: Element>(
    dout: View<T>,
    (x, rstd): (View<T>, View<T::Stat>),
    weights: &Weights<T>,
    weight: ParamId,
    dx: ViewMut<T>,
    mode: Mode,
    grads: &mut Weights<T::Stat>,
) -> Result<()> {
    let own = weights.get(weight)?;
    let mut unused;
    let dweight = match grads.trained_mut(weight, weight)? {
        Some(dweight) => dweight,
        None => {
            unused = Tensor::zeros(&own.device(), 1, own.cols())?;
            unused.view_mut()
        }
    };
    rmsnorm::backward(dout, x, own, rstd, dx, mode, dweight)
}
