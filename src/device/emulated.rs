//! The emulated device: host memory, and the kernels executed on the host.
//!
//! Every call is done when it returns, so a stream is nothing and synchronising reads the error word.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{Device, Fill, Pitched, Place};
use crate::{Error, Result};

/// The emulated GPU.
#[derive(Clone, Debug)]
pub struct Cuda(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Address of three words: code, row, value.
    error: u64,
    /// Held while the words are read and cleared.
    reading: Mutex<()>,
    /// Bytes allocated.
    used: AtomicUsize,
    /// Bytes that may be allocated.
    memory: usize,
    /// Times that someone waited.
    waits: AtomicUsize,
    /// Copies to the host that a GPU may wait for.
    downloads: AtomicUsize,
}

/// Names the bytes of memory that an emulated GPU has; without it, what the host has.
const MEMORY: &str = "COLLIMATE_EMULATE_MEMORY";

impl PartialEq for Cuda {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Cuda {
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        if ordinal != 0 {
            return Err(Error::Device(format!("there is 1 emulated device, no number {ordinal}")));
        }
        let memory = match std::env::var(MEMORY) {
            Ok(text) => {
                text.parse().map_err(|_| Error::setting(MEMORY, "a number of bytes", text))?
            }
            Err(_) => usize::MAX,
        };
        let error = take(size_of::<[i32; 3]>(), Fill::Zeros);
        Ok(Cuda(Arc::new(Inner {
            error,
            reading: Mutex::new(()),
            used: AtomicUsize::new(0),
            memory,
            waits: AtomicUsize::new(0),
            downloads: AtomicUsize::new(0),
        })))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        "emulated on the host"
    }

    /// What a run says of the device.
    pub(super) fn describe(&self) -> String {
        "cuda:0, the kernels emulated on the host".into()
    }

    pub(super) fn check_products(&self) -> Result<()> {
        Ok(())
    }

    /// The host's products are so.
    pub(super) fn be_batch_invariant(&self) {}

    /// Waits until everything queued is done.
    ///
    /// # Errors
    /// As [`Device::synchronize`](super::Device::synchronize).
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: there are no places.
        unsafe { self.read(&[], &mut []) }
    }

    /// Copies what lies at several places to the host, one behind the other; waits once until that
    /// and everything queued before is done. `to` is filled where a kernel's report is the error.
    ///
    /// # Safety
    /// The places must hold their bytes.
    pub(super) unsafe fn read(&self, places: &[Place], to: &mut [u8]) -> Result<()> {
        self.0.waits.fetch_add(1, Relaxed);
        forbidden_in_capture(c"a wait for the device");
        let mut rest = to;
        for place in places {
            let (to, after) = std::mem::take(&mut rest).split_at_mut(place.bytes);
            let from = self.pointer(place.address).cast::<u8>();
            // SAFETY: the caller's; what is new on the host is apart from it.
            unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), place.bytes) };
            rest = after;
        }
        let _reading = self.0.reading.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let words = self.error_word().cast::<[i32; 3]>();
        // SAFETY: the words live as long as `self`; kernels of other threads that write to them
        // race with this only where the caller synchronises in the middle of a launch of another
        // thread, and the words are plain integers of the emulator.
        super::fault(unsafe { words.replace([0; 3]) })
    }

    /// How often it was waited for: all that waits are [`Cuda::synchronize`] and
    /// [`Event::seconds_to`].
    #[cfg(test)]
    pub(crate) fn waits(&self) -> usize {
        self.0.waits.load(Relaxed)
    }

    /// How many copies to the host were queued beside those of [`Cuda::read`]: a GPU may wait for
    /// each, since the host's memory is not locked.
    #[cfg(test)]
    pub(crate) fn downloads(&self) -> usize {
        self.0.downloads.load(Relaxed)
    }

    pub(crate) fn device(&self) -> Device {
        Device::Cuda(self.clone())
    }

    pub(crate) fn alloc(&self, bytes: usize, fill: Fill) -> Result<Buffer> {
        let used = self.0.used.fetch_add(bytes, Relaxed);
        let free = self.0.memory.saturating_sub(used);
        if bytes > free {
            self.0.used.fetch_sub(bytes, Relaxed);
            return Err(super::out_of_memory(bytes, used, free));
        }
        Ok(Buffer { cuda: self.clone(), address: take(bytes, fill), bytes })
    }

    pub(super) fn pointer(&self, address: u64) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(address as usize)
    }

    pub(crate) fn stream(&self) -> *mut c_void {
        std::ptr::null_mut()
    }

    pub(crate) fn error_word(&self) -> *mut i32 {
        self.pointer(self.0.error).cast()
    }

    /// Copies `rows` of `row_bytes`.
    ///
    /// # Safety
    /// Both sides must hold the rows and be apart.
    pub(super) unsafe fn copy(
        &self,
        to: Pitched,
        from: Pitched,
        row_bytes: usize,
        rows: usize,
    ) -> Result<()> {
        if to.on_host {
            self.0.downloads.fetch_add(1, Relaxed);
            forbidden_in_capture(c"a copy to host memory that is not page-locked");
        }
        let at = |side: Pitched, row: usize| {
            self.pointer(side.address + (row * side.pitch) as u64).cast::<u8>()
        };
        for row in 0..rows {
            // SAFETY: the caller's.
            unsafe { std::ptr::copy_nonoverlapping(at(from, row), at(to, row), row_bytes) };
        }
        Ok(())
    }

    /// Fills bytes with zeros.
    ///
    /// # Safety
    /// The bytes must be the caller's to write.
    pub(super) unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { std::ptr::write_bytes(self.pointer(address).cast::<u8>(), 0, bytes) };
        Ok(())
    }

    /// A moment on the stream: when everything queued before it is done.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn event(&self) -> Result<Event> {
        Ok(Event { cuda: self.clone(), moment: Instant::now() })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        give(self.error, size_of::<[i32; 3]>());
    }
}

