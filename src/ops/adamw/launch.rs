//! The kernel of `kernels/adamw.cu`. Shapes and ranges were checked by the caller.

use std::ops::Range;

use super::{AdamW, Arenas, OP};
use crate::device::Cuda;
use crate::ffi::{self, launch, nullable_mut};
use crate::{Element, Result, Tensor, View};

pub(super) fn step<T: Element>(
    cuda: &Cuda,
    params: AdamW,
    norm: View<'_, f64>,
    arenas: Arenas<'_, T>,
    ranges: &[(Range<usize>, bool)],
) -> Result<()> {
    let dtype = ffi::dtype::<T>(OP)?;
    let Arenas { master, weights, grads, m, v } = arenas;
    let weights = weights.map(|weights| weights.packed_on(OP, cuda)).transpose()?;
    let (master, grads) = (master.packed_on(OP, cuda)?.cast(), grads.packed_on(OP, cuda)?.cast());
    let (m, v) = (m.packed_on(OP, cuda)?.cast(), v.packed_on(OP, cuda)?.cast());
    let ranges: Vec<_> = ranges.iter().filter(|(range, _)| !range.is_empty()).collect();
    let begin = ranges.first().map_or(0, |(range, _)| range.start);
    let end = ranges.last().map_or(0, |(range, _)| range.end);
    // Of `collimate_adamw_range`, three words of 64 bits each.
    let words: Vec<i64> = ranges
        .iter()
        .flat_map(|(range, decay)| [range.start as i64, range.end as i64, i64::from(*decay)])
        .collect();
    let on_device = Tensor::<i32>::column(&cuda.device(), bytemuck::cast_slice(&words))?;
    let ranges_at = on_device.view().on(OP, cuda)?.cast();
    let config = ffi::collimate_adamw_config {
        lr: params.lr,
        beta1: params.beta1,
        beta2: params.beta2,
        eps: params.eps,
        weight_decay: params.weight_decay,
        max_grad_norm: params.max_grad_norm,
        step: params.step as i64,
    };
    // SAFETY: the arenas have one length, which holds the ranges, and are all on this device; their
    // statistics are f32 where there is a dtype for T; the ranges ascend and are apart.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_adamw(
                nullable_mut(weights).cast(),
                master,
                m,
                v,
                grads,
                norm.on(OP, cuda)?,
                ranges_at,
                &config,
                ranges.len() as i64,
                begin as i64,
                end as i64,
                dtype,
                cuda.error_word(),
                cuda.stream(),
            )
        )
    }
}
