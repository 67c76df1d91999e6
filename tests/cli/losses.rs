//! Every paired loss trains.

use collimate::losses::PairObjective;
use serde_json::{Value, json};

use super::{Fixture, pairs};

fn losses(metrics: &[Value]) -> Vec<f64> {
    metrics.iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

/// Trains on the same pairs at every step, so that the loss must fall.
fn trains(fixture: &Fixture, out: &str, more: &str) -> Vec<Value> {
    let more = format!("--per-device-train-batch-size 24 --max-steps 4 {more}");
    let metrics = fixture.train("dpo", out, &more);
    for line in &metrics {
        for (name, value) in line.as_object().unwrap() {
            assert!(value.as_f64().is_some_and(f64::is_finite), "{more}: {name}: {line}");
        }
    }
    let losses = losses(&metrics);
    assert!(losses[3] < losses[0], "{more}: {losses:?}");
    let margin = |i: usize| metrics[i]["rewards/margins"].as_f64().unwrap();
    assert!(margin(3) > margin(0), "{more}: {metrics:?}");
    metrics
}

#[test]
fn every_loss_by_its_name() {
    let fixture = Fixture::new();
    let names = PairObjective::names().filter(|name| *name != "sft");
    for name in names {
        let smooth = if name == "robust" { "--label-smoothing 0.1" } else { "" };
        trains(&fixture, name, &format!("--loss-type {name} {smooth}"));
    }
}

#[test]
fn mixtures() {
    let fixture = Fixture::new();
    trains(&fixture, "a", "--loss-type sigmoid:1,sft:0.2");
    trains(&fixture, "b", "--loss-type sigmoid,sft --loss-weights 1,0.2");
    trains(&fixture, "c", "--loss-type sigmoid:0.5,hinge:0.5,ipo:0.1,kto_paired:1");
    let plain = trains(&fixture, "plain", "");
    assert_eq!(fixture.weights("a"), fixture.weights("b"));
    assert_ne!(fixture.weights("a"), fixture.weights("plain"));
    // ln 2 for the pair, ln 300 / 5 for the text.
    let [mixed, plain] = [losses(&fixture.metrics("a"))[0], losses(&plain)[0]];
    assert!((plain - 2f64.ln()).abs() < 1e-6 && (mixed - plain - 300f64.ln() / 5.0).abs() < 0.1);
}

#[test]
fn columns_have_their_effect() {
    let fixture = Fixture::new();
    let with = |name: &str, column: &str, value: fn(usize) -> f64| {
        let mut rows = pairs(24);
        for (i, row) in rows.iter_mut().enumerate() {
            row[column] = json!(value(i));
        }
        let path = fixture.rows(&format!("{name}.jsonl"), &rows);
        let more = format!("--per-device-train-batch-size 24 --dataset {path} --shuffle false");
        // Where neither answer is better there is nothing to learn.
        losses(&fixture.steps("dpo", name, &more))[0]
    };
    let ln2 = 2f64.ln();
    assert!((with("ones", "weight", |_| 1.0) - ln2).abs() < 1e-6);
    assert!((with("halves", "weight", |_| 0.5) - ln2 / 2.0).abs() < 1e-6);
    assert!((with("mixed", "weight", |i| f64::from(i % 2 == 0)) - ln2 / 2.0).abs() < 1e-6);
    with("sure", "target_prob", |_| 1.0);
    with("unsure", "target_prob", |_| 0.5);
    with("flipped", "target_prob", |_| 0.0);
    fixture.train("dpo", "plain", "--per-device-train-batch-size 24 --shuffle false");
    assert_eq!(fixture.weights("plain"), fixture.weights("ones"));
    assert_eq!(fixture.weights("plain"), fixture.weights("sure"));
    for name in ["halves", "mixed", "unsure", "flipped"] {
        assert_ne!(fixture.weights("plain"), fixture.weights(name), "{name}");
    }
    let margin = |name| fixture.metrics(name)[2]["rewards/margins"].as_f64().unwrap();
    assert!(margin("plain") > 0.0 && margin("flipped") < 0.0);
    assert!(margin("unsure").abs() < margin("plain") / 4.0);
}

#[test]
fn several_candidates_with_a_table_of_probabilities() {
    let fixture = Fixture::new();
    let table = [[0.5, 0.9, 0.6], [0.1, 0.5, 0.3], [0.4, 0.7, 0.5]];
    let row = |i: usize| {
        json!({
            "prompt": format!("Tell me of rain, {i} times."),
            "responses": [" is wide and calm", " who knows", " go away now"],
            "probabilities": table,
        })
    };
    let rows: Vec<Value> = (0..8).map(row).collect();
    let data = fixture.rows("candidates.jsonl", &rows);
    let more =
        format!("--dataset {data} --per-device-train-batch-size 24 --max-steps 4 --beta 0.5");
    let logit = |p: f64| (p / (1.0 - p)).ln();
    let psis: [(&str, &dyn Fn(f64) -> f64); 2] = [("identity", &|p| p), ("logit", &logit)];
    for (name, psi) in psis {
        let g = table.map(|row| row.map(psi).iter().sum::<f64>() / 3.0);
        let square = |(i, j): (usize, usize)| ((g[i] - g[j]) / 0.5).powi(2);
        let expected = [(0, 1), (0, 2), (2, 1)].map(square).iter().sum::<f64>() / 3.0;
        let more = format!("{more} --loss-type psi_po --psi {name}");
        let losses = losses(&fixture.train("dpo", name, &more));
        // Policy and reference agree at first, so the loss is the squared target.
        assert!((losses[0] - expected).abs() < 1e-12 * expected, "{name}: {losses:?} {expected}");
        assert!(losses[3] < losses[0], "{name}: {losses:?}");
    }
    // Others take each pair's own probability.
    let soft = losses(&fixture.train("dpo", "soft", &more));
    assert!((soft[0] - 2f64.ln()).abs() < 1e-12 && soft[3] < soft[0], "{soft:?}");
    fixture.run("dpo", "hard", &format!("{more} --loss-type ipo")).fails(&["target_prob"]);
    for (field, value, says) in [
        ("probabilities", json!([[0.5, 0.9], [0.2, 0.5]]), "a table of 3 lists of 3 numbers"),
        ("probabilities", json!([[0.5, 0.9, 0.6], [0.2, 0.5, 0.3], [0.4, 0.7, 0.5]]), "= 1"),
        ("responses", json!([" one"]), "at least two texts"),
        ("responses", json!([" one", "", " two"]), "none empty, got \"\""),
    ] {
        let mut rows = rows.clone();
        rows[1][field] = value;
        let data = fixture.rows("bad.jsonl", &rows);
        fixture.run("dpo", "bad", &format!("--dataset {data}")).fails(&[
            "bad.jsonl:2",
            field,
            says,
        ]);
    }
}

#[test]
fn without_a_reference() {
    let fixture = Fixture::new();
    let metrics = trains(&fixture, "free", "--reference-free");
    let first = &metrics[0];
    let reward = first["rewards/chosen"].as_f64().unwrap();
    assert!((reward - 0.1 * first["logps/chosen"].as_f64().unwrap()).abs() < 1e-6);
    trains(&fixture, "simpo", "--loss-type simpo --beta 2 --simpo-gamma 1");
}

#[test]
fn divergences() {
    let fixture = Fixture::new();
    for name in ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] {
        trains(&fixture, name, &format!("--f-divergence-type {name}"));
    }
    fixture.train("dpo", "plain", "--per-device-train-batch-size 24 --max-steps 4");
    assert_eq!(fixture.weights("plain"), fixture.weights("reverse_kl"));
    assert_ne!(fixture.weights("plain"), fixture.weights("forward_kl"));
}
