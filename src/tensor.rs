//! Matrices on a device: a shape, the memory, and views of them with a row stride.

#[cfg(all(feature = "cuda", not(feature = "emulate")))]
mod interop;
mod rows;
mod view;

use std::any::TypeId;

pub use rows::{Rows, RowsMut};
use view::{Data, DataMut};
pub use view::{View, ViewMut};

use crate::device::{Buffer, Cuda, Device, Fill, memory::Block, pool::Values};
#[cfg(feature = "trainer")]
use crate::device::{Span, memory::download_all};
use crate::{Error, Plain, Result};

/// A row-major matrix that owns its memory. A vector of N values is `[N, 1]`.
#[derive(Debug)]
pub struct Tensor<T: Plain> {
    memory: Memory<T>,
    rows: usize,
    cols: usize,
}

#[derive(Debug)]
enum Memory<T: Plain> {
    Host(Values<T>),
    Device {
        buffer: Buffer,
        /// The same values on the host: kept for ids and offsets that were uploaded, so that an op
        /// can check and sort them without waiting for the device; gone once they are written to.
        known: Option<Vec<T>>,
    },
}

impl<T: Plain> Tensor<T> {
    /// A matrix of zeros.
    pub fn zeros(device: &Device, rows: usize, cols: usize) -> Result<Self> {
        let elements = elements(rows, cols)?;
        match device {
            Device::Cpu => Ok(Tensor { memory: Memory::Host(Values::zeros(elements)), rows, cols }),
            Device::Cuda(cuda) => Self::on(cuda, Fill::Zeros, rows, cols),
        }
    }

    /// A matrix on a GPU that the caller writes before it is read.
    pub(crate) fn unset(cuda: &Cuda, rows: usize, cols: usize) -> Result<Self> {
        Self::on(cuda, Fill::Unset, rows, cols)
    }

    /// A matrix of any values, which an operation fills before they are read.
    #[cfg(feature = "trainer")]
    pub(crate) fn to_fill(device: &Device, rows: usize, cols: usize) -> Result<Self> {
        let elements = elements(rows, cols)?;
        match device {
            Device::Cpu => Ok(Tensor { memory: Memory::Host(Values::unset(elements)), rows, cols }),
            Device::Cuda(cuda) => Self::unset(cuda, rows, cols),
        }
    }

    fn on(cuda: &Cuda, fill: Fill, rows: usize, cols: usize) -> Result<Self> {
        let buffer = Buffer::of::<T>(cuda, elements(rows, cols)?, fill)?;
        Ok(Tensor { memory: Memory::Device { buffer, known: None }, rows, cols })
    }

    /// A matrix on the host with these values in row-major order.
    pub fn from_vec(values: Vec<T>, rows: usize, cols: usize) -> Result<Self> {
        holds(values.len(), rows, cols)?;
        Ok(Tensor { memory: Memory::Host(values.into()), rows, cols })
    }

    /// A matrix on `device` with these values in row-major order.
    pub fn from_host(device: &Device, values: &[T], rows: usize, cols: usize) -> Result<Self> {
        let cuda = match device {
            Device::Cpu => return Self::from_vec(values.to_vec(), rows, cols),
            Device::Cuda(cuda) => cuda,
        };
        holds(values.len(), rows, cols)?;
        let mut buffer = Buffer::of::<T>(cuda, values.len(), Fill::Unset)?;
        let (len, whole) = (values.len(), values.len());
        let block = Block { rows: 1, cols: len, to_stride: whole, from_stride: whole };
        buffer.span_mut::<T>().upload(values, block)?;
        let known = (TypeId::of::<T>() == TypeId::of::<i32>()).then(|| values.to_vec());
        Ok(Tensor { memory: Memory::Device { buffer, known }, rows, cols })
    }

    /// A column `[N, 1]` on `device`.
    pub fn column(device: &Device, values: &[T]) -> Result<Self> {
        Self::from_host(device, values, values.len(), 1)
    }

