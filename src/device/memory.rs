//! Typed ranges of device memory: what a view of a tensor on a device is made of.

use std::marker::PhantomData;

use super::gpu::{Buffer, Cuda};
use super::{Fill, Pitched, Place};
#[cfg(feature = "trainer")]
use crate::Error;
use crate::{Plain, Result};

/// Values in device memory, to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a, T> {
    cuda: &'a Cuda,
    address: u64,
    len: usize,
    /// The same values on the host, where these were uploaded and not written to since.
    known: Option<&'a [T]>,
}

/// Values in device memory, to write to.
#[derive(Debug)]
pub(crate) struct SpanMut<'a, T> {
    cuda: &'a Cuda,
    address: u64,
    len: usize,
    values: PhantomData<&'a mut T>,
}

/// The shape that a copy moves: `rows` of `cols` values, with the strides of both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub rows: usize,
    pub cols: usize,
    pub to_stride: usize,
    pub from_stride: usize,
}

impl Block {
    /// Whether the block lies in `to` and `from` values.
    fn fits(&self, to: usize, from: usize) -> bool {
        let end = |stride: usize| (self.rows - 1).checked_mul(stride)?.checked_add(self.cols);
        self.is_empty()
            || end(self.to_stride).is_some_and(|end| end <= to)
                && end(self.from_stride).is_some_and(|end| end <= from)
    }

    fn is_empty(&self) -> bool {
        self.rows == 0 || self.cols == 0
    }
}

impl Buffer {
    /// Memory for `len` values.
    pub(crate) fn of<T: Plain>(cuda: &Cuda, len: usize, fill: Fill) -> Result<Self> {
        cuda.alloc(len * size_of::<T>(), fill)
    }

    /// The buffer's values; `known` is what they are, where that is known.
    pub(crate) fn span<'a, T: Plain>(&'a self, known: Option<&'a [T]>) -> Span<'a, T> {
        let len = self.bytes() / size_of::<T>();
        Span { cuda: self.cuda(), address: self.address(), len, known }
    }

    /// The buffer's values, to write to.
    pub(crate) fn span_mut<T: Plain>(&mut self) -> SpanMut<'_, T> {
        let len = self.bytes() / size_of::<T>();
        SpanMut { cuda: self.cuda(), address: self.address(), len, values: PhantomData }
    }
}

impl<'a, T: Plain> Span<'a, T> {
    /// `len` values at an address of `cuda`.
    ///
    /// # Safety
    /// The memory must be alive, and not be written to but in the stream's order, for `'a`.
    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    pub(crate) unsafe fn from_raw(cuda: &'a Cuda, address: u64, len: usize) -> Self {
        Span { cuda, address, len, known: None }
    }

    pub(crate) fn cuda(&self) -> &'a Cuda {
        self.cuda
    }

    pub(crate) fn pointer(&self) -> *const T {
        self.cuda.pointer(self.address).cast()
    }

    pub(crate) fn known(&self) -> Option<&'a [T]> {
        self.known
    }

    /// What follows the first `start` values, of which there may be fewer.
    pub(crate) fn tail(&self, start: usize) -> Self {
        let start = start.min(self.len);
        Span {
            address: self.address + (start * size_of::<T>()) as u64,
            len: self.len - start,
            known: self.known.map(|known| &known[start..]),
            ..*self
        }
    }

    /// The bytes of the first `values`.
    #[cfg(feature = "trainer")]
    pub(crate) fn bytes(&self, values: usize) -> Span<'a, u8> {
        assert!(values <= self.len, "bytes within memory");
        let len = values * size_of::<T>();
        Span { cuda: self.cuda, address: self.address, len, known: None }
    }

    /// Copies a block to the host and waits for it.
    pub(crate) fn download(&self, to: &mut [T], block: Block) -> Result<()> {
        assert!(block.fits(to.len(), self.len), "a copy within its memory");
        let to = host::<T>(to.as_ptr(), block.to_stride);
        let from = device::<T>(self.address, block.from_stride);
        // SAFETY: both sides hold the block, and `to` is borrowed until the device is done.
        unsafe { copy::<T>(self.cuda, to, from, block) }?;
        self.cuda.synchronize()
    }
}

