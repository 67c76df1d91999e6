//! What the tests of the operations share: every device that was compiled in, orders of execution,
//! and the question which kernels no test has launched.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{Cuda, Device};
use crate::{Plain, Tensor, View, ViewMut};

/// Orders of blocks, warps and lanes that the emulator runs.
#[cfg(feature = "emulate")]
const ORDERS: u64 = 8;

/// Makes tests of functions of a device: each runs on the CPU, and on a GPU or its emulation where
/// that was compiled in.
macro_rules! test_devices {
    ($($(#[$doc:meta])* fn $name:ident($device:ident) $body:block)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            use $crate::device::testing::{DeviceTest, Registered};
            fn body($device: &$crate::Device) $body
            static TEST: DeviceTest =
                DeviceTest::new(concat!(module_path!(), "::", stringify!($name)), body);
            inventory::submit! { Registered(&TEST) }
            TEST.assert();
        }
    )*};
}
pub(crate) use test_devices;

/// A test that runs once in a process, whoever asks first.
pub(crate) struct DeviceTest {
    name: &'static str,
    body: fn(&Device),
    outcome: OnceLock<Result<(), String>>,
}

/// A test that [`test_devices`] made.
#[cfg_attr(not(any(feature = "cuda", feature = "emulate")), expect(dead_code))]
pub(crate) struct Registered(pub &'static DeviceTest);
inventory::collect!(Registered);

impl DeviceTest {
    pub const fn new(name: &'static str, body: fn(&Device)) -> Self {
        DeviceTest { name, body, outcome: OnceLock::new() }
    }

    fn outcome(&self) -> &Result<(), String> {
        self.outcome.get_or_init(|| {
            for device in devices() {
                catch_unwind(AssertUnwindSafe(|| (self.body)(&device))).map_err(|panic| {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or(panic.downcast_ref::<&str>().copied());
                    format!("{} on {device}: {}", self.name, text.unwrap_or("a panic"))
                })?;
            }
            Ok(())
        })
    }

    pub fn assert(&self) {
        if let Err(message) = self.outcome() {
            panic!("{message}");
        }
    }
}

/// The CPU, and a GPU or its emulation where that was compiled in and is there.
pub(crate) fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    match gpu() {
        Some(gpu) => devices.push(gpu),
        None if cfg!(feature = "cuda") => eprintln!("not tested on a GPU: there is none"),
        None => {}
    }
    devices
}

/// A GPU or its emulation.
pub(crate) fn gpu() -> Option<Device> {
    let gpu = Device::cuda(0);
    // COLLIMATE_GPU=require: a test of a GPU must not pass by not finding it.
    if cfg!(feature = "emulate")
        || std::env::var_os("COLLIMATE_GPU").is_some_and(|x| x == "require")
    {
        return Some(gpu.expect("a GPU"));
    }
    gpu.ok()
}

/// The GPU that a device is, for what only GPUs do.
pub(crate) fn is_gpu(device: &Device) -> Option<&Cuda> {
    match device {
        Device::Cpu => None,
        Device::Cuda(cuda) => Some(cuda),
    }
}

/// The result of `run`, which must be the same in every order of execution: 8 orders of the
/// emulator, two runs elsewhere.
pub(crate) fn in_all_orders<T: PartialEq + std::fmt::Debug>(
    device: &Device,
    mut run: impl FnMut() -> T,
) -> T {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    seed(0);
    let first = run();
    for order in 1..orders(device) {
        seed(order);
        let again = run();
        assert!(again == first, "order {order} gives other bits than order 0");
    }
    seed(0);
    first
}

#[cfg(feature = "emulate")]
fn orders(device: &Device) -> u64 {
    if is_gpu(device).is_some() { ORDERS } else { 2 }
}

#[cfg(not(feature = "emulate"))]
fn orders(_device: &Device) -> u64 {
    2
}

#[cfg(feature = "emulate")]
fn seed(seed: u64) {
    // SAFETY: it stores a number.
    unsafe { crate::ffi::control::collimate_emulate_set_seed(seed) };
}

#[cfg(not(feature = "emulate"))]
fn seed(_seed: u64) {}

/// The names of the kernels that `run` launches, if a CUDA graph could capture it: otherwise the first
/// call that CUDA forbids there.
#[cfg(feature = "emulate")]
pub(crate) fn captured<T>(run: impl FnOnce() -> T) -> (T, Result<Vec<String>, String>) {
    use crate::ffi::control::*;
    use std::ffi::CStr;
    let stream = std::ptr::null_mut();
    // SAFETY: the stream is the emulator's only one.
    assert_eq!(unsafe { collimate_emulate_capture_begin(stream) }, 0, "a capture in a capture");
    let result = run();
    let (mut count, mut fault) = (0, std::ptr::null());
    // SAFETY: both pointers are to local variables.
    let status = unsafe { collimate_emulate_capture_end(stream, &mut count, &mut fault) };
    if !fault.is_null() {
        // SAFETY: it is a C string until this thread captures again.
        return (result, Err(unsafe { CStr::from_ptr(fault) }.to_string_lossy().into()));
    }
    assert_eq!(status, 0);
    let name = |index| {
        let mut operation = collimate_emulate_operation::default();
        // SAFETY: it writes to a local variable; names live as long as the program.
        unsafe {
            assert_eq!(collimate_emulate_captured(index, &mut operation), 1);
            match operation.kernel.is_null() {
                true => "a fill".into(),
                false => CStr::from_ptr(operation.kernel).to_string_lossy().into_owned(),
            }
        }
    };
    (result, Ok((0..count).map(name).collect()))
}

