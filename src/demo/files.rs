//! What the demo writes beside what training writes.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{DemoMethod, MAX_LENGTH, Summary};
use crate::losses::SlicTarget;
use crate::models::write_atomically;
use crate::train::{Every, Schedule, TrainConfig, Warmup};
use crate::{Error, Result};

/// Makes a folder that is the demo's own.
pub fn claim(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    if std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?.next().is_some() {
        return Err(Error::file(dir, "is not empty: choose another --output-dir"));
    }
    Ok(())
}

pub fn write(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |out| out.write_all(text.as_bytes()).map_err(|e| Error::io(path, e)))
}

/// Writes JSON lines.
pub fn rows(path: &Path, rows: impl Iterator<Item = Value>) -> Result<()> {
    write(path, &rows.map(|row| format!("{row}\n")).collect::<String>())
}

/// The files that make a tokenizer of `json` one that `transformers` loads.
pub fn tokenizer(dir: &Path, json: &str) -> Result<()> {
    write(&dir.join("tokenizer.json"), json)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": false,
    });
    write(&dir.join("tokenizer_config.json"), &format!("{config:#}\n"))
}

/// Writes the numbers.
pub fn summary(path: &Path, summary: &Summary) -> Result<()> {
    let json = serde_json::to_value(summary).map_err(|e| Error::file(path, e.to_string()))?;
    write(path, &format!("{json:#}\n"))
}

/// The steps and values of one name in a `metrics.jsonl`.
pub fn column(path: &Path, name: &str) -> Result<Vec<(f64, f64)>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let values = text.lines().filter_map(|line| {
        let row: Value = serde_json::from_str(line).ok()?;
        Some((row.get("step")?.as_f64()?, row.get(name)?.as_f64()?))
    });
    Ok(values.collect())
}

/// The loss of an alignment, as its command's settings.
pub fn loss(method: &DemoMethod) -> Vec<(&'static str, Value)> {
    match method {
        DemoMethod::Kto(kto) => vec![
            ("beta", kto.beta.into()),
            ("desirable_weight", kto.desirable_weight.into()),
            ("undesirable_weight", kto.undesirable_weight.into()),
        ],
        DemoMethod::Paired { name, options, .. } => vec![
            ("loss_type", name.as_str().into()),
            ("beta", options.beta.into()),
            ("simpo_gamma", options.simpo_gamma.into()),
            ("cpo_alpha", options.cpo_alpha.into()),
            ("slic_delta", options.slic_delta.into()),
            ("slic_lambda", options.slic_lambda.into()),
            (
                "slic_target",
                match options.slic_target {
                    SlicTarget::Chosen => "chosen".into(),
                    SlicTarget::Sampled => "sampled".into(),
                },
            ),
        ],
    }
}

/// Writes the `config.yaml` of a training: `collimate COMMAND --config` does the same again.
pub fn settings(
    config: &TrainConfig,
    command: &str,
    dataset: &Path,
    eval_dataset: Option<&Path>,
    loss: Vec<(&'static str, Value)>,
) -> Result<()> {
    let path = |path: &Path| Value::from(path.display().to_string());
    let steps = |every: Every| match every {
        Every::Share(share) => share.into(),
        every => every.steps(1).unwrap_or(0).into(),
    };
    let schedule = match config.schedule {
        Schedule::Linear => "linear",
        Schedule::COSINE => "cosine",
        other => {
            return Err(Error::setting(
                "lr_scheduler_type",
                "linear or cosine",
                format!("{other:?}"),
            ));
        }
    };
    let mut settings: Map<String, Value> = [
        ("model_name_or_path", path(&config.model)),
        ("dataset_name", path(dataset)),
        ("output_dir", path(&config.output_dir)),
        ("per_device_train_batch_size", config.batch_size.into()),
        ("gradient_accumulation_steps", config.accumulation.into()),
        ("num_train_epochs", config.epochs.into()),
        ("learning_rate", config.learning_rate.into()),
        ("lr_scheduler_type", schedule.into()),
        ("weight_decay", config.weight_decay.into()),
        ("adam_beta1", config.adam_beta1.into()),
        ("adam_beta2", config.adam_beta2.into()),
        ("adam_epsilon", config.adam_epsilon.into()),
        ("max_grad_norm", config.max_grad_norm.into()),
        ("max_length", MAX_LENGTH.into()),
        ("seed", config.seed.into()),
        ("shuffle", config.shuffle.into()),
        ("logging_steps", steps(config.logging_steps)),
        ("save_steps", steps(config.save_steps)),
    ]
    .into_iter()
    .chain(loss)
    .map(|(name, value)| (name.to_string(), value))
    .collect();
    match config.warmup {
        Warmup::Steps(steps) => settings.insert("warmup_steps".into(), steps.into()),
        Warmup::Ratio(ratio) => settings.insert("warmup_ratio".into(), ratio.into()),
    };
    if let Some(eval_dataset) = eval_dataset {
        settings.insert("eval_dataset".into(), path(eval_dataset));
    }
    let file = config.output_dir.join("config.yaml");
    let yaml = serde_norway::to_string(&settings).map_err(|e| Error::file(&file, e.to_string()))?;
    std::fs::create_dir_all(&config.output_dir).map_err(|e| Error::io(&config.output_dir, e))?;
    write(&file, &format!("# collimate {command} --config config.yaml\n{yaml}"))
}
