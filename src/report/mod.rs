//! Pictures of runs: SVG charts, and sparklines for the terminal.

mod chart;
mod values;

pub use chart::{Mark, Panel, Series, chart};
pub use values::value_functions;

/// Values as a line of eight heights, from the smallest to the largest; what is not finite is a
/// space. At most `width` characters: neighbours are averaged.
pub fn sparkline(values: &[f64], width: usize) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let width = width.clamp(1, values.len().max(1));
    let columns: Vec<f64> = (0..width)
        .filter_map(|i| {
            let part = &values[i * values.len() / width..(i + 1) * values.len() / width];
            (!part.is_empty()).then(|| part.iter().sum::<f64>() / part.len() as f64)
        })
        .collect();
    let finite = || columns.iter().copied().filter(|value| value.is_finite());
    let (low, high) = (finite().fold(f64::MAX, f64::min), finite().fold(f64::MIN, f64::max));
    let scale = if high > low { 7.0 / (high - low) } else { 0.0 };
    let height = |value: &f64| match value.is_finite() {
        true => HEIGHTS[((value - low) * scale).round() as usize],
        false => ' ',
    };
    columns.iter().map(height).collect()
}

/// Counts of values in `bins` equal bins from `low` to `high`; what lies beyond is in the outer ones.
pub fn histogram(values: &[f64], low: f64, high: f64, bins: usize) -> Vec<usize> {
    let mut counts = vec![0; bins];
    for value in values.iter().filter(|value| !value.is_nan()) {
        let bin = ((value - low) / (high - low) * bins as f64).floor();
        if let Some(count) = counts.get_mut((bin.max(0.0) as usize).min(bins.saturating_sub(1))) {
            *count += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparklines() {
        assert_eq!(sparkline(&[0.0, 7.0, 3.0], 9), "▁█▄");
        assert_eq!(sparkline(&[1.0, 1.0, 3.0, 3.0], 2), "▁█");
        assert_eq!(sparkline(&[2.0, f64::NAN, 2.0], 9), "▁ ▁");
        assert_eq!(sparkline(&[], 9), "");
    }

    #[test]
    fn histograms() {
        assert_eq!(histogram(&[-9.0, 0.0, 0.9, 1.0, 2.0, f64::NAN], 0.0, 2.0, 2), [3, 2]);
        assert_eq!(histogram(&[1.0], 0.0, 1.0, 0), [0; 0]);
    }
}
