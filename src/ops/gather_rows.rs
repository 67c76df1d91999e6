//! Rows of a matrix by index, and the addition of gradients back to them.
//!
//! On a GPU the indices of [`forward`] are checked by the kernel: one outside the matrix gathers
//! zeros, and is the [`Error::Kernel`] of the next synchronisation.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::cpu::{block_rows, run};
use crate::device::Cuda;
use crate::device::profile;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::ffi::{self, launch};
use crate::{Element, Error, Plain, Real, Result, Rows, RowsMut, Tensor, View, ViewMut};

const OP: &str = "gather_rows";

/// `out[n] = x[rows[n]]`.
///
/// `x [T, H]`, `rows [N, 1]` in any order and with repetitions, `out [N, H]` =.
pub fn forward<T: Plain>(x: View<T>, rows: View<i32>, out: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("gather_rows", 0, 2 * out.rows() * out.cols() * size_of::<T>());
    if let Some(cuda) = x.cuda() {
        rows.expect(OP, "rows", rows.rows(), 1)?;
        out.expect(OP, "out", rows.rows(), x.cols())?;
        return launch_forward(OP, cuda, x, rows, out);
    }
    let index = indices(&rows, x.rows()).map_err(|bad| outside(OP, bad, x.rows()))?;
    out.expect(OP, "out", index.len(), x.cols())?;
    copy_rows(x.host(OP)?, &index, out.host(OP)?);
    Ok(())
}

/// The gradient of [`forward`]: `dx[rows[n]] += dout[n]`, repetitions in the order of `n`.
///
/// `dout [N, H]`, `rows [N, 1]`, `dx [T, H]` +=.
///
/// On a GPU the indices must have been uploaded from the host ([`Tensor::column`]) and not been
/// written to since: they are sorted there.
pub fn backward<T: Element>(dout: View<T>, rows: View<i32>, dx: ViewMut<T>) -> Result<()> {
    let _scope =
        profile::scope("gather_rows backward", 0, 3 * dout.rows() * dout.cols() * size_of::<T>());
    let index = indices(&rows, dx.rows()).map_err(|bad| outside(OP, bad, dx.rows()))?;
    dout.expect(OP, "dout", index.len(), dx.cols())?;
    if let Some(cuda) = dx.cuda() {
        return launch_backward(OP, cuda, dout, &index, None, dx);
    }
    add_rows(dout.host(OP)?, &index, None, dx.host(OP)?);
    Ok(())
}

pub(super) fn launch_forward<T: Plain>(
    op: &'static str,
    cuda: &Cuda,
    x: View<T>,
    rows: View<i32>,
    out: ViewMut<T>,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(op)?;
    let (source, indices) = (x.on(op, cuda)?.cast(), rows.packed_on(op, cuda)?);
    let to = out.on(op, cuda)?.cast();
    // SAFETY: the sizes are those of the views, all on this device; the kernel checks the indices.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_gather_rows_forward(
                to,
                source,
                indices,
                rows.rows() as i64,
                x.cols() as i64,
                x.rows() as i64,
                out.stride() as i64,
                x.stride() as i64,
                dtype,
                cuda.error_word(),
                cuda.stream(),
            )
        )
    }
}

pub(super) fn launch_backward<T, U>(
    op: &'static str,
    cuda: &Cuda,
    dout: View<T>,
    index: &[usize],
    skip: Option<usize>,
    dx: ViewMut<U>,
) -> Result<()>
where
    T: Element,
    U: Element<Stat = T::Stat>,
{
    let (dtype, dx_dtype) = (ffi::dtype::<T>(op)?, ffi::dtype::<U>(op)?);
    let order = in_order(index, skip);
    if order.is_empty() {
        return Ok(());
    }
    let groups: Vec<&[usize]> = order.chunk_by(|&a, &b| index[a] == index[b]).collect();
    let upload = |values: Vec<i32>| Tensor::column(&cuda.device(), &values);
    let destinations = upload(groups.iter().map(|group| index[group[0]] as i32).collect())?;
    let ends = groups.iter().scan(0, |end, group| {
        *end += group.len() as i32;
        Some(*end)
    });
    let offsets = upload(std::iter::once(0).chain(ends).collect())?;
    let order = upload(order.iter().map(|&n| n as i32).collect())?;
    let (destinations_at, offsets_at, order_at) = (
        destinations.view().on(op, cuda)?,
        offsets.view().on(op, cuda)?,
        order.view().on(op, cuda)?,
    );
    let (to, from) = (dx.on(op, cuda)?.cast(), dout.on(op, cuda)?.cast());
    // SAFETY: the sizes are those of the views, all on this device; the indices were checked, and
    // each destination stands once.
    unsafe {
        launch!(
            op,
            cuda,
            collimate_gather_rows_backward(
                to,
                from,
                destinations_at,
                offsets_at,
                order_at,
                groups.len() as i64,
                dx.cols() as i64,
                dx.rows() as i64,
                dout.stride() as i64,
                dx.stride() as i64,
                dx_dtype,
                dtype,
                cuda.error_word(),
                cuda.stream(),
            )
        )
    }
}

