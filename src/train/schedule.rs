//! The learning rate over a run: the schedules of transformers, with their settings.

use std::f64::consts::PI;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// Down to 0 at the last step, in a straight line.
    Linear,
    /// Along so many waves of a cosine; half a wave goes down to 0 at the last step.
    Cosine {
        /// Waves.
        cycles: f64,
    },
    /// Down to 0 along half a wave of a cosine, so many times.
    CosineWithRestarts {
        /// Times.
        cycles: f64,
    },
    /// Along a cosine to a rate above 0.
    CosineWithMinLr {
        /// Waves.
        cycles: f64,
        /// Where it ends.
        floor: Floor,
        /// A warm-up from this share of the rate, one step ahead; none: from 0, as elsewhere.
        warmup: Option<EarlyWarmup>,
    },
    /// Down to a rate along a power of what is left.
    Polynomial {
        /// The last rate.
        end: f64,
        /// The power; 1 is a straight line.
        power: f64,
    },
    /// Constant from the first step, without any warm-up.
    Constant,
    /// Constant after warm-up.
    ConstantWithWarmup,
    /// Down with the square root of the steps.
    InverseSqrt {
        /// Steps that halve its square; none: those of the warm-up, or 10,000.
        timescale: Option<usize>,
    },
    /// Constant for long, then down.
    WarmupStableDecay(StableDecay),
}

/// A smallest rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Floor {
    /// As it is.
    Rate(f64),
    /// A share of the peak.
    Share(f64),
}

/// A warm-up whose first step has a rate already.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EarlyWarmup {
    /// The first step's share of the peak; none: one step's share of the warm-up.
    pub start: Option<f64>,
}

/// What warms up, holds and decays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StableDecay {
    /// Steps at the peak; none: what warm-up and decay leave.
    pub stable: Option<usize>,
    /// Steps down.
    pub decay: usize,
    /// How it rises.
    pub rise: Curve,
    /// How it falls.
    pub fall: Curve,
    /// The smallest rate, as a share of the peak.
    pub floor: f64,
    /// Waves of a cosine that falls.
    pub cycles: f64,
}

/// A curve from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// A straight line.
    Linear,
    /// A cosine.
    Cosine,
    /// One less a square root.
    OneLessSqrt,
}

/// The names of the schedules, as transformers has them.
pub const SCHEDULES: [&str; 10] = [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
];

impl Schedule {
    /// Half a wave of a cosine.
    pub const COSINE: Schedule = Schedule::Cosine { cycles: 0.5 };

    /// A schedule by its name in transformers and its settings there, a JSON object.
    ///
    /// # Errors
    /// [`Error::Setting`] for a name or a setting that is not known or not in its range.
    pub fn parse(name: &str, settings: Option<&str>) -> Result<Self> {
        let mut given = Settings::parse(settings)?;
        let schedule = match name {
            "linear" => Schedule::Linear,
            "cosine" => Schedule::Cosine { cycles: given.number("num_cycles", 0.5)? },
            "cosine_with_restarts" => {
                Schedule::CosineWithRestarts { cycles: given.number("num_cycles", 1.0)? }
            }
            "cosine_with_min_lr" | "cosine_warmup_with_min_lr" => {
                let cycles = given.number("num_cycles", 0.5)?;
                let floor = match (given.maybe("min_lr")?, given.maybe("min_lr_rate")?) {
                    (Some(rate), None) => Floor::Rate(rate),
                    (None, Some(share)) => Floor::Share(share),
                    (both, _) => {
                        let got = if both.is_some() { "both" } else { "neither" };
                        return Err(wrong("one of min_lr and min_lr_rate", got));
                    }
                };
                let warmup = match name {
                    "cosine_with_min_lr" => None,
                    _ => Some(EarlyWarmup { start: given.maybe("warmup_lr_rate")? }),
                };
                Schedule::CosineWithMinLr { cycles, floor, warmup }
            }
            "polynomial" => Schedule::Polynomial {
                end: given.number("lr_end", 1e-7)?,
                power: given.number("power", 1.0)?,
            },
            "constant" => Schedule::Constant,
            "constant_with_warmup" => Schedule::ConstantWithWarmup,
            "inverse_sqrt" => Schedule::InverseSqrt {
                timescale: given.count("timescale")?.filter(|&steps| steps > 0),
            },
            "warmup_stable_decay" => {
                let decay = given.count("num_decay_steps")?;
                Schedule::WarmupStableDecay(StableDecay {
                    stable: given.count("num_stable_steps")?,
                    decay: decay.ok_or_else(|| wrong("num_decay_steps", "none"))?,
                    rise: given.curve("warmup_type", Curve::Linear)?,
                    fall: given.curve("decay_type", Curve::Cosine)?,
                    floor: given.number("min_lr_ratio", 0.0)?,
                    cycles: given.number("num_cycles", 0.5)?,
                })
            }
            "reduce_lr_on_plateau" | "greedy" => {
                let message = format!(
                    "lr_scheduler_type {name}: the rate would depend on evaluations; take one that \
                     is known ahead: {}",
                    SCHEDULES.join(", ")
                );
                return Err(Error::Unsupported(message));
            }
            name => {
                let expected = format!("one of {}", SCHEDULES.join(", "));
                return Err(Error::setting("lr_scheduler_type", expected, name));
            }
        };
        given.nothing_left(name)?;
        Ok(schedule)
    }

