//! Checks of segments, and the list of independent pieces of work.

use std::ops::Range;
use std::sync::Mutex;

use super::{Heads, Segment};
use crate::{Error, Result};

/// Queries times heads of a group that one item handles at most. Fixed, so that the order of the
/// backward's sums is.
const ITEM_ROWS: usize = 768;

/// Some queries of one segment, and all query heads that share one key head.
#[derive(Clone, Debug)]
pub struct Item {
    /// The segment's index.
    pub segment: usize,
    /// The key head.
    pub kv_head: usize,
    /// Queries, counted from the segment's first.
    pub queries: Range<usize>,
    /// Keys that the last query sees.
    pub keys: usize,
}

/// Every item, ordered by segment, then key head, then query.
pub fn items(segments: &[Segment], heads: &Heads) -> Vec<Item> {
    let chunk = (ITEM_ROWS / (heads.heads / heads.kv_heads)).max(1);
    let mut items = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let (len, prefix) = (segment.q_len as usize, segment.prefix_len as usize);
        for kv_head in 0..heads.kv_heads {
            for start in (0..len).step_by(chunk) {
                let end = (start + chunk).min(len);
                let keys = prefix + end;
                items.push(Item { segment: index, kv_head, queries: start..end, keys });
            }
        }
    }
    items
}

/// For each item, how many of its keys, from the first, other items may see too: its prefix, or all.
pub fn shared_keys(segments: &[Segment], items: &[Item], rows: usize) -> Vec<usize> {
    let mut in_prefix = vec![false; rows];
    for s in segments {
        in_prefix[s.prefix_start as usize..][..s.prefix_len as usize].fill(true);
    }
    let shared = |item: &Item| {
        let s = &segments[item.segment];
        let own = &in_prefix[s.kv_start as usize..][..s.q_len as usize];
        let alone = item.queries.len() == s.q_len as usize && !own.contains(&true);
        if alone { s.prefix_len as usize } else { item.keys }
    };
    items.iter().map(shared).collect()
}

impl Item {
    /// Pairs of a query and a key, roughly.
    pub fn cost(&self) -> usize {
        self.queries.len() * (self.keys - self.queries.len() / 2)
    }
}

/// Hands the jobs out in their order to the threads of the pool, each with a state of its own.
pub fn run<J: Send, S>(
    jobs: Vec<J>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, J) + Sync,
) {
    let workers = rayon::current_num_threads().min(jobs.len());
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().unwrap_or_else(|e| e.into_inner()).next();
    let worker = || {
        let mut state = state();
        while let Some(job) = next() {
            work(&mut state, job);
        }
    };
    rayon::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|_| worker());
        }
        worker();
    });
}

/// Checks that the segments cover the query rows once, and that their keys are key rows.
pub fn check(op: &'static str, segments: &[Segment], rows: usize, kv_rows: usize) -> Result<()> {
    let within = |start: i32, len: i32, rows: usize| {
        start >= 0 && len >= 0 && start as u64 + len as u64 <= rows as u64
    };
    for (index, s) in segments.iter().enumerate() {
        let fits = within(s.q_start, s.q_len, rows)
            && within(s.kv_start, s.q_len, kv_rows)
            && within(s.prefix_start, s.prefix_len, kv_rows);
        if !fits {
            return Err(Error::shape(
                op,
                format!("segments within {rows} query rows and {kv_rows} key rows"),
                format!("segment {index}: {s:?}"),
            ));
        }
    }
    let mut ranges: Vec<(i32, i32)> =
        segments.iter().filter(|s| s.q_len > 0).map(|s| (s.q_start, s.q_len)).collect();
    ranges.sort_unstable();
    let mut covered = 0;
    for (start, len) in ranges {
        if start as usize != covered {
            return Err(uncovered(op, rows, covered.min(start as usize)));
        }
        covered += len as usize;
    }
    if covered == rows { Ok(()) } else { Err(uncovered(op, rows, covered)) }
}

fn uncovered(op: &'static str, rows: usize, row: usize) -> Error {
    Error::shape(
        op,
        format!("segments that cover each of {rows} query rows once"),
        format!("row {row} covered otherwise"),
    )
}

/// [`check`], and that every query's own key lies in its own row.
pub fn check_training(op: &'static str, segments: &[Segment], rows: usize) -> Result<()> {
    check(op, segments, rows, rows)?;
    match segments.iter().position(|s| s.kv_start != s.q_start && s.q_len > 0) {
        None => Ok(()),
        Some(index) => Err(Error::shape(
            op,
            "kv_start equal to q_start",
            format!("segment {index}: {:?}", segments[index]),
        )),
    }
}
