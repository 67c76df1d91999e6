use half::{bf16, f16};

use super::*;
use crate::Device;

const ALL: Wanted = Wanted { entropy: true, mean_logit: true, hit: true, log_sum_p2: true };

fn column<T: Plain>(values: &[T]) -> Tensor<T> {
    Tensor::column(&Device::Cpu, values).unwrap()
}

fn random(seed: u64, n: usize, spread: f64) -> Vec<f64> {
    let mut state = seed;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n).map(|_| spread * (unit() + unit() + unit() - 1.5)).collect()
}

/// What the formulas say, in f64, straight.
#[derive(Debug, Default, PartialEq)]
struct Expected {
    logp: f64,
    lse: f64,
    entropy: f64,
    mean_logit: f64,
    hit: f64,
    log_sum_p2: f64,
    gradient: Vec<f64>,
}

fn expected(x: &[f64], target: i32, options: &TokenLogprobsOptions) -> Expected {
    if target == IGNORE {
        return Expected { gradient: vec![0.0; x.len()], ..Expected::default() };
    }
    let target = target as usize;
    let (t, cap) = (options.temperature, options.soft_cap);
    let z = |x: f64| cap.map_or(x, |cap| cap * (x / cap).tanh()) / t;
    let slope = |x: f64| cap.map_or(1.0, |cap| (x / cap).cosh().powi(-2)) / t;
    let z: Vec<f64> = x.iter().map(|&x| z(x)).collect();
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Summed from the smallest: the reference is to be better than what it judges.
    let mut terms: Vec<f64> = z.iter().map(|z| (z - max).exp()).collect();
    terms.sort_by(f64::total_cmp);
    let log_sum = terms.iter().sum::<f64>().ln();
    let logp = |z: f64| z - max - log_sum;
    let p = |z: f64| logp(z).exp();
    Expected {
        logp: logp(z[target]),
        lse: max + log_sum,
        entropy: z.iter().filter(|&&z| p(z) > 0.0).map(|&z| -p(z) * logp(z)).sum(),
        mean_logit: x.iter().sum::<f64>() / x.len() as f64,
        hit: x.iter().all(|&v| v <= x[target]) as u8 as f64,
        log_sum_p2: z.iter().map(|&z| p(z) * p(z)).sum::<f64>().ln(),
        gradient: (0..z.len())
            .map(|j| {
                let d = if j == target { -logp(z[j]).exp_m1() } else { -p(z[j]) };
                d * slope(x[j])
            })
            .collect(),
    }
}

fn close(what: &str, got: f64, want: f64, tolerance: f64) {
    let same = got == want || (got - want).abs() <= tolerance;
    assert!(same, "{what}: got {got:e}, want {want:e}, tolerance {tolerance:e}");
}

/// Half a unit in the last place of `x` in T, doubled.
fn ulp<T: Element>(x: f64) -> f64 {
    let (digits, least) = match T::DTYPE {
        crate::DType::BF16 => (7, -133),
        crate::DType::F16 => (10, -24),
        _ => return 0.0,
    };
    2f64.powi(((x.abs().log2().floor() as i32).max(-1000) - digits).max(least))
}