    /// Checks the settings against the peak rate.
    ///
    /// # Errors
    /// [`Error::Setting`] where the peak is not above the rate at which the schedule ends.
    pub fn validate(&self, peak: f64) -> Result<()> {
        match *self {
            Schedule::Polynomial { end, .. } if peak > 0.0 && peak <= end => {
                let expected = format!("lr_end below the learning rate, {peak}");
                Err(wrong(&expected, end))
            }
            _ => Ok(()),
        }
    }

    /// The rate behind `done` steps of `total`, `warmup` of which warm up, as a share of the `peak`.
    pub fn factor(&self, done: usize, warmup: usize, total: usize, peak: f64) -> f64 {
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        if *self == Schedule::Constant {
            return 1.0;
        }
        if done < warmup {
            let progress = share(done, warmup);
            return match *self {
                Schedule::WarmupStableDecay(how) => {
                    let factor = match how.rise {
                        Curve::Linear => progress,
                        Curve::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                        Curve::OneLessSqrt => 1.0 - (1.0 - progress).sqrt(),
                    };
                    (factor * (1.0 - how.floor) + how.floor).max(0.0)
                }
                Schedule::CosineWithMinLr { warmup: Some(early), .. } => match early.start {
                    Some(start) => start + (1.0 - start) * share(done, warmup - 1),
                    None => share(done + 1, warmup),
                },
                _ => progress,
            };
        }
        let left = total.saturating_sub(warmup);
        let progress = share(done - warmup, left);
        let wave = |cycles: f64, progress: f64| 0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos());
        let above = |floor: f64, factor: f64| (factor * (1.0 - floor) + floor).max(0.0);
        match *self {
            Schedule::Linear => (1.0 - progress).max(0.0),
            Schedule::Cosine { cycles } => wave(cycles, progress).max(0.0),
            Schedule::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            Schedule::CosineWithRestarts { cycles } => wave(0.5, (cycles * progress) % 1.0),
            Schedule::CosineWithMinLr { cycles, floor, warmup: early } => {
                let floor = match floor {
                    Floor::Rate(rate) => rate / peak,
                    Floor::Share(share) => share,
                };
                let ahead = usize::from(early.is_some());
                above(floor, wave(cycles, share(done - warmup + ahead, left)))
            }
            Schedule::Polynomial { end, .. } if done > total => end / peak,
            Schedule::Polynomial { end, power } => {
                ((peak - end) * (1.0 - progress).powf(power) + end) / peak
            }
            Schedule::Constant | Schedule::ConstantWithWarmup => 1.0,
            Schedule::InverseSqrt { timescale } => {
                let usual = if warmup > 0 { warmup } else { 10_000 };
                let scale = timescale.unwrap_or(usual) as f64;
                let steps = done as f64 + scale - warmup as f64;
                1.0 / (steps / scale).sqrt()
            }
            Schedule::WarmupStableDecay(how) => {
                // Below 0 where warm-up and decay are longer than the run: the decay begins late.
                let whole = |steps: usize| steps as f64;
                let rest = whole(total) - whole(warmup) - whole(how.decay);
                let down = whole(done - warmup) - how.stable.map_or(rest, whole);
                if down < 0.0 {
                    return 1.0;
                }
                if down >= whole(how.decay) {
                    return how.floor;
                }
                let progress = down / whole(how.decay.max(1));
                let factor = match how.fall {
                    Curve::Linear => 1.0 - progress,
                    Curve::Cosine => wave(how.cycles, progress),
                    Curve::OneLessSqrt => 1.0 - progress.sqrt(),
                };
                above(how.floor, factor)
            }
        }
    }
}

fn wrong(expected: &str, got: impl std::fmt::Display) -> Error {
    Error::setting("lr_scheduler_kwargs", expected, got)
}

