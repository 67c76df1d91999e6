use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::train::{Means, Observer, Record};
use crate::{Error, Result};

/// A progress bar on a terminal, plain lines elsewhere; watches for SIGINT and SIGTERM.
pub struct Progress {
    bar: ProgressBar,
    label: String,
    terminal: bool,
    stop: Arc<AtomicBool>,
}

impl Progress {
    /// Registers the signal handlers: the first signal asks to stop, the second one kills.
    pub fn new() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            let kill = || {
                signal_hook::flag::register_conditional_default(signal, stop.clone())?;
                signal_hook::flag::register(signal, stop.clone())
            };
            kill().map_err(|e: std::io::Error| Error::Device(format!("signals: {e}")))?;
        }
        let terminal = std::io::stderr().is_terminal();
        Ok(Progress { bar: ProgressBar::hidden(), label: String::new(), terminal, stop })
    }

    /// What the bars from now on count.
    pub fn label(&mut self, label: &str) {
        self.label = format!("{label} ");
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn start(&mut self, done: usize, total: usize) {
        if self.terminal {
            self.clear();
            let style = "{prefix}{bar:24} {pos}/{len} {per_sec} {eta} left {msg}";
            let style = ProgressStyle::with_template(style)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar = ProgressBar::new(total as u64).with_style(style).with_position(done as u64);
            self.bar.set_prefix(self.label.clone());
            self.bar.reset_eta();
        }
    }

    fn step(&mut self, step: usize, means: &Means) {
        let names = [
            ("loss", "loss"),
            ("margin", "rewards/margins"),
            ("accuracy", "rewards/accuracies"),
            ("margin", "margin"),
            ("accuracy", "accuracy"),
            ("token accuracy", "mean_token_accuracy"),
        ];
        let shown = names
            .iter()
            .filter_map(|(label, name)| means.get(name).map(|value| format!("{label} {value:.4}")));
        self.bar.set_message(shown.take(3).collect::<Vec<_>>().join("  "));
        self.bar.set_position(step as u64);
    }

    fn record(&mut self, record: &Record) {
        if !self.terminal {
            let shown: Vec<String> =
                record.iter().map(|(name, value)| format!("{name} {}", short(value))).collect();
            eprintln!("{}", shown.join("  "));
        } else if record.iter().any(|(name, _)| name.starts_with("eval_")) {
            let shown: Vec<String> =
                record.iter().map(|(name, value)| format!("{name} {}", short(value))).collect();
            self.bar.suspend(|| eprintln!("{}", shown.join("  ")));
        }
    }

    fn note(&mut self, message: &str) {
        self.bar.suspend(|| eprintln!("note: {message}"));
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        x if x.fract() == 0.0 && x < 1e15 => format!("{value}"),
        1e-3..1e6 => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    }
}
