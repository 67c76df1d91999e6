//! RLAIF: showing a pair in both orders undoes a judge's bias towards the first position.

use collimate::losses::{OptionLogps, Verdict, verdict};

use super::assert_near;

/// A judge for whom the first of two is better by `gap`, plus its bias: log-probabilities of its options.
fn judge(gap: f64, bias: f64) -> OptionLogps {
    let share = 1.0 / (1.0 + (-(gap + bias)).exp());
    OptionLogps { first: (0.9 * share).ln(), second: (0.9 * (1.0 - share)).ln() }
}

#[test]
fn two_orders_undo_position_bias() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for (gap, bias) in [(1.0, 2.0), (0.5, -1.0), (3.0, 0.0), (0.2, 5.0)] {
        // The best answer is the pair's second: shown second in the straight order, first when swapped.
        let (straight, swapped) = (judge(-gap, bias), judge(gap, bias));
        assert_near("one order", &[straight.second_prob()], &[sigmoid(gap - bias)], 1e-12);
        let Verdict::Preference(first) = verdict(straight, swapped, 0.5).unwrap() else {
            panic!("the judge did answer")
        };
        let expected = 0.5 * (sigmoid(gap + bias) + sigmoid(gap - bias));
        assert_near("both orders", &[1.0 - first], &[expected], 1e-12);
        assert!(first < 0.5, "gap {gap}, bias {bias}: the better one loses");
    }
    let (straight, swapped) = (judge(-1.0, 2.0), judge(1.0, 2.0));
    assert_near("one order is wrong", &[straight.second_prob()], &[0.269], 5.1e-4);
    let Verdict::Preference(first) = verdict(straight, swapped, 0.5).unwrap() else { panic!() };
    assert_near("both are right", &[1.0 - first], &[0.611], 5.1e-4);
}