/// The settings of a schedule, taken out one by one.
struct Settings(Map<String, Value>);

impl Settings {
    fn parse(text: Option<&str>) -> Result<Self> {
        let Some(text) = text else { return Ok(Settings(Map::new())) };
        let given = serde_json::from_str(text);
        given.map(Settings).map_err(|e| wrong("a mapping, as JSON on the command line", e))
    }

    /// A number that is finite and not negative, where it is given and not null.
    fn maybe(&mut self, name: &str) -> Result<Option<f64>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                // YAML 1.1 reads 1e-6 as text, and so do files that are written for it.
                let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
                let number = number.filter(|x| x.is_finite() && *x >= 0.0);
                let expected = format!("{name} to be a number >= 0");
                number.map(Some).ok_or_else(|| wrong(&expected, &value))
            }
        }
    }

    fn number(&mut self, name: &str, usual: f64) -> Result<f64> {
        Ok(self.maybe(name)?.unwrap_or(usual))
    }

    fn count(&mut self, name: &str) -> Result<Option<usize>> {
        let Some(number) = self.maybe(name)? else { return Ok(None) };
        let whole = number.fract() == 0.0 && number < f64::from(1 << 30);
        let expected = format!("{name} to be a whole number");
        whole.then_some(Some(number as usize)).ok_or_else(|| wrong(&expected, number))
    }

    fn curve(&mut self, name: &str, usual: Curve) -> Result<Curve> {
        let Some(value) = self.0.remove(name).filter(|value| !value.is_null()) else {
            return Ok(usual);
        };
        match value.as_str() {
            Some("linear") => Ok(Curve::Linear),
            Some("cosine") => Ok(Curve::Cosine),
            Some("1-sqrt") => Ok(Curve::OneLessSqrt),
            _ => Err(wrong(&format!("{name} to be linear, cosine or 1-sqrt"), value)),
        }
    }

    fn nothing_left(self, schedule: &str) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(wrong(&format!("settings that {schedule} has"), name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests/fixtures/schedules.json holds what transformers makes of each schedule over a whole run and
    /// beyond (scripts/schedules.py).
    #[test]
    fn every_rate_is_that_of_transformers() {
        let text = include_str!("../../tests/fixtures/schedules.json");
        let fixture: Value = serde_json::from_str(text).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for case in fixture["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let settings = case["settings"].to_string();
            let schedule = Schedule::parse(name, Some(&settings)).unwrap();
            let number = |field: &str| case[field].as_u64().unwrap() as usize;
            let (warmup, total, peak) =
                (number("warmup"), number("total"), case["peak"].as_f64().unwrap());
            let rates = case["rates"].as_array().unwrap();
            assert!(rates.len() > total);
            for (done, rate) in rates.iter().enumerate() {
                let ours = peak * schedule.factor(done, warmup, total, peak);
                let rate = rate.as_f64().unwrap();
                let near = (ours - rate).abs() <= 1e-12 * peak;
                assert!(near, "{name} {settings} after {done} of {total}: {ours}, not {rate}");
            }
            seen.insert(name.to_string());
        }
        assert_eq!(seen.len(), SCHEDULES.len());
    }

    #[test]
    fn settings_that_are_wrong() {
        for (name, settings, says) in [
            ("polinomial", "{}", "lr_scheduler_type: expected one of linear"),
            ("reduce_lr_on_plateau", "{}", "depend on evaluations"),
            ("linear", "{\"num_cycles\": 1}", "settings that linear has, got num_cycles"),
            ("cosine_with_min_lr", "{}", "one of min_lr and min_lr_rate, got neither"),
            ("cosine_with_min_lr", "{\"min_lr\": 1, \"min_lr_rate\": 1}", "got both"),
            ("cosine", "{\"num_cycles\": -1}", "num_cycles to be a number >= 0, got -1"),
            ("cosine", "3", "a mapping"),
            ("warmup_stable_decay", "{}", "expected num_decay_steps"),
            ("warmup_stable_decay", "{\"num_decay_steps\": 1.5}", "whole number"),
            (
                "warmup_stable_decay",
                "{\"num_decay_steps\": 1, \"decay_type\": \"steep\"}",
                "linear, cosine or 1-sqrt",
            ),
        ] {
            let message = Schedule::parse(name, Some(settings)).unwrap_err().to_string();
            assert!(message.contains(says), "{says}: {message}");
        }
        let polynomial = Schedule::parse("polynomial", None).unwrap();
        assert!(polynomial.validate(1e-7).is_err() && polynomial.validate(1e-6).is_ok());
    }
}
