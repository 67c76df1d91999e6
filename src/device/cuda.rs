//! A GPU through cudarc: one context, one stream, memory in the stream's order. Nothing here waits
//! but [`Cuda::synchronize`], and a copy to the device where much more is queued than a step needs.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError, result};

use super::{Device, Fill, Pitched, Place};
use crate::{Error, Result};

#[cfg(feature = "cpu")]
#[path = "cuda/cublas.rs"]
mod cublas;
#[path = "cuda/driver.rs"]
mod driver;
#[path = "cuda/pinned.rs"]
mod pinned;

#[cfg(feature = "cpu")]
pub(super) use cublas::{Operand, Product};
use driver::failed;
use pinned::{Mailbox, Outbox};

const ERROR_WORDS: usize = size_of::<[i32; 3]>();

/// A GPU and one of its streams.
#[derive(Clone, Debug)]
pub struct Cuda(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stream: Arc<CudaStream>,
    name: String,
    capability: (i32, i32),
    /// Address of three words: code, row, value.
    error: u64,
    /// Bytes allocated by this value.
    used: AtomicUsize,
    mailbox: Mutex<Mailbox>,
    outbox: Mutex<Outbox>,
    batch_invariant: AtomicBool,
    #[cfg(feature = "cpu")]
    products: cublas::Lazy,
}

impl PartialEq for Cuda {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Cuda {
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        driver::check()?;
        let count = driver::count()?;
        if ordinal >= count {
            let message = format!("there are {count} CUDA devices, no number {ordinal}");
            return Err(Error::Device(message));
        }
        let context = driver::context(ordinal)?;
        context.bind_to_thread().map_err(|e| failed("a context is lost", e))?;
        // SAFETY: nothing has been allocated in this context object, and all that will be is used
        // on the stream that it is made for.
        unsafe { context.disable_event_tracking() };
        let cuda = Self::from_stream(context.new_stream().map_err(|e| failed("no stream", e))?)?;
        cuda.keep_memory()?;
        Ok(cuda)
    }

