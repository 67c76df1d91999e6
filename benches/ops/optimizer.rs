//! The norm of the gradients, and AdamW: bound by the bytes of the arenas.

use std::hint::black_box;

use collimate::ops::adamw::{AdamW, Arenas, step};
use collimate::ops::global_norm::global_norm;
use collimate::{Element, Tensor};
use half::bf16;

use crate::harness::{Bench, noise};

pub fn all(bench: &mut Bench<'_>) {
    let rows = if bench.on_gpu() { 1 << 18 } else { 1 << 12 };
    arenas::<f32>(bench, rows, 1 << 10);
    arenas::<bf16>(bench, rows, 1 << 10);
}

/// Master weights, moments and gradients in float32; weights of the type are rounded from them.
fn arenas<T: Element<Stat = f32>>(bench: &mut Bench<'_>, rows: usize, cols: usize) {
    let rows = bench.size(rows, 8);
    let device = &bench.device();
    let values = rows * cols;
    if T::DTYPE == f32::DTYPE {
        bench.case("global_norm", &format!("{values} float32"), 4 * values, || {
            let grads = noise::<f32>(device, rows, cols);
            move |_| drop(black_box(global_norm(grads.view()).expect("values")))
        });
    }
    let rounded = T::DTYPE != f32::DTYPE;
    let bytes = values * (7 * 4 + if rounded { size_of::<T>() } else { 0 });
    bench.case("adamw", &format!("{values} {}", T::DTYPE), bytes, || {
        let [mut master, grads] = [0, 1].map(|_| noise::<f32>(device, rows, cols));
        let [mut m, mut v] = [0, 1].map(|_| Tensor::zeros(device, rows, cols).expect("memory"));
        let mut weights = rounded.then(|| noise::<T>(device, rows, cols));
        let norm = global_norm(grads.view()).expect("values");
        let mut adamw = AdamW {
            lr: 1e-5,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step: 0,
            max_grad_norm: 1.0,
        };
        move |_| {
            adamw.step += 1;
            let arenas = Arenas {
                master: master.view_mut(),
                weights: weights.as_mut().map(Tensor::view_mut),
                grads: grads.view(),
                m: m.view_mut(),
                v: v.view_mut(),
            };
            step(adamw, norm.view(), arenas, &[(0..values, true)]).expect("arenas");
        }
    });
}
