use super::args::TrainArgs;
use super::train::Run;
use super::yaml::Given;
use crate::Result;
use crate::data::Example;
use crate::train::Method;
use crate::train::methods::Sft;

/// Rows of `prompt, completion`, of `instruction, input, output`, of `text`, or of pairs, whose
/// chosen answer is the completion.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
}

/// Runs `collimate sft`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let mut run = Run::new(&args.train, given)?;
    let (train, held_out) = run.datasets::<Example>(false)?;
    let method = Sft { examples: train };
    let held_out = held_out.map(|examples| Sft { examples });
    run.train(&method, held_out.as_ref().map(|m| m as &dyn Method))
}
