use super::args::{TrainArgs, truth};
use super::train::Run;
use super::yaml::Given;
use crate::Result;
use crate::data::Example;
use crate::train::Method;
use crate::train::methods::Sft;

/// Rows of `prompt, completion`, of `messages`, of `instruction, input, output`, of `text`, or of pairs,
/// whose chosen answer is the completion.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    /// Of rows with a prompt and a completion, learn the completion alone; false: both
    /// [default: true where there is a completion]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    completion_only_loss: Option<bool>,
    /// Of conversations, learn every turn of the assistant and nothing else
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    assistant_only_loss: bool,
    /// The token that ends an answer: a model's own, which its folder names [default: that]
    #[arg(long, value_name = "TOKEN")]
    eos_token: Option<String>,
    /// The column of texts, where rows are texts: any that the file has [default: text]
    #[arg(long, value_name = "COLUMN")]
    dataset_text_field: Option<String>,
}

/// Runs `collimate sft`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let mut run = Run::new(&args.train, given)?;
    run.ends_with(args.eos_token.as_deref())?;
    run.read.text_field = args.dataset_text_field;
    run.read.assistant_only = args.assistant_only_loss;
    run.completion_only = args.completion_only_loss;
    let (train, held_out) = run.datasets::<Example>(false)?;
    let method = Sft { examples: train };
    let held_out = held_out.map(|examples| Sft { examples });
    run.train(&method, held_out.as_ref().map(|m| m as &dyn Method))
}
