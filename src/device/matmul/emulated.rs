//! Products on the emulated GPU: its memory is the host's, and so are the products.

use super::{OP, Output, Trans};
use crate::device::Cuda;
use crate::{Element, Plain, Result, Rows, RowsMut, View, ViewMut};

/// `c (= or +=) op(a) op(b)`; the shapes were checked.
pub(super) fn queue<T: Element, C: Element<Stat = T::Stat>>(
    cuda: &Cuda,
    (a, ta): (View<'_, T>, Trans),
    (b, tb): (View<'_, T>, Trans),
    c: ViewMut<'_, C>,
    output: Output,
) -> Result<()> {
    let (a, b) = (rows(cuda, &a)?, rows(cuda, &b)?);
    let (rows, cols, stride) = (c.rows(), c.cols(), c.stride());
    let at = c.on(OP, cuda)?;
    // SAFETY: a view holds its shape; `c` is borrowed to be written to, so it is apart from the
    // others.
    let data = unsafe { std::slice::from_raw_parts_mut(at, len(rows, cols, stride)) };
    super::on_host((a, ta), (b, tb), RowsMut { data, rows, cols, stride }, output)
}

fn rows<'a, T: Plain>(cuda: &Cuda, x: &View<'a, T>) -> Result<Rows<'a, T>> {
    let (rows, cols, stride) = (x.rows(), x.cols(), x.stride());
    let at = x.on(OP, cuda)?;
    // SAFETY: a view holds its shape, and is borrowed.
    let data = unsafe { std::slice::from_raw_parts(at, len(rows, cols, stride)) };
    Ok(Rows { data, rows, cols, stride })
}

fn len(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1) * stride + cols }
}
