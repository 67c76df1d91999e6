use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use super::args::output_dir;
use super::demo::Stages;
use crate::demo::{DemoConfig, DemoMethod, Frontier, FrontierConfig, frontier};
use crate::{Error, Result};

/// Every method on the demo's world, whose reward is known, at several strengths: what reward each gets for
/// how much KL to the reference, and how far that is from the best there could be.
///
/// Writes the world, every point's run, frontier.json and frontier.svg.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only these methods, by their names in the table [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    methods: Vec<String>,
    /// Preference pairs to train on
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pairs: usize,
    /// Sentences of the corpus
    #[arg(long, default_value_t = 8192, value_name = "N")]
    sentences: usize,
    /// Samples of the reference for each of 128 prompts, of which the bound is made
    #[arg(long, default_value_t = 1024, value_name = "N")]
    bound_samples: usize,
    /// Seeds every generator
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,
    /// Where everything is written [default: runs/frontier-TIME]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

/// Runs `collimate frontier`.
pub fn run(args: Args) -> Result<()> {
    let world = DemoConfig {
        seed: args.seed,
        pairs: args.pairs,
        sentences: args.sentences,
        ..DemoConfig::new(DemoMethod::parse("sigmoid", None)?)
    };
    let bound_samples = args.bound_samples;
    if !(2..=1 << 16).contains(&bound_samples) {
        return Err(Error::setting("bound_samples", "2 to 65536", bound_samples));
    }
    let config =
        FrontierConfig { methods: args.methods, bound_samples, ..FrontierConfig::new(world) };
    let dir = args.output_dir.unwrap_or_else(|| output_dir("frontier"));
    let (begin, mut stages) = (Instant::now(), Stages::new()?);
    // On the pool's own threads: each operation is spared waking another one.
    let found = rayon::scope(|_| frontier(&config, &dir, &mut stages));
    let found = found.map_err(|e| match e {
        Error::Interrupted(_) => {
            Error::Interrupted("interrupted: run it again, with another --output-dir".into())
        }
        e => e,
    })?;
    drop(stages);
    let mut text = table(&found);
    let (seconds, chart) = (begin.elapsed().as_secs_f64(), dir.join("frontier.svg"));
    let _ = writeln!(text, "\n{seconds:.0} s in all; chart: {}", chart.display());
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
        _ => Ok(()),
    }
}

fn table(found: &Frontier) -> String {
    let mut text = String::new();
    let mut row = |name: &str, reward: &str, kl: &str, bound: &str, good: &str| {
        let _ = writeln!(text, "{name:<80}{reward:>14}{kl:>14}{bound:>8}{good:>12}");
    };
    row("", "reward", "KL", "bound", "well-formed");
    row("the reference", &found.reference.to_string(), "0", "", "");
    for point in &found.bound {
        let name = format!("reweighted by exp(r / {})", point.strength);
        row(&name, &format!("{:.2}", point.reward), &format!("{:.2}", point.kl), "", "");
    }
    for point in &found.best_of_n {
        let name = format!("best of {}", point.strength);
        row(&name, &format!("{:.2}", point.reward), &format!("{:.2}", point.kl), "", "");
    }
    for point in &found.points {
        let bound = point.bound.map_or("-".into(), |bound| format!("{bound:.2}"));
        let good = format!("{:.1}%", 100.0 * point.well_formed);
        let (reward, kl) = (point.reward.to_string(), point.kl.to_string());
        row(&point.settings, &reward, &kl, &bound, &good);
    }
    text
}
