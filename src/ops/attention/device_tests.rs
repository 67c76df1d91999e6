//! Every device against the f64 code of the CPU.

use half::{bf16, f16};

use super::tests::{cast, close, noise, segments, wide};
use super::{Heads, Segment, Segments, backward, decode, forward};
use crate::device::testing::{Guarded, bits, in_all_orders, test_devices};
use crate::{Device, Element, Plain, Real, Tensor};

/// Queries, and keys, that a block of the kernels has, and half of that.
const BLOCK: i32 = 128;
const TILE: i32 = BLOCK / 2;

fn of_bits<T: Plain>(bits: &[u8]) -> Vec<T> {
    let mut values = vec![T::default(); bits.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut values).copy_from_slice(bits);
    values
}

struct Case {
    segments: Segments,
    rows: usize,
    heads: Heads,
    /// Columns beside every matrix.
    beside: [usize; 2],
}

impl Case {
    fn new((segments, rows): (Segments, usize), heads: (usize, usize, usize)) -> Self {
        Case { segments, rows, heads: Heads::new(heads.0, heads.1, heads.2), beside: [0, 0] }
    }

    fn cols(&self) -> usize {
        self.heads.q_cols() + 2 * self.heads.kv_cols()
    }

    fn values<T: Element>(&self) -> (Vec<T>, Vec<T>) {
        let noise = |cols, seed| cast(&noise(self.rows * cols, seed));
        (noise(self.cols(), 1), noise(self.heads.q_cols(), 2))
    }

    /// A matrix between sentinels.
    fn place<T: Plain>(&self, device: &Device, x: &[T], cols: usize, sentinel: T) -> Guarded<T> {
        Guarded::new(device, x, [self.rows, cols], self.beside, sentinel)
    }

    /// Out, lse, dqkv.
    fn run<T: Element>(
        &self,
        device: &Device,
        (qkv, dout): (&[T], &[T]),
    ) -> (Vec<T>, Vec<T::Stat>, Vec<T>) {
        let (q_cols, heads) = (self.heads.q_cols(), self.heads.heads);
        let (seven, sentinel) = (T::Stat::of(7.0), T::from_stat(T::Stat::of(7.0)));
        let place = |x: &[T], cols| self.place(device, x, cols, sentinel);
        let (qkv, dout) = (place(qkv, self.cols()), place(dout, q_cols));
        let blank = vec![sentinel; self.rows * self.cols()];
        let (mut out, mut dqkv) = (place(&blank, q_cols), place(&blank, self.cols()));
        let mut lse = self.place(device, &vec![seven; self.rows * heads], heads, seven);
        forward(qkv.view(), &self.segments, &self.heads, out.view_mut(), lse.view_mut()).unwrap();
        let (dout, saved) = (dout.view(), (out.view(), lse.view()));
        let (segments, to) = (&self.segments, dqkv.view_mut());
        backward(dout, qkv.view(), saved.0, saved.1, segments, &self.heads, to).unwrap();
        (out.values(), lse.values(), dqkv.values())
    }

    /// The bounds are those of the CPU's own tests: rounding of the output, and what the backward
    /// makes of it.
    fn check<T: Element>(&self, device: &Device, forward: f64, backward: f64) {
        let (qkv, dout) = self.values::<T>();
        let (out, lse, dqkv) = in_all_orders(device, || {
            let (out, lse, dqkv) = self.run(device, (&qkv, &dout));
            (bits(&out), bits(&lse), bits(&dqkv))
        });
        let want = self.run::<f64>(&Device::Cpu, (&wide(&qkv), &wide(&dout)));
        let [out, dqkv] = [out, dqkv].map(|bits| wide::<T>(&of_bits(&bits)));
        let lse: Vec<T::Stat> = of_bits(&lse);
        close(&out, &want.0, forward, "out");
        close(&lse.iter().map(|x| x.f64()).collect::<Vec<_>>(), &want.1, forward, "lse");
        close(&dqkv, &want.2, backward, "dqkv");
    }

    fn check_types(&self, device: &Device) {
        self.check::<f32>(device, 2e-6, 5e-5);
        self.check::<f16>(device, 6e-4, 2e-2);
        self.check::<bf16>(device, 4e-3, 1.5e-1);
    }
}

/// Lengths around a block and its half.
fn lengths() -> (Segments, usize) {
    let around = [1, 0, TILE - 1, TILE, TILE + 1, BLOCK - 1, BLOCK, BLOCK + 1];
    segments(&around.map(|len| (len, (0, 0))))
}