/// Runs everything on these logits and compares. `x` has `vocab` columns and no padding.
fn check<T: Element>(x: &[f64], vocab: usize, targets: &[i32], options: &TokenLogprobsOptions) {
    let n = targets.len();
    let stride = vocab + 3;
    let sentinel = T::from_stat(T::Stat::of(77.0));
    let mut padded = vec![sentinel; n * stride];
    for (r, row) in padded.chunks_mut(stride).enumerate() {
        for (to, &from) in row.iter_mut().zip(&x[r * vocab..][..vocab]) {
            *to = T::from_stat(T::Stat::of(from));
        }
    }
    let logits = View::from_slice(&padded, n, vocab, stride).unwrap();
    let targets_column = column(targets);
    let stats = forward(logits, targets_column.view(), options, ALL).unwrap();
    let dlogps = column(&random(9, n, 2.0).iter().map(|&d| T::Stat::of(d)).collect::<Vec<_>>());
    let mut dlogits = vec![sentinel; n * stride];
    backward(
        logits,
        targets_column.view(),
        stats.lse.view(),
        dlogps.view(),
        options,
        ViewMut::from_slice(&mut dlogits, n, vocab, stride).unwrap(),
    )
    .unwrap();
    let mut fused = padded.clone();
    let view = ViewMut::from_slice(&mut fused, n, vocab, stride).unwrap();
    let again = forward_with_gradient(view, targets_column.view(), options, ALL).unwrap();
    assert_eq!(again.logps.to_vec().unwrap(), stats.logps.to_vec().unwrap());
    assert_eq!(again.lse.to_vec().unwrap(), stats.lse.to_vec().unwrap());

    let at = |column: &Tensor<T::Stat>, r: usize| column.to_vec().unwrap()[r].f64();
    let f64s = T::DTYPE == crate::DType::F64;
    for r in 0..n {
        let exact: Vec<f64> =
            padded[r * stride..][..vocab].iter().map(|x| x.to_stat().f64()).collect();
        let want = expected(&exact, targets[r], options);
        let unit = if f64s { 1e-13 } else { 2e-6 };
        let scale = want.lse.abs().max(1.0);
        close("logp", at(&stats.logps, r), want.logp, unit * scale.max(want.logp.abs()));
        close("lse", at(&stats.lse, r), want.lse, unit * scale);
        close("entropy", at(stats.entropy.as_ref().unwrap(), r), want.entropy, 4.0 * unit * scale);
        let mean = at(stats.mean_logit.as_ref().unwrap(), r);
        close("mean", mean, want.mean_logit, unit * want.mean_logit.abs().max(scale));
        assert_eq!(at(stats.hit.as_ref().unwrap(), r), want.hit, "hit, row {r}");
        let p2 = at(stats.log_sum_p2.as_ref().unwrap(), r);
        close("log sum p2", p2, want.log_sum_p2, 2.0 * unit * scale);

        let g = at(&dlogps, r);
        // The saved lse is rounded: that is a relative error of every p.
        let lse_error = if f64s { 2e-16 } else { 6e-8 } * scale;
        let small = if f64s { 1e-13 } else { 1e-6 };
        for (j, &d) in want.gradient.iter().enumerate() {
            let tolerance = |d: f64| ulp::<T>(d) + small * d.abs().max(1e-1);
            let got = fused[r * stride + j].to_stat().f64();
            close("fused gradient", got, d, tolerance(d));
            let got = dlogits[r * stride + j].to_stat().f64();
            close("gradient", got, g * d, tolerance(g * d) + 2.0 * lse_error * g.abs());
        }
        for values in [&dlogits, &fused] {
            assert!(values[r * stride + vocab..][..3].iter().all(|&v| v == sentinel));
        }
    }
}

fn check_all(x: &[f64], vocab: usize, targets: &[i32]) {
    for options in [
        TokenLogprobsOptions::default(),
        TokenLogprobsOptions { temperature: 0.7, soft_cap: None },
        TokenLogprobsOptions { temperature: 1.3, soft_cap: Some(30.0) },
    ] {
        check::<f32>(x, vocab, targets, &options);
        check::<f64>(x, vocab, targets, &options);
        check::<bf16>(x, vocab, targets, &options);
        check::<f16>(x, vocab, targets, &options);
    }
}

#[test]
fn every_type_and_size_agrees_with_the_formulas() {
    for vocab in [1, 7, 31, 512, 1024, 1025] {
        for n in [0, 1, 3, 17] {
            let targets: Vec<i32> = (0..n)
                .map(|r| [0, vocab as i32 - 1, IGNORE, (r * 7 % vocab) as i32][r % 4])
                .collect();
            check_all(&random(n as u64, n * vocab, 6.0), vocab, &targets);
        }
    }
    for vocab in [32_000, 50_257, 128_256] {
        let targets = [vocab as i32 - 1, IGNORE, 0];
        check_all(&random(4, 3 * vocab, 8.0), vocab, &targets);
    }
}

#[test]
fn rows_with_one_likely_token() {
    // 1 - p_y is 1e-3 and less: the target's gradient keeps its digits.
    let mut x = random(2, 4 * 512, 1.0);
    for (r, peak) in [10.0, 14.0, 20.0, 30.0].into_iter().enumerate() {
        x[r * 512 + 77] = peak;
    }
    let x: Vec<f64> = x.iter().map(|&x| x as f32 as f64).collect();
    check_all(&x, 512, &[77; 4]);
    let mut logits: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    let view = ViewMut::from_slice(&mut logits, 4, 512, 512).unwrap();
    let targets = column(&[77; 4]);
    forward_with_gradient(view, targets.view(), &Default::default(), ALL).unwrap();
    for r in 0..4 {
        let want = expected(&x[r * 512..][..512], 77, &Default::default()).gradient[77];
        let got = logits[r * 512 + 77] as f64;
        // Differences of logits up to 30 are rounded in f32: 1e-6 of each term.
        assert!((got / want - 1.0).abs() < 3e-6, "{got:e} {want:e}");
    }
}

