//! Flags of the model and of the machine.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::args::truth;
use crate::{DType, Device, Error, Result};

/// The model to start from, and the machine.
#[derive(Args, Debug)]
pub struct ModelArgs {
    /// Folder of a Hugging Face model (config.json, *.safetensors, tokenizer.json)
    #[arg(long, alias = "model", value_name = "DIR")]
    pub model_name_or_path: PathBuf,
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// The machine, and the file of settings.
#[derive(Args, Debug)]
pub struct MachineArgs {
    /// A YAML file of the same settings, with underscores; flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to compute: auto takes the first GPU where there is one, cuda:1 is the second one
    #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda|cuda:N")]
    pub device: DeviceName,
    /// Type of the weights while computing; auto is bf16 on cuda (trained with float32 master
    /// weights), f32 on the CPU
    #[arg(long, alias = "torch-dtype", default_value = "auto")]
    pub dtype: DtypeName,
    /// TRL's way to say --dtype bf16; false: f32
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = truth)]
    bf16: Option<bool>,
    /// bf16 takes the place of 16-bit floating point
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = truth)]
    fp16: Option<bool>,
    /// Give each row of a matrix product the same bits however many rows are computed with it: on cuda
    /// no split-K, and one algorithm for any number of rows; the CPU always does
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    pub batch_invariant: bool,
    /// Threads of the CPU device [default: all]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeviceName {
    /// The best there is.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
}

impl std::str::FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("cuda:").map(str::parse);
        match (text, number) {
            ("auto", _) => Ok(DeviceName::Auto),
            ("cpu", _) => Ok(DeviceName::Cpu),
            ("cuda", _) => Ok(DeviceName::Cuda(0)),
            (_, Some(Ok(number))) => Ok(DeviceName::Cuda(number)),
            _ => {
                Err("expected auto, cpu, cuda or cuda:N, with N the number of a GPU from 0".into())
            }
        }
    }
}

/// An element type by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DtypeName {
    /// The device's usual one.
    Auto,
    /// 32-bit floating point.
    #[value(alias = "float32")]
    F32,
    /// bfloat16.
    #[value(alias = "bfloat16")]
    Bf16,
    /// 16-bit floating point, in whose place bf16 is taken.
    #[value(alias = "fp16", alias = "f16", hide = true)]
    Float16,
}

impl MachineArgs {
    /// The device and the type to compute in; starts the thread pool.
    pub fn open(&self) -> Result<(Device, DType)> {
        self.start_threads()?;
        let device = match self.device {
            DeviceName::Cpu => Device::Cpu,
            DeviceName::Cuda(number) => gpu(number)?,
            // An emulated GPU is never the best there is.
            DeviceName::Auto if cfg!(feature = "cuda") && !cfg!(feature = "emulate") => gpu(0)
                .unwrap_or_else(|missing| {
                    eprintln!("note: computing on the CPU: {missing}");
                    Device::Cpu
                }),
            DeviceName::Auto => Device::Cpu,
        };
        if let Some(description) = device.describe() {
            eprintln!("note: computing on {description}");
        }
        if self.batch_invariant {
            device.be_batch_invariant();
        }
        Ok((device.clone(), self.dtype_on(&device)))
    }

    /// The type to compute in on `device`; tells where it is another than the one asked for.
    fn dtype_on(&self, device: &Device) -> DType {
        // As in transformers, bf16 and fp16 are how it computes, whatever the type of the weights.
        let half = self.fp16 == Some(true) || matches!(self.dtype, DtypeName::Float16);
        let narrow = half || self.bf16 == Some(true) || matches!(self.dtype, DtypeName::Bf16);
        let full = matches!(self.dtype, DtypeName::F32) || self.bf16 == Some(false);
        match device {
            Device::Cpu => {
                if narrow {
                    eprintln!(
                        "note: weights are widened to float32: the CPU computes in nothing else"
                    );
                }
                DType::F32
            }
            _ if full && !narrow => DType::F32,
            _ => {
                if half {
                    eprintln!("note: computing in bf16, in the place of float16");
                }
                DType::BF16
            }
        }
    }

    /// The device of a command that computes in float32; starts the thread pool.
    pub fn device(&self) -> Result<Device> {
        if let (DtypeName::Bf16, true) = (self.dtype, cfg!(feature = "cuda")) {
            return Err(Error::Unsupported("--dtype bf16: this command computes in f32".into()));
        }
        self.open().map(|(device, _)| device)
    }

    fn start_threads(&self) -> Result<()> {
        let Some(threads) = self.threads else { return Ok(()) };
        if threads == 0 || threads > 1024 {
            return Err(Error::setting("--threads", "1 to 1024", threads));
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .map_err(|e| Error::Device(e.to_string()))
    }
}

/// The GPU of that number, with all that it needs to compute.
fn gpu(number: usize) -> Result<Device> {
    let device = Device::cuda(number)?;
    device.check_products()?;
    Ok(device)
}
