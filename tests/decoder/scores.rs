//! The scalar head against central differences in f64, and against copies of shared prompts.

use collimate::nn::{
    Decoder, DecoderConfig, Keep, Layout, LayoutBuilder, ScoreAt, Scorer, Weights,
};
use collimate::rng::Rng;
use collimate::{Device, Tensor};

use super::{ANSWERS, PROMPT, coefficient, shapes};

fn scorer(config: &DecoderConfig) -> Scorer<f64> {
    let (decoder, table) = Decoder::scoring(config.clone()).unwrap();
    assert!(table.params().iter().all(|p| p.name != "lm_head.weight"));
    let mut weights = Weights::zeros(&Device::Cpu, &table).unwrap();
    let mut rng = Rng::new(7, 0);
    for param in table.params() {
        let centre = if param.name.contains("norm") { 1.0 } else { 0.0 };
        let values = weights.arena_mut().as_mut_slice().unwrap();
        values[param.range.clone()]
            .iter_mut()
            .for_each(|w| *w = centre + 0.6 * (rng.uniform() - 0.5));
    }
    Scorer { decoder, weights }
}

fn layout(mut builder: LayoutBuilder, share: bool) -> Layout {
    if share {
        builder.push_shared(&PROMPT, &ANSWERS);
    } else {
        ANSWERS.iter().for_each(|answer| builder.push(&PROMPT, answer));
    }
    builder.push(&[], &[5, 6, 8, 2]);
    builder.finish().unwrap()
}

/// A function with a coefficient for every score, and its gradient.
fn run(model: &Scorer<f64>, layout: &Layout, at: ScoreAt, keep: Keep) -> (f64, Weights<f64>) {
    let scored = model.forward(layout.clone(), at, keep).unwrap();
    let scores = scored.to_host().unwrap();
    let dscores: Vec<f64> = (0..scores.len()).map(coefficient).collect();
    let value = scores.iter().zip(&dscores).map(|(s, c)| s * c).sum();
    let dscores = Tensor::column(&Device::Cpu, &dscores).unwrap();
    let mut grads = Weights::zeros(&Device::Cpu, model.weights.table()).unwrap();
    model.backward(scored, dscores.view(), &mut grads).unwrap();
    (value, grads)
}

#[test]
fn gradients_are_those_of_central_differences() {
    for (name, config) in shapes() {
        let mut model = scorer(&config);
        for (at, builder) in
            [(ScoreAt::Last, LayoutBuilder::whole()), (ScoreAt::Every, LayoutBuilder::new())]
        {
            let layout = layout(builder, true);
            let (_, grads) = run(&model, &layout, at, Keep::Activations);
            let grads = grads.arena().to_vec().unwrap();
            let params = model.weights.table().params().to_vec();
            let mut moved = 0;
            for param in &params {
                // A few of every parameter.
                for i in param.range.clone().step_by(param.range.len().div_ceil(5)) {
                    let mut at_offset = |offset: f64| {
                        let arena = model.weights.arena_mut().as_mut_slice().unwrap();
                        let before = arena[i];
                        arena[i] += offset;
                        let value = run(&model, &layout, at, Keep::Nothing).0;
                        model.weights.arena_mut().as_mut_slice().unwrap()[i] = before;
                        value
                    };
                    let slope = (at_offset(1e-5) - at_offset(-1e-5)) / 2e-5;
                    let error = (slope - grads[i]).abs();
                    assert!(error < 1e-7 * slope.abs().max(1.0), "{name}: {} {i}", param.name);
                    moved += usize::from(slope != 0.0);
                }
            }
            assert!(moved > 3 * params.len(), "{name}: {moved}");
        }
    }
}

#[test]
fn shared_prompts_and_recomputation_change_nothing() {
    let model = scorer(&shapes()[0].1);
    let shared = layout(LayoutBuilder::whole(), true);
    let apart = layout(LayoutBuilder::whole(), false);
    let scores = model.score(&shared).unwrap();
    assert_eq!(scores.len(), 3);
    for (a, b) in scores.iter().zip(model.score(&apart).unwrap()) {
        assert!((a - b).abs() < 1e-13);
    }
    // The last of the values of all tokens is the score.
    let values = model.values(&shared).unwrap();
    assert_eq!(values.len(), 4 + 2 + 4);
    assert_eq!(scores, [values[3], values[5], values[9]]);
    // The value before the first token is the same for both answers of a prompt.
    let before = model.values(&layout(LayoutBuilder::new(), true)).unwrap();
    assert_eq!((before[0], before.len()), (before[4], 4 + 2 + 3));
    let grads = |keep| run(&model, &shared, ScoreAt::Last, keep).1.arena().to_vec().unwrap();
    assert_eq!(grads(Keep::Activations), grads(Keep::Inputs));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let config = shapes()[0].1.clone();
    let model = scorer(&config);
    let shared = layout(LayoutBuilder::whole(), true);
    let scored = model.forward(shared.clone(), ScoreAt::Last, Keep::Activations).unwrap();
    let mut grads = Weights::zeros(&Device::Cpu, model.weights.table()).unwrap();
    let one = Tensor::column(&Device::Cpu, &[1.0]).unwrap();
    assert!(model.backward(scored, one.view(), &mut grads).is_err());
    // A language model has no score.
    let (decoder, table) = Decoder::new(config).unwrap();
    let weights = Weights::<f64>::zeros(&Device::Cpu, &table).unwrap();
    assert!(Scorer { decoder, weights }.score(&shared).is_err());
}
