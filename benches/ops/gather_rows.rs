//! Rows by index: bound by the bytes of the rows.

use collimate::ops::gather_rows::{backward, forward};
use collimate::{Element, Tensor};
use half::bf16;

use crate::harness::{Bench, rotated};

pub fn all(bench: &mut Bench<'_>) {
    if bench.on_gpu() {
        shape::<bf16>(bench, 16_384, 8192, 4096);
    } else {
        shape::<f32>(bench, 4096, 2048, 1024);
        shape::<bf16>(bench, 4096, 2048, 1024);
    }
}

/// Every other row of `rows`, in an order that jumps.
fn shape<T: Element>(bench: &mut Bench<'_>, rows: usize, gathered: usize, hidden: usize) {
    let (rows, gathered) = (bench.size(rows, 32), bench.size(gathered, 16));
    let hidden = bench.size(hidden, 256);
    let device = &bench.device();
    let picked = (0..gathered).map(|i| (2 * (i * 613 % gathered)) as i32);
    let index = &Tensor::column(device, &picked.collect::<Vec<_>>()).expect("memory");
    let bytes = gathered * hidden * size_of::<T>();
    let id = |what: &str| format!("{what}/{gathered} of {rows}x{hidden} {}", T::DTYPE);
    let matrix = |rows| Tensor::<T>::zeros(device, rows, hidden).expect("memory");
    bench.case("gather_rows", &id("forward"), 2 * bytes, || {
        let x = rotated(2 * bytes, |_| matrix(rows));
        let mut out = matrix(gathered);
        move |i| {
            let x = x[i % x.len()].view();
            forward(x, index.view(), out.view_mut()).expect("rows of the matrix");
        }
    });
    bench.case("gather_rows", &id("backward"), 3 * bytes, || {
        let dout = matrix(gathered);
        let mut dx = rotated(3 * bytes, |_| matrix(rows));
        move |i| {
            let count = dx.len();
            let dx = dx[i % count].view_mut();
            backward(dout.view(), index.view(), dx).expect("rows of the matrix");
        }
    });
}
