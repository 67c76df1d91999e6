//! The embedding of tokens.
//!
//! On a GPU it is the gathering of rows ([`gather_rows`](super::gather_rows)) and its gradient.

#[cfg(test)]
mod tests;

use super::gather_rows::{add_rows, copy_rows, indices, launch_backward, launch_forward};
use crate::device::profile;
use crate::{Element, Error, Result, View, ViewMut};

const OP: &str = "embedding";

/// `out[t] = table[tokens[t]]`.
///
/// `table [V, H]`, `tokens [T, 1]`, `out [T, H]` =. A token outside `0..V` is an
/// [`Error::TokenId`], and nothing is written. Tokens that were made on a GPU are checked by the
/// kernel: one outside gathers zeros, and is the [`Error::Kernel`] of the next synchronisation.
pub fn forward<T: Element>(table: View<T>, tokens: View<i32>, out: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("embedding", 0, 2 * out.rows() * out.cols() * size_of::<T>());
    out.expect(OP, "out", tokens.rows(), table.cols())?;
    tokens.expect(OP, "tokens", tokens.rows(), 1)?;
    if let Some(cuda) = table.cuda() {
        if tokens.known().is_some() {
            ids(&tokens, table.rows())?;
        }
        return launch_forward(OP, cuda, table, tokens, out);
    }
    let ids = ids(&tokens, table.rows())?;
    copy_rows(table.host(OP)?, &ids, out.host(OP)?);
    Ok(())
}

/// The gradient of [`forward`]: `dtable[tokens[t]] += dout[t]`. Tokens are sorted into buckets
/// first, and a bucket is added in the order of `t`.
///
/// `dout [T, H]`, `tokens [T, 1]`, `dtable [V, H]` +=. Nothing is added to the row `padding`: PyTorch's
/// `padding_idx`.
///
/// On a GPU the tokens must have been uploaded from the host ([`Tensor::column`](crate::Tensor)) and
/// not been written to since: they are sorted there.
pub fn backward<T: Element>(
    dout: View<T>,
    tokens: View<i32>,
    dtable: ViewMut<T::Stat>,
    padding: Option<usize>,
) -> Result<()> {
    let _scope =
        profile::scope("embedding backward", 0, 3 * dout.rows() * dout.cols() * size_of::<T>());
    let ids = ids(&tokens, dtable.rows())?;
    dout.expect(OP, "dout", ids.len(), dtable.cols())?;
    if let Some(cuda) = dtable.cuda() {
        return launch_backward(OP, cuda, dout, &ids, padding, dtable);
    }
    add_rows(dout.host(OP)?, &ids, padding, dtable.host(OP)?);
    Ok(())
}

fn ids(tokens: &View<i32>, vocab: usize) -> Result<Vec<usize>> {
    tokens.expect(OP, "tokens", tokens.rows(), 1)?;
    if tokens.known().is_none() {
        let expected = "tokens that were uploaded from the host";
        return Err(Error::shape(OP, expected, "tokens made on the device"));
    }
    indices(tokens, vocab).map_err(|(row, id)| Error::TokenId { op: OP, row, id, vocab })
}
