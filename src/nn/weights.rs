use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::device::Device;
use crate::ops::elementwise;
use crate::{Element, Error, Plain, Result, Tensor, View, ViewMut};

/// A parameter's index in its [`ParamTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

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
}

/// The parameters of a structure, in arena order. One table serves weights, gradients and moments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParamTable {
    params: Vec<ParamInfo>,
    len: usize,
}

/// Parameters start at multiples of this many values, unless they continue a group.
const ALIGN: usize = 16;

impl ParamTable {
    /// A matrix `[rows, cols]`, decayed by AdamW.
    pub fn matrix(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> ParamId {
        self.len = self.len.next_multiple_of(ALIGN);
        self.push(name.into(), rows, cols, false)
    }

    /// A matrix that lies right after the last parameter, so that one product covers both.
    pub fn continued(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> ParamId {
        self.push(name.into(), rows, cols, false)
    }

    /// A vector, not decayed.
    pub fn vector(&mut self, name: impl Into<String>, cols: usize) -> ParamId {
        self.len = self.len.next_multiple_of(ALIGN);
        self.push(name.into(), 1, cols, true)
    }

    /// A vector that lies right after the last parameter.
    pub fn continued_vector(&mut self, name: impl Into<String>, cols: usize) -> ParamId {
        self.push(name.into(), 1, cols, true)
    }

    fn push(&mut self, name: String, rows: usize, cols: usize, vector: bool) -> ParamId {
        let range = self.len..self.len + rows * cols;
        self.len = range.end;
        self.params.push(ParamInfo { name, rows, cols, range, vector, decay: !vector });
        ParamId(self.params.len() - 1)
    }

    /// Every parameter in arena order.
    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    /// One parameter.
    pub fn info(&self, id: ParamId) -> &ParamInfo {
        &self.params[id.0]
    }

    /// Values of an arena, padding included.
    pub fn arena_len(&self) -> usize {
        self.len
    }

    /// Number of parameters' values, padding not included.
    pub fn parameters(&self) -> usize {
        self.params.iter().map(|p| p.range.len()).sum()
    }
}

/// One arena: the values of every parameter of a table, in one role (weights, gradients, a moment).
#[derive(Clone, Debug)]
pub struct Weights<T: Plain> {
    table: Arc<ParamTable>,
    arena: Tensor<T>,
}

impl<T: Plain> Weights<T> {
    /// An arena of zeros.
    pub fn zeros(device: &Device, table: &Arc<ParamTable>) -> Result<Self> {
        Ok(Weights { table: table.clone(), arena: Tensor::zeros(device, table.arena_len(), 1)? })
    }

    /// The same values on another device, or on this one.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Weights { table: self.table.clone(), arena: self.arena.to_device(device)? })
    }

    /// The same values in an arena of their own, on the same device.
    ///
    /// # Errors
    /// As [`Tensor::try_clone`].
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Weights { table: self.table.clone(), arena: self.arena.try_clone()? })
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

    /// The whole arena, `[arena_len, 1]`.
    pub fn arena(&self) -> &Tensor<T> {
        &self.arena
    }

    /// The whole arena to write to.
    pub fn arena_mut(&mut self) -> &mut Tensor<T> {
        &mut self.arena
    }

    /// One parameter.
    pub fn get(&self, id: ParamId) -> Result<View<'_, T>> {
        self.span(id, id)
    }

    /// One parameter, to write to.
    pub fn get_mut(&mut self, id: ParamId) -> Result<ViewMut<'_, T>> {
        self.span_mut(id, id)
    }

    /// Adjacent parameters `first..=last` as one matrix, their rows below one another (vectors:
    /// one row, their columns beside one another).
    pub fn span(&self, first: ParamId, last: ParamId) -> Result<View<'_, T>> {
        let (range, rows, cols) = self.shape(first, last)?;
        let flat = self.arena.view().rows_range(range.start, range.len())?;
        flat.reshape(rows, cols)
    }

    /// [`Weights::span`], to write to.
    pub fn span_mut(&mut self, first: ParamId, last: ParamId) -> Result<ViewMut<'_, T>> {
        let (range, rows, cols) = self.shape(first, last)?;
        let flat = self.arena.view_mut().rows_range(range.start, range.len())?;
        flat.reshape(rows, cols)
    }

    fn shape(&self, first: ParamId, last: ParamId) -> Result<(Range<usize>, usize, usize)> {
        let (a, b) = (self.table.info(first), self.table.info(last));
        let range = a.range.start..b.range.end;
        let cols = if a.vector { range.len() } else { a.cols };
        let values: usize =
            self.table.params()[first.0..=last.0].iter().map(|p| p.range.len()).sum();
        if values != range.len() || cols == 0 {
            return Err(Error::shape(
                "weights",
                format!("{} to {} adjacent", a.name, b.name),
                "parameters with padding between them",
            ));
        }
        Ok((range.clone(), range.len() / cols, cols))
    }
}

impl<T: Element> Weights<T> {
    /// The same values as another type, widened or rounded, in an arena of their own.
    ///
    /// # Errors
    /// As [`Tensor::try_clone`].
    pub fn cast<U: Element>(&self) -> Result<Weights<U>> {
        let mut out = Weights::zeros(&self.arena.device(), &self.table)?;
        elementwise::cast(self.arena.view(), out.arena.view_mut())?;
        Ok(out)
    }
}
