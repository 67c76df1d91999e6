//! Views: borrowed matrices on any device.

use super::rows::{Rows, RowsMut};
use crate::device::memory::Block;
use crate::device::{Cuda, Device, Span, SpanMut};
use crate::{Error, Plain, Result};

/// A matrix to read: `rows` of `cols` values, `stride` values from one row to the next.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T: Plain> {
    pub(super) data: Data<'a, T>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

/// A matrix to write to: `rows` of `cols` values, `stride` values from one row to the next.
#[derive(Debug)]
pub struct ViewMut<'a, T: Plain> {
    pub(super) data: DataMut<'a, T>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Data<'a, T> {
    Host(&'a [T]),
    Device(Span<'a, T>),
}

#[derive(Debug)]
pub(super) enum DataMut<'a, T> {
    Host(&'a mut [T]),
    Device(SpanMut<'a, T>),
}

impl<'a, T: Plain> Data<'a, T> {
    /// What follows the first `start` values, of which there may be fewer.
    fn tail(self, start: usize) -> Self {
        match self {
            Data::Host(values) => Data::Host(&values[start.min(values.len())..]),
            Data::Device(span) => Data::Device(span.tail(start)),
        }
    }
}

impl<'a, T: Plain> DataMut<'a, T> {
    fn tail(self, start: usize) -> Self {
        match self {
            DataMut::Host(values) => {
                let start = start.min(values.len());
                DataMut::Host(&mut values[start..])
            }
            DataMut::Device(span) => DataMut::Device(span.tail(start)),
        }
    }
}

macro_rules! common {
    ($view:ident, $data:ident, $pointer:ty, $host:ident) => {
        impl<'a, T: Plain> $view<'a, T> {
            /// Number of rows.
            pub fn rows(&self) -> usize {
                self.rows
            }

            /// Number of columns.
            pub fn cols(&self) -> usize {
                self.cols
            }

            /// Values from the start of one row to the start of the next.
            pub fn stride(&self) -> usize {
                self.stride
            }

            /// Where the memory is.
            pub fn device(&self) -> Device {
                match self.cuda() {
                    None => Device::Cpu,
                    Some(cuda) => cuda.device(),
                }
            }

            /// The GPU that the memory is on, or `None` for host memory.
            pub(crate) fn cuda(&self) -> Option<&'a Cuda> {
                match &self.data {
                    $data::Host(_) => None,
                    $data::Device(span) => Some(span.cuda()),
                }
            }

            /// The first value's address, for a kernel on `cuda`; an error for other memory.
            pub(crate) fn on(&self, op: &'static str, cuda: &Cuda) -> Result<$pointer> {
                match &self.data {
                    $data::Device(span) if span.cuda() == cuda => Ok(span.pointer()),
                    _ => Err(Error::shape(
                        op,
                        format!("all matrices on {}", cuda.device()),
                        format!("one on {}", self.device()),
                    )),
                }
            }

            /// [`Self::on`], for a kernel that takes rows without gaps.
            pub(crate) fn packed_on(&self, op: &'static str, cuda: &Cuda) -> Result<$pointer> {
                if self.stride != self.cols && self.rows > 1 {
                    let got = format!("rows of {} at stride {}", self.cols, self.stride);
                    return Err(Error::shape(op, "rows without gaps", got));
                }
                self.on(op, cuda)
            }

            /// Checks the shape.
            pub fn expect(
                &self,
                op: &'static str,
                what: &str,
                rows: usize,
                cols: usize,
            ) -> Result<()> {
                if self.rows == rows && self.cols == cols {
                    return Ok(());
                }
                Err(Error::shape(
                    op,
                    format!("{what} of {rows} x {cols}"),
                    format!("{} x {}", self.rows, self.cols),
                ))
            }

            /// Rows `start..start + rows`.
            fn checked_rows(&self, start: usize, rows: usize) -> Result<usize> {
                if start.checked_add(rows).is_none_or(|end| end > self.rows) {
                    return Err(Error::shape(
                        "view",
                        format!("rows within {}", self.rows),
                        format!("{rows} from {start}"),
                    ));
                }
                Ok(start * self.stride)
            }

            fn checked_cols(&self, start: usize, cols: usize) -> Result<()> {
                if start.checked_add(cols).is_none_or(|end| end > self.cols) {
                    return Err(Error::shape(
                        "view",
                        format!("columns within {}", self.cols),
                        format!("{cols} from {start}"),
                    ));
                }
                Ok(())
            }

            fn checked_reshape(&self, rows: usize, cols: usize) -> Result<()> {
                let contiguous = self.stride == self.cols || self.rows <= 1;
                if !contiguous || rows.checked_mul(cols) != Some(self.rows * self.cols) {
                    return Err(Error::shape(
                        "view",
                        format!("{} contiguous values", self.rows * self.cols),
                        format!("{rows} x {cols} at stride {}", self.stride),
                    ));
                }
                Ok(())
            }

            /// The rows in host memory, for an op's CPU code; an error on another device.
            pub fn host(self, op: &'static str) -> Result<$host<'a, T>> {
                let $view { data, rows, cols, stride } = self;
                match data {
                    $data::Host(data) => Ok($host { data, rows, cols, stride }),
                    $data::Device(span) => {
                        Err(Error::Unsupported(format!("{op} on {}", span.cuda().device())))
                    }
                }
            }
        }
    };
}
common!(View, Data, *const T, Rows);
common!(ViewMut, DataMut, *mut T, RowsMut);

pub(super) fn check(
    op: &'static str,
    len: usize,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<()> {
    let need = match rows {
        0 => Some(0),
        _ => (rows - 1).checked_mul(stride).and_then(|n| n.checked_add(cols)),
    };
    if stride >= cols && need.is_some_and(|need| need <= len) {
        return Ok(());
    }
    Err(Error::shape(
        op,
        format!("memory for {rows} rows of {cols} at stride {stride}"),
        format!("{len} values"),
    ))
}

impl<'a, T: Plain> View<'a, T> {
    /// A matrix in host memory.
    pub fn from_slice(values: &'a [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        check("view", values.len(), rows, cols, stride)?;
        Ok(View { data: Data::Host(values), rows, cols, stride })
    }

    /// Rows `start..start + rows`.
    pub fn rows_range(&self, start: usize, rows: usize) -> Result<Self> {
        let offset = self.checked_rows(start, rows)?;
        Ok(View { data: self.data.tail(offset), rows, ..*self })
    }

    /// Columns `start..start + cols` of every row.
    pub fn cols_range(&self, start: usize, cols: usize) -> Result<Self> {
        self.checked_cols(start, cols)?;
        Ok(View { data: self.data.tail(start), cols, ..*self })
    }

    /// The same values as another shape; the rows must be contiguous.
    pub fn reshape(&self, rows: usize, cols: usize) -> Result<Self> {
        self.checked_reshape(rows, cols)?;
        Ok(View { rows, cols, stride: cols, ..*self })
    }

    /// The values on the host, row by row; waits for the device.
    ///
    /// # Errors
    /// As [`Device::synchronize`].
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let View { data, rows, cols, stride } = *self;
        match data {
            Data::Host(data) if stride == cols => Ok(data[..rows * cols].to_vec()),
            Data::Host(data) => {
                let view = Rows { data, rows, cols, stride };
                Ok((0..rows).flat_map(|r| view.row(r).iter().copied()).collect())
            }
            Data::Device(span) => {
                let mut values = vec![T::default(); rows * cols];
                let block = Block { rows, cols, to_stride: cols, from_stride: stride };
                span.download(&mut values, block)?;
                Ok(values)
            }
        }
    }

    /// The rows where the host has them: in host memory, or ids and offsets that were uploaded from
    /// there and not written to since.
    pub(crate) fn known(&self) -> Option<Rows<'a, T>> {
        let View { data, rows, cols, stride } = *self;
        let data = match data {
            Data::Host(data) => data,
            Data::Device(span) => span.known()?,
        };
        Some(Rows { data, rows, cols, stride })
    }
}

impl<'a, T: Plain> ViewMut<'a, T> {
    /// A matrix in host memory.
    pub fn from_slice(
        values: &'a mut [T],
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self> {
        check("view", values.len(), rows, cols, stride)?;
        Ok(ViewMut { data: DataMut::Host(values), rows, cols, stride })
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        let data = match &mut self.data {
            DataMut::Host(values) => DataMut::Host(values),
            DataMut::Device(span) => DataMut::Device(span.reborrow()),
        };
        ViewMut { data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// The same matrix, to read.
    pub fn view(&self) -> View<'_, T> {
        let data = match &self.data {
            DataMut::Host(values) => Data::Host(values),
            DataMut::Device(span) => Data::Device(span.span()),
        };
        View { data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// Rows `start..start + rows`.
    pub fn rows_range(self, start: usize, rows: usize) -> Result<Self> {
        let offset = self.checked_rows(start, rows)?;
        Ok(ViewMut { data: self.data.tail(offset), rows, ..self })
    }

    /// Columns `start..start + cols` of every row.
    pub fn cols_range(self, start: usize, cols: usize) -> Result<Self> {
        self.checked_cols(start, cols)?;
        Ok(ViewMut { data: self.data.tail(start), cols, ..self })
    }

    /// The same values as another shape; the rows must be contiguous.
    pub fn reshape(self, rows: usize, cols: usize) -> Result<Self> {
        self.checked_reshape(rows, cols)?;
        Ok(ViewMut { rows, cols, stride: cols, ..self })
    }

    /// Overwrites the matrix with one of the same shape, from host memory or the same GPU.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Unsupported`] from a GPU to the host, which would have to wait
    /// ([`View::to_vec`]), and between GPUs.
    pub fn copy_from(&mut self, from: View<'_, T>) -> Result<()> {
        const OP: &str = "copy";
        from.expect(OP, "a matrix", self.rows, self.cols)?;
        let (rows, cols) = (self.rows, self.cols);
        let block = Block { rows, cols, to_stride: self.stride, from_stride: from.stride };
        match (&mut self.data, from.data) {
            (DataMut::Device(to), Data::Host(from)) => to.upload(from, block),
            (DataMut::Device(to), Data::Device(from)) if to.cuda() == from.cuda() => {
                to.copy(&from, block)
            }
            _ => {
                let (from, mut to) = (from.host(OP)?, self.reborrow().host(OP)?);
                (0..rows).for_each(|r| to.row(r).copy_from_slice(from.row(r)));
                Ok(())
            }
        }
    }

    /// Fills rows `start..start + rows` of a matrix on a GPU with zeros; the rows have no gaps.
    pub(crate) fn zero_rows(&mut self, start: usize, rows: usize) -> Result<()> {
        match &mut self.data {
            DataMut::Device(span) => span.zero(start * self.stride, rows * self.cols),
            DataMut::Host(_) => Ok(()),
        }
    }
}
