//! A build without kernels: products on a device that cannot exist.

use super::{Output, Trans};
use crate::device::Cuda;
use crate::{Element, Result, View, ViewMut};

/// Never called.
pub(super) fn queue<T: Element, C: Element>(
    cuda: &Cuda,
    _a: (View<'_, T>, Trans),
    _b: (View<'_, T>, Trans),
    _c: ViewMut<'_, C>,
    _output: Output,
) -> Result<()> {
    match *cuda {}
}
