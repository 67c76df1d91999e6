//! The kernels of `kernels/elementwise.cu`. Shapes were compared by the callers.

use crate::device::Cuda;
use crate::ffi::{self, launch, nullable, workspace};
use crate::{Element, Result, View, ViewMut};

/// `y += x`; with a stride of 0, `x` is one row for all.
pub(super) fn add<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    x: View<T>,
    x_stride: usize,
    y: ViewMut<T>,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(op)?;
    let (to, from) = (y.on(op, cuda)?.cast(), x.on(op, cuda)?.cast());
    // SAFETY: the sizes are those of the views, both on this device.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_add(
                to,
                from,
                y.rows() as i64,
                y.cols() as i64,
                y.stride() as i64,
                x_stride as i64,
                dtype,
                cuda.stream(),
            )
        )
    }
}

pub(super) fn scale<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    factors: Option<View<T::Stat>>,
    factor: f64,
    x: ViewMut<T>,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(op)?;
    let factors = factors.map(|factors| factors.packed_on(op, cuda)).transpose()?;
    let to = x.on(op, cuda)?.cast();
    // SAFETY: the sizes are those of the view, on this device; its statistics are f32, one a row.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_scale(
                to,
                nullable(factors).cast(),
                factor as f32,
                x.rows() as i64,
                x.cols() as i64,
                x.stride() as i64,
                dtype,
                cuda.stream(),
            )
        )
    }
}

pub(super) fn fill<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    value: f64,
    x: ViewMut<T>,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(op)?;
    let to = x.on(op, cuda)?.cast();
    // SAFETY: the sizes are those of the view, on this device.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_fill(
                to,
                value as f32,
                x.rows() as i64,
                x.cols() as i64,
                x.stride() as i64,
                dtype,
                cuda.stream(),
            )
        )
    }
}

pub(super) fn cast<T: Element, U: Element>(
    op: &'static str,
    cuda: &Cuda,
    x: View<T>,
    out: ViewMut<U>,
) -> Result<()> {
    let (from_dtype, to_dtype) = (ffi::dtype::<T>(op)?, ffi::dtype::<U>(op)?);
    let (to, from) = (out.on(op, cuda)?.cast(), x.on(op, cuda)?.cast());
    // SAFETY: the sizes are those of the views, both on this device.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_cast(
                to,
                from,
                x.rows() as i64,
                x.cols() as i64,
                out.stride() as i64,
                x.stride() as i64,
                to_dtype,
                from_dtype,
                cuda.stream(),
            )
        )
    }
}

pub(super) fn bias_backward<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    dy: View<T>,
    dbias: ViewMut<T::Stat>,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(op)?;
    let (rows, cols) = (dy.rows() as i64, dy.cols() as i64);
    let (to, from) = (dbias.on(op, cuda)?.cast(), dy.on(op, cuda)?.cast());
    let workspace = workspace!(cuda, collimate_bias_backward_workspace(rows, cols))?;
    // SAFETY: the sizes are those of the views, both on this device; statistics are f32.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_bias_backward(
                to,
                from,
                rows,
                cols,
                dy.stride() as i64,
                dtype,
                workspace.pointer(),
                workspace.bytes(),
                cuda.stream(),
            )
        )
    }
}