/// Prompts shared by completions: short, long, and none; a prefix that is longer than a block, one
/// that is no whole segment, one that reaches into its own segment, and a prefix of a prefix.
fn shared() -> (Segments, usize) {
    segments(&[
        (37, (0, 0)),
        (2, (0, 37)),
        (TILE - 37, (0, 37)),
        (0, (0, 37)),
        (BLOCK + 9, (0, 0)),
        (TILE, (100, 130)),
        (5, (3, 60)),
        (9, (260, 10)),
    ])
}

test_devices! {
    fn every_device_agrees_with_the_definition(device) {
        Case::new(lengths(), (2, 1, 8)).check_types(device);
        Case::new(shared(), (4, 2, 8)).check_types(device);
    }

    fn heads_of_any_width_do(device) {
        let lengths = || segments(&[(TILE + 3, (0, 0)), (3, (2, 9))]);
        for (heads, beside) in [((3, 3, 1), [0, 0]), ((6, 2, 5), [3, 0]), ((2, 1, 33), [0, 1])] {
            Case { beside, ..Case::new(lengths(), heads) }.check_types(device);
        }
        for heads in [(1, 1, 80), (2, 1, 130)] {
            Case::new(lengths(), heads).check_types(device);
        }
    }

    /// The head dims of the matrix units, whose rows start at 16 bytes. Probabilities are rounded as
    /// the output is, so the forward's bound is twice the plain form's.
    fn matrix_units_agree_with_the_definition(device) {
        let sixteen_bits = |case: Case| {
            case.check::<f16>(device, 1.2e-3, 2e-2);
            case.check::<bf16>(device, 8e-3, 1.5e-1);
        };
        sixteen_bits(Case::new(lengths(), (1, 1, 64)));
        sixteen_bits(Case { beside: [8, 16], ..Case::new(shared(), (2, 1, 64)) });
        sixteen_bits(Case { beside: [1, 0], ..Case::new(segments(&[(9, (0, 0))]), (2, 1, 64)) });
        for head_dim in [96, 128] {
            let some = segments(&[(BLOCK + 3, (0, 0)), (TILE, (0, 37))]);
            sixteen_bits(Case::new(some, (2, 1, head_dim)));
        }
    }

    fn nothing_to_attend_to_is_no_error(device) {
        Case::new(segments(&[]), (2, 1, 8)).check_types(device);
        Case::new(segments(&[(0, (0, 0))]), (2, 1, 8)).check_types(device);
    }

    fn large_logits_stay_finite(device) {
        let case = Case::new(segments(&[(TILE + 1, (0, 0)), (9, (0, TILE))]), (2, 1, 8));
        let (mut qkv, dout) = case.values::<f32>();
        qkv.iter_mut().for_each(|x| *x *= 100.0);
        let (out, lse, dqkv) = case.run(device, (&qkv, &dout));
        assert!(out.iter().chain(&lse).chain(&dqkv).all(|x| x.is_finite()));
        assert!(lse.iter().any(|x| *x > 1e4), "the logits are large");
        let want = case.run::<f64>(&Device::Cpu, (&wide(&qkv), &wide(&dout)));
        // Logits of 1e4 have errors of 1e-3 in f32.
        close(&wide(&lse), &want.1, 1e-6, "lse");
    }

    /// A sequence alone, in a batch, and with its prompt shared.
    fn the_batch_around_a_sequence_does_not_matter(device) {
        for (prompt, completion) in [(1, 1), (30, BLOCK), (TILE, 3)] {
            around_a_sequence::<f32>(device, (4, 2, 8), prompt, completion);
            around_a_sequence::<bf16>(device, (2, 1, 64), prompt, completion);
        }
    }

    /// Rows of a cache: single queries, and runs of them.
    fn decoding_agrees_with_training(device) {
        decode_against_a_cache::<f32>(device, (4, 2, 8), 4e-6);
        decode_against_a_cache::<f16>(device, (7, 1, 5), 1e-3);
        decode_against_a_cache::<bf16>(device, (2, 1, 64), 8e-3);
        // Rows that are aligned to 16 bytes where those above are not, and the other way round.
        decode_against_a_cache::<f32>(device, (3, 1, 5), 4e-6);
        decode_against_a_cache::<f16>(device, (4, 2, 16), 1e-3);
        decode_against_a_cache::<bf16>(device, (2, 2, 9), 8e-3);
    }
}

