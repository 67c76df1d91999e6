//! What a decoder has beside products and attention: bound by the bytes of its activations.

use collimate::ops::rope::{Direction, RopeTable, rope};
use collimate::ops::{Mode, embedding, rmsnorm, swiglu};
use collimate::{Element, Tensor};
use half::bf16;

use crate::harness::{Bench, noise, rotated};

const EPS: f64 = 1e-5;

pub fn all(bench: &mut Bench<'_>) {
    if bench.on_gpu() {
        norm::<bf16>(bench, 16_384, 4096);
        gate::<bf16>(bench, 16_384, 11_008);
        rotation::<bf16>(bench, 16_384, 32, 128);
        table::<bf16>(bench, 16_384, 128_256, 4096);
    } else {
        norm::<f32>(bench, 4096, 896);
        gate::<f32>(bench, 1024, 4864);
        rotation::<f32>(bench, 4096, 14, 64);
        table::<f32>(bench, 4096, 32_000, 896);
    }
}

fn norm<T: Element>(bench: &mut Bench<'_>, rows: usize, hidden: usize) {
    let (rows, hidden) = (bench.size(rows, 8), bench.size(hidden, 256));
    let device = &bench.device();
    let bytes = rows * hidden * size_of::<T>();
    let id = |what: &str| format!("{what}/{rows}x{hidden} {}", T::DTYPE);
    let matrix = |_| noise::<T>(device, rows, hidden);
    let weight = &noise::<T>(device, 1, hidden);
    let column = || Tensor::<T::Stat>::zeros(device, rows, 1).expect("memory");
    bench.case("rmsnorm", &id("forward"), 2 * bytes, || {
        let (x, mut out, mut rstd) = (rotated(2 * bytes, matrix), matrix(0), column());
        move |i| {
            let x = x[i % x.len()].view();
            rmsnorm::forward(x, weight.view(), EPS, out.view_mut(), rstd.view_mut())
                .expect("shapes");
        }
    });
    bench.case("rmsnorm", &id("forward with residual"), 4 * bytes, || {
        let (x, mut sum, mut out, mut rstd) =
            (rotated(2 * bytes, matrix), matrix(0), matrix(0), column());
        move |i| {
            let (x, sum) = (x[i % x.len()].view(), sum.view_mut());
            rmsnorm::add_forward(x, sum, weight.view(), EPS, out.view_mut(), rstd.view_mut())
                .expect("shapes");
        }
    });
    bench.case("rmsnorm", &id("backward"), 3 * bytes, || {
        let (x, dout, mut dx, mut rstd) =
            (rotated(3 * bytes, matrix), matrix(0), matrix(0), column());
        rmsnorm::forward(x[0].view(), weight.view(), EPS, dx.view_mut(), rstd.view_mut())
            .expect("shapes");
        let mut dweight = Tensor::<T::Stat>::zeros(device, 1, hidden).expect("memory");
        move |i| {
            let (x, dx, rstd) = (x[i % x.len()].view(), dx.view_mut(), rstd.view());
            let dweight = dweight.view_mut();
            rmsnorm::backward(dout.view(), x, weight.view(), rstd, dx, Mode::Set, dweight)
                .expect("shapes");
        }
    });
}

fn gate<T: Element>(bench: &mut Bench<'_>, rows: usize, ff: usize) {
    let (rows, ff) = (bench.size(rows, 8), bench.size(ff, 192));
    let device = &bench.device();
    let bytes = rows * ff * size_of::<T>();
    let id = |what: &str| format!("{what}/{rows}x{ff} {}", T::DTYPE);
    let both = |_| noise::<T>(device, rows, 2 * ff);
    bench.case("swiglu", &id("forward"), 3 * bytes, || {
        let (x, mut out) = (rotated(3 * bytes, both), noise::<T>(device, rows, ff));
        move |i| swiglu::forward(x[i % x.len()].view(), out.view_mut()).expect("shapes")
    });
    bench.case("swiglu", &id("backward"), 5 * bytes, || {
        let (x, dout, mut dx) = (rotated(5 * bytes, both), noise::<T>(device, rows, ff), both(0));
        move |i| {
            swiglu::backward(dout.view(), x[i % x.len()].view(), dx.view_mut()).expect("shapes");
        }
    });
}

fn rotation<T: Element>(bench: &mut Bench<'_>, rows: usize, heads: usize, head_dim: usize) {
    let (rows, heads) = (bench.size(rows, 8), bench.size(heads, 2));
    let device = &bench.device();
    let bytes = rows * heads * head_dim * size_of::<T>();
    let id = |what: &str| format!("{what}/{rows}x{heads}x{head_dim} {}", T::DTYPE);
    let positions: Vec<i32> = (0..rows as i32).map(|row| row % 2048).collect();
    let positions = &Tensor::column(device, &positions).expect("memory");
    let frequencies: Vec<f64> =
        (0..head_dim / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / head_dim as f64)).collect();
    let frequencies = &frequencies;
    bench.case("rope", &id("table"), rows * head_dim * size_of::<T::Stat>(), || {
        move |_| drop(RopeTable::<T::Stat>::new(positions.view(), frequencies).expect("shapes"))
    });
    bench.case("rope", &id("rotate"), 2 * bytes, || {
        let table = RopeTable::<T::Stat>::new(positions.view(), frequencies).expect("shapes");
        let mut x = rotated(2 * bytes, |_| noise::<T>(device, rows, heads * head_dim));
        move |i| {
            let count = x.len();
            rope(x[i % count].view_mut(), &table, Direction::Forward).expect("shapes");
        }
    });
}

fn table<T: Element>(bench: &mut Bench<'_>, rows: usize, vocab: usize, hidden: usize) {
    let (rows, hidden) = (bench.size(rows, 32), bench.size(hidden, 256));
    let vocab = bench.size(vocab, 517);
    let device = &bench.device();
    let bytes = rows * hidden * size_of::<T>();
    let id = |what: &str| format!("{what}/{rows} of {vocab}x{hidden} {}", T::DTYPE);
    // A few tokens are frequent, as in texts.
    let token =
        |row: usize| if row.is_multiple_of(8) { row % 5 } else { row * 7919 % vocab } as i32;
    let tokens = &Tensor::column(device, &(0..rows).map(token).collect::<Vec<_>>());
    let tokens = tokens.as_ref().expect("memory");
    bench.case("embedding", &id("forward"), 2 * bytes, || {
        let table = noise::<T>(device, vocab, hidden);
        let mut out = rotated(2 * bytes, |_| noise::<T>(device, rows, hidden));
        move |i| {
            let count = out.len();
            embedding::forward(table.view(), tokens.view(), out[i % count].view_mut())
                .expect("tokens");
        }
    });
    let moved = bytes + 2 * rows * hidden * size_of::<T::Stat>();
    bench.case("embedding", &id("backward"), moved, || {
        let dout = rotated(bytes, |_| noise::<T>(device, rows, hidden));
        let mut dtable = Tensor::<T::Stat>::zeros(device, vocab, hidden).expect("memory");
        move |i| {
            let dout = dout[i % dout.len()].view();
            embedding::backward(dout, tokens.view(), dtable.view_mut(), None).expect("tokens");
        }
    });
}
