use std::path::PathBuf;

use crate::models::write_atomically;
use crate::report::value_functions;
use crate::{Error, Result};

/// Pictures of what is implemented.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Draw the value function that each loss implies, and the weight of its gradient, as an SVG
    #[arg(long, value_name = "FILE")]
    value_functions: PathBuf,
}

/// Runs `collimate report`.
pub fn run(args: Args) -> Result<()> {
    let (path, svg) = (args.value_functions, value_functions()?);
    write_atomically(&path, |out| out.write_all(svg.as_bytes()).map_err(|e| Error::io(&path, e)))
}