    /// A device that queues its work on the caller's stream.
    ///
    /// # Errors
    /// [`Error::Device`] for a GPU that the kernels are not built for.
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        driver::check()?;
        let context = stream.context();
        let (name, capability) = driver::identify(context)?;
        // The primary context must outlive the last device that anyone makes of it.
        driver::context(context.ordinal())?;
        let error = take(&stream, ERROR_WORDS, Fill::Zeros, 0)?;
        Ok(Cuda(Arc::new(Inner {
            stream,
            name,
            capability,
            error,
            used: AtomicUsize::new(0),
            mailbox: Mutex::default(),
            outbox: Mutex::default(),
            batch_invariant: AtomicBool::new(false),
            #[cfg(feature = "cpu")]
            products: cublas::Lazy::default(),
        })))
    }

    /// The stream that everything is queued on.
    pub fn cuda_stream(&self) -> &Arc<CudaStream> {
        &self.0.stream
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What a run says of the device: its number, driver, libraries and architecture.
    pub(super) fn describe(&self) -> String {
        let number = self.0.stream.context().ordinal();
        let mut text =
            format!("cuda:{number}, {}: {}", self.name(), driver::describe(self.0.capability));
        #[cfg(feature = "cpu")]
        if let Ok(library) = cublas::loaded() {
            text += &format!(", {library}");
        }
        text
    }

    /// This build computes none.
    #[cfg(not(feature = "cpu"))]
    pub(super) fn check_products(&self) -> Result<()> {
        Err(Error::Unsupported("matrix products without feature `cpu`".into()))
    }

    pub(super) fn be_batch_invariant(&self) {
        self.0.batch_invariant.store(true, Relaxed);
    }

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
        self.bind()?;
        let words = Place { address: self.0.error, bytes: ERROR_WORDS };
        let mut mailbox = self.0.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = mailbox.of(ERROR_WORDS + to.len())?;
        let mut filled = 0;
        let queued = std::iter::once(&words).chain(places).try_for_each(|place| {
            assert!(place.bytes <= ERROR_WORDS + to.len() - filled, "a copy within its memory");
            // SAFETY: both sides hold the bytes, and the mailbox stays until the wait below.
            let status = unsafe {
                let (to, stream) = (memory.byte_add(filled), self.0.stream.cu_stream());
                sys::cuMemcpyDtoHAsync_v2(to, place.address, place.bytes, stream)
            };
            filled += place.bytes;
            status.result()
        });
        let waited = self.0.stream.synchronize();
        queued.map_err(|e| failed("a copy", e))?;
        waited.map_err(|e| failed("what was queued has failed", e))?;
        // SAFETY: the mailbox holds as much, and nothing writes to it any more.
        let all = unsafe { std::slice::from_raw_parts(memory.cast::<u8>(), filled) };
        let (words, values) = all.split_at(ERROR_WORDS);
        to[..values.len()].copy_from_slice(values);
        let words: [i32; 3] = bytemuck::pod_read_unaligned(words);
        if words != [0; 3] {
            // SAFETY: the words live as long as `self`.
            unsafe { self.zero(self.0.error, ERROR_WORDS) }?;
        }
        super::fault(words)
    }

    pub(crate) fn device(&self) -> Device {
        Device::Cuda(self.clone())
    }

    pub(crate) fn alloc(&self, bytes: usize, fill: Fill) -> Result<Buffer> {
        self.bind()?;
        let address = take(&self.0.stream, bytes, fill, self.0.used.load(Relaxed))?;
        self.0.used.fetch_add(bytes, Relaxed);
        Ok(Buffer { cuda: self.clone(), address, bytes })
    }

    pub(super) fn pointer(&self, address: u64) -> *mut c_void {
        std::ptr::without_provenance_mut(address as usize)
    }

    pub(crate) fn stream(&self) -> *mut c_void {
        self.0.stream.cu_stream().cast()
    }

    pub(crate) fn error_word(&self) -> *mut i32 {
        self.pointer(self.0.error).cast()
    }

    /// Makes the context current on this thread, which the kernels' launches need.
    pub(crate) fn bind(&self) -> Result<()> {
        self.0.stream.context().bind_to_thread().map_err(|e| failed("a context is lost", e))
    }

    /// Queues a copy of `rows` of `row_bytes`.
    ///
    /// # Safety
    /// Both sides must hold the rows, be apart, and stay until the stream has reached the copy.
    pub(super) unsafe fn copy(
        &self,
        to: Pitched,
        from: Pitched,
        row_bytes: usize,
        rows: usize,
    ) -> Result<()> {
        self.bind()?;
        if from.on_host {
            let row = |r: usize| {
                let start = from.address as usize + r * from.pitch;
                // SAFETY: the caller's: the host's side holds the rows.
                unsafe {
                    std::slice::from_raw_parts(std::ptr::with_exposed_provenance(start), row_bytes)
                }
            };
            let mut outbox = self.0.outbox.lock().unwrap_or_else(PoisonError::into_inner);
            let to = (to.address, to.pitch);
            // SAFETY: the caller's: the device's side holds the rows.
            return unsafe { outbox.send(&self.0.stream, to, row_bytes, rows, row) };
        }
        let host = || std::ptr::with_exposed_provenance_mut(to.address as usize);
        let (kind, to_host) = match to.on_host {
            true => (sys::CUmemorytype::CU_MEMORYTYPE_HOST, host()),
            false => (sys::CUmemorytype::CU_MEMORYTYPE_DEVICE, std::ptr::null_mut()),
        };
        let copy = sys::CUDA_MEMCPY2D {
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcDevice: from.address,
            srcPitch: from.pitch,
            dstMemoryType: kind,
            dstHost: to_host,
            dstDevice: to.address,
            dstPitch: to.pitch,
            WidthInBytes: row_bytes,
            Height: rows,
            // SAFETY: numbers and null pointers.
            ..unsafe { std::mem::zeroed() }
        };
        let stream = self.0.stream.cu_stream();
        // SAFETY: the caller's; a single row has no pitch to keep to, and may be longer than one.
        let status = unsafe {
            match (rows, to.on_host) {
                (1, true) => sys::cuMemcpyDtoHAsync_v2(host(), from.address, row_bytes, stream),
                (1, false) => {
                    sys::cuMemcpyDtoDAsync_v2(to.address, from.address, row_bytes, stream)
                }
                _ => sys::cuMemcpy2DAsync_v2(&copy, stream),
            }
        };
        status.result().map_err(|e| failed("a copy", e))
    }

    /// Queues a fill of bytes with zeros.
    ///
    /// # Safety
    /// The bytes must be the caller's to write, in the stream's order.
    pub(super) unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's.
        unsafe { result::memset_d8_async(address, 0, bytes, self.0.stream.cu_stream()) }
            .map_err(|e| failed("filling with zeros", e))
    }

    /// A moment on the stream: when everything queued before it is done.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn event(&self) -> Result<Event> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let event = self.0.stream.record_event(Some(flags)).map_err(|e| failed("an event", e))?;
        Ok(Event(event))
    }

    /// Frees of the context's pool keep their memory for the next allocation. Not done to a pool
    /// that others use too.
    fn keep_memory(&self) -> Result<()> {
        let context = self.0.stream.context();
        if !context.has_async_alloc() {
            return Ok(());
        }
        let mut all = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the device is open, and the attribute is a u64.
        unsafe {
            result::device::get_mem_pool(context.cu_device()).and_then(|pool| {
                result::mem_pool::set_attribute(pool, attribute, (&raw mut all).cast())
            })
        }
        .map_err(|e| failed("the memory pool", e))
    }

    /// The slice's memory as a buffer of this device.
    pub(crate) fn adopt<T>(&self, slice: CudaSlice<T>) -> Result<Buffer> {
        self.check_stream(slice.stream())?;
        let bytes = slice.num_bytes();
        self.0.used.fetch_add(bytes, Relaxed);
        Ok(Buffer { cuda: self.clone(), address: slice.leak(), bytes })
    }

    /// That memory of `stream` needs no event to be used here.
    pub(crate) fn check_stream(&self, stream: &CudaStream) -> Result<()> {
        if *stream == *self.0.stream {
            return Ok(());
        }
        Err(Error::Device("memory of another stream: make the device from the slice's".into()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        #[cfg(feature = "cpu")]
        {
            // The library's handle is destroyed in the context that it was made in.
            let context = self.stream.context();
            context.record_err(context.bind_to_thread());
            if let Some(workspace) = self.products.workspace() {
                give(&self.stream, workspace);
            }
        }
        give(&self.stream, self.error);
        // The free has made the context current.
        self.mailbox.get_mut().unwrap_or_else(PoisonError::into_inner).give();
        self.outbox.get_mut().unwrap_or_else(PoisonError::into_inner).give();
    }
}

/// Memory that its drop frees, in the stream's order.
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

    /// The memory as a slice of cudarc.
    pub(crate) fn into_slice<T>(self) -> CudaSlice<T> {
        let buffer = std::mem::ManuallyDrop::new(self);
        // SAFETY: the buffer is not dropped, so the field is read once.
        let cuda = unsafe { std::ptr::read(&buffer.cuda) };
        cuda.0.used.fetch_sub(buffer.bytes, Relaxed);
        // SAFETY: the memory is an allocation of this stream's context with that many bytes, and
        // every bit pattern is a value of the types that tensors hold.
        unsafe { cuda.0.stream.upgrade_device_ptr(buffer.address, buffer.bytes / size_of::<T>()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.cuda.0.used.fetch_sub(self.bytes, Relaxed);
        give(&self.cuda.0.stream, self.address);
    }
}

/// A moment on the stream.
#[derive(Debug)]
pub struct Event(CudaEvent);

impl Event {
    /// Seconds from this moment to a later one; waits for it.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn seconds_to(&self, end: &Event) -> Result<f64> {
        let milliseconds = self.0.elapsed_ms(&end.0).map_err(|e| failed("an event", e))?;
        Ok(milliseconds as f64 / 1e3)
    }
}

/// The stream's context must be current. `used` bytes are in use, for the error's sake.
fn take(stream: &CudaStream, bytes: usize, fill: Fill, used: usize) -> Result<u64> {
    let size = bytes.max(16);
    let failed = |e: DriverError| match e.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            super::out_of_memory(size, used, driver::free_bytes())
        }
        _ => failed(&format!("cannot allocate {size} bytes"), e),
    };
    stream.context().bind_to_thread().map_err(failed)?;
    // SAFETY: the stream is alive; the memory is written before it is read, as `fill` says.
    unsafe {
        let address = match stream.context().has_async_alloc() {
            true => result::malloc_async(stream.cu_stream(), size),
            false => result::malloc_sync(size),
        }
        .map_err(failed)?;
        if fill == Fill::Zeros {
            result::memset_d8_async(address, 0, size, stream.cu_stream()).map_err(failed)?;
        }
        Ok(address)
    }
}

fn give(stream: &CudaStream, address: u64) {
    let context = stream.context();
    context.record_err(context.bind_to_thread());
    // SAFETY: `take` (or a slice of the same context) gave the address, and its one owner is
    // dropped; work queued before this still finds the memory.
    context.record_err(unsafe {
        match context.has_async_alloc() {
            true => result::free_async(address, stream.cu_stream()),
            false => stream.synchronize().and_then(|()| result::free_sync(address)),
        }
    });
}

impl From<Cuda> for Device {
    fn from(cuda: Cuda) -> Self {
        Device::Cuda(cuda)
    }
}

#[cfg(test)]
mod tests {
    use crate::Device;

    #[test]
    fn a_machine_without_a_gpu_is_told_what_is_missing() {
        if let Err(error) = Device::cuda(0) {
            let message = error.to_string();
            let known = ["no CUDA driver", "the driver is for CUDA", "there are 0 CUDA devices"];
            let known = known.iter().any(|known| message.contains(known));
            assert!(known || message.contains("no CUDA device"), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_named() {
        let message = Device::cuda(4096).expect_err("no machine has as many").to_string();
        assert!(message.starts_with("device: "), "{message}");
    }
}
