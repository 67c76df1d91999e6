use half::{bf16, f16};

use super::tile::{KEYS, ROWS};
use super::{Heads, Segment, Segments, backward, decode, forward};
use crate::device::simd::with_most_bits;
use crate::{Element, Real, Result, View, ViewMut};

pub(super) fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..n).map(|_| 3.0 * next()).collect()
}

pub(super) fn cast<T: Element>(xs: &[f64]) -> Vec<T> {
    xs.iter().map(|&x| T::from_stat(T::Stat::of(x))).collect()
}

pub(super) fn wide<T: Element>(xs: &[T]) -> Vec<f64> {
    xs.iter().map(|x| x.to_stat().f64()).collect()
}

/// `(q_len, prefix)`: a prefix is `(start, len)`.
pub(super) fn segments(of: &[(i32, (i32, i32))]) -> (Segments, usize) {
    let mut start = 0;
    let segments = of
        .iter()
        .map(|&(q_len, (prefix_start, prefix_len))| {
            let segment =
                Segment { q_start: start, q_len, kv_start: start, prefix_start, prefix_len };
            start += q_len;
            segment
        })
        .collect::<Vec<_>>();
    (segments.into(), start as usize)
}

/// Lengths around every block size, a prompt shared by three completions, one of them long.
fn mixed() -> (Segments, usize) {
    let keys = KEYS as i32;
    segments(&[
        (1, (0, 0)),
        (ROWS as i32 - 1, (0, 0)),
        (37, (0, 0)),
        (2, (24, 37)),
        (29, (24, 37)),
        (keys - 37, (24, 37)),
        (keys - 1, (0, 0)),
        (keys, (0, 0)),
        (keys + 1, (0, 0)),
    ])
}

struct Case {
    segments: Segments,
    rows: usize,
    heads: Heads,
}

impl Case {
    fn new((segments, rows): (Segments, usize), heads: (usize, usize, usize)) -> Self {
        Case { segments, rows, heads: Heads::new(heads.0, heads.1, heads.2) }
    }

    fn cols(&self) -> usize {
        self.heads.q_cols() + 2 * self.heads.kv_cols()
    }

    fn forward<T: Element>(&self, qkv: &[T]) -> (Vec<T>, Vec<T::Stat>) {
        let (rows, cols) = (self.rows, self.heads.q_cols());
        // A padded output with sentinels.
        let sentinel = T::from_stat(T::Stat::of(77.0));
        let mut out = vec![sentinel; rows * (cols + 1)];
        let mut lse = vec![T::Stat::of(77.0); rows * self.heads.heads];
        forward(
            View::from_slice(qkv, rows, self.cols(), self.cols()).unwrap(),
            &self.segments,
            &self.heads,
            ViewMut::from_slice(&mut out, rows, cols, cols + 1).unwrap(),
            ViewMut::from_slice(&mut lse, rows, self.heads.heads, self.heads.heads).unwrap(),
        )
        .unwrap();
        let mut packed = vec![];
        for row in out.chunks(cols + 1) {
            assert_eq!(row[cols], sentinel);
            packed.extend_from_slice(&row[..cols]);
        }
        (packed, lse)
    }

    fn backward<T: Element>(&self, qkv: &[T], dout: &[T]) -> Vec<T> {
        let (out, lse) = self.forward(qkv);
        let (rows, cols, q_cols) = (self.rows, self.cols(), self.heads.q_cols());
        let mut dqkv = vec![T::from_stat(T::Stat::of(77.0)); rows * cols];
        backward(
            View::from_slice(dout, rows, q_cols, q_cols).unwrap(),
            View::from_slice(qkv, rows, cols, cols).unwrap(),
            View::from_slice(&out, rows, q_cols, q_cols).unwrap(),
            View::from_slice(&lse, rows, self.heads.heads, self.heads.heads).unwrap(),
            &self.segments,
            &self.heads,
            ViewMut::from_slice(&mut dqkv, rows, cols, cols).unwrap(),
        )
        .unwrap();
        dqkv
    }

