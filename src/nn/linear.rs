//! y = x W^T with W `[out, in]`, as Hugging Face stores it, and its two gradients.

use crate::device::matmul::{Output, Trans, matmul};
use crate::{Element, Result, View, ViewMut};

/// `y [T, out] = x [T, in] W^T`.
pub(super) fn set<T: Element>(x: View<T>, w: View<T>, y: ViewMut<T>) -> Result<()> {
    matmul(x, Trans::No, w, Trans::Yes, y, Output::Set)
}

/// `y [T, out] += x [T, in] W^T`.
pub(super) fn add<T: Element>(x: View<T>, w: View<T>, y: ViewMut<T>) -> Result<()> {
    matmul(x, Trans::No, w, Trans::Yes, y, Output::Add)
}

/// `dx [T, in] = dy [T, out] W`.
pub(super) fn input_gradient<T: Element>(dy: View<T>, w: View<T>, dx: ViewMut<T>) -> Result<()> {
    matmul(dy, Trans::No, w, Trans::No, dx, Output::Set)
}

/// `dW [out, in] += dy^T x`.
pub(super) fn weight_gradient<T: Element>(
    dy: View<T>,
    x: View<T>,
    dw: ViewMut<T::Stat>,
) -> Result<()> {
    matmul(dy, Trans::Yes, x, Trans::No, dw, Output::Add)
}
