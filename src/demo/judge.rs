//! What teaches a model to judge this world: `judge.jsonl` for `collimate sft`, and in `judge.yaml` how it is
//! asked afterwards.

use std::path::Path;

use serde_json::{Value, json};

use super::files;
use super::world::{self, WORST_TO_BEST};
use crate::Result;
use crate::judge::Templates;
use crate::losses::math::sigmoid;
use crate::rng::Rng;

const TEMPLATES: &str = "\
compare: '{prompt}{first} Or{second} Better:'
options: ['1', '2']
rate: '{prompt}{completion} Rating:'
ratings: ['1', '2', '3', '4', '5', '6', '7', '8', '9', '10']
";

/// Writes both: as many comparisons, labelled as pairs are, as there are ratings.
pub fn write(dir: &Path, prompts: &[String], questions: usize, rng: &mut Rng) -> Result<()> {
    let path = dir.join("judge.yaml");
    files::write(&path, TEMPLATES)?;
    let templates = Templates::read(&path)?;
    let row = |(i, prompt): (usize, &String)| -> Value {
        let first = world::completion(prompt, rng);
        let (question, answer) = if i % 2 == 0 {
            let second = world::completion(prompt, rng);
            let gap = world::reward(&first) - world::reward(&second);
            let wins = usize::from(rng.uniform() >= sigmoid(gap));
            (templates.comparison(prompt, &first, &second), &templates.options[wins])
        } else {
            let share = (world::reward(&first) + WORST_TO_BEST) / (2.0 * WORST_TO_BEST);
            let top = templates.ratings.len() - 1;
            let rating = (share * top as f64).round() as usize;
            (templates.rating(prompt, &first), &templates.ratings[rating.min(top)])
        };
        json!({ "prompt": question, "completion": answer })
    };
    let rows: Vec<Value> = prompts.iter().cycle().take(questions).enumerate().map(row).collect();
    files::rows(&dir.join("judge.jsonl"), rows.into_iter())
}