    /// Out, lse, dqkv, by the definition.
    fn naive(&self, qkv: &[f64], dout: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let Heads { heads, kv_heads, head_dim: d, scale } = self.heads;
        let (cols, q_cols, kv_cols) = (self.cols(), self.heads.q_cols(), self.heads.kv_cols());
        let mut out = vec![0.0; self.rows * q_cols];
        let mut lse = vec![0.0; self.rows * heads];
        let mut dqkv = vec![0.0; self.rows * cols];
        for s in self.segments.iter() {
            for (i, h) in (0..s.q_len).flat_map(|i| (0..heads).map(move |h| (i, h))) {
                let row = (s.q_start + i) as usize;
                let prefix = s.prefix_start..s.prefix_start + s.prefix_len;
                let keys: Vec<usize> =
                    prefix.chain(s.kv_start..s.kv_start + i + 1).map(|k| k as usize).collect();
                let q_at = row * cols + h * d;
                let k_at = |key: usize| key * cols + q_cols + h / (heads / kv_heads) * d;
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let logits: Vec<f64> = keys
                    .iter()
                    .map(|&key| scale * dot(&qkv[q_at..][..d], &qkv[k_at(key)..][..d]))
                    .collect();
                let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
                lse[row * heads + h] = max + sum.ln();
                let p: Vec<f64> = logits.iter().map(|x| (x - max).exp() / sum).collect();
                let o_at = row * q_cols + h * d;
                for (p, &key) in p.iter().zip(&keys) {
                    for c in 0..d {
                        out[o_at + c] += p * qkv[k_at(key) + kv_cols + c];
                    }
                }
                let delta = dot(&dout[o_at..][..d], &out[o_at..][..d]);
                for (p, &key) in p.iter().zip(&keys) {
                    let v_at = k_at(key) + kv_cols;
                    let ds = p * (dot(&dout[o_at..][..d], &qkv[v_at..][..d]) - delta) * scale;
                    for c in 0..d {
                        dqkv[q_at + c] += ds * qkv[k_at(key) + c];
                        dqkv[k_at(key) + c] += ds * qkv[q_at + c];
                        dqkv[v_at + c] += p * dout[o_at + c];
                    }
                }
            }
        }
        (out, lse, dqkv)
    }

    fn compare<T: Element>(&self, forward: f64, backward: f64) {
        let qkv: Vec<T> = cast(&noise(self.rows * self.cols(), 1));
        let dout: Vec<T> = cast(&noise(self.rows * self.heads.q_cols(), 2));
        let (out, lse) = self.forward(&qkv);
        let dqkv = self.backward(&qkv, &dout);
        let expected = self.naive(&wide(&qkv), &wide(&dout));
        close(&wide(&out), &expected.0, forward, "out");
        close(&wide(&lse), &expected.1, forward, "lse");
        close(&wide(&dqkv), &expected.2, backward, "dqkv");
    }
}

pub(super) fn close(got: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = tolerance * expected.abs().max(1.0);
        assert!((got - expected).abs() <= bound, "{what}[{at}]: {got} is not {expected}");
    }
}

#[test]
fn agrees_with_the_definition() {
    for heads in [(2, 2, 2), (4, 2, 6), (4, 1, 8), (3, 3, 9), (2, 1, 48), (7, 1, 16), (2, 2, 80)] {
        // Rounding of the values alone: chains of at most 165 terms of size 3.
        Case::new(mixed(), heads).compare::<f64>(1e-13, 1e-12);
    }
    // A prefix that reaches into its own segment and beyond it, a long run cut into items, and a
    // prefix of a prefix.
    let odd = segments(&[(4, (2, 5)), (6, (0, 0)), (401, (1, 2)), (3, (4, 300)), (30, (405, 9))]);
    Case::new(odd, (6, 3, 10)).compare::<f64>(1e-13, 1e-12);
    for heads in [(4, 2, 8), (2, 1, 48), (2, 2, 128)] {
        let case = Case::new(mixed(), heads);
        case.compare::<f32>(2e-6, 5e-5);
        // Half an ulp of the output; the backward also reads the rounded output.
        case.compare::<f16>(6e-4, 2e-2);
        case.compare::<bf16>(4e-3, 1.5e-1);
    }
}

