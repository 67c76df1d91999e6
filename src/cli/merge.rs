use std::path::{Path, PathBuf};

use super::args::SaveDtypeName;
use crate::data::Tokenizer;
use crate::models::{Head, ModelFolder, SaveOptions, save};
use crate::nn::{Decoder, Weights};
use crate::{DType, Device, Error, Result};

/// Writes the whole model of adapters: the base with the adapters merged into its weights.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of the adapters (adapter_config.json, adapter_model.safetensors)
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Folder of their base model [default: what adapter_config.json says]
    #[arg(long, alias = "model-name-or-path", value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where the model is written
    #[arg(long, value_name = "DIR")]
    output_dir: PathBuf,
    /// Type of the saved weights; auto is that of the base
    #[arg(long, default_value = "auto")]
    save_dtype: SaveDtypeName,
}

/// Runs `collimate merge`.
pub fn run(args: &Args) -> Result<()> {
    let folder = ModelFolder::open_adapters(&args.adapter, args.model.as_deref())?;
    let dir = &args.output_dir;
    if dir.join("config.json").exists() || dir.join("adapter_config.json").exists() {
        return Err(Error::file(dir, "holds a model already: choose another --output-dir"));
    }
    merge(&folder, dir, args.save_dtype.dtype())?;
    eprintln!("done: model in {}", dir.display());
    Ok(())
}

/// Writes a model with its adapters merged.
pub fn merge(folder: &ModelFolder, dir: &Path, dtype: Option<DType>) -> Result<()> {
    let options = SaveOptions { dtype, ..SaveOptions::default() };
    if folder.head == Head::Score {
        let tokenizer = Tokenizer::load(folder.adapters_folder().unwrap_or(&folder.path))?;
        let (_, table) = Decoder::scoring(folder.config.clone())?;
        let weights: Weights<f32> = folder.load_weights(&table, &Device::Cpu)?;
        return save(&folder.scoring(tokenizer.filler())?, dir, &weights, &options);
    }
    let (_, table) = Decoder::new(folder.config.clone())?;
    let weights: Weights<f32> = folder.load_weights(&table, &Device::Cpu)?;
    save(folder, dir, &weights, &options)
}
