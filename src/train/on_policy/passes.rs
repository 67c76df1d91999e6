//! The order in which the episodes of a step are passed over.

use super::ORDER;
use crate::train::TrainConfig;
use crate::train::rollout::{Episode, RolloutConfig, stream};

/// How episodes are cut into mini-batches of micro-batches.
pub(super) struct Passes {
    seed: u64,
    shuffle: bool,
    batch_size: usize,
    mini_batches: usize,
    together: usize,
    episodes: usize,
}

impl Passes {
    pub fn new(config: &TrainConfig, rollout: &RolloutConfig, together: usize) -> Self {
        Passes {
            seed: config.seed,
            shuffle: config.shuffle,
            batch_size: config.batch_size,
            mini_batches: rollout.mini_batches,
            together,
            episodes: config.batch_size * config.accumulation,
        }
    }

    /// Micro-batches of a mini-batch, where the batch is whole.
    pub fn micro_batches(&self) -> usize {
        self.episodes.div_ceil(self.mini_batches).div_ceil(self.batch_size)
    }

    /// Leaves out what cannot be `together`: another completion of the prompt had no reward.
    pub fn keep_whole(&self, episodes: &mut Vec<Episode>) {
        let mut sizes = vec![0usize; episodes.last().map_or(0, |last| last.group + 1)];
        episodes.iter().for_each(|e| sizes[e.group] += 1);
        episodes.retain(|e| sizes[e.group].is_multiple_of(self.together));
    }

    /// The mini-batches of a pass over some episodes.
    pub fn order(&self, episodes: &[Episode], step: usize, pass: usize) -> Vec<Vec<Vec<usize>>> {
        let mut units: Vec<Vec<usize>> = Vec::new();
        let mut start = 0;
        for group in episodes.chunk_by(|a, b| a.group == b.group) {
            let own: Vec<usize> = (start..start + group.len()).collect();
            units.extend(own.chunks_exact(self.together).map(<[usize]>::to_vec));
            start += group.len();
        }
        if self.shuffle {
            stream(self.seed, step, ORDER + pass as u64).shuffle(&mut units);
        }
        let mini_batch = units.len().div_ceil(self.mini_batches).max(1);
        let micro_batch = (self.batch_size / self.together).max(1);
        let mini_batches = units.chunks(mini_batch);
        mini_batches.map(|m| m.chunks(micro_batch).map(<[Vec<usize>]>::concat).collect()).collect()
    }
}

/// Some of the episodes, in the order asked for.
pub(super) fn pick<'e>(episodes: &'e mut [Episode], indices: &[usize]) -> Vec<&'e mut Episode> {
    let mut all: Vec<Option<&mut Episode>> = episodes.iter_mut().map(Some).collect();
    indices.iter().filter_map(|&i| all[i].take()).collect()
}