/// Head dims around the widths of a panel, groups that divide a block of rows and that do not, and
/// tiles that end in a prefix, with it, and after it.
#[test]
fn agrees_with_the_definition_at_every_edge() {
    let keys = KEYS as i32;
    let edges = segments(&[
        (keys - 8, (0, 0)),
        (17, (0, keys - 8)),
        (keys + 1, (0, 0)),
        (33, (keys + 9, keys)),
        (16, (keys + 9, keys + 1)),
        (2 * keys + 3, (0, 0)),
    ]);
    for head_dim in [1, 7, 8, 12, 16] {
        for group in [1, 2, 3] {
            let case = Case::new(edges.clone(), (2 * group, 2, head_dim));
            case.compare::<f64>(1e-13, 1e-12);
            case.compare::<f32>(2e-6, 5e-5);
        }
    }
}

/// The same bits with AVX-512 and with AVX2; what has no fused products agrees to rounding.
#[test]
fn every_instruction_set_agrees() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for heads in [(4, 2, 8), (3, 1, 12), (2, 2, 48)] {
        let case = Case::new(mixed(), heads);
        let qkv: Vec<f32> = cast(&noise(case.rows * case.cols(), 12));
        let dout: Vec<f32> = cast(&noise(case.rows * case.heads.q_cols(), 13));
        let [all, narrow, baseline] = [512, 256, 128].map(|bits| {
            one.install(|| {
                with_most_bits(bits, || (case.forward(&qkv), case.backward(&qkv, &dout)))
            })
        });
        assert!(all == narrow);
        close(&wide(&all.0.0), &wide(&baseline.0.0), 2e-6, "out");
        close(&wide(&all.1), &wide(&baseline.1), 5e-5, "dqkv");
    }
}

#[test]
fn gradient_is_that_of_the_forward() {
    let shared = segments(&[(3, (0, 0)), (2, (0, 3)), (4, (0, 3)), (1, (0, 0))]);
    for heads in [(2, 2, 2), (4, 2, 6), (2, 1, 18)] {
        let mut case = Case::new(shared.clone(), heads);
        case.heads.scale = 0.7;
        let mut qkv = noise(case.rows * case.cols(), 3);
        let dout = noise(case.rows * case.heads.q_cols(), 4);
        let dqkv = case.backward(&qkv, &dout);
        let loss =
            |qkv: &[f64]| case.forward(qkv).0.iter().zip(&dout).map(|(a, b)| a * b).sum::<f64>();
        for at in 0..qkv.len() {
            let (x, h) = (qkv[at], 1e-5);
            qkv[at] = x + h;
            let above = loss(&qkv);
            qkv[at] = x - h;
            let below = loss(&qkv);
            qkv[at] = x;
            let slope = (above - below) / (2.0 * h);
            assert!((slope - dqkv[at]).abs() < 1e-8, "{at}: {slope} {}", dqkv[at]);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let case = Case::new(mixed(), (4, 2, 8));
    let qkv: Vec<f32> = cast(&noise(case.rows * case.cols(), 5));
    let dout: Vec<f32> = cast(&noise(case.rows * case.heads.q_cols(), 6));
    let results: Vec<_> = [1, 2, 4]
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (case.forward(&qkv), case.backward(&qkv, &dout)))
        })
        .into();
    assert!(results[0] == results[1] && results[0] == results[2]);
}