/// What spans of one device hold, one behind the other, waited for once; and what a kernel reports.
#[cfg(feature = "trainer")]
pub(crate) fn download_all(spans: &[Span<'_, u8>]) -> Result<(Vec<u8>, Option<Error>)> {
    let mut bytes = vec![0; spans.iter().map(|span| span.len).sum()];
    let Some(first) = spans.first() else { return Ok((bytes, None)) };
    assert!(spans.iter().all(|span| span.cuda == first.cuda), "spans of one device");
    let places: Vec<_> =
        spans.iter().map(|span| Place { address: span.address, bytes: span.len }).collect();
    // SAFETY: the spans' memory is alive, and written to in the stream's order only.
    match unsafe { first.cuda.read(&places, &mut bytes) } {
        Ok(()) => Ok((bytes, None)),
        Err(fault @ Error::Kernel { .. }) => Ok((bytes, Some(fault))),
        Err(error) => Err(error),
    }
}

impl<'a, T: Plain> SpanMut<'a, T> {
    /// `len` values at an address of `cuda`.
    ///
    /// # Safety
    /// The memory must be alive, and not be used by others but in the stream's order, for `'a`.
    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    pub(crate) unsafe fn from_raw(cuda: &'a Cuda, address: u64, len: usize) -> Self {
        SpanMut { cuda, address, len, values: PhantomData }
    }

    pub(crate) fn cuda(&self) -> &'a Cuda {
        self.cuda
    }

    pub(crate) fn pointer(&self) -> *mut T {
        self.cuda.pointer(self.address).cast()
    }

    /// The same values for a shorter time.
    pub(crate) fn reborrow(&mut self) -> SpanMut<'_, T> {
        SpanMut { cuda: self.cuda, address: self.address, len: self.len, values: PhantomData }
    }

    /// The same values, to read.
    pub(crate) fn span(&self) -> Span<'_, T> {
        Span { cuda: self.cuda, address: self.address, len: self.len, known: None }
    }

    /// What follows the first `start` values, of which there may be fewer.
    pub(crate) fn tail(self, start: usize) -> Self {
        let start = start.min(self.len);
        let address = self.address + (start * size_of::<T>()) as u64;
        SpanMut { address, len: self.len - start, ..self }
    }

    /// Copies a block from the host.
    pub(crate) fn upload(&mut self, from: &[T], block: Block) -> Result<()> {
        assert!(block.fits(self.len, from.len()), "a copy within its memory");
        let to = device::<T>(self.address, block.to_stride);
        let from = host::<T>(from.as_ptr(), block.from_stride);
        // SAFETY: both sides hold the block; pageable host memory is read before the call returns.
        unsafe { copy::<T>(self.cuda, to, from, block) }
    }

    /// Copies a block on the device.
    pub(crate) fn copy(&mut self, from: &Span<'_, T>, block: Block) -> Result<()> {
        assert!(block.fits(self.len, from.len), "a copy within its memory");
        let to = device::<T>(self.address, block.to_stride);
        let from = device::<T>(from.address, block.from_stride);
        // SAFETY: both sides hold the block; they are apart, since `self` is exclusive; frees are
        // queued behind it.
        unsafe { copy::<T>(self.cuda, to, from, block) }
    }

    /// Fills `len` values from `start` with zeros.
    pub(crate) fn zero(&mut self, start: usize, len: usize) -> Result<()> {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "zeros within memory");
        let address = self.address + (start * size_of::<T>()) as u64;
        // SAFETY: the bytes lie in this span, which is exclusive.
        unsafe { self.cuda.zero(address, len * size_of::<T>()) }
    }
}

fn host<T>(pointer: *const T, stride: usize) -> Pitched {
    let address = pointer.expose_provenance() as u64;
    Pitched { on_host: true, address, pitch: stride * size_of::<T>() }
}

fn device<T>(address: u64, stride: usize) -> Pitched {
    Pitched { on_host: false, address, pitch: stride * size_of::<T>() }
}

/// # Safety
/// Both sides must hold the block, and do so until the stream has reached the copy.
unsafe fn copy<T>(cuda: &Cuda, mut to: Pitched, mut from: Pitched, block: Block) -> Result<()> {
    if block.is_empty() {
        return Ok(());
    }
    let (mut row_bytes, mut rows) = (block.cols * size_of::<T>(), block.rows);
    if rows == 1 || (to.pitch == row_bytes && from.pitch == row_bytes) {
        (row_bytes, rows) = (row_bytes * rows, 1);
        (to.pitch, from.pitch) = (row_bytes, row_bytes);
    }
    // SAFETY: the caller's.
    unsafe { cuda.copy(to, from, row_bytes, rows) }
}
