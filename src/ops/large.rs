//! What the tests share that only a GPU has time for: more blocks than it runs at once, and offsets
//! beyond 31 bits. They need a GPU and are not compiled for its emulation.

use crate::device::testing;
use crate::ops::gather_rows;
use crate::{Device, Element, Tensor, View, ViewMut};

/// Runs of one launch, which must give the same bits: a race need not show in the first.
const REPEATS: usize = 20;

/// A GPU with so many bytes free; without one the test is skipped, and says so.
/// `COLLIMATE_GPU=require` makes it a failure that there is no GPU, not that it is small.
pub(super) fn gpu_with(test: &str, bytes: usize) -> Option<Device> {
    let Some(device) = testing::gpu() else {
        eprintln!("{test} skipped: there is no GPU");
        return None;
    };
    testing::is_gpu(&device).expect("a GPU").bind().unwrap();
    let (free, _) = cudarc::driver::result::mem_get_info().unwrap();
    if free < bytes {
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        eprintln!("{test} skipped: {:.1} GiB free of {:.1} needed", gib(free), gib(bytes));
        return None;
    }
    Some(device)
}

/// A GPU, for what takes little memory.
pub(super) fn gpu(test: &str) -> Option<Device> {
    gpu_with(test, 1 << 30)
}

/// The result of `run`, which must be the same every time.
pub(super) fn repeated<T: PartialEq>(mut run: impl FnMut() -> T) -> T {
    let first = run();
    for repeat in 1..REPEATS {
        assert!(run() == first, "run {repeat} gives other bits than the first");
    }
    first
}

/// A matrix of `rows` whose row r is row r mod `base.rows()` of `base`: large, and known by few.
pub(super) fn tiled<T: Element>(base: View<'_, T>, rows: usize) -> Tensor<T> {
    let device = base.device();
    let index: Vec<i32> = (0..rows).map(|r| (r % base.rows()) as i32).collect();
    let index = Tensor::column(&device, &index).unwrap();
    let cuda = testing::is_gpu(&device).expect("a GPU");
    let mut out = Tensor::unset(cuda, rows, base.cols()).unwrap();
    gather_rows::forward(base, index.view(), out.view_mut()).unwrap();
    out
}

/// Whether two matrices hold the same numbers, found on their device, where the second is given
/// negated. The first is spent.
pub(super) fn cancels<T: Element>(mut a: ViewMut<'_, T>, negated: View<'_, T>) -> bool {
    super::elementwise::add(negated, a.reborrow()).unwrap();
    let norm = super::global_norm::global_norm(a.view()).unwrap();
    norm.to_vec().unwrap() == [0.0]
}