/// A sequence alone, in a batch, and with its prompt shared.
#[test]
fn the_batch_around_a_sequence_does_not_matter() {
    for heads in [(4, 2, 8), (2, 2, 48), (7, 1, 20)] {
        for (prompt, completion) in [(1, 1), (30, 120), (KEYS as i32, 3), (150, 200)] {
            let (before, other) = (41, 67);
            let len = (prompt + completion) as usize;
            let alone = Case::new(segments(&[(len as i32, (0, 0))]), heads);
            let batch =
                Case::new(segments(&[(before, (0, 0)), (len as i32, (0, 0)), (5, (0, 0))]), heads);
            let shared = Case::new(
                segments(&[
                    (before, (0, 0)),
                    (prompt, (0, 0)),
                    (other, (before, prompt)),
                    (completion, (before, prompt)),
                ]),
                heads,
            );
            let cols = alone.cols();
            let sequence: Vec<f32> = cast(&noise(len * cols, 7));
            let around: Vec<f32> = cast(&noise(200 * cols, 8));
            let (first, second) = sequence.split_at(prompt as usize * cols);
            let before_rows = &around[..before as usize * cols];
            let (alone, alone_lse) = alone.forward(&sequence);

            let (out, lse) =
                batch.forward(&[before_rows, &sequence[..], &around[..5 * cols]].concat());
            let cut = |xs: &[f32], start: usize, rows: usize, cols: usize| {
                xs[start * cols..][..rows * cols].to_vec()
            };
            let (q_cols, before) = (batch.heads.q_cols(), before as usize);
            assert_eq!(alone, cut(&out, before, len, q_cols));
            assert_eq!(alone_lse, cut(&lse, before, len, heads.0));

            let around = &around[..other as usize * cols];
            let (out, _) = shared.forward(&[before_rows, first, around, second].concat());
            let (prompt, completion) = (prompt as usize, completion as usize);
            let (head, tail) = alone.split_at(prompt * q_cols);
            assert_eq!(head, cut(&out, before, prompt, q_cols));
            assert_eq!(tail, cut(&out, before + prompt + other as usize, completion, q_cols));
        }
    }
}

/// Token by token against a cache: the bits of the training forward.
#[test]
fn decoding_gives_the_bits_of_the_forward() {
    for heads in [(4, 2, 8), (2, 2, 48), (7, 1, 6), (3, 1, 64)] {
        let len = KEYS + 40;
        let case = Case::new(segments(&[(len as i32, (0, 0))]), heads);
        let (cols, q_cols, kv_cols) = (case.cols(), case.heads.q_cols(), case.heads.kv_cols());
        let qkv: Vec<f32> = cast(&noise(len * cols, 9));
        let (expected, _) = case.forward(&qkv);
        // Two sequences share the cache; the second is one prompt of 5 rows and then the same.
        let view = View::from_slice(&qkv, len, cols, cols).unwrap();
        let k = view.cols_range(q_cols, kv_cols).unwrap();
        let v = view.cols_range(q_cols + kv_cols, kv_cols).unwrap();
        for row in [0, 1, 15, 16, 17, KEYS - 1, KEYS, KEYS + 1, len - 1] {
            let q = view.rows_range(row, 1).unwrap().cols_range(0, q_cols).unwrap();
            for prefix in [0, row / 2, row] {
                let segment = Segment {
                    q_start: 0,
                    q_len: 1,
                    kv_start: row as i32,
                    prefix_start: 0,
                    prefix_len: row as i32,
                };
                let last = Segment {
                    q_len: (row - prefix + 1) as i32,
                    kv_start: prefix as i32,
                    prefix_len: prefix as i32,
                    ..segment
                };
                let mut out = vec![0f32; q_cols];
                let to = ViewMut::from_slice(&mut out, 1, q_cols, q_cols).unwrap();
                decode(q, k, v, &[segment].into(), &case.heads, to).unwrap();
                assert_eq!(out, expected[row * q_cols..][..q_cols]);

                let rows = row - prefix + 1;
                let q = view.rows_range(prefix, rows).unwrap().cols_range(0, q_cols).unwrap();
                let mut out = vec![0f32; rows * q_cols];
                let to = ViewMut::from_slice(&mut out, rows, q_cols, q_cols).unwrap();
                decode(q, k, v, &[last].into(), &case.heads, to).unwrap();
                assert_eq!(out, expected[prefix * q_cols..][..rows * q_cols]);
            }
        }
    }
}

