//! Which examples meet in which step.

use super::TrainConfig;
use crate::rng::Rng;

/// The steps of a run: epochs of micro-batches. A step never spans two epochs; the last one of an
/// epoch may have fewer micro-batches, and the last micro-batch fewer examples.
#[derive(Clone, Debug)]
pub struct Batches {
    examples: usize,
    batch_size: usize,
    accumulation: usize,
    joins_single: bool,
    shuffle: bool,
    seed: u64,
    /// The epoch under way and its order.
    order: Option<(usize, Vec<usize>)>,
}

impl Batches {
    /// Batches over `examples` examples.
    pub fn new(config: &TrainConfig, examples: usize, joins_single: bool) -> Self {
        Batches {
            examples,
            batch_size: config.batch_size,
            accumulation: config.accumulation,
            joins_single,
            shuffle: config.shuffle,
            seed: config.seed,
            order: None,
        }
    }

    /// One pass over `examples` examples in order, a micro-batch a step.
    pub fn in_order(examples: usize, batch_size: usize, joins_single: bool) -> Self {
        let (accumulation, shuffle, seed) = (1, false, 0);
        Batches { examples, batch_size, accumulation, joins_single, shuffle, seed, order: None }
    }

    fn micro_batches(&self) -> usize {
        let whole = self.examples.div_ceil(self.batch_size);
        let single = self.examples > 1 && self.examples % self.batch_size == 1;
        if self.joins_single && single && self.batch_size > 1 { whole - 1 } else { whole }
    }

    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.micro_batches().div_ceil(self.accumulation)
    }

    /// Steps of the whole run.
    pub fn total(&self, config: &TrainConfig) -> usize {
        config.max_steps.unwrap_or_else(|| {
            ((self.steps_per_epoch() as f64 * config.epochs).ceil() as usize).max(1)
        })
    }

    /// The examples of each micro-batch of `step` (from 1).
    pub fn step(&mut self, step: usize) -> Vec<Vec<usize>> {
        let per_epoch = self.steps_per_epoch();
        let (epoch, within) = ((step - 1) / per_epoch, (step - 1) % per_epoch);
        if self.order.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let mut order: Vec<usize> = (0..self.examples).collect();
            if self.shuffle {
                Rng::new(self.seed, epoch as u64).shuffle(&mut order);
            }
            self.order = Some((epoch, order));
        }
        let order = self.order.as_ref().map_or(&[][..], |(_, order)| order);
        let micro_batches = self.micro_batches();
        let first = within * self.accumulation;
        (first..(first + self.accumulation).min(micro_batches))
            .map(|i| {
                let end =
                    if i + 1 == micro_batches { self.examples } else { (i + 1) * self.batch_size };
                order[i * self.batch_size..end].to_vec()
            })
            .collect()
    }

    /// Epochs done after `step`, with the share of the one under way.
    pub fn epoch(&self, step: usize) -> f64 {
        let per_epoch = self.steps_per_epoch();
        let (epochs, within) = (step / per_epoch, step % per_epoch);
        let done = (within * self.accumulation) as f64 / self.micro_batches() as f64;
        epochs as f64 + done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_comes_once_an_epoch() {
        for (examples, batch_size, accumulation, joins) in [
            (10, 4, 2, false),
            (9, 4, 2, true),
            (9, 4, 2, false),
            (1, 4, 1, true),
            (16, 4, 1, true),
        ] {
            let config = TrainConfig { batch_size, accumulation, ..TrainConfig::default() };
            let mut batches = Batches::new(&config, examples, joins);
            for epoch in 0..3 {
                let per_epoch = batches.steps_per_epoch();
                let mut seen: Vec<usize> = (1..=per_epoch)
                    .flat_map(|step| batches.step(epoch * per_epoch + step))
                    .flatten()
                    .collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..examples).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_single_last_example_joins_the_batch_before() {
        let config = TrainConfig { batch_size: 4, ..TrainConfig::default() };
        let mut batches = Batches::new(&config, 9, true);
        assert_eq!(batches.steps_per_epoch(), 2);
        assert_eq!(batches.step(2)[0].len(), 5);
    }
}
