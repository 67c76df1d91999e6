use serde_json::{Map, Value, json};

use crate::demo::Estimate;

/// A share of independent cases with Wilson's 95% interval; half a case is a tie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The share.
    pub mean: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Rate {
    /// The mean of values from 0 to 1. Wilson 1927: unlike a normal interval it does not leave the range,
    /// and is not empty where all cases agree.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let z = 1.96;
        let shrink = 1.0 + z * z / n;
        let centre = (mean + z * z / (2.0 * n)) / shrink;
        let half = z / shrink * (mean * (1.0 - mean) / n + z * z / (4.0 * n * n)).sqrt();
        Rate { mean, low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
    }
}

/// What was measured: names and values, as JSON and as a table.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    json: Map<String, Value>,
    table: Vec<[String; 3]>,
}

impl Findings {
    fn add(&mut self, name: &str, value: Value, shown: String, about: &str) {
        self.json.insert(name.into(), value);
        self.table.push([name.into(), shown, about.into()]);
    }

    /// A number of things.
    pub fn count(&mut self, name: &str, value: usize, about: &str) {
        self.add(name, json!(value), value.to_string(), about);
    }

    /// A number.
    pub fn number(&mut self, name: &str, value: f64, about: &str) {
        self.add(name, json!(value), format!("{value:.4}"), about);
    }

    /// A mean with its interval.
    pub fn mean(&mut self, name: &str, values: &[f64], about: &str) {
        let Estimate { mean, ci95 } = Estimate::of(values);
        let shown = match ci95.is_finite() {
            true => format!("{mean:.4} ± {ci95:.4}"),
            false => format!("{mean:.4}"),
        };
        self.add(name, json!({ "mean": mean, "ci95": ci95 }), shown, about);
    }

    /// A share with its interval.
    pub fn rate(&mut self, name: &str, rate: Rate, about: &str) {
        let Rate { mean, low, high } = rate;
        let shown = format!("{:.1}% ({:.1}% to {:.1}%)", 100.0 * mean, 100.0 * low, 100.0 * high);
        self.add(name, json!({ "mean": mean, "low": low, "high": high }), shown, about);
    }

    /// As one JSON object on one line. An interval is of 95%.
    pub fn to_json(&self) -> String {
        format!("{}\n", Value::Object(self.json.clone()))
    }

    /// As a table.
    pub fn to_table(&self) -> String {
        let width = |column: usize| self.table.iter().map(|row| row[column].chars().count()).max();
        let (first, second) = (width(0).unwrap_or(0), width(1).unwrap_or(0));
        let line = |[name, shown, about]: &[String; 3]| {
            let line = format!("{name:<first$}  {shown:>second$}  {about}");
            format!("{}\n", line.trim_end())
        };
        self.table.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_intervals() {
        // Published: 0 of 10 gives up to 27.8%, 81 of 263 gives 25.5% to 36.6%.
        let none = Rate::of(&[0.0; 10]);
        assert!(none.low == 0.0 && (none.high - 0.2775).abs() < 1e-3, "{none:?}");
        let cases: Vec<f64> = (0..263).map(|i| f64::from(i < 81)).collect();
        let rate = Rate::of(&cases);
        let ends = (rate.low - 0.2553).abs() + (rate.high - 0.3662).abs();
        assert!(ends < 1e-3, "{rate:?}");
        assert_eq!(Rate::of(&[0.5, 0.5]).mean, 0.5);
    }

    #[test]
    fn tables_and_json_say_the_same() {
        let mut findings = Findings::default();
        findings.count("rows", 3, "");
        findings.mean("margin", &[1.0, 3.0], "a pair");
        findings.mean("lone", &[1.0], "");
        let json: Value = serde_json::from_str(&findings.to_json()).unwrap();
        assert_eq!(json["margin"]["mean"], 2.0);
        assert_eq!(json["lone"]["ci95"], Value::Null);
        let table = findings.to_table();
        assert_eq!(table.lines().count(), 3);
        assert!(table.contains("rows                  3\n"), "{table}");
        assert!(table.contains("2.0000 ± 1.9600  a pair\n"), "{table}");
    }
}