#[test]
fn huge_logits_and_minus_infinity() {
    let mut x = random(3, 6 * 2100, 4.0);
    for (r, value) in [(0, 1e4), (1, -1e4), (2, 1e4)] {
        x[r * 2100 + 5] = value;
    }
    x[2 * 2100 + 2099] = -1e4;
    x[3 * 2100..3 * 2100 + 1500].fill(f64::NEG_INFINITY);
    x[4 * 2100 + 1..5 * 2100].fill(f64::NEG_INFINITY);
    x[5 * 2100 + 600..].fill(f64::NEG_INFINITY);
    let options = TokenLogprobsOptions::default();
    let targets = [5, 5, 2099, 1700, 0, 3];
    // The mean of -inf is -inf, in both.
    check::<f32>(&x, 2100, &targets, &options);
    check::<f64>(&x, 2100, &targets, &options);
    check::<bf16>(&x, 2100, &targets, &options);
    check::<f16>(&x, 2100, &targets, &options);
    // A target of probability 0.
    let logits = Tensor::from_vec(vec![f32::NEG_INFINITY, 0.0, 1.0], 1, 3).unwrap();
    let stats = forward(logits.view(), column(&[0]).view(), &options, ALL).unwrap();
    assert_eq!(stats.logps.to_vec().unwrap(), [f32::NEG_INFINITY]);
}

#[test]
fn a_tie_for_the_largest_is_a_hit() {
    let logits = Tensor::from_vec([1.0f32, 3.0, 3.0, 0.0].repeat(3), 3, 4).unwrap();
    let wanted = Wanted { hit: true, ..Wanted::default() };
    let targets = column(&[1, 2, 0]);
    let stats = forward(logits.view(), targets.view(), &Default::default(), wanted).unwrap();
    assert_eq!(stats.hit.unwrap().to_vec().unwrap(), [1.0, 1.0, 0.0]);
    assert!(stats.entropy.is_none() && stats.mean_logit.is_none() && stats.log_sum_p2.is_none());
}

#[test]
fn rows_that_are_not_finite_are_named() {
    let options = TokenLogprobsOptions::default();
    for bad in [f32::NEG_INFINITY, f32::NAN, f32::INFINITY] {
        let mut values = vec![0.5f32; 3 * 2000];
        if bad == f32::NEG_INFINITY {
            values[2000..4000].fill(bad);
        } else {
            values[2001] = bad;
        }
        let mut logits = Tensor::from_vec(values, 3, 2000).unwrap();
        let mut targets = column(&[0, 1, 2]);
        let error = forward(logits.view(), targets.view(), &options, ALL).unwrap_err();
        assert!(error.to_string().contains("row 1"), "{error}");
        let (lse, mut out) = (column(&[8.0, bad, 8.0]), logits.clone());
        let (logits_view, targets_view) = (logits.view(), targets.view());
        let error =
            backward(logits_view, targets_view, lse.view(), lse.view(), &options, out.view_mut())
                .unwrap_err();
        assert!(matches!(error, Error::NonFinite(_)));
        let mut fused = logits.clone();
        let error =
            forward_with_gradient(fused.view_mut(), targets.view(), &options, ALL).unwrap_err();
        assert!(matches!(error, Error::NonFinite(_)));
        let fused = fused.to_vec().unwrap();
        assert!(fused[2000..4000].iter().all(|&d| d == 0.0));
        assert!((fused[0] - 0.9995).abs() < 1e-6 && (fused[4002] - 0.9995).abs() < 1e-6);
        // Skipped, it is not even read.
        targets.as_mut_slice().unwrap()[1] = IGNORE;
        let stats =
            forward_with_gradient(logits.view_mut(), targets.view(), &options, ALL).unwrap();
        assert_eq!(stats.lse.to_vec().unwrap()[1], 0.0);
        assert!(logits.to_vec().unwrap()[2000..4000].iter().all(|&d| d == 0.0));
    }
}