    /// The same values as another shape.
    #[cfg(feature = "trainer")]
    pub(crate) fn into_shape(self, rows: usize, cols: usize) -> Result<Self> {
        holds(self.rows * self.cols, rows, cols)?;
        Ok(Tensor { rows, cols, ..self })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Where the memory is.
    pub fn device(&self) -> Device {
        self.view().device()
    }

    /// The values on the host, row by row; waits for the device.
    ///
    /// # Errors
    /// As [`Device::synchronize`].
    pub fn to_vec(&self) -> Result<Vec<T>> {
        self.view().to_vec()
    }

    /// [`Tensor::to_vec`] of several matrices of one device, which is waited for once; and what a
    /// kernel reports, beside the values.
    ///
    /// # Errors
    /// [`Error::Device`].
    #[cfg(feature = "trainer")]
    pub(crate) fn to_vecs(tensors: &[&Self]) -> Result<(Vec<Vec<T>>, Option<Error>)> {
        let (values, _, fault) = Self::to_vecs_beside::<T>(tensors, &[])?;
        Ok((values, fault))
    }

    /// [`Tensor::to_vecs`] of matrices of two types, waited for once.
    ///
    /// # Errors
    /// [`Error::Device`].
    #[cfg(feature = "trainer")]
    #[allow(clippy::type_complexity)]
    pub(crate) fn to_vecs_beside<U: Plain>(
        tensors: &[&Self],
        others: &[&Tensor<U>],
    ) -> Result<(Vec<Vec<T>>, Vec<Vec<U>>, Option<Error>)> {
        let spans: Vec<_> = tensors
            .iter()
            .filter_map(|t| t.bytes())
            .chain(others.iter().filter_map(|t| t.bytes()))
            .collect();
        let (bytes, fault) = download_all(&spans)?;
        let mut rest = bytes.as_slice();
        let first = tensors.iter().map(|t| t.take_from(&mut rest)).collect();
        let second = others.iter().map(|t| t.take_from(&mut rest)).collect();
        Ok((first, second, fault))
    }

    /// The bytes on a GPU.
    #[cfg(feature = "trainer")]
    fn bytes(&self) -> Option<Span<'_, u8>> {
        match &self.memory {
            Memory::Host(_) => None,
            Memory::Device { buffer, .. } => {
                Some(buffer.span::<T>(None).bytes(self.rows * self.cols))
            }
        }
    }

    /// The values on the host: those of a GPU are the first of `bytes`.
    #[cfg(feature = "trainer")]
    fn take_from(&self, bytes: &mut &[u8]) -> Vec<T> {
        match &self.memory {
            Memory::Host(values) => values.to_vec(),
            Memory::Device { .. } => {
                let (own, rest) = bytes.split_at(self.rows * self.cols * size_of::<T>());
                *bytes = rest;
                let mut values = vec![T::default(); self.rows * self.cols];
                bytemuck::cast_slice_mut(&mut values).copy_from_slice(own);
                values
            }
        }
    }

    /// The same values on another device, or on this one. Waits for a GPU that it reads from.
    ///
    /// # Errors
    /// As [`Device::synchronize`].
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if let (Memory::Device { .. }, true) = (&self.memory, self.device() == *device) {
            return self.try_clone();
        }
        match &self.memory {
            Memory::Host(values) => Self::from_host(device, values, self.rows, self.cols),
            Memory::Device { .. } => Self::from_host(device, &self.to_vec()?, self.rows, self.cols),
        }
    }

    /// The same values in memory of their own, on the same device.
    ///
    /// # Errors
    /// [`Error::Device`] where the device has no memory left.
    pub fn try_clone(&self) -> Result<Self> {
        let memory = match &self.memory {
            Memory::Host(values) => Memory::Host(values.clone()),
            Memory::Device { buffer, known } => {
                let len = self.rows * self.cols;
                let mut copy = Buffer::of::<T>(buffer.cuda(), len, Fill::Unset)?;
                let block = Block { rows: 1, cols: len, to_stride: len, from_stride: len };
                copy.span_mut::<T>().copy(&buffer.span::<T>(None), block)?;
                Memory::Device { buffer: copy, known: known.clone() }
            }
        };
        Ok(Tensor { memory, ..*self })
    }

    /// The whole matrix.
    pub fn view(&self) -> View<'_, T> {
        let data = match &self.memory {
            Memory::Host(values) => Data::Host(values),
            Memory::Device { buffer, known } => Data::Device(buffer.span(known.as_deref())),
        };
        View { data, rows: self.rows, cols: self.cols, stride: self.cols }
    }

    /// The whole matrix, to write to.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        let data = match &mut self.memory {
            Memory::Host(values) => DataMut::Host(values),
            Memory::Device { buffer, known } => {
                *known = None;
                DataMut::Device(buffer.span_mut())
            }
        };
        ViewMut { data, rows: self.rows, cols: self.cols, stride: self.cols }
    }

    /// The values in host memory, or `None` on another device.
    pub fn as_slice(&self) -> Option<&[T]> {
        match &self.memory {
            Memory::Host(values) => Some(values),
            Memory::Device { .. } => None,
        }
    }

    /// The values in host memory to write to, or `None` on another device.
    pub fn as_mut_slice(&mut self) -> Option<&mut [T]> {
        match &mut self.memory {
            Memory::Host(values) => Some(values),
            Memory::Device { .. } => None,
        }
    }
}

impl<T: Plain> Clone for Tensor<T> {
    /// [`Tensor::try_clone`]; panics where the device has no memory left.
    fn clone(&self) -> Self {
        self.try_clone().unwrap_or_else(|error| panic!("cloning a tensor: {error}"))
    }
}

fn elements(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols).filter(|&n| n <= isize::MAX as usize / 8).ok_or_else(|| {
        Error::shape("tensor", "a size that fits memory", format!("{rows} x {cols}"))
    })
}

fn holds(len: usize, rows: usize, cols: usize) -> Result<()> {
    if elements(rows, cols)? == len {
        return Ok(());
    }
    Err(Error::shape("tensor", format!("{rows} x {cols} values"), format!("{len}")))
}
