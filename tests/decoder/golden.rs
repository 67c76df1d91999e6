//! Log-probs of the pretrained model, as transformers computes them in float64.

use collimate::Device;
use collimate::models::ModelFolder;
use collimate::nn::{Decoder, Keep, LayoutBuilder, LmHead, Weights};
use collimate::ops::token_logprobs::Wanted;
use serde_json::Value;

use crate::shared::shared;

#[test]
fn log_probs_are_those_of_transformers() {
    let Some(golden) = shared("golden/token_logprobs.json") else { return };
    let Some(model) = shared("models/stories260K") else { return };
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let folder = ModelFolder::open(model).unwrap();
    let (decoder, table) = Decoder::new(folder.config.clone()).unwrap();
    let weights: Weights<f64> = folder.load_weights(&table, &Device::Cpu).unwrap();
    let floats = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    for row in golden["rows"].as_array().unwrap() {
        let ids: Vec<i32> =
            row["ids"].as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as i32).collect();
        let prompt = row["prompt_tokens"].as_u64().unwrap() as usize;
        let mut builder = LayoutBuilder::new();
        builder.push(&ids[..prompt], &ids[prompt..]);
        let batch = decoder.batch::<f64>(&Device::Cpu, builder.finish().unwrap()).unwrap();
        let (hidden, _) = decoder.forward(&weights, &batch, Keep::Nothing).unwrap();
        let wanted = Wanted { entropy: true, mean_logit: false, hit: false, log_sum_p2: false };
        let stats =
            LmHead::default().score(&decoder, &weights, &hidden, &batch, 0..1, wanted).unwrap();
        let logps = stats.logps.to_vec().unwrap();
        let all = floats(&row["token_logps"]);
        let expected = &all[prompt - 1..];
        assert_eq!(logps.len(), expected.len());
        for (own, expected) in logps.iter().zip(expected) {
            // transformers rotates by float32 angles whatever the model's type.
            assert!((own - expected).abs() < 1e-4, "{own} {expected}");
        }
        let entropy = stats.entropy.unwrap().to_vec().unwrap();
        let mean = entropy.iter().sum::<f64>() / entropy.len() as f64;
        let expected = row["entropy_mean"].as_f64().unwrap();
        assert!((mean - expected).abs() < 1e-4, "{mean} {expected}");
    }
}