fn around_a_sequence<T: Element>(
    device: &Device,
    heads: (usize, usize, usize),
    prompt: i32,
    completion: i32,
) {
    let (before, other, len) = (41, 67, prompt + completion);
    let alone = Case::new(segments(&[(len, (0, 0))]), heads);
    let batch = segments(&[(before, (0, 0)), (len, (0, 0)), (5, (0, 0))]);
    let (first, again) = ((before, prompt), (prompt + other + before) as usize);
    let shared =
        segments(&[(before, (0, 0)), (prompt, (0, 0)), (other, first), (completion, first)]);
    let (batch, shared) = (Case::new(batch, heads), Case::new(shared, heads));
    let (qkv, dout) = alone.values::<T>();
    let rows = |x: &[T], start: usize, n: usize| {
        let cols = x.len() / len as usize;
        x[start * cols..][..n * cols].to_vec()
    };
    let (before, prompt, completion) = (before as usize, prompt as usize, completion as usize);
    let around = |x: &[T], n: usize| cast(&noise(x.len() / len as usize * n, 8));
    let want = alone.run(device, (&qkv, &dout));

    let in_batch = |x: &[T]| [around(x, before), x.to_vec(), around(x, 5)].concat();
    let got = batch.run(device, (&in_batch(&qkv), &in_batch(&dout)));
    let cut = |x: &[T], whole: &[T], start: usize, n: usize| {
        let cols = whole.len() / len as usize;
        bits(&x[start * cols..][..n * cols])
    };
    let all = len as usize;
    assert_eq!(cut(&got.0, &want.0, before, all), bits(&want.0));
    assert_eq!(cut(&got.2, &want.2, before, all), bits(&want.2));

    let in_shared = |x: &[T]| {
        let between = [around(x, before), rows(x, 0, prompt), around(x, other as usize)].concat();
        [between, rows(x, prompt, completion)].concat()
    };
    let got = shared.run(device, (&in_shared(&qkv), &in_shared(&dout)));
    assert_eq!(cut(&got.0, &want.0, before, prompt), cut(&want.0, &want.0, 0, prompt));
    assert_eq!(cut(&got.0, &want.0, again, completion), cut(&want.0, &want.0, prompt, completion));
}

/// Sequences of several lengths in one cache, out of order: the rows of a training batch.
fn decode_against_a_cache<T: Element>(
    device: &Device,
    heads: (usize, usize, usize),
    tolerance: f64,
) {
    let len = 2 * BLOCK as usize + 40;
    let case = Case::new(segments(&[(len as i32, (0, 0))]), heads);
    let (qkv, dout) = case.values::<T>();
    let exact = case.run::<f64>(&Device::Cpu, (&wide(&qkv), &wide(&dout))).0;
    let (q_cols, kv_cols) = (case.heads.q_cols(), case.heads.kv_cols());
    let cache = Tensor::from_host(device, &qkv, len, case.cols()).unwrap();
    let k = cache.view().cols_range(q_cols, kv_cols).unwrap();
    let v = cache.view().cols_range(q_cols + kv_cols, kv_cols).unwrap();
    // The last queries of a prefix of the sequence: how many, and the row of the last.
    let (tile, block) = (TILE as usize, BLOCK as usize);
    let runs =
        [(1, 0), (1, tile), (1, len - 1), (3, tile - 1), (1, block - 1), (70, block + 30), (1, 9)];
    let (mut queries, mut want, mut segments) = (vec![], vec![], vec![]);
    for (n, last) in runs {
        let (first, q_start) = (last + 1 - n, (want.len() / q_cols) as i32);
        let segment = Segment {
            q_start,
            q_len: n as i32,
            kv_start: first as i32,
            prefix_start: 0,
            prefix_len: first as i32,
        };
        segments.push(segment);
        queries.extend((first..=last).flat_map(|row| &qkv[row * case.cols()..][..q_cols]));
        want.extend_from_slice(&exact[first * q_cols..][..n * q_cols]);
    }
    let rows = want.len() / q_cols;
    let queries: Vec<T> = queries.into_iter().copied().collect();
    let sentinel = T::from_stat(T::Stat::of(7.0));
    let segments = Segments::from(segments);
    let got = in_all_orders(device, || {
        let q = Guarded::new(device, &queries, [rows, q_cols], [0, 0], sentinel);
        let blank = vec![sentinel; rows * q_cols];
        let mut out = Guarded::new(device, &blank, [rows, q_cols], [1, 2], sentinel);
        decode(q.view(), k, v, &segments, &case.heads, out.view_mut()).unwrap();
        bits(&out.values())
    });
    close(&wide::<T>(&of_bits(&got)), &want, tolerance, "decoded");
}
