use std::ops::Range;

use super::lora::Lora;
use super::{ParamId, ParamTable, Weights, linear};
use crate::device::matmul::{Output, Trans, matmul};
use crate::ops::dropout::{self, Dropout};
use crate::ops::{Mode, elementwise};
use crate::{Element, Result, Tensor, View, ViewMut};

/// A linear map of a block, `y = x W^T`: one or several modules of the model whose weights are adjacent, so
/// that one product covers them, and their adapters.
#[derive(Clone, Debug)]
pub(super) struct Projection {
    modules: Vec<ParamId>,
    adapters: Option<Adapters>,
}

/// The adapters of a projection, `y[columns] += scale (x A^T) B^T` for each adapted module (Hu et al.,
/// "LoRA", arXiv 2106.09685, section 4.1). The matrices A lie below one another: one product covers them.
#[derive(Clone, Debug)]
struct Adapters {
    a: (ParamId, ParamId),
    ranks: usize,
    parts: Vec<Adapter>,
    /// The share of the inputs that training leaves out.
    dropout: f64,
}

#[derive(Clone, Debug)]
struct Adapter {
    b: ParamId,
    /// The module's columns of `y`.
    columns: Range<usize>,
    /// Its columns of `x A^T`.
    ranks: Range<usize>,
    scale: f64,
}

impl Projection {
    /// Modules of so many outputs each, all of the same inputs.
    pub fn new(table: &mut ParamTable, inputs: usize, modules: &[(String, usize)]) -> Self {
        let mut ids = Vec::new();
        for (name, outputs) in modules {
            let name = format!("{name}.weight");
            ids.push(match ids.is_empty() {
                true => table.matrix(name, *outputs, inputs),
                false => table.continued(name, *outputs, inputs),
            });
        }
        Projection { modules: ids, adapters: None }
    }

    /// Gives adapters to the modules that are to have one.
    pub fn adapt(&mut self, table: &mut ParamTable, lora: &Lora) {
        let (mut first, mut column, mut ranks) = (None, 0, 0);
        let mut parts = Vec::new();
        for &id in &self.modules {
            let info = table.info(id).clone();
            let module = info.name.trim_end_matches(".weight");
            let columns = column..column + info.rows;
            column = columns.end;
            let Some(adapted) = lora.modules.get(module) else { continue };
            let name = format!("{module}.lora_A.weight");
            let a = match first {
                None => table.matrix(name, adapted.rank, info.cols),
                Some(_) => table.continued(name, adapted.rank, info.cols),
            };
            first = Some((first.map_or(a, |(first, _)| first), a));
            let own = ranks..ranks + adapted.rank;
            ranks = own.end;
            parts.push((module.to_string(), info.rows, adapted, columns, own));
        }
        let parts = parts.into_iter().map(|(module, rows, adapted, columns, ranks)| {
            let b = table.matrix(format!("{module}.lora_B.weight"), rows, adapted.rank);
            Adapter { b, columns, ranks, scale: adapted.scale }
        });
        let parts = parts.collect();
        self.adapters = first.map(|a| Adapters { a, ranks, parts, dropout: lora.dropout });
    }

    fn weight<'a, T: Element>(&self, weights: &'a Weights<T>) -> Result<View<'a, T>> {
        weights.span(self.modules[0], self.modules[self.modules.len() - 1])
    }

    /// `y [T, out]` = or += `x [T, in] W^T`, and what the adapters' backward needs. `noise` is the seed of
    /// what training leaves out.
    pub fn forward<T: Element>(
        &self,
        weights: &Weights<T>,
        x: View<T>,
        mut y: ViewMut<T>,
        output: Output,
        noise: Option<u64>,
    ) -> Result<Option<Tensor<T>>> {
        matmul(x, Trans::No, self.weight(weights)?, Trans::Yes, y.reborrow(), output)?;
        let Some(adapters) = &self.adapters else { return Ok(None) };
        let mut low = Tensor::to_fill(&x.device(), x.rows(), adapters.ranks)?;
        let (first, last) = adapters.a;
        let thinned = adapters.thin(x, noise)?;
        let x = thinned.as_ref().map_or(x, Tensor::view);
        linear::set(x, weights.span(first, last)?, low.view_mut())?;
        for part in &adapters.parts {
            let (ranks, columns) = (&part.ranks, &part.columns);
            elementwise::scale(part.scale, low.view_mut().cols_range(ranks.start, ranks.len())?)?;
            let low = low.view().cols_range(ranks.start, ranks.len())?;
            let y = y.reborrow().cols_range(columns.start, columns.len())?;
            linear::add(low, weights.get(part.b)?, y)?;
        }
        Ok(Some(low))
    }

    /// `dx [T, in] = dy [T, out] W`; adds to the gradients of what is trained. `low` is what the forward of
    /// `x` with this `noise` returned.
    pub fn backward<T: Element>(
        &self,
        weights: &Weights<T>,
        dy: View<T>,
        (x, low, noise): (View<T>, Option<&Tensor<T>>, Option<u64>),
        mut dx: ViewMut<T>,
        grads: &mut Weights<T::Stat>,
    ) -> Result<()> {
        linear::input_gradient(dy, self.weight(weights)?, dx.reborrow())?;
        let last = self.modules[self.modules.len() - 1];
        if let Some(dw) = grads.trained_mut(self.modules[0], last)? {
            linear::weight_gradient(dy, x, dw)?;
        }
        let (Some(adapters), Some(low)) = (&self.adapters, low) else { return Ok(()) };
        let mut dlow = Tensor::<T>::to_fill(&x.device(), x.rows(), adapters.ranks)?;
        for part in &adapters.parts {
            let (ranks, columns) = (&part.ranks, &part.columns);
            let dy = dy.cols_range(columns.start, columns.len())?;
            let low = low.view().cols_range(ranks.start, ranks.len())?;
            linear::weight_gradient(dy, low, grads.get_mut(part.b)?)?;
            let mut dlow = dlow.view_mut().cols_range(ranks.start, ranks.len())?;
            linear::input_gradient(dy, weights.get(part.b)?, dlow.reborrow())?;
            elementwise::scale(part.scale, dlow)?;
        }
        let (first, last) = adapters.a;
        let thinned = adapters.thin(x, noise)?;
        let x = thinned.as_ref().map_or(x, Tensor::view);
        linear::weight_gradient(dlow.view(), x, grads.span_mut(first, last)?)?;
        let a = weights.span(first, last)?;
        let Some(dropout) = adapters.dropout(noise) else {
            return matmul(dlow.view(), Trans::No, a, Trans::No, dx, Output::Add);
        };
        let mut dthinned = thinned.expect("there is dropout");
        linear::input_gradient(dlow.view(), a, dthinned.view_mut())?;
        dropout::forward(dropout, dthinned.view(), dx, Mode::Add)
    }
}

impl Adapters {
    /// What training leaves out of the inputs: the same for modules that read the same.
    fn dropout(&self, noise: Option<u64>) -> Option<Dropout> {
        let (first, _) = self.a;
        let seed = noise.filter(|_| self.dropout > 0.0)?;
        Some(Dropout { share: self.dropout, seed, stream: first.index() as u64 })
    }

    /// The inputs that are left.
    fn thin<T: Element>(&self, x: View<T>, noise: Option<u64>) -> Result<Option<Tensor<T>>> {
        let Some(dropout) = self.dropout(noise) else { return Ok(None) };
        let mut thinned = Tensor::to_fill(&x.device(), x.rows(), x.cols())?;
        dropout::forward(dropout, x, thinned.view_mut(), Mode::Set)?;
        Ok(Some(thinned))
    }
}
