//! The driver: whether it is there and new enough, the contexts that this process keeps, and what is
//! to be said of a device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::{Error, Result};

/// The release of CUDA that the kernels were compiled with: 1000 times the major number, and 10 times
/// the minor one.
pub(super) const CUDA: i32 = release(env!("COLLIMATE_NVCC"));
/// The architectures that the kernels were compiled for, and the newest of them as PTX too.
const ARCHS: &str = env!("COLLIMATE_BUILT_ARCHS");
/// The oldest compute capability that the kernels run on.
const OLDEST: (i32, i32) = (8, 0);
/// The oldest release of CUDA, and of the driver that brought it, for kernels of CUDA 12; and for
/// those of CUDA 13. Within a major number a driver runs what later compilers made.
const DRIVERS: [(i32, &str); 2] = [(12_040, "550"), (13_000, "580")];

/// `13.0` as 13000.
const fn release(text: &str) -> i32 {
    let (bytes, mut parts, mut part, mut i) = (text.as_bytes(), [0, 0], 0, 0);
    while i < bytes.len() && part < 2 {
        match bytes[i] {
            b'.' => part += 1,
            digit => parts[part] = 10 * parts[part] + (digit - b'0') as i32,
        }
        i += 1;
    }
    1000 * parts[0] + 10 * parts[1]
}

/// Checks that there is a driver that runs the kernels.
///
/// # Errors
/// [`Error::Device`] that says which release is needed.
pub(super) fn check() -> Result<()> {
    let (needed, driver) = if CUDA < 13_000 { DRIVERS[0] } else { DRIVERS[1] };
    // SAFETY: this only tries to load the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Device(format!(
            "no CUDA driver (libcuda.so.1): install NVIDIA's driver, release {driver} or later"
        )));
    }
    let version = version()?;
    if version < needed {
        return Err(Error::Device(format!(
            "the driver is for CUDA {}, the kernels need {}: install NVIDIA's driver, release \
             {driver} or later",
            dotted(version),
            dotted(needed)
        )));
    }
    Ok(())
}

/// The newest release of CUDA that the driver runs.
fn version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: it writes one integer, and may be called before initialisation.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| failed("a driver without a version", e))?;
    Ok(version)
}

/// The primary context of a device. It stays until the process ends: the runtime that launches the
/// kernels knows it by address, and would launch into one that is gone.
pub(super) fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    static CONTEXTS: Mutex<Option<HashMap<usize, Arc<CudaContext>>>> = Mutex::new(None);
    let mut slot = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let contexts = slot.get_or_insert_default();
    if let Some(context) = contexts.get(&ordinal) {
        return Ok(context.clone());
    }
    let context = CudaContext::new(ordinal).map_err(|e| failed("cannot open it", e))?;
    contexts.insert(ordinal, context.clone());
    Ok(context)
}

/// The number of devices.
pub(super) fn count() -> Result<usize> {
    let count = CudaContext::device_count().map_err(|e| failed("no CUDA device", e))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Checks that the kernels run on the context's device; gives its name and compute capability.
pub(super) fn identify(context: &CudaContext) -> Result<(String, (i32, i32))> {
    let name = context.name().map_err(|e| failed("a device without a name", e))?;
    let capability =
        context.compute_capability().map_err(|e| failed("unknown compute capability", e))?;
    if code_for(capability, ARCHS).is_none() {
        let (major, minor) = capability;
        return Err(Error::Device(format!(
            "{name} has compute capability {major}.{minor}; the kernels were compiled for \
             {ARCHS} and later: compile them for it with COLLIMATE_CUDA_ARCHS={major}{minor}, from \
             {}.{} on",
            OLDEST.0, OLDEST.1
        )));
    }
    Ok((name, capability))
}

/// Which of the compiled architectures a device runs: the newest that is not newer than the device
/// and of its major number, or the PTX of the last.
fn code_for(capability: (i32, i32), archs: &str) -> Option<String> {
    let device = 10 * capability.0 + capability.1;
    let archs: Vec<i32> = archs.split(',').filter_map(|arch| arch.parse().ok()).collect();
    let native = archs.iter().filter(|&&a| a / 10 == device / 10 && a <= device).max();
    let ptx = archs.last().filter(|&&last| last <= device);
    native
        .map(|arch| format!("sm_{arch}"))
        .or_else(|| ptx.map(|arch| format!("PTX of compute_{arch}, compiled by the driver")))
}

/// What a run says of the device: its capability, the driver and the code that runs on it.
pub(super) fn describe(capability: (i32, i32)) -> String {
    let (major, minor) = capability;
    let release = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let release =
        module_release(&release).map(|release| format!("{release}, ")).unwrap_or_default();
    let cuda = version().map_or_else(|_| "unknown".into(), dotted);
    let code = code_for(capability, ARCHS).unwrap_or_default();
    format!(
        "compute capability {major}.{minor}, driver {release}CUDA {cuda}, kernels of CUDA {} for {code}",
        dotted(CUDA)
    )
}

/// The release in the words of the driver's module.
fn module_release(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace()
        .find(|word| word.contains('.') && word.chars().all(|c| c == '.' || c.is_ascii_digit()))
}

fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

pub(super) fn failed(what: &str, error: DriverError) -> Error {
    let name = error.error_name().ok().and_then(|name| name.to_str().ok()).unwrap_or("unknown");
    Error::Device(format!("{what}: {name}"))
}

/// Bytes that are free on the current context's device.
pub(super) fn free_bytes() -> usize {
    result::mem_get_info().map_or(0, |(free, _)| free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_numbers() {
        assert_eq!(
            [release("13.0"), release("12.4"), release("12.9.86")],
            [13_000, 12_040, 12_090]
        );
        assert_eq!(dotted(12_080), "12.8");
    }

    #[test]
    fn a_device_runs_the_nearest_code() {
        let archs = "80,86,89,90,100,120";
        let code = |major, minor| code_for((major, minor), archs).unwrap_or_default();
        assert_eq!(code(8, 0), "sm_80");
        assert_eq!(code(8, 7), "sm_86");
        assert_eq!(code(9, 0), "sm_90");
        assert_eq!(code(10, 3), "sm_100");
        assert_eq!(code(12, 1), "sm_120");
        assert_eq!(code(13, 0), "PTX of compute_120, compiled by the driver");
        assert_eq!(code(7, 5), "");
        assert_eq!(code_for((8, 0), "90"), None);
    }

    #[test]
    fn the_module_names_its_release() {
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue Nov 4\nGCC version: 12.3";
        assert_eq!(module_release(text), Some("580.159.04"));
        assert_eq!(module_release(""), None);
    }
}
