//! The embedding of tokens.

use super::gather_rows::{add_rows, copy_rows, indices};
use crate::device::profile;
use crate::{Element, Error, Result, View, ViewMut};

const OP: &str = "embedding";

/// `out[t] = table[tokens[t]]`.
///
/// `table [V, H]`, `tokens [T, 1]`, `out [T, H]` =. A token outside `0..V` is an
/// [`Error::TokenId`], and nothing is written.
pub fn forward<T: Element>(table: View<T>, tokens: View<i32>, out: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("embedding", 0, 2 * out.rows() * out.cols() * size_of::<T>());
    let ids = ids(&tokens, table.rows())?;
    out.expect(OP, "out", ids.len(), table.cols())?;
    copy_rows(table.host(OP)?, &ids, out.host(OP)?);
    Ok(())
}

/// The gradient of [`forward`]: `dtable[tokens[t]] += dout[t]`. Tokens are sorted into buckets
/// first, and a bucket is added in the order of `t`.
///
/// `dout [T, H]`, `tokens [T, 1]`, `dtable [V, H]` +=.
pub fn backward<T: Element>(
    dout: View<T>,
    tokens: View<i32>,
    dtable: ViewMut<T::Stat>,
) -> Result<()> {
    let _scope =
        profile::scope("embedding backward", 0, 3 * dout.rows() * dout.cols() * size_of::<T>());
    let ids = ids(&tokens, dtable.rows())?;
    dout.expect(OP, "dout", ids.len(), dtable.cols())?;
    add_rows(dout.host(OP)?, &ids, dtable.host(OP)?);
    Ok(())
}

fn ids(tokens: &View<i32>, vocab: usize) -> Result<Vec<usize>> {
    tokens.expect(OP, "tokens", tokens.rows(), 1)?;
    indices(tokens, vocab).map_err(|(row, id)| Error::TokenId { op: OP, row, id, vocab })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::*;
    use crate::{Device, Tensor};
    use half::bf16;

    #[test]
    fn gradients_are_added_in_f32_in_order() {
        let (vocab, hidden, tokens) = (9, 5, [3, 8, 3, 0, 3, 8]);
        let narrow = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
        let table = narrow(values(1, vocab * hidden));
        let dout = narrow(values(2, tokens.len() * hidden));
        let ids = Tensor::column(&Device::Cpu, &tokens).unwrap();
        let table = Tensor::from_host(&Device::Cpu, &table, vocab, hidden).unwrap();
        let mut out = Tensor::zeros(&Device::Cpu, tokens.len(), hidden).unwrap();
        forward(table.view(), ids.view(), out.view_mut()).unwrap();
        let mut want = vec![1.0f32; vocab * hidden];
        for (t, &id) in tokens.iter().enumerate() {
            for h in 0..hidden {
                let at = id as usize * hidden + h;
                assert_eq!(out.to_vec().unwrap()[t * hidden + h], table.to_vec().unwrap()[at]);
                want[at] += dout[t * hidden + h].to_f32();
            }
        }
        let mut dtable = Tensor::from_vec(vec![1.0f32; vocab * hidden], vocab, hidden).unwrap();
        let dout = Tensor::from_host(&Device::Cpu, &dout, tokens.len(), hidden).unwrap();
        backward(dout.view(), ids.view(), dtable.view_mut()).unwrap();
        assert_eq!(dtable.to_vec().unwrap(), want);
    }

    #[test]
    fn the_gradient_is_that_of_the_forward() {
        let (vocab, hidden) = (4, 3);
        let tokens = Tensor::column(&Device::Cpu, &[1, 3, 1]).unwrap();
        let (table, dout) = (values::<f64>(1, vocab * hidden), values::<f64>(2, 3 * hidden));
        let mut dtable = Tensor::zeros(&Device::Cpu, vocab, hidden).unwrap();
        let dout_view = View::from_slice(&dout, 3, hidden, hidden).unwrap();
        backward(dout_view, tokens.view(), dtable.view_mut()).unwrap();
        check_gradient(&table, &dtable.to_vec().unwrap(), |table| {
            let mut out = Tensor::zeros(&Device::Cpu, 3, hidden).unwrap();
            let table = View::from_slice(table, vocab, hidden, hidden).unwrap();
            forward(table, tokens.view(), out.view_mut()).unwrap();
            dot(&out.to_vec().unwrap(), &dout)
        });
    }

    #[test]
    fn a_bad_id_is_named() {
        let table = Tensor::<f32>::zeros(&Device::Cpu, 4, 2).unwrap();
        for bad in [-100, 4, i32::MAX] {
            let tokens = Tensor::column(&Device::Cpu, &[0, 1, bad]).unwrap();
            let mut out = Tensor::zeros(&Device::Cpu, 3, 2).unwrap();
            match forward(table.view(), tokens.view(), out.view_mut()) {
                Err(Error::TokenId { row: 2, id, vocab: 4, .. }) => assert_eq!(id, bad),
                other => panic!("{other:?}"),
            }
        }
    }
}
