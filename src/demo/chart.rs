//! The demo in four pictures.

use std::path::Path;

use super::world::WORST_TO_BEST;
use super::{Estimate, Measured, Summary, files};
use crate::Result;
use crate::report::{Mark, Panel, Series, chart, histogram};

/// Writes `chart.svg`.
pub fn write(dir: &Path, command: &str, summary: &Summary) -> Result<()> {
    let loss = |command: &str| files::column(&dir.join(command).join("metrics.jsonl"), "loss");
    let curve = |title: &str, points| Panel {
        title: title.into(),
        x: "step".into(),
        series: vec![Series::new("loss", 2, Mark::Line, points)],
    };
    let panels = [
        curve("Supervised fine-tuning", loss("sft")?),
        curve(&format!("Alignment: {}", summary.method), loss(command)?),
        trajectory(summary),
        rewards(summary),
    ];
    let title = format!("collimate demo: {}", summary.method);
    files::write(&dir.join("chart.svg"), &chart(&title, &panels, 2))
}

/// The reward of fresh samples, and what it costs.
fn trajectory(summary: &Summary) -> Panel {
    let series = |name: &str, colour: usize, value: fn(&super::Point) -> Estimate| {
        let along = || summary.trajectory.iter().map(move |point| (point.step, value(point)));
        let points = along().map(|(step, value)| (step as f64, value.mean)).collect();
        let intervals = Some(along().map(|(_, value)| value.ci95).collect());
        Series { intervals, ..Series::new(name, colour, Mark::Dots, points) }
    };
    Panel {
        title: "Fresh samples for held-out prompts".into(),
        x: "step of the alignment".into(),
        series: vec![
            series("reward", 1, |point| point.reward),
            series("KL to the reference, nats", 0, |point| point.kl),
        ],
    }
}

fn rewards(summary: &Summary) -> Panel {
    const BINS: usize = 16;
    let width = 2.0 * WORST_TO_BEST / BINS as f64;
    let series = |name: &str, colour: usize, measured: &Measured| {
        let counts = histogram(&measured.rewards, -WORST_TO_BEST, WORST_TO_BEST, BINS);
        let place = |i: usize| -WORST_TO_BEST + (i as f64 + 0.5) * width;
        let share = |count: usize| 100.0 * count as f64 / measured.rewards.len() as f64;
        let bars = counts.iter().enumerate().map(|(i, &count)| (place(i), share(count)));
        Series::new(name, colour, Mark::Bars(width), bars.collect())
    };
    Panel {
        title: "Rewards of these samples, percent".into(),
        x: "reward".into(),
        series: vec![series("before", 0, &summary.before), series("after", 1, &summary.after)],
    }
}