#[test]
fn all_rows_skipped() {
    for vocab in [0, 5] {
        let mut logits = Tensor::from_vec(vec![f32::NAN; 2 * vocab], 2, vocab).unwrap();
        let targets = column(&[IGNORE; 2]);
        let stats =
            forward_with_gradient(logits.view_mut(), targets.view(), &Default::default(), ALL)
                .unwrap();
        for column in [&stats.logps, &stats.lse, stats.entropy.as_ref().unwrap()] {
            assert_eq!(column.to_vec().unwrap(), [0.0, 0.0]);
        }
        assert!(logits.to_vec().unwrap().iter().all(|&d| d == 0.0));
    }
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_written() {
    let mut logits = Tensor::from_vec(vec![1.0f32; 10], 2, 5).unwrap();
    let default = TokenLogprobsOptions::default();
    for (row, id) in [(0, 5), (1, -1), (1, i32::MIN), (0, i32::MAX)] {
        let mut ids = [0, 0];
        ids[row] = id;
        let error = forward_with_gradient(logits.view_mut(), column(&ids).view(), &default, ALL)
            .unwrap_err();
        assert!(
            matches!(error, Error::TokenId { row: r, id: i, vocab: 5, .. } if r == row && i == id)
        );
    }
    for (temperature, soft_cap) in
        [(0.0, None), (f64::NAN, None), (-1.0, None), (1.0, Some(0.0)), (1.0, Some(f64::INFINITY))]
    {
        let options = TokenLogprobsOptions { temperature, soft_cap };
        let error = forward_with_gradient(logits.view_mut(), column(&[0, 0]).view(), &options, ALL)
            .unwrap_err();
        assert!(matches!(error, Error::Setting { .. }));
    }
    let error = forward(logits.view(), column(&[0]).view(), &default, ALL).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }));
    assert_eq!(logits.to_vec().unwrap(), [1.0; 10]);
}

#[test]
fn a_row_does_not_depend_on_the_batch_or_the_threads() {
    let (n, vocab) = (40, 3001);
    let x: Vec<f32> = random(8, n * vocab, 9.0).iter().map(|&x| x as f32).collect();
    let targets: Vec<i32> = (0..n as i32).map(|r| r * 71).collect();
    let run = |threads: usize, first: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut x = Tensor::from_vec(x[first * vocab..].to_vec(), n - first, vocab).unwrap();
            let targets = column(&targets[first..]);
            let stats =
                forward_with_gradient(x.view_mut(), targets.view(), &Default::default(), ALL)
                    .unwrap();
            (stats.logps.to_vec().unwrap(), stats.entropy.unwrap().to_vec().unwrap(), x.to_vec())
        })
    };
    let (logps, entropy, gradient) = run(1, 0);
    let gradient = gradient.unwrap();
    for (threads, first) in [(2, 0), (4, 0), (3, 1), (1, 23), (2, 39)] {
        let (l, e, g) = run(threads, first);
        assert_eq!((&l[..], &e[..]), (&logps[first..], &entropy[first..]));
        assert_eq!(g.unwrap(), gradient[first * vocab..]);
    }
}

#[test]
fn gradient_by_central_differences() {
    let (n, vocab) = (3, 11);
    let x = random(6, n * vocab, 3.0);
    let targets = column(&[10, IGNORE, 4]);
    let dlogps = [0.8, 5.0, -1.7];
    for options in [
        TokenLogprobsOptions { temperature: 1.4, soft_cap: None },
        TokenLogprobsOptions { temperature: 0.6, soft_cap: Some(2.5) },
    ] {
        let value = |x: &[f64]| {
            let logits = View::from_slice(x, n, vocab, vocab).unwrap();
            let stats = forward(logits, targets.view(), &options, Wanted::default()).unwrap();
            let logps = stats.logps.to_vec().unwrap();
            logps.iter().zip(dlogps).map(|(l, d)| l * d).sum::<f64>()
        };
        let logits = View::from_slice(&x, n, vocab, vocab).unwrap();
        let lse = forward(logits, targets.view(), &options, Wanted::default()).unwrap().lse;
        let mut out = Tensor::from_vec(vec![9.0; n * vocab], n, vocab).unwrap();
        let dlogps = column(&dlogps);
        backward(logits, targets.view(), lse.view(), dlogps.view(), &options, out.view_mut())
            .unwrap();
        for (i, d) in out.to_vec().unwrap().into_iter().enumerate() {
            let (mut up, mut down) = (x.clone(), x.clone());
            up[i] += 1e-5;
            down[i] -= 1e-5;
            assert!((d - (value(&up) - value(&down)) / 2e-5).abs() < 1e-8, "{i}");
        }
    }
}
