//! The C contract of the kernels: bindings made from `kernels/collimate.h`, their calls, and what
//! their statuses mean.

use std::any::TypeId;
use std::ffi::c_void;

use half::{bf16, f16};

pub use bindings::*;

use crate::device::{Buffer, Cuda, Span};
use crate::{Error, Plain, Result};

#[allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks
)]
mod bindings;

/// What tests steer in the emulator: bindings made from `kernels/emulate/control.h`.
#[cfg(feature = "emulate")]
#[allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks
)]
pub mod control;

/// Queues a launcher of the contract on a device: `launch!(OP, cuda, collimate_x(arguments))`, in
/// an `unsafe` block that says why the pointers hold.
#[cfg(any(feature = "cuda", feature = "emulate"))]
macro_rules! launch {
    ($op:expr, $cuda:expr, $launcher:ident($($argument:expr),* $(,)?)) => {
        match $crate::ffi::ready($cuda) {
            Ok(()) => $crate::ffi::status($op, $crate::ffi::$launcher($($argument),*)),
            Err(error) => Err(error),
        }
    };
}

/// The same where there is nothing to link to: the call is checked and never made, since there is
/// no device to make it on.
#[cfg(not(any(feature = "cuda", feature = "emulate")))]
macro_rules! launch {
    ($op:expr, $cuda:expr, $launcher:ident($($argument:expr),* $(,)?)) => {{
        let _checked = || $crate::ffi::status($op, $crate::ffi::$launcher($($argument),*));
        $crate::ffi::absent($cuda)
    }};
}

/// The scratch memory that a launcher asks for: `workspace!(cuda, collimate_x_workspace(sizes))`.
#[cfg(any(feature = "cuda", feature = "emulate"))]
macro_rules! workspace {
    ($cuda:expr, $sizes:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: it computes a number from numbers.
        $crate::ffi::Workspace::new($cuda, unsafe { $crate::ffi::$sizes($($argument),*) })
    };
}

/// The same where there is nothing to link to.
#[cfg(not(any(feature = "cuda", feature = "emulate")))]
macro_rules! workspace {
    ($cuda:expr, $sizes:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: it computes a number from numbers, and is not called.
        let _checked = || unsafe { $crate::ffi::$sizes($($argument),*) };
        $crate::ffi::absent::<$crate::ffi::Workspace>($cuda)
    }};
}

pub(crate) use {launch, workspace};

#[cfg(not(any(feature = "cuda", feature = "emulate")))]
pub fn absent<T>(cuda: &Cuda) -> Result<T> {
    match *cuda {}
}

/// Makes the device ready for launches from this thread.
#[cfg(any(feature = "cuda", feature = "emulate"))]
pub fn ready(_cuda: &Cuda) -> Result<()> {
    #[cfg(not(feature = "emulate"))]
    _cuda.bind()?;
    Ok(())
}

/// A launcher's status as a result.
pub fn status(op: &'static str, status: i32) -> Result<()> {
    let what = match status {
        COLLIMATE_OK => return Ok(()),
        COLLIMATE_STATUS_DTYPE => "no kernel for this element type".to_string(),
        COLLIMATE_STATUS_ARGUMENT => "a size, stride or setting outside its range".to_string(),
        COLLIMATE_STATUS_WORKSPACE => "the workspace is too small".to_string(),
        code => format!("{} ({code})", cuda_error(code)),
    };
    Err(Error::Device(format!("{op}: {what}")))
}

/// The name of a `cudaError_t` that a launch may give.
fn cuda_error(code: i32) -> &'static str {
    match code {
        1 => "cudaErrorInvalidValue",
        2 => "cudaErrorMemoryAllocation",
        3 => "cudaErrorInitializationError",
        9 => "cudaErrorInvalidConfiguration",
        35 => "cudaErrorInsufficientDriver",
        46 => "cudaErrorDevicesUnavailable",
        98 => "cudaErrorInvalidDeviceFunction",
        100 => "cudaErrorNoDevice",
        101 => "cudaErrorInvalidDevice",
        200 => "cudaErrorInvalidKernelImage",
        201 => "cudaErrorDeviceUninitialized",
        209 => "cudaErrorNoKernelImageForDevice",
        214 => "cudaErrorECCUncorrectable",
        222 => "cudaErrorUnsupportedPtxVersion",
        400 => "cudaErrorInvalidResourceHandle",
        700 => "cudaErrorIllegalAddress",
        701 => "cudaErrorLaunchOutOfResources",
        702 => "cudaErrorLaunchTimeout",
        709 => "cudaErrorContextIsDestroyed",
        710 => "cudaErrorAssert",
        715 => "cudaErrorIllegalInstruction",
        716 => "cudaErrorMisalignedAddress",
        717 => "cudaErrorInvalidAddressSpace",
        719 => "cudaErrorLaunchFailure",
        900 => "cudaErrorStreamCaptureUnsupported",
        999 => "cudaErrorUnknown",
        _ => "a CUDA error",
    }
}

/// Scratch memory of one call. Freed in the stream's order, so it may go as soon as the call is
/// queued.
pub struct Workspace {
    buffer: Option<Buffer>,
    bytes: i64,
}

impl Workspace {
    #[cfg(any(feature = "cuda", feature = "emulate"))]
    pub fn new(cuda: &Cuda, bytes: i64) -> Result<Self> {
        let size = usize::try_from(bytes)
            .map_err(|_| Error::Device(format!("a workspace of {bytes} bytes")))?;
        let buffer =
            if size == 0 { None } else { Some(cuda.alloc(size, crate::device::Fill::Unset)?) };
        Ok(Workspace { buffer, bytes })
    }

    pub fn pointer(&self) -> *mut c_void {
        self.buffer.as_ref().map_or(std::ptr::null_mut(), |buffer| {
            let span: Span<'_, f32> = buffer.span(None);
            span.pointer().cast_mut().cast()
        })
    }

    pub fn bytes(&self) -> i64 {
        self.bytes
    }
}

/// The tag of an element type; `i32`, which kernels only move, goes as `f32`.
pub fn dtype<T: Plain>(op: &'static str) -> Result<i32> {
    let is = |id: TypeId| TypeId::of::<T>() == id;
    if is(TypeId::of::<f32>()) || is(TypeId::of::<i32>()) {
        Ok(COLLIMATE_F32 as i32)
    } else if is(TypeId::of::<bf16>()) {
        Ok(COLLIMATE_BF16 as i32)
    } else if is(TypeId::of::<f16>()) {
        Ok(COLLIMATE_F16 as i32)
    } else {
        Err(Error::Unsupported(format!("{op} of f64 on a GPU")))
    }
}

/// `None` as a null pointer.
pub fn nullable<T>(pointer: Option<*const T>) -> *const T {
    pointer.unwrap_or(std::ptr::null())
}

/// `None` as a null pointer.
pub fn nullable_mut<T>(pointer: Option<*mut T>) -> *mut T {
    pointer.unwrap_or(std::ptr::null_mut())
}
