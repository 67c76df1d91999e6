//! Where memory lives and products are computed.

#[cfg(feature = "cpu")]
pub mod matmul;
pub(crate) mod memory;
pub mod peak;
pub(crate) mod pool;
pub mod profile;
pub mod simd;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

// One of three files with one interface: a real device, its emulation, or no device at all.
#[cfg_attr(feature = "emulate", path = "emulated.rs")]
#[cfg_attr(all(feature = "cuda", not(feature = "emulate")), path = "cuda.rs")]
#[cfg_attr(not(any(feature = "cuda", feature = "emulate")), path = "absent.rs")]
mod gpu;

pub(crate) use gpu::Buffer;
pub use gpu::{Cuda, Event};
pub(crate) use memory::{Span, SpanMut};

use crate::Result;

/// A device. Cheap to clone; clones are the same device.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Device {
    /// Host memory; loops run on rayon's global pool.
    Cpu,
    /// A GPU and one of its streams; or, with feature `emulate`, host memory and the same kernels
    /// executed on the host.
    Cuda(Cuda),
}

impl Device {
    /// The GPU of that number, with a stream of its own.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) that says what is missing: a build with kernels, a
    /// driver, a driver that is new enough, or the GPU.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Cuda::new(ordinal).map(Device::Cuda)
    }

    /// Waits until everything queued on the device is done.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where something queued failed, and
    /// [`Error::Kernel`](crate::Error::Kernel) where a kernel met a value that it cannot work with;
    /// reported once.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(cuda) => cuda.synchronize(),
        }
    }
}

impl Device {
    /// Checks that the device can compute matrix products.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) that says which library is missing and where it is
    /// looked for.
    pub fn check_products(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(cuda) => cuda.check_products(),
        }
    }

    /// One line on a GPU: its number and name, the driver, the libraries, and the architecture that the
    /// kernels run as. None for the CPU.
    pub fn describe(&self) -> Option<String> {
        match self {
            Device::Cpu => None,
            Device::Cuda(cuda) => Some(cuda.describe()),
        }
    }

    /// From here on a row of a matrix product on a GPU has the same bits however many rows are
    /// computed together: sums are not cut (no split-K), and the algorithm does not follow from the
    /// number of rows. On the CPU that always holds.
    pub fn be_batch_invariant(&self) {
        if let Device::Cuda(cuda) = self {
            cuda.be_batch_invariant();
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(cuda) => write!(f, "cuda ({})", cuda.name()),
        }
    }
}

/// What new memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Zeros.
    Zeros,
    /// Anything: the caller writes before it reads.
    Unset,
}

/// Rows of bytes, `pitch` bytes from one to the next.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(any(feature = "cuda", feature = "emulate")), expect(dead_code))]
struct Pitched {
    on_host: bool,
    address: u64,
    pitch: usize,
}

/// Bytes of device memory.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(any(feature = "cuda", feature = "emulate")), expect(dead_code))]
struct Place {
    address: u64,
    bytes: usize,
}

/// The error of a device without room for `asked` bytes more.
#[cfg_attr(not(any(feature = "cuda", feature = "emulate")), expect(dead_code))]
fn out_of_memory(asked: usize, used: usize, free: usize) -> crate::Error {
    let size = |bytes: usize| match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    };
    crate::Error::Device(format!(
        "out of memory: asked for {}, with {} in use and {} free; lower \
         --per-device-train-batch-size (and raise --gradient-accumulation-steps) or --max-length, or \
         keep --gradient-checkpointing on",
        size(asked),
        size(used),
        size(free)
    ))
}

/// What the three words that kernels leave behind say: code, row, value.
#[cfg_attr(not(any(feature = "cuda", feature = "emulate")), expect(dead_code))]
fn fault([code, row, value]: [i32; 3]) -> Result<()> {
    use crate::ffi;
    let what = match code as u32 {
        ffi::COLLIMATE_ERROR_NONE => return Ok(()),
        ffi::COLLIMATE_ERROR_TOKEN => "a token id outside the vocabulary",
        ffi::COLLIMATE_ERROR_LOGITS => "logits whose log-sum-exp is not finite",
        ffi::COLLIMATE_ERROR_INDEX => "an index outside the matrix",
        ffi::COLLIMATE_ERROR_NORM => {
            "a norm of the gradients that is not finite; the row is the step"
        }
        _ => "a fault",
    };
    Err(crate::Error::Kernel { what, code, row, value })
}
