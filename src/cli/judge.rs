use std::path::PathBuf;

use crate::judge::{Judge, JudgeOptions, Templates};
use crate::{Device, Result};

/// How a judge is asked.
#[derive(clap::Args, Debug)]
pub struct JudgeArgs {
    /// A YAML file of `compare`, `options`, `rate`, `ratings` [default: built in, English]
    #[arg(long, value_name = "FILE")]
    judge_templates: Option<PathBuf>,
    /// A judge whose answers have less than this probability together gave none
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    judge_min_mass: f64,
    /// Questions that the judge reads together
    #[arg(long, default_value_t = 16, value_name = "N")]
    judge_batch_size: usize,
}

impl JudgeArgs {
    /// Opens the judge in `path`.
    pub fn open(&self, path: &std::path::Path, device: &Device) -> Result<Judge> {
        let templates = match &self.judge_templates {
            Some(file) => Templates::read(file)?,
            None => Templates::built_in()?,
        };
        let (min_mass, batch_size) = (self.judge_min_mass, self.judge_batch_size);
        Judge::open(path, JudgeOptions { templates, min_mass, batch_size }, device)
    }
}
