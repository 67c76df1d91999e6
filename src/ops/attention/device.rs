//! Attention on a GPU: the arguments of the kernels.

use std::ffi::c_void;
use std::sync::OnceLock;

use super::blocks::{Keys, Queries};
use super::{Heads, Segment, Segments};
use crate::device::Cuda;
use crate::ffi::{self, launch, nullable_mut, workspace};
use crate::{Element, Error, Result, View, ViewMut};

/// What the kernels work through, made where it is first asked for.
#[derive(Debug, Default)]
pub struct Lists {
    queries: OnceLock<Queries>,
    keys: OnceLock<Keys>,
    by_length: OnceLock<Box<(Segments, Segments)>>,
}

impl Lists {
    fn queries(&self, cuda: &Cuda, segments: &[Segment]) -> Result<&Queries> {
        made(&self.queries, || Queries::new(cuda, segments))
    }

    fn keys(&self, cuda: &Cuda, segments: &[Segment]) -> Result<&Keys> {
        made(&self.keys, || Keys::new(cuda, segments))
    }

    /// Segments of one query, and longer ones.
    fn by_length(&self, segments: &[Segment]) -> (&Segments, &Segments) {
        let parts = self.by_length.get_or_init(|| {
            let (single, runs): (Vec<_>, Vec<_>) = segments.iter().partition(|s| s.q_len == 1);
            Box::new((single.into(), runs.into()))
        });
        (&parts.0, &parts.1)
    }
}

fn made<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => make().map(|value| cell.get_or_init(|| value)),
    }
}

/// What the forward left, and the gradient of its output.
pub struct Saved<'a, T: Element> {
    /// `[T, heads head_dim]`
    pub dout: View<'a, T>,
    /// `[T, heads head_dim]`
    pub out: View<'a, T>,
    /// `[T, heads]`
    pub lse: View<'a, T::Stat>,
}

/// See [`super::forward`], which checked the shapes and the segments.
pub fn forward<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    qkv: [View<'_, T>; 3],
    segments: &Segments,
    heads: &Heads,
    out: ViewMut<'_, T>,
    lse: Option<ViewMut<'_, T::Stat>>,
) -> Result<()> {
    let inputs = inputs(op, cuda, qkv, heads)?;
    let queries = segments.lists().queries(cuda, segments)?;
    let queries_at = queries.pointer(op, cuda)?;
    let lse_stride = lse.as_ref().map_or(0, |lse| lse.stride() as i64);
    let lse = lse.map(|lse| lse.on(op, cuda)).transpose()?;
    let out_at: *mut c_void = out.on(op, cuda)?.cast();
    // SAFETY: the sizes are those of the views, all on this device, and were compared; the blocks
    // are those of segments whose rows lie in the views.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_attention_forward(
                out_at,
                nullable_mut(lse.map(<*mut T::Stat>::cast)),
                &inputs,
                queries_at,
                queries.len(),
                out.stride() as i64,
                lse_stride,
                cuda.stream(),
            )
        )
    }
}

/// See [`super::decode`], which checked the shapes and the segments. Segments of one query spread
/// their keys over the device, longer ones go as in training.
pub fn decode<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    qkv: [View<'_, T>; 3],
    segments: &Segments,
    heads: &Heads,
    mut out: ViewMut<'_, T>,
) -> Result<()> {
    let spreads = heads.head_dim <= ffi::COLLIMATE_ATTENTION_DECODE_HEAD_DIM as usize;
    let (single, runs) = match spreads {
        true => segments.lists().by_length(segments),
        false => (&Segments::default(), segments),
    };
    if !runs.is_empty() {
        forward(op, cuda, qkv, runs, heads, out.reborrow(), None)?;
    }
    if single.is_empty() {
        return Ok(());
    }
    let inputs = inputs(op, cuda, qkv, heads)?;
    let queries = single.lists().queries(cuda, single)?;
    let queries_at = queries.pointer(op, cuda)?;
    let (count, most_keys) = (queries.len(), queries.most_keys());
    let workspace = workspace!(
        cuda,
        collimate_attention_decode_workspace(count, inputs.heads, inputs.head_dim, most_keys)
    )?;
    let out_at: *mut c_void = out.on(op, cuda)?.cast();
    // SAFETY: as in `forward`; each block has one query.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_attention_decode(
                out_at,
                &inputs,
                queries_at,
                count,
                most_keys,
                out.stride() as i64,
                workspace.pointer(),
                workspace.bytes(),
                cuda.stream(),
            )
        )
    }
}

/// See [`super::backward`], which checked the shapes and the segments.
pub fn backward<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    qkv: [View<'_, T>; 3],
    segments: &Segments,
    heads: &Heads,
    saved: &Saved<'_, T>,
    mut dqkv: ViewMut<'_, T>,
) -> Result<()> {
    let rows = dqkv.rows() as i64;
    let inputs = inputs(op, cuda, qkv, heads)?;
    let queries = segments.lists().queries(cuda, segments)?;
    let keys = segments.lists().keys(cuda, segments)?;
    let queries_at = queries.pointer(op, cuda)?;
    let (keys_at, readers_at) = keys.pointers(op, cuda)?;
    let workspace =
        workspace!(cuda, collimate_attention_backward_workspace(rows, heads.heads as i64))?;
    let stride = dqkv.stride() as i64;
    let mut columns = |start: usize, cols: usize| -> Result<*mut c_void> {
        Ok(dqkv.reborrow().cols_range(start, cols)?.on(op, cuda)?.cast())
    };
    let gradients = ffi::collimate_attention_gradients {
        dq: columns(0, heads.q_cols())?,
        dk: columns(heads.q_cols(), heads.kv_cols())?,
        dv: columns(heads.q_cols() + heads.kv_cols(), heads.kv_cols())?,
        dout: saved.dout.on(op, cuda)?.cast(),
        out: saved.out.on(op, cuda)?.cast(),
        lse: saved.lse.on(op, cuda)?.cast(),
        dq_stride: stride,
        dkv_stride: stride,
        dout_stride: saved.dout.stride() as i64,
        out_stride: saved.out.stride() as i64,
        lse_stride: saved.lse.stride() as i64,
    };
    // SAFETY: as in `forward`; the gradients lie in a view of their own.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_attention_backward(
                &gradients,
                &inputs,
                queries_at,
                keys_at,
                readers_at,
                rows,
                queries.len(),
                keys.len(),
                workspace.pointer(),
                workspace.bytes(),
                cuda.stream(),
            )
        )
    }
}

fn inputs<T: Element>(
    op: &'static str,
    cuda: &Cuda,
    [q, k, v]: [View<'_, T>; 3],
    heads: &Heads,
) -> Result<ffi::collimate_attention_inputs> {
    let strides = [q, k].map(|view| view.stride() as i64);
    if k.stride() != v.stride() {
        let got = format!("keys at stride {}, values at {}", k.stride(), v.stride());
        return Err(Error::shape(op, "keys and values at one stride", got));
    }
    Ok(ffi::collimate_attention_inputs {
        q: q.on(op, cuda)?.cast(),
        k: k.on(op, cuda)?.cast(),
        v: v.on(op, cuda)?.cast(),
        q_stride: strides[0],
        kv_stride: strides[1],
        heads: heads.heads as i64,
        kv_heads: heads.kv_heads as i64,
        head_dim: heads.head_dim as i64,
        scale: heads.scale as f32,
        dtype: ffi::dtype::<T>(op)?,
    })
}
