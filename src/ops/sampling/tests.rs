use half::{bf16, f16};

use super::*;
use crate::Device;
use crate::device::testing::{Guarded, in_all_orders, is_gpu, test_devices};
use crate::ops::cpu::testing::values;

const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, f32::NEG_INFINITY];

fn support(sampling: &Sampling) -> Vec<i32> {
    let mut seen: Vec<i32> =
        (0..2000).map(|draw| sampling.next(&LOGITS, 3, draw).unwrap()).collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

fn warm() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::greedy() }
}

#[test]
fn filters_keep_what_they_say() {
    assert_eq!(support(&Sampling::greedy()), [1]);
    assert_eq!(support(&warm()), [0, 1, 2]);
    assert_eq!(support(&Sampling { top_k: 2, ..warm() }), [1, 2]);
    // Probabilities .665 .245 .090.
    assert_eq!(support(&Sampling { top_p: 0.66, ..warm() }), [1]);
    assert_eq!(support(&Sampling { top_p: 0.67, ..warm() }), [1, 2]);
    assert_eq!(support(&Sampling { min_p: 0.3, ..warm() }), [1, 2]);
    assert_eq!(support(&Sampling { min_p: 0.3, top_p: 0.95, ..warm() }), [1, 2]);
}

#[test]
fn draws_follow_the_probabilities() {
    let sampling = Sampling { temperature: 2.0, ..warm() };
    let draws = 20_000;
    let ones = (0..draws).filter(|&d| sampling.next(&LOGITS, 0, d).unwrap() == 1).count();
    let expected = 1.0 / (1.0 + (-0.5f64).exp() + (-1.0f64).exp());
    let sigma = (expected * (1.0 - expected) / draws as f64).sqrt();
    assert!((ones as f64 / draws as f64 - expected).abs() < 4.0 * sigma);
}

#[test]
fn a_draw_is_fixed_by_seed_sequence_and_position() {
    let sampling = Sampling { seed: 9, ..warm() };
    let draw = |s, d| sampling.next(&LOGITS, s, d).unwrap();
    let once: Vec<i32> = (0..64).map(|d| draw(1, d)).collect();
    let again: Vec<i32> = (0..64).map(|d| draw(1, d)).collect();
    assert_eq!(once, again);
    assert_ne!(once, (0..64).map(|d| draw(2, d)).collect::<Vec<_>>());
}

#[test]
fn nan_is_an_error() {
    assert!(warm().next(&[f32::NAN, 0.0], 0, 0).is_err());
    assert!(Sampling { top_p: f64::NAN, ..warm() }.validate().is_err());
}

/// The tokens that the CPU draws from the same logits in f32, in all orders or in one.
fn check<T: Element>(
    device: &Device,
    vocab: usize,
    spread: f64,
    sampling: &Sampling,
    all_orders: bool,
) {
    let draws = [(0, 0), (1, 1), (u64::MAX - 1, 2), (7, 1 << 40)];
    let draws = draws.map(|(sequence, number)| Draw { sequence, number });
    let rows = draws.len();
    let logits: Vec<T> = values::<f64>(vocab as u64, rows * vocab)
        .into_iter()
        .map(|x| T::from_stat(T::Stat::of(spread * x)))
        .collect();
    let nan = T::from_stat(T::Stat::of(f64::NAN));
    let at = Guarded::new(device, &logits, [rows, vocab], [1, 2], nan);
    let draw = || sampling.rows(at.view(), &draws).unwrap().to_vec().unwrap();
    let got = if all_orders { in_all_orders(device, draw) } else { draw() };
    for (row, (&token, draw)) in got.iter().zip(draws).enumerate() {
        let logits = logits[row * vocab..][..vocab].iter();
        let logits: Vec<f32> = logits.map(|x| x.to_stat().f64() as f32).collect();
        let want = sampling.next(&logits, draw.sequence, draw.number).unwrap();
        assert_eq!(token, want, "{} of {vocab}, row {row}: {sampling:?}", T::DTYPE);
    }
}

test_devices! {
    fn every_device_draws_the_same_tokens(device) {
        let all = Sampling { temperature: 0.8, seed: 0x1234_5678_9abc_def0, ..Sampling::greedy() };
        let mixed = Sampling { temperature: 2.0, top_k: 40, top_p: 0.9, min_p: 0.05, ..all.clone() };
        for (sampling, all_orders) in [
            (Sampling::greedy(), true),
            (all.clone(), false),
            (Sampling { top_k: 6, ..all.clone() }, false),
            (Sampling { top_p: 0.7, ..all.clone() }, false),
            (Sampling { min_p: 0.2, ..all }, false),
            (mixed, true),
        ] {
            // A spread of 0 makes all tokens tie, and narrow types make many.
            check::<f32>(device, 7, 3.0, &sampling, false);
            check::<f32>(device, 1003, 6.0, &sampling, all_orders);
            check::<bf16>(device, 40, 0.0, &sampling, false);
            check::<bf16>(device, 1003, 6.0, &sampling, false);
            check::<f16>(device, 1003, 6.0, &sampling, false);
        }
    }

    fn rows_that_cannot_be_drawn_from_are_errors(device) {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for row in [[0.0, nan], [0.0, inf], [-inf, -inf]] {
            for sampling in [Sampling::greedy(), warm()] {
                let logits = Tensor::from_host(device, &[[1.0, -inf], row].concat(), 2, 2).unwrap();
                let draws = [Draw { sequence: 0, number: 0 }; 2];
                let done = sampling.rows(logits.view(), &draws);
                match is_gpu(device) {
                    None => assert!(matches!(done, Err(Error::NonFinite(_)))),
                    Some(_) => {
                        let error = device.synchronize().unwrap_err();
                        assert!(matches!(error, Error::Kernel { row: 1, .. }), "{error}");
                        assert_eq!(done.unwrap().to_vec().unwrap(), [0, -1]);
                    }
                }
            }
        }
        let none = Tensor::<f32>::zeros(device, 0, 3).unwrap();
        assert_eq!(warm().rows(none.view(), &[]).unwrap().rows(), 0);
    }
}
