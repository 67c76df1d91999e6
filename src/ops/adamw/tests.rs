use super::*;
use crate::device::testing::{Guarded, bits, in_all_orders, is_gpu, test_devices};
use crate::ops::cpu::testing::*;
use crate::{Device, Tensor};
use half::{bf16, f16};

fn params(step: u64) -> AdamW {
    AdamW {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        step,
        max_grad_norm: 1.0,
    }
}

/// The norm that the steps are told of.
const NORM: f64 = 2.0;

type State<S> = (Vec<S>, Vec<S>, Vec<S>);

fn column<T: crate::Plain>(values: &mut [T]) -> ViewMut<'_, T> {
    let n = values.len();
    ViewMut::from_slice(values, n, 1, 1).unwrap()
}

fn steps<S: Real>(n: usize, count: u64, ranges: &[(Range<usize>, bool)]) -> State<S> {
    let mut weights = values::<S>(1, n);
    let (mut m, mut v) = (vec![S::ZERO; n], vec![S::ZERO; n]);
    for i in 1..=count {
        let grads = values::<S>(10 + i, n);
        let arenas = Arenas::<S> {
            master: column(&mut weights),
            weights: None,
            grads: View::from_slice(&grads, n, 1, 1).unwrap(),
            m: column(&mut m),
            v: column(&mut v),
        };
        step(params(i), norm(&[NORM]), arenas, ranges).unwrap();
    }
    (weights, m, v)
}

fn norm(norm: &[f64; 1]) -> View<'_, f64> {
    View::from_slice(norm, 1, 1, 1).unwrap()
}

/// The textbook, one value at a time, in f64.
fn naive(n: usize, count: u64, ranges: &[(Range<usize>, bool)]) -> State<f64> {
    let mut weights = values::<f64>(1, n);
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    for i in 1..=count {
        let (p, grads) = (params(i), values::<f64>(10 + i, n));
        for (range, decay) in ranges {
            for j in range.clone() {
                let g = grads[j] / (NORM + 1e-6);
                if *decay {
                    weights[j] *= 1.0 - p.lr * p.weight_decay;
                }
                m[j] = p.beta1 * m[j] + (1.0 - p.beta1) * g;
                v[j] = p.beta2 * v[j] + (1.0 - p.beta2) * g * g;
                let mhat = m[j] / (1.0 - p.beta1.powi(i as i32));
                let vhat = v[j] / (1.0 - p.beta2.powi(i as i32));
                weights[j] -= p.lr * mhat / (vhat.sqrt() + p.eps);
            }
        }
    }
    (weights, m, v)
}

#[test]
fn it_is_the_textbook() {
    for n in [1, 37, 50_000] {
        let ranges = [(0..n / 3, true), (n / 3..n / 2, false), (n / 2 + n % 2..n, true)];
        let want = naive(n, 3, &ranges);
        let got = steps::<f64>(n, 3, &ranges);
        assert_close(&got.0, &want.0, 1e-12);
        assert_close(&got.1, &want.1, 1e-14);
        assert_close(&got.2, &want.2, 1e-14);
        let got = same_on_any_pool(|| steps::<f32>(n, 3, &ranges));
        assert_close(&got.0, &want.0, 2e-6);
    }
    steps::<f32>(0, 1, &[(0..0, true)]);
}

#[test]
fn nothing_outside_the_ranges_moves() {
    let (weights, m, v) = steps::<f32>(10, 2, &[(3..5, true), (7..8, false)]);
    let before = values::<f32>(1, 10);
    for i in 0..10 {
        let moved = (3..5).contains(&i) || i == 7;
        assert_eq!(weights[i] != before[i], moved);
        assert_eq!(m[i] != 0.0 && v[i] != 0.0, moved);
    }
}

#[test]
fn ranges_that_overlap_or_leave_the_arena_are_refused() {
    for ranges in [vec![(0..3, true), (2..4, true)], vec![(0..5, true)]] {
        let (mut p, g, mut m, mut v) = ([0.0f32; 4], [0.0; 4], [0.0; 4], [0.0; 4]);
        let arenas = Arenas::<f32> {
            master: column(&mut p),
            weights: None,
            grads: View::from_slice(&g, 4, 1, 1).unwrap(),
            m: column(&mut m),
            v: column(&mut v),
        };
        let result = step(params(1), norm(&[NORM]), arenas, &ranges);
        assert!(matches!(result, Err(Error::Shape { .. })));
    }
}

