use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::device::Device;
use crate::ops::elementwise;
use crate::{Element, Error, Plain, Result, Tensor, View, ViewMut};

/// A parameter's index in its [`ParamTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

impl ParamId {
    /// Its place in the table's order.
    pub(super) fn index(self) -> usize {
        self.0
    }
}

/// What an arena says about one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamInfo {
    /// The Hugging Face name of the tensor.
    pub name: String,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Where its values lie in an arena.
    pub range: Range<usize>,
    /// Whether it is written and read as a vector `[cols]`, not as a matrix.
    pub vector: bool,
    /// Whether AdamW decays it: matrices, not biases and norm weights.
    pub decay: bool,
    /// Whether it stays as it is: its values lie in the frozen arena, and it has no gradient.
    pub frozen: bool,
    /// Whether it lies right after the parameter before it.
    continued: bool,
}

/// The parameters of a structure, in arena order. One table serves weights, gradients and moments.
///
/// Frozen parameters lie in an arena of their own, which only [weights](Weights::frozen) have: neither
/// gradients nor moments take memory for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParamTable {
    params: Vec<ParamInfo>,
    len: usize,
    frozen_len: usize,
}

/// Parameters start at multiples of this many values, unless they continue a group.
const ALIGN: usize = 16;

impl ParamTable {
    /// A matrix `[rows, cols]`, decayed by AdamW.
    pub fn matrix(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> ParamId {
        self.push(name.into(), rows, cols, false, false)
    }

    /// A matrix that lies right after the last parameter, so that one product covers both.
    pub fn continued(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> ParamId {
        self.push(name.into(), rows, cols, false, true)
    }

    /// A vector, not decayed.
    pub fn vector(&mut self, name: impl Into<String>, cols: usize) -> ParamId {
        self.push(name.into(), 1, cols, true, false)
    }

    /// A vector that lies right after the last parameter.
    pub fn continued_vector(&mut self, name: impl Into<String>, cols: usize) -> ParamId {
        self.push(name.into(), 1, cols, true, true)
    }

    fn push(
        &mut self,
        name: String,
        rows: usize,
        cols: usize,
        vector: bool,
        continued: bool,
    ) -> ParamId {
        let range = place(&mut self.len, rows * cols, continued);
        let (decay, frozen) = (!vector, false);
        self.params.push(ParamInfo { name, rows, cols, range, vector, decay, frozen, continued });
        ParamId(self.params.len() - 1)
    }

    /// Freezes every parameter whose name is not among those to train.
    pub fn freeze(&mut self, trained: &dyn Fn(&str) -> bool) {
        (self.len, self.frozen_len) = (0, 0);
        for param in &mut self.params {
            param.frozen = !trained(&param.name);
            let len = if param.frozen { &mut self.frozen_len } else { &mut self.len };
            param.range = place(len, param.range.len(), param.continued);
        }
    }

    /// Every parameter in arena order.
    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    /// One parameter.
    pub fn info(&self, id: ParamId) -> &ParamInfo {
        &self.params[id.0]
    }

    /// The parameters that are trained, in arena order.
    pub fn trained(&self) -> impl Iterator<Item = &ParamInfo> {
        self.params.iter().filter(|p| !p.frozen)
    }

    /// Values of an arena of trained parameters, padding included.
    pub fn arena_len(&self) -> usize {
        self.len
    }

    /// Values of the frozen arena, padding included.
    pub fn frozen_len(&self) -> usize {
        self.frozen_len
    }

    /// Number of parameters' values, padding not included.
    pub fn parameters(&self) -> usize {
        self.params.iter().map(|p| p.range.len()).sum()
    }
}

/// The place of so many values more in an arena of that length.
fn place(len: &mut usize, values: usize, continued: bool) -> Range<usize> {
    let start = if continued { *len } else { len.next_multiple_of(ALIGN) };
    *len = start + values;
    start..*len
}

/// One arena: the values of every trained parameter of a table, in one role (weights, gradients, a
/// moment). Weights have the frozen parameters beside it, shared by all models that are trained from them.
#[derive(Clone, Debug)]
pub struct Weights<T: Plain> {
    table: Arc<ParamTable>,
    arena: Tensor<T>,
    frozen: Option<Arc<Tensor<T>>>,
}

impl<T: Plain> Weights<T> {
    /// An arena of zeros, without frozen parameters.
    pub fn zeros(device: &Device, table: &Arc<ParamTable>) -> Result<Self> {
        let arena = Tensor::zeros(device, table.arena_len(), 1)?;
        Ok(Weights { table: table.clone(), arena, frozen: None })
    }

    /// With these values of the frozen parameters, `[frozen_len, 1]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where there are more or fewer than the table has.
    pub fn with_frozen(self, frozen: Arc<Tensor<T>>) -> Result<Self> {
        frozen.view().expect("weights", "frozen", self.table.frozen_len, 1)?;
        Ok(Weights { frozen: Some(frozen), ..self })
    }

    /// The frozen arena, of weights of a table that has frozen parameters.
    pub fn frozen(&self) -> Option<&Arc<Tensor<T>>> {
        self.frozen.as_ref()
    }

    /// The same values on another device, or on this one.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let frozen = self.frozen.as_ref().map(|frozen| frozen.to_device(device).map(Arc::new));
        let (table, frozen) = (self.table.clone(), frozen.transpose()?);
        Ok(Weights { table, arena: self.arena.to_device(device)?, frozen })
    }

    /// The same values in an arena of their own, on the same device; what is frozen is shared.
    ///
    /// # Errors
    /// As [`Tensor::try_clone`].
    pub fn try_clone(&self) -> Result<Self> {
        let (table, frozen) = (self.table.clone(), self.frozen.clone());
        Ok(Weights { table, arena: self.arena.try_clone()?, frozen })
    }

    /// The arena itself, where its values are of type `U`; else as it was.
    pub(crate) fn into_type<U: Plain>(self) -> Result<Weights<U>, Self> {
        let any: Box<dyn Any> = Box::new(self);
        any.downcast().map(|same| *same).map_err(|any| *any.downcast().expect("its own type"))
    }

    /// The arena itself, where its values are of type `U`.
    pub(crate) fn of_type_mut<U: Plain>(&mut self) -> Option<&mut Weights<U>> {
        (self as &mut dyn Any).downcast_mut()
    }

    /// The table.
    pub fn table(&self) -> &Arc<ParamTable> {
        &self.table
    }

    /// The arena of trained parameters, `[arena_len, 1]`.
    pub fn arena(&self) -> &Tensor<T> {
        &self.arena
    }

    /// The arena of trained parameters, to write to.
    pub fn arena_mut(&mut self) -> &mut Tensor<T> {
        &mut self.arena
    }

    /// One parameter.
    pub fn get(&self, id: ParamId) -> Result<View<'_, T>> {
        self.span(id, id)
    }

