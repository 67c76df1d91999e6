//! Reward against KL, on a small world.

use serde_json::Value;

use super::{Fixture, collimate};

#[test]
fn a_weaker_hold_buys_reward_with_kl() {
    let fixture = Fixture::new();
    let run = |out: &str, more: &str| {
        collimate(&format!(
            "frontier --output-dir {} --sentences 1024 --pairs 192 --bound-samples 8 {more}",
            fixture.at(out)
        ))
    };
    let first = run("a", "--methods sigmoid,kto,slic_hf-sampled");
    assert!(first.ok(), "{first:?}");
    assert!(first.out.contains("the reference") && first.out.contains("reweighted by exp(r / 1)"));
    let text = std::fs::read_to_string(fixture.path("a/frontier.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    let points = json["points"].as_array().unwrap();
    assert_eq!(points.len(), 12);
    let kls = |method: &str| -> Vec<f64> {
        let own = points.iter().filter(|point| point["method"] == method);
        own.map(|point| number(&point["kl"]["mean"])).collect()
    };
    // At a beta of 0.03 and of 1.
    for method in ["sigmoid", "kto"] {
        assert!(kls(method)[0] > kls(method)[3], "{method}: {:?}", kls(method));
    }
    let bound = json["bound"].as_array().unwrap();
    let rising =
        |name: &str| bound.windows(2).all(|two| number(&two[0][name]) < number(&two[1][name]));
    assert!(rising("reward") && rising("kl"), "{bound:?}");
    let svg = std::fs::read_to_string(fixture.path("a/frontier.svg")).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains("best of n") && svg.contains("slic_hf-sampled")
    );
    // The same seed, the same bytes; and what cannot be.
    assert!(run("b", "--methods sigmoid,kto,slic_hf-sampled").ok());
    assert_eq!(text, std::fs::read_to_string(fixture.path("b/frontier.json")).unwrap());
    run("a", "").fails(&["not empty"]);
    run("c", "--methods sigmod").fails(&["--methods", "sigmoid-soft", "sigmod"]);
}