#[test]
fn narrow_weights_are_the_rounded_master_ones() {
    let n = 40_003;
    let ranges = [(0..n - 5, true), (n - 3..n, false)];
    let (mut master, grads) = (values::<f32>(1, n), values::<f32>(11, n));
    let (mut m, mut v) = (vec![0.0f32; n], vec![0.0f32; n]);
    let mut weights = vec![bf16::from_f32(9.0); n];
    for broken in [f64::NAN, f64::INFINITY, NORM] {
        let arenas = Arenas {
            master: column(&mut master),
            weights: Some(column(&mut weights)),
            grads: View::from_slice(&grads, n, 1, 1).unwrap(),
            m: column(&mut m),
            v: column(&mut v),
        };
        let result = step(params(1), norm(&[broken]), arenas, &ranges);
        if broken != NORM {
            assert!(matches!(result, Err(Error::NonFinite(_))));
            assert!(m.iter().all(|&m| m == 0.0) && weights[0] == bf16::from_f32(9.0));
        }
    }
    assert!(master == steps::<f32>(n, 1, &ranges).0);
    for (i, weight) in weights.iter().enumerate() {
        let outside = (n - 5..n - 3).contains(&i);
        assert_eq!(*weight, bf16::from_f32(if outside { 9.0 } else { master[i] }));
    }
}

/// The arenas of one run on one device, `left` values before each.
struct Placed<T: Element> {
    master: Guarded<T::Stat>,
    weights: Guarded<T>,
    m: Guarded<T::Stat>,
    v: Guarded<T::Stat>,
}

impl<T: Element> Placed<T> {
    fn new(device: &Device, n: usize, left: usize) -> Self {
        let place =
            |values: &[T::Stat]| Guarded::new(device, values, [1, n], [left, 0], T::Stat::of(7.0));
        let seven = T::from_stat(T::Stat::of(7.0));
        Placed {
            master: place(&values(1, n)),
            weights: Guarded::new(device, &vec![seven; n], [1, n], [left, 0], seven),
            m: place(&values(2, n)),
            v: place(&values::<f64>(3, n).iter().map(|v| T::Stat::of(v * v)).collect::<Vec<_>>()),
        }
    }

    fn step(&mut self, norm: &Tensor<f64>, grads: View<T::Stat>, narrow: bool) -> Result<()> {
        let n = grads.cols();
        let ranges =
            [(3 % n..n / 2, true), (n / 2..n / 2, true), (n / 2 + n % 2..n - n / 9, false)];
        let arenas = Arenas {
            master: self.master.view_mut(),
            weights: narrow.then(|| self.weights.view_mut()),
            grads,
            m: self.m.view_mut(),
            v: self.v.view_mut(),
        };
        step(params(3), norm.view(), arenas, &ranges)
    }

    fn bits(&self) -> [Vec<u8>; 4] {
        let wide = |x: &Guarded<T::Stat>| bits(&x.values());
        [wide(&self.master), bits(&self.weights.values()), wide(&self.m), wide(&self.v)]
    }
}

/// The same bits as f32 on the CPU, which is compared with the textbook above.
fn check<T: Element<Stat = f32>>(device: &Device, n: usize, left: usize, narrow: bool) {
    let grads = values::<f32>(4, n);
    let at = Guarded::new(device, &grads, [1, n], [left, 0], 7.0);
    let norm = Tensor::column(device, &[NORM]).unwrap();
    let got = in_all_orders(device, || {
        let mut state = Placed::<T>::new(device, n, left);
        state.step(&norm, at.view(), narrow).unwrap();
        state.bits()
    });
    let mut want = Placed::<T>::new(&Device::Cpu, n, 0);
    let norm = Tensor::column(&Device::Cpu, &[NORM]).unwrap();
    want.step(&norm, View::from_slice(&grads, 1, n, n).unwrap(), narrow).unwrap();
    assert!(got == want.bits(), "{} of {n} after {left}", T::DTYPE);
}