/// The places of the indices but for those of `skip`, sorted by index; equal ones in their order.
fn in_order(index: &[usize], skip: Option<usize>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..index.len()).filter(|&n| Some(index[n]) != skip).collect();
    order.sort_by_key(|&n| index[n]);
    order
}

pub(super) fn outside(op: &'static str, (row, id): (usize, i32), rows: usize) -> Error {
    let got = if row == usize::MAX {
        "a matrix, or ids made on the device".into()
    } else {
        format!("{id} at {row}")
    };
    Error::shape(op, format!("a column of indices below {rows}"), got)
}

/// The column as indices below `bound`, or the first that is none: its place and value.
pub(super) fn indices(rows: &View<i32>, bound: usize) -> Result<Vec<usize>, (usize, i32)> {
    let wrong_shape = (usize::MAX, 0);
    if rows.cols() != 1 {
        return Err(wrong_shape);
    }
    let rows = rows.known().ok_or(wrong_shape)?;
    (0..rows.rows)
        .map(|n| {
            let id = rows.row(n)[0];
            usize::try_from(id).ok().filter(|&id| id < bound).ok_or((n, id))
        })
        .collect()
}

pub(super) fn copy_rows<T: Plain>(x: Rows<T>, index: &[usize], out: RowsMut<T>) {
    let values = out.rows * out.cols;
    let block = block_rows(out.cols);
    run(values, out.blocks(block), |(first, mut out)| {
        for r in 0..out.rows {
            out.row(r).copy_from_slice(x.row(index[first + r]));
        }
    });
}

/// `dx[index[n]] += dout[n]` for every row of `dx` but `skip`, in the order of `n`, rounded once.
pub(super) fn add_rows<T, U>(dout: Rows<T>, index: &[usize], skip: Option<usize>, dx: RowsMut<U>)
where
    T: Element,
    U: Element<Stat = T::Stat>,
{
    let order = in_order(index, skip);
    let mut tasks: Vec<(Range<usize>, &mut [U])> = Vec::new();
    let RowsMut { mut data, cols, stride, .. } = dx;
    let (mut start, mut next_row) = (0, 0);
    while start < order.len() {
        let row = index[order[start]];
        let end = start + order[start..].partition_point(|&n| index[n] == row);
        let rest = data.split_at_mut((row - next_row) * stride).1;
        // The last row of a narrow view may be shorter than its stride.
        let (head, tail) = rest.split_at_mut(stride.min(rest.len()));
        tasks.push((start..end, &mut head[..cols]));
        (data, next_row, start) = (tail, row + 1, end);
    }
    run(dout.rows * cols, tasks, |(range, dx)| {
        dispatch(AddRows { dout, order: &order[range], dx });
    });
}

struct AddRows<'a, T: Element, U: Element> {
    dout: Rows<'a, T>,
    order: &'a [usize],
    dx: &'a mut [U],
}

impl<T: Element, U: Element<Stat = T::Stat>> Kernel for AddRows<'_, T, U> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        const COLS: usize = 256;
        if let [n] = self.order {
            for (dx, dout) in self.dx.iter_mut().zip(self.dout.row(*n)) {
                *dx = U::from_stat(dx.to_stat() + dout.to_stat());
            }
            return;
        }
        for (c, dx) in self.dx.chunks_mut(COLS).enumerate() {
            let mut sums = [T::Stat::ZERO; COLS];
            let sums = &mut sums[..dx.len()];
            sums.iter_mut().zip(dx.iter()).for_each(|(sum, dx)| *sum = dx.to_stat());
            for &n in self.order {
                let dout = &self.dout.row(n)[c * COLS..][..sums.len()];
                sums.iter_mut().zip(dout).for_each(|(sum, dout)| *sum += dout.to_stat());
            }
            dx.iter_mut().zip(sums).for_each(|(dx, sum)| *dx = U::from_stat(*sum));
        }
    }
}