/// The bits of values: NaN equals itself, and 0 is not -0.
pub(crate) fn bits<T: crate::Plain>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// The tests of devices and no others, under one name for compute-sanitizer.
///
/// Under it a test takes many times as long, so there is a choice. `COLLIMATE_DEVICE_TESTS` lists parts of names, by
/// commas: those tests run, in that order. `COLLIMATE_DEVICE_TESTS_SECONDS`: none is begun later than that.
#[cfg(any(feature = "cuda", feature = "emulate"))]
#[test]
fn every_device_test() {
    let tests: Vec<&DeviceTest> =
        inventory::iter::<Registered>.into_iter().map(|Registered(test)| *test).collect();
    assert!(!tests.is_empty(), "no test of a device is linked");
    let parts = std::env::var("COLLIMATE_DEVICE_TESTS").unwrap_or_default();
    let seconds = std::env::var("COLLIMATE_DEVICE_TESTS_SECONDS");
    let limit = seconds.map_or(f64::INFINITY, |text| text.parse().expect("a number of seconds"));
    let begin = std::time::Instant::now();
    for test in chosen(tests, &parts) {
        let before = begin.elapsed().as_secs_f64();
        if before > limit {
            println!("left out, {limit} s are over: {}", test.name);
            continue;
        }
        test.assert();
        println!("{:.2} s: {}", begin.elapsed().as_secs_f64() - before, test.name);
    }
}

/// The tests whose names contain one of `parts`, separated by commas, in their order; of no parts, all.
#[cfg(any(feature = "cuda", feature = "emulate"))]
fn chosen<'a>(tests: Vec<&'a DeviceTest>, parts: &str) -> Vec<&'a DeviceTest> {
    if parts.is_empty() {
        return tests;
    }
    let mut found: Vec<&DeviceTest> = Vec::new();
    for part in parts.split(',') {
        let named = tests.iter().filter(|test| test.name.contains(part)).copied();
        let named: Vec<_> = named.collect();
        assert!(!named.is_empty(), "COLLIMATE_DEVICE_TESTS: no test's name contains {part:?}");
        for test in named {
            if !found.iter().any(|known| std::ptr::eq(*known, test)) {
                found.push(test);
            }
        }
    }
    found
}

#[cfg(any(feature = "cuda", feature = "emulate"))]
#[test]
fn tests_are_chosen_by_parts_of_their_names() {
    static TESTS: [DeviceTest; 3] = [
        DeviceTest::new("ops::a::one", |_| ()),
        DeviceTest::new("ops::b::two", |_| ()),
        DeviceTest::new("ops::a::three", |_| ()),
    ];
    let names = |parts| {
        let names = chosen(TESTS.iter().collect(), parts).into_iter().map(|test| test.name);
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(""), ["ops::a::one", "ops::b::two", "ops::a::three"]);
    assert_eq!(names("three,ops::a,two"), ["ops::a::three", "ops::a::one", "ops::b::two"]);
    let unknown = std::panic::catch_unwind(|| names("two,four"));
    assert!(unknown.is_err(), "a part that no name has was passed over");
}

/// Runs every device test that has not run yet, then asks the emulator what was launched.
#[cfg(feature = "emulate")]
#[test]
fn every_kernel_is_launched_by_a_test() {
    every_device_test();
    let mut missed = Vec::new();
    for index in 0.. {
        let (mut name, mut launches) = (std::ptr::null(), 0);
        // SAFETY: both pointers are to local variables.
        let found = unsafe {
            crate::ffi::control::collimate_emulate_kernel(index, &mut name, &mut launches)
        };
        if found == 0 {
            assert!(index > 0, "the emulator knows no kernel");
            break;
        }
        if launches == 0 {
            // SAFETY: the name is a C string that lives as long as the program.
            missed.push(unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy());
        }
    }
    assert!(missed.is_empty(), "no test launches {}:\n{}", missed.len(), missed.join("\n"));
}

/// A matrix inside a larger one of sentinels: two rows more, and columns on both sides.
pub(crate) struct Guarded<T: Plain> {
    memory: Tensor<T>,
    rows: usize,
    cols: usize,
    left: usize,
    sentinel: T,
}

impl<T: Plain> Guarded<T> {
    /// `values` with `left` and `right` columns of `sentinel` beside them.
    pub fn new(
        device: &Device,
        values: &[T],
        [rows, cols]: [usize; 2],
        [left, right]: [usize; 2],
        sentinel: T,
    ) -> Self {
        let stride = left + cols + right;
        let mut all = vec![sentinel; (rows + 2) * stride];
        for r in 0..rows {
            all[(r + 1) * stride + left..][..cols].copy_from_slice(&values[r * cols..][..cols]);
        }
        let memory = Tensor::from_host(device, &all, rows + 2, stride).unwrap();
        Guarded { memory, rows, cols, left, sentinel }
    }

    pub fn view(&self) -> View<'_, T> {
        let rows = self.memory.view().rows_range(1, self.rows).unwrap();
        rows.cols_range(self.left, self.cols).unwrap()
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        let rows = self.memory.view_mut().rows_range(1, self.rows).unwrap();
        rows.cols_range(self.left, self.cols).unwrap()
    }

    /// The values, after a look at the sentinels.
    pub fn values(&self) -> Vec<T> {
        let (all, stride) = (self.memory.to_vec().unwrap(), self.memory.cols());
        let inside = |i: usize| {
            let (r, c) = (i / stride, i % stride);
            (1..=self.rows).contains(&r) && (self.left..self.left + self.cols).contains(&c)
        };
        for (i, value) in all.iter().enumerate() {
            let whole = inside(i) || *value == self.sentinel;
            assert!(whole, "wrote {value:?} outside, at row {}, {}", i / stride, i % stride);
        }
        all.into_iter().enumerate().filter(|&(i, _)| inside(i)).map(|(_, value)| value).collect()
    }
}