#[cfg(all(feature = "cuda", not(feature = "emulate")))]
#[test]
fn an_arena_beyond_31_bits_on_a_gpu() {
    use crate::ops::elementwise::scale;
    use crate::ops::large::{cancels, gpu_with, tiled};
    // Four arenas and what the weights must be: rows that repeat, so that few say what all are.
    let (base_rows, cols, rows) = (7, 1 << 16, (1 << 15) + 21);
    let n = rows * cols;
    let bytes = 5 * n * size_of::<f32>() + (1 << 30);
    let Some(device) = gpu_with("an_arena_beyond_31_bits_on_a_gpu", bytes) else { return };
    let base = |seed: u64, square: bool| {
        let x = values::<f32>(seed, base_rows * cols).into_iter();
        let x: Vec<f32> = x.map(|x| if square { x * x } else { x }).collect();
        Tensor::from_host(&device, &x, base_rows, cols).unwrap()
    };
    let of = [(1, false), (2, false), (3, true), (4, false)].map(|(s, square)| base(s, square));
    let norm = Tensor::column(&device, &[NORM]).unwrap();
    let step_of = |arenas: &mut [Tensor<f32>], ranges: &[(Range<usize>, bool)]| {
        let [master, m, v, grads] = arenas else { panic!("four arenas") };
        let arenas = Arenas::<f32> {
            master: master.view_mut(),
            weights: None,
            grads: grads.view(),
            m: m.view_mut(),
            v: v.view_mut(),
        };
        step(params(3), norm.view(), arenas, ranges).unwrap();
    };
    let mut few: Vec<_> = of.iter().map(|x| x.try_clone().unwrap()).collect();
    step_of(&mut few, &[(0..base_rows * cols, true)]);
    scale(-1.0, few[0].view_mut()).unwrap();
    let negated = tiled(few[0].view(), rows);
    for _ in 0..2 {
        let mut all: Vec<_> = of.iter().map(|x| tiled(x.view(), rows)).collect();
        // Ranges that meet at and beyond 2^31, within a row and not within a pack.
        let middle = (1usize << 31) + 4099;
        step_of(&mut all, &[(0..1 << 31, true), (1 << 31..middle, true), (middle..n, true)]);
        assert!(cancels(all[0].view_mut(), negated.view()), "a large arena steps otherwise");
    }
}

test_devices! {
    fn every_device_steps_alike(device) {
        for (n, left) in [(1, 0), (37, 0), (64, 1), (5000, 8), (20_003, 0)] {
            check::<f32>(device, n, left, false);
            check::<f32>(device, n, left, true);
            check::<bf16>(device, n, left, true);
            check::<f16>(device, n, left, true);
        }
        let mut none = Placed::<f32>::new(device, 4, 0);
        let norm = Tensor::column(device, &[NORM]).unwrap();
        let grads = Guarded::new(device, &[1.0; 4], [1, 4], [0, 0], 7.0);
        let arenas = Arenas::<f32> {
            master: none.master.view_mut(),
            weights: None,
            grads: grads.view(),
            m: none.m.view_mut(),
            v: none.v.view_mut(),
        };
        step(params(1), norm.view(), arenas, &[]).unwrap();
        assert_eq!(none.master.values(), values::<f32>(1, 4));
    }

    fn a_broken_norm_writes_nothing_on_any_device(device) {
        let (n, grads) = (100, values::<f32>(4, 100));
        let at = Guarded::new(device, &grads, [1, n], [0, 0], 7.0);
        for broken in [f64::NAN, f64::INFINITY] {
            let norm = Tensor::column(device, &[broken]).unwrap();
            let mut state = Placed::<bf16>::new(device, n, 0);
            let before = state.bits();
            let done = state.step(&norm, at.view(), true);
            match is_gpu(device) {
                None => assert!(matches!(done, Err(Error::NonFinite(_)))),
                Some(_) => {
                    done.unwrap();
                    let error = device.synchronize().unwrap_err();
                    assert!(matches!(error, Error::Kernel { row: 3, .. }), "{error}");
                }
            }
            assert!(state.bits() == before);
        }
    }
}