    /// One trained parameter, to write to.
    pub fn get_mut(&mut self, id: ParamId) -> Result<ViewMut<'_, T>> {
        self.span_mut(id, id)
    }

    /// Adjacent parameters `first..=last` as one matrix, their rows below one another (vectors:
    /// one row, their columns beside one another).
    pub fn span(&self, first: ParamId, last: ParamId) -> Result<View<'_, T>> {
        let (range, rows, cols) = self.shape(first, last)?;
        let arena = match (self.table.info(first).frozen, &self.frozen) {
            (false, _) => &self.arena,
            (true, Some(frozen)) => frozen,
            (true, None) => return Err(self.is_frozen(first)),
        };
        arena.view().rows_range(range.start, range.len())?.reshape(rows, cols)
    }

    /// [`Weights::span`] of trained parameters, to write to.
    pub fn span_mut(&mut self, first: ParamId, last: ParamId) -> Result<ViewMut<'_, T>> {
        match self.table.info(first).frozen {
            true => Err(self.is_frozen(first)),
            false => self.trained_mut(first, last).transpose().expect("it is trained"),
        }
    }

    /// [`Weights::span_mut`] where the parameters are trained: where their gradient goes.
    pub fn trained_mut(&mut self, first: ParamId, last: ParamId) -> Result<Option<ViewMut<'_, T>>> {
        let (range, rows, cols) = self.shape(first, last)?;
        if self.table.info(first).frozen {
            return Ok(None);
        }
        let flat = self.arena.view_mut().rows_range(range.start, range.len())?;
        flat.reshape(rows, cols).map(Some)
    }

    fn is_frozen(&self, id: ParamId) -> Error {
        let name = &self.table.info(id).name;
        Error::shape("weights", "a trained parameter", format!("{name}, which is frozen"))
    }

    fn shape(&self, first: ParamId, last: ParamId) -> Result<(Range<usize>, usize, usize)> {
        let (a, b) = (self.table.info(first), self.table.info(last));
        let between = &self.table.params()[first.0..=last.0];
        let range = a.range.start..b.range.end.max(a.range.start);
        let cols = if a.vector { range.len() } else { a.cols };
        let values: usize = between.iter().map(|p| p.range.len()).sum();
        if values != range.len() || cols == 0 || between.iter().any(|p| p.frozen != a.frozen) {
            return Err(Error::shape(
                "weights",
                format!("{} to {} adjacent", a.name, b.name),
                "parameters with padding between them, or frozen and trained ones",
            ));
        }
        Ok((range.clone(), range.len() / cols, cols))
    }
}

impl<T: Element> Weights<T> {
    /// The trained values as another type, widened or rounded, in an arena of their own.
    ///
    /// # Errors
    /// As [`Tensor::try_clone`].
    pub fn cast<U: Element>(&self) -> Result<Weights<U>> {
        let mut out = Weights::zeros(&self.arena.device(), &self.table)?;
        elementwise::cast(self.arena.view(), out.arena.view_mut())?;
        Ok(out)
    }
}