#[test]
fn large_logits_neither_overflow_nor_lose_the_mass() {
    let case = Case::new(segments(&[(200, (0, 0)), (9, (0, 200))]), (2, 1, 8));
    let qkv: Vec<f32> =
        noise(case.rows * case.cols(), 10).iter().map(|&x| 100.0 * x as f32).collect();
    let dout: Vec<f32> = cast(&noise(case.rows * case.heads.q_cols(), 11));
    let (out, lse) = case.forward(&qkv);
    assert!(out.iter().chain(&lse).all(|x| x.is_finite()));
    assert!(lse.iter().any(|x| *x > 1e4), "the logits are large");
    let expected = case.naive(&wide(&qkv), &wide(&dout));
    // Logits of 1e4 have errors of 1e-3 in f32.
    close(&wide(&lse), &expected.1, 1e-6, "lse");
    assert!(case.backward(&qkv, &dout).iter().all(|x| x.is_finite()));
    let negative: Vec<f32> = (0..case.rows * case.cols())
        .map(|at| if at % case.cols() < case.heads.q_cols() { -60.0 } else { 60.0 })
        .collect();
    let (out, _) = case.forward(&negative);
    assert!(out.iter().all(|&x| (x - 60.0).abs() < 1e-4));
}

#[test]
fn hostile_segments_and_shapes_are_errors() {
    let heads = Heads::new(2, 1, 4);
    let run = |segments: &[Segment], rows: usize, heads: &Heads| -> Result<()> {
        let qkv = vec![0f32; rows * 16];
        let (mut out, mut lse) = (vec![0f32; rows * 8], vec![0f32; rows * 2]);
        forward(
            View::from_slice(&qkv, rows, 16, 16)?,
            &segments.to_vec().into(),
            heads,
            ViewMut::from_slice(&mut out, rows, 8, 8)?,
            ViewMut::from_slice(&mut lse, rows, 2, 2)?,
        )
    };
    let good = Segment { q_len: 4, ..Segment::default() };
    assert!(run(&[good], 4, &heads).is_ok());
    assert!(run(&[], 0, &heads).is_ok());
    assert!(run(&[Segment::default(), good], 4, &heads).is_ok());
    for bad in [
        Segment { q_len: 3, ..good },
        Segment { q_len: 5, ..good },
        Segment { q_len: -1, ..good },
        Segment { q_start: -1, ..good },
        Segment { q_start: i32::MAX, q_len: i32::MAX, ..good },
        Segment { kv_start: 1, ..good },
        Segment { kv_start: -4, ..good },
        Segment { prefix_start: 2, prefix_len: 3, ..good },
        Segment { prefix_start: -2, prefix_len: 2, ..good },
        Segment { prefix_start: i32::MAX, prefix_len: i32::MAX, ..good },
        Segment { prefix_len: i32::MIN, ..good },
    ] {
        assert!(run(&[bad], 4, &heads).is_err(), "{bad:?}");
    }
    assert!(run(&[good, good], 4, &heads).is_err());
    assert!(run(&[], 4, &heads).is_err());
    for (h, kv, d) in [(2, 1, 0), (0, 1, 4), (2, 0, 4), (3, 2, 4), (2, 1, 5), (usize::MAX, 1, 4)] {
        let heads = Heads { heads: h, kv_heads: kv, head_dim: d, scale: 1.0 };
        assert!(run(&[good], 4, &heads).is_err());
    }
}
