//! Products on a GPU.

use super::{OP, Output, Trans};
use crate::device::Cuda;
use crate::device::gpu::{Operand, Product};
use crate::{Element, Result, View, ViewMut};

/// Queues `c (= or +=) op(a) op(b)`; the shapes were checked.
pub(super) fn queue<T: Element, C: Element>(
    cuda: &Cuda,
    (a, ta): (View<'_, T>, Trans),
    (b, tb): (View<'_, T>, Trans),
    c: ViewMut<'_, C>,
    output: Output,
) -> Result<()> {
    let (m, k) = super::oriented(&a, ta);
    if k == 0 {
        return empty_sums(cuda, c, output);
    }
    // A single row may have any stride; the library wants one that the row fits into.
    let operand = |pointer: *const u8, stride: usize, cols: usize, trans: Trans| Operand {
        address: pointer.addr() as u64,
        stride: stride.max(cols),
        transposed: trans == Trans::Yes,
    };
    let product = Product {
        shape: [m, c.cols(), k],
        a: operand(a.on(OP, cuda)?.cast(), a.stride(), a.cols(), ta),
        b: operand(b.on(OP, cuda)?.cast(), b.stride(), b.cols(), tb),
        c: operand(c.on(OP, cuda)?.cast_const().cast(), c.stride(), c.cols(), Trans::No),
        inputs: T::DTYPE,
        output: C::DTYPE,
        adds: output == Output::Add,
        invariant: cuda.is_batch_invariant(),
    };
    // SAFETY: the views hold their shapes and are of this device, `c` is borrowed to be written to,
    // and frees are queued behind the product.
    unsafe { cuda.queue_product(&product) }
}

/// What a product along no elements leaves: the library refuses it.
fn empty_sums<C: Element>(cuda: &Cuda, c: ViewMut<'_, C>, output: Output) -> Result<()> {
    let (rows, cols, stride) = (c.rows(), c.cols(), c.stride());
    let at = c.on(OP, cuda)?.addr() as u64;
    let rows = if output == Output::Set { rows } else { 0 };
    // SAFETY: `c` holds the rows and is borrowed to be written to.
    (0..rows).try_for_each(|r| unsafe {
        cuda.zero(at + (r * stride * size_of::<C>()) as u64, cols * size_of::<C>())
    })
}
