//! The kernels of `kernels/rmsnorm.cu`. Shapes were compared by the callers.

use super::{Mode, OP};
use crate::device::Cuda;
use crate::ffi::{self, launch, nullable_mut, workspace};
use crate::{Element, Result, View, ViewMut};

pub(super) fn forward<T: Element>(
    cuda: &Cuda,
    x: View<T>,
    residual: Option<ViewMut<T>>,
    weight: View<T>,
    eps: f64,
    out: ViewMut<T>,
    rstd: ViewMut<T::Stat>,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(OP)?;
    let (out_at, rstd_at) = (out.on(OP, cuda)?.cast(), rstd.on(OP, cuda)?.cast());
    let (x_at, weight_at) = (x.on(OP, cuda)?.cast(), weight.on(OP, cuda)?.cast());
    let residual_stride = residual.as_ref().map_or(0, ViewMut::stride);
    let residual = residual.map(|residual| residual.on(OP, cuda)).transpose()?;
    // SAFETY: the sizes are those of the views, all on this device; statistics are f32 where there
    // is a dtype for T.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_rmsnorm_forward(
                out_at,
                rstd_at,
                nullable_mut(residual).cast(),
                x_at,
                weight_at,
                x.rows() as i64,
                rstd.cols() as i64,
                weight.cols() as i64,
                out.stride() as i64,
                rstd.stride() as i64,
                residual_stride as i64,
                x.stride() as i64,
                eps as f32,
                dtype,
                cuda.stream(),
            )
        )
    }
}

#[expect(clippy::too_many_arguments, reason = "those of the operation, and the device")]
pub(super) fn backward<T: Element>(
    cuda: &Cuda,
    dout: View<T>,
    x: View<T>,
    weight: View<T>,
    rstd: View<T::Stat>,
    dx: ViewMut<T>,
    mode: Mode,
    dweight: ViewMut<T::Stat>,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(OP)?;
    let (rows, groups, width) = (x.rows() as i64, rstd.cols() as i64, weight.cols() as i64);
    let (dx_at, dweight_at) = (dx.on(OP, cuda)?.cast(), dweight.on(OP, cuda)?.cast());
    let (dout_at, x_at) = (dout.on(OP, cuda)?.cast(), x.on(OP, cuda)?.cast());
    let (weight_at, rstd_at) = (weight.on(OP, cuda)?.cast(), rstd.on(OP, cuda)?.cast());
    let workspace =
        workspace!(cuda, collimate_rmsnorm_backward_workspace(rows, groups, width, dtype))?;
    // SAFETY: as in `forward`.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_rmsnorm_backward(
                dx_at,
                dweight_at,
                dout_at,
                x_at,
                weight_at,
                rstd_at,
                rows,
                groups,
                width,
                dx.stride() as i64,
                dout.stride() as i64,
                x.stride() as i64,
                rstd.stride() as i64,
                i32::from(mode == Mode::Add),
                dtype,
                workspace.pointer(),
                workspace.bytes(),
                cuda.stream(),
            )
        )
    }
}