/// Memory that its drop frees.
#[derive(Debug)]
pub(crate) struct Buffer {
    cuda: Cuda,
    address: u64,
    bytes: usize,
}

impl Buffer {
    pub(crate) fn cuda(&self) -> &Cuda {
        &self.cuda
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.cuda.0.used.fetch_sub(self.bytes, Relaxed);
        give(self.address, self.bytes);
    }
}

/// A moment.
#[derive(Debug)]
pub struct Event {
    cuda: Cuda,
    moment: Instant,
}

impl Event {
    /// Seconds from this moment to a later one; waits for it.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn seconds_to(&self, end: &Event) -> Result<f64> {
        end.cuda.0.waits.fetch_add(1, Relaxed);
        forbidden_in_capture(c"a wait for an event");
        Ok(end.moment.duration_since(self.moment).as_secs_f64())
    }
}

/// Says that CUDA forbids what is done now while a stream is captured into a graph. Copies to the
/// device and allocations are not among it: a GPU's go through page-locked memory, and its
/// allocations are made in the stream's order.
fn forbidden_in_capture(what: &std::ffi::CStr) {
    // SAFETY: it copies the C string.
    unsafe { crate::ffi::control::collimate_emulate_capture_forbids(what.as_ptr()) };
}

/// cudaMalloc's alignment.
fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), 256).expect("sizes are checked where they are made")
}

fn take(bytes: usize, fill: Fill) -> u64 {
    let layout = layout(bytes);
    // SAFETY: the layout's size is not 0.
    let memory = unsafe { alloc(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    // Ones are NaN in every type, and -1: what is read before it is written shows.
    let byte = if fill == Fill::Zeros { 0 } else { 0xff };
    // SAFETY: the memory is new and that large.
    unsafe { std::ptr::write_bytes(memory, byte, layout.size()) };
    memory.expose_provenance() as u64
}

fn give(address: u64, bytes: usize) {
    let memory = std::ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: `take` gave it for a layout of that many bytes, and its one owner is dropped.
    unsafe { dealloc(memory, layout(bytes)) };
}
