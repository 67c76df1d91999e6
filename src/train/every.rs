//! When something is done that is not done at every step.

use crate::{Error, Result};

/// How often a run logs, evaluates or saves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Every {
    /// Never.
    No,
    /// Every so many steps.
    Steps(usize),
    /// Every time that this share of the run is done, rounded up to steps.
    Share(f64),
    /// At the end of each epoch, and where the run ends.
    Epoch,
}

impl Every {
    /// As transformers reads a number of steps: below 1 it is a share of the run. 0 is [`Every::No`].
    ///
    /// # Errors
    /// [`Error::Setting`] for what is neither.
    pub fn of_steps(name: &str, steps: f64) -> Result<Self> {
        match steps {
            0.0 => Ok(Every::No),
            x if x > 0.0 && x < 1.0 => Ok(Every::Share(x)),
            x if x.fract() == 0.0 && (1.0..=f64::from(1 << 30)).contains(&x) => {
                Ok(Every::Steps(x as usize))
            }
            x => Err(Error::setting(name, "a number of steps, or a share of the run below 1", x)),
        }
    }

    /// Steps from one time to the next in a run of `total`, where they are a number of their own.
    pub fn steps(self, total: usize) -> Option<usize> {
        match self {
            Every::Steps(steps) => Some(steps),
            Every::Share(share) => Some(((share * total as f64).ceil() as usize).max(1)),
            Every::No | Every::Epoch => None,
        }
    }

    /// Whether it is time behind `step` of `total`, at which `epochs` were done, one step before and now.
    pub fn due(self, step: usize, total: usize, epochs: (f64, f64)) -> bool {
        match self {
            Every::Epoch => step == total || epochs.1.floor() > epochs.0.floor(),
            every => every.steps(total).is_some_and(|steps| step.is_multiple_of(steps)),
        }
    }
}

/// How the best of a run's checkpoints is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Best {
    /// The metric of the held-out data, as it is logged.
    pub metric: String,
    /// Whether more of it is better.
    pub greater: bool,
}

impl Best {
    /// A metric by its name in transformers, without `eval_` or with it: more is better, unless it is a loss.
    pub fn new(metric: &str, greater: Option<bool>) -> Self {
        let greater = greater.unwrap_or(!metric.ends_with("loss"));
        let bare = metric.strip_prefix("eval_").unwrap_or(metric);
        Best { metric: format!("eval_{bare}"), greater }
    }

    /// Whether a value is better than the best one so far.
    pub fn improves(&self, value: f64, best: Option<f64>) -> bool {
        let Some(best) = best else { return !value.is_nan() };
        if self.greater { value > best } else { value < best }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_shares_and_epochs() {
        assert_eq!(Every::of_steps("x", 0.0).unwrap(), Every::No);
        assert_eq!(Every::of_steps("x", 1.0).unwrap(), Every::Steps(1));
        assert_eq!(Every::of_steps("x", 0.25).unwrap(), Every::Share(0.25));
        for wrong in [-1.0, 1.5, f64::NAN, f64::INFINITY] {
            assert!(Every::of_steps("x", wrong).is_err(), "{wrong}");
        }
        let due = |every: Every, total: usize, per_epoch: f64| {
            let epochs = |step: usize| step as f64 / per_epoch;
            let due = |&step: &usize| every.due(step, total, (epochs(step - 1), epochs(step)));
            (1..=total).filter(due).collect::<Vec<_>>()
        };
        assert_eq!(due(Every::No, 6, 3.0), [0; 0]);
        assert_eq!(due(Every::Steps(4), 9, 3.0), [4, 8]);
        // A share is rounded up, as in transformers.
        assert_eq!(due(Every::Share(0.3), 9, 3.0), [3, 6, 9]);
        assert_eq!(due(Every::Share(1e-9), 3, 3.0), [1, 2, 3]);
        assert_eq!(due(Every::Epoch, 8, 3.0), [3, 6, 8]);
    }

    #[test]
    fn the_best_by_its_metric() {
        let loss = Best::new("eval_loss", None);
        assert_eq!(loss, Best::new("loss", None));
        assert!(loss.improves(1.0, None) && loss.improves(1.0, Some(2.0)));
        assert!(!loss.improves(2.0, Some(2.0)) && !loss.improves(f64::NAN, None));
        assert!(Best::new("rewards/accuracies", None).improves(1.0, Some(0.5)));
        assert!(!Best::new("loss", Some(true)).improves(1.0, Some(2.0)));
    }
}
