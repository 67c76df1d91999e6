use super::*;
use crate::DType;
use Trans::{No, Yes};

pub(super) struct Random(pub u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn values<T: Element>(&mut self, n: usize) -> Vec<T> {
        let unit = |x: u64| (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
        (0..n).map(|_| T::from_stat(T::Stat::of(unit(self.next())))).collect()
    }
}

fn check<T: Element, C: Element<Stat = T::Stat>>(random: &mut Random, mnk: [usize; 3], tol: f64) {
    let [m, n, k] = mnk;
    for (ta, tb) in [(No, No), (No, Yes), (Yes, No), (Yes, Yes)] {
        for output in [Output::Set, Output::Add] {
            let [pa, pb, pc] = [random.below(5), random.below(5), random.below(5)];
            let (ra, ca) = if ta == No { (m, k) } else { (k, m) };
            let (rb, cb) = if tb == No { (k, n) } else { (n, k) };
            let a: Vec<T> = random.values(ra * (ca + pa));
            let b: Vec<T> = random.values(rb * (cb + pb));
            let mut c: Vec<C> = random.values(m * (n + pc));
            let before = c.clone();
            matmul(
                View::from_slice(&a, ra, ca, ca + pa).unwrap(),
                ta,
                View::from_slice(&b, rb, cb, cb + pb).unwrap(),
                tb,
                ViewMut::from_slice(&mut c, m, n, n + pc).unwrap(),
                output,
            )
            .unwrap();
            let at = |x: &[T], i: usize, j: usize, stride: usize, t: Trans| {
                if t == No { x[i * stride + j] } else { x[j * stride + i] }.to_stat().f64()
            };
            for i in 0..m {
                for j in 0..n + pc {
                    let (old, new) = (before[i * (n + pc) + j], c[i * (n + pc) + j]);
                    if j >= n {
                        assert_eq!(old, new, "padding");
                        continue;
                    }
                    let add = if output == Output::Add { old.to_stat().f64() } else { 0.0 };
                    let want = (0..k)
                        .map(|l| at(&a, i, l, ca + pa, ta) * at(&b, l, j, cb + pb, tb))
                        .sum::<f64>()
                        + add;
                    let error = (new.to_stat().f64() - want).abs();
                    // Partial sums grow as sqrt(k), and so does the number of their roundings.
                    let unit = if T::Stat::DTYPE == DType::F32 { 6e-8 } else { 2e-16 };
                    let bound = tol * (1.0 + want.abs()) + unit * k as f64;
                    assert!(error <= bound, "{mnk:?} {ta:?} {tb:?} {output:?}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn agrees_with_sums_in_f64() {
    let mut random = Random(7);
    for mnk in [[1, 1, 1], [1, 5, 3], [3, 1, 70], [5, 1, 0], [2, 3, 0], [17, 2, 2], [65, 64, 1]] {
        check::<f32, f32>(&mut random, mnk, 1e-6);
        check::<f64, f64>(&mut random, mnk, 1e-14);
    }
    for mnk in [[64, 64, 600], [33, 172, 64], [1, 512, 64], [130, 7, 9], [300, 40, 1100]] {
        check::<f32, f32>(&mut random, mnk, 2e-6);
        check::<f64, f64>(&mut random, mnk, 1e-14);
        check::<half::bf16, f32>(&mut random, mnk, 2e-6);
        check::<f32, half::bf16>(&mut random, mnk, 4e-3);
        check::<half::f16, half::f16>(&mut random, mnk, 1e-3);
    }
    for _ in 0..60 {
        let mnk = [1 + random.below(90), 1 + random.below(90), random.below(200)];
        check::<f32, f32>(&mut random, mnk, 2e-6);
    }
}

fn product_of(
    a: &[f32],
    b: &[f32],
    [m, n, k]: [usize; 3],
    [ta, tb]: [Trans; 2],
    first: usize,
) -> Vec<u32> {
    // Rows `first..` of op(a), which has `m` rows in all.
    let rows = m - first;
    let view = |x, r, c| View::from_slice(x, r, c, c).unwrap();
    let a = match ta {
        No => view(a, m, k).rows_range(first, rows).unwrap(),
        Yes => view(a, k, m).cols_range(first, rows).unwrap(),
    };
    let b = if tb == No { view(b, k, n) } else { view(b, n, k) };
    let mut c = vec![f32::NAN; rows * n];
    matmul(a, ta, b, tb, ViewMut::from_slice(&mut c, rows, n, n).unwrap(), Output::Set).unwrap();
    c.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_row_does_not_depend_on_the_batch() {
    let mut random = Random(3);
    for case in 0..2400 {
        let k = [1, 2, 3, 64, 172, 288, 512, 513, 1030][random.below(9)] + random.below(9);
        let n = [1, 2, 5, 16, 60, 64, 65, 128, 344, 520][random.below(10)] + random.below(3);
        let m = [2, 3, 9, 33, 60, 66, 130, 300][random.below(8)] + random.below(9);
        let m = if case % 8 == 0 { m } else { m.min(1 + 4_000_000 / (n * k)) };
        let first = random.below(m);
        let (a, b) = (random.values::<f32>(m * k), random.values::<f32>(k * n));
        for tb in [No, Yes] {
            let all = product_of(&a, &b, [m, n, k], [No, tb], 0);
            let some = product_of(&a, &b, [m, n, k], [No, tb], first);
            assert!(all[first * n..] == some, "[{m}, {n}, {k}] from {first} {tb:?}");
        }
    }
}

#[test]
fn a_row_of_a_deep_product_does_not_depend_on_the_batch() {
    let mut random = Random(7);
    for (n, k) in [(40, 8192), (64, 9001), (130, 8300)] {
        let m = 75;
        let (a, b) = (random.values::<f32>(m * k), random.values::<f32>(k * n));
        let all = product_of(&a, &b, [m, n, k], [No, No], 0);
        for first in [1, 20, 70, 74] {
            let some = product_of(&a, &b, [m, n, k], [No, No], first);
            assert!(all[first * n..] == some, "[{m}, {n}, {k}] from {first}");
        }
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let mut random = Random(5);
    let shapes = [
        ([500, 128, 64], No),
        ([64, 64, 4096], Yes),
        ([344, 64, 1500], Yes),
        ([700, 288, 600], Yes),
        ([9, 3000, 70], No),
        ([1, 600, 1100], No),
        ([70, 40, 9001], No),
    ];
    for ([m, n, k], ta) in shapes {
        let (a, b) = (random.values::<f32>(m * k), random.values::<f32>(k * n));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| product_of(&a, &b, [m, n, k], [ta, No], 0))
        };
        let one = with(1);
        assert!([2, 4, 8].map(with).iter().all(|c| *c == one), "[{m}, {n}, {k}]");
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, mut y) = ([0.0f32; 12], [0.0f32; 12]);
    let view = |r, c| View::from_slice(&x, r, c, c).unwrap();
    let y = ViewMut::from_slice(&mut y, 3, 3, 3).unwrap();
    let error = matmul(view(3, 4), No, view(3, 4), No, y, Output::Set).unwrap_err();
    assert_eq!(
        error.to_string(),
        "matmul: expected [m, k] [k, n] -> [m, n], got [3, 4] [3, 4] -> [3, 3]"
    );
}

#[test]
fn cuts_are_no_smaller_than_asked() {
    for len in 1..2000 {
        for part in [8, 64, 65, 256] {
            let cuts = cuts(len, part);
            assert_eq!(cuts.iter().map(|c| c.1).sum::<usize>(), len);
            assert!(cuts.iter().all(|c| c.1 >= part.min(len)), "{len} {part}");
        }
    }
}

crate::device::testing::test_devices! {
    /// Products of every orientation and type on padded matrices, and the same bits twice.
    fn products_are_those_of_the_host(device) {
        let mut random = Random(11);
        for mnk in [[1, 1, 1], [5, 7, 9], [3, 4, 0], [64, 48, 33], [130, 72, 96]] {
            against_the_host::<f32, f32>(device, &mut random, mnk);
            against_the_host::<half::bf16, half::bf16>(device, &mut random, mnk);
            against_the_host::<half::bf16, f32>(device, &mut random, mnk);
        }
    }

    /// A row of a batch-invariant product has the same bits alone and among others, whether the weight
    /// lies as it is or transposed.
    fn a_row_does_not_depend_on_the_batch_on_any_device(device) {
        let device = match device {
            crate::Device::Cpu => crate::Device::Cpu,
            // A device of its own: what is asked of it here is asked of all its products.
            _ => crate::Device::cuda(0).unwrap(),
        };
        device.be_batch_invariant();
        let mut random = Random(13);
        let shapes: &[[usize; 2]] = match cfg!(feature = "emulate") {
            true => &[[40, 96]],
            false => &[[40, 96], [896, 896], [4864, 896], [1000, 4864]],
        };
        for &nk in shapes {
            rows_alone::<f32, f32>(&device, &mut random, nk);
            rows_alone::<half::bf16, half::bf16>(&device, &mut random, nk);
            rows_alone::<half::bf16, f32>(&device, &mut random, nk);
        }
    }
}

fn rows_alone<T, C>(device: &crate::Device, random: &mut Random, [n, k]: [usize; 2])
where
    T: Element<Stat = f32>,
    C: Element<Stat = f32>,
{
    use crate::Tensor;
    use crate::device::testing::bits;
    const ROWS: usize = 1000;
    let rows = if cfg!(feature = "emulate") { 70 } else { ROWS };
    let x: Vec<T> = random.values(rows * k);
    let w: Vec<T> = random.values(n * k);
    for tb in [No, Yes] {
        let [wr, wc] = if tb == No { [k, n] } else { [n, k] };
        let w = Tensor::from_host(device, &w, wr, wc).unwrap();
        let product = |first: usize, count: usize| {
            let x = Tensor::from_host(device, &x[first * k..][..count * k], count, k).unwrap();
            let mut c = Tensor::<C>::zeros(device, count, n).unwrap();
            matmul(x.view(), No, w.view(), tb, c.view_mut(), Output::Set).unwrap();
            bits(&c.to_vec().unwrap())
        };
        let all = product(0, rows);
        let size = n * size_of::<C>();
        for (first, count) in [(0, 1), (3, 1), (rows - 1, 1), (5, 7), (2, 64), (0, rows - 1)] {
            let some = product(first, count);
            assert!(
                some == all[first * size..][..count * size],
                "{n} x {k} {tb:?}: {count} from {first}"
            );
        }
    }
}

fn against_the_host<T, C>(device: &crate::Device, random: &mut Random, [m, n, k]: [usize; 3])
where
    T: Element<Stat = f32>,
    C: Element<Stat = f32>,
{
    use crate::device::testing::{Guarded, bits};
    for (ta, tb) in [(No, No), (No, Yes), (Yes, No), (Yes, Yes)] {
        for output in [Output::Set, Output::Add] {
            let a_shape = if ta == No { [m, k] } else { [k, m] };
            let b_shape = if tb == No { [k, n] } else { [n, k] };
            let (a, b) = (random.values::<T>(m * k), random.values::<T>(k * n));
            let c: Vec<C> = random.values(m * n);
            let (nan, pad) = (T::from_stat(f32::NAN), [random.below(4), random.below(9)]);
            let a_on = Guarded::new(device, &a, a_shape, pad, nan);
            let b_on = Guarded::new(device, &b, b_shape, pad, nan);
            let run = || {
                let mut c = Guarded::new(device, &c, [m, n], pad, C::from_stat(7.0));
                matmul(a_on.view(), ta, b_on.view(), tb, c.view_mut(), output).unwrap();
                c.values()
            };
            let got = run();
            assert_eq!(bits(&got), bits(&run()));
            let mut want = c.clone();
            let view = |x, [rows, cols]: [usize; 2]| View::from_slice(x, rows, cols, cols).unwrap();
            let out = ViewMut::from_slice(&mut want, m, n, n).unwrap();
            matmul(view(&a, a_shape), ta, view(&b, b_shape), tb, out, output).unwrap();
            // Sums in another order, and one rounding to the type of the output.
            let eps = if C::DTYPE == DType::F32 { 1.2e-7 } else { 7.9e-3 };
            for (got, want) in got.iter().zip(&want) {
                let (got, want) = (got.to_stat(), want.to_stat());
                let tolerance = 2e-7 * k as f32 + eps * want.abs();
                assert!((got - want).abs() <= tolerance, "{m} {n} {k} {ta:?} {tb:?}: {got} {want}");
            }
        }
    }
}
