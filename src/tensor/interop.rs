//! Tensors and views over memory of cudarc, without a copy.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

use super::view::{Data, DataMut, check};
use super::{Memory, Tensor, View, ViewMut, holds};
use crate::device::{Cuda, Device, Span, SpanMut};
use crate::{Error, Plain, Result};

fn gpu(device: &Device) -> Result<&Cuda> {
    match device {
        Device::Cuda(cuda) => Ok(cuda),
        Device::Cpu => Err(Error::Device("a slice of cudarc is not in host memory".into())),
    }
}

impl Device {
    /// A device that queues its work on the caller's stream.
    ///
    /// # Errors
    /// [`Error::Device`] for a GPU or a driver that the kernels are not built for.
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        Cuda::from_stream(stream).map(Device::Cuda)
    }
}

impl<T: Plain> Tensor<T> {
    /// Takes a slice of cudarc as a `[rows, cols]` matrix of `device`, without a copy.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Device`] where the slice was made by another stream than the
    /// device's.
    pub fn from_cuda_slice(
        device: &Device,
        slice: CudaSlice<T>,
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        holds(slice.len(), rows, cols)?;
        let buffer = gpu(device)?.adopt(slice)?;
        Ok(Tensor { memory: Memory::Device { buffer, known: None }, rows, cols })
    }

    /// The matrix as a slice of cudarc, without a copy; `None` for host memory.
    pub fn into_cuda_slice(self) -> Option<CudaSlice<T>> {
        match self.memory {
            Memory::Host(_) => None,
            Memory::Device { buffer, .. } => Some(buffer.into_slice()),
        }
    }
}

impl<'a, T: Plain> View<'a, T> {
    /// A matrix in a slice of cudarc, of the device's stream.
    ///
    /// cudarc's events do not see what is queued through the view: before the slice is used on
    /// another stream, let that one wait for the device's ([`CudaStream::join`]).
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Device`] for host memory.
    pub fn from_cuda_view(
        device: &'a Device,
        view: CudaView<'a, T>,
        [rows, cols, stride]: [usize; 3],
    ) -> Result<Self> {
        check("view", view.len(), rows, cols, stride)?;
        let cuda = gpu(device)?;
        let (address, _recorded) = view.device_ptr(cuda.cuda_stream());
        // SAFETY: the slice is borrowed for `'a`.
        let span = unsafe { Span::from_raw(cuda, address, view.len()) };
        Ok(View { data: Data::Device(span), rows, cols, stride })
    }
}

impl<'a, T: Plain> ViewMut<'a, T> {
    /// A matrix in a slice of cudarc, to write to; as [`View::from_cuda_view`].
    ///
    /// # Errors
    /// As [`View::from_cuda_view`].
    pub fn from_cuda_view(
        device: &'a Device,
        mut view: CudaViewMut<'a, T>,
        [rows, cols, stride]: [usize; 3],
    ) -> Result<Self> {
        let len = view.as_view().len();
        check("view", len, rows, cols, stride)?;
        let cuda = gpu(device)?;
        let (address, _recorded) = view.device_ptr_mut(cuda.cuda_stream());
        // SAFETY: the slice is borrowed for `'a`, and by this view alone.
        let span = unsafe { SpanMut::from_raw(cuda, address, len) };
        Ok(ViewMut { data: DataMut::Device(span), rows, cols, stride })
    }
}
