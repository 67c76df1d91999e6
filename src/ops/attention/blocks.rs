//! What sees what on a GPU: the lists of blocks that the kernels work through, made from the
//! segments on the host and uploaded in the stream's order, so that nothing waits.
//!
//! A block lies in one segment and is counted from its start, so a sequence's blocks are the same
//! alone or in a batch.

use std::cmp::Reverse;

use super::Segment;
use crate::device::Cuda;
use crate::ffi::{self, COLLIMATE_ATTENTION_BLOCK};
use crate::{Result, Tensor};

const BLOCK: i32 = COLLIMATE_ATTENTION_BLOCK as i32;

/// A list on the device.
#[derive(Debug)]
pub struct List {
    words: Tensor<i32>,
    len: usize,
}

impl List {
    fn new<const N: usize>(cuda: &Cuda, items: &[[i32; N]]) -> Result<Self> {
        let words = Tensor::column(&cuda.device(), items.as_flattened())?;
        Ok(List { words, len: items.len() })
    }

    /// Number of blocks.
    pub fn len(&self) -> i64 {
        self.len as i64
    }

    fn pointer<T>(&self, op: &'static str, cuda: &Cuda) -> Result<*const T> {
        Ok(self.words.view().on(op, cuda)?.cast())
    }
}

/// Blocks of queries, those with the most keys first.
#[derive(Debug)]
pub struct Queries {
    blocks: List,
    most_keys: i64,
}

impl Queries {
    /// The blocks of segments that were checked.
    pub fn new(cuda: &Cuda, segments: &[Segment]) -> Result<Self> {
        let blocks = query_blocks(segments);
        let most_keys = blocks.first().map_or(0, keys_of);
        Ok(Queries { blocks: List::new(cuda, &blocks)?, most_keys })
    }

    /// Number of blocks.
    pub fn len(&self) -> i64 {
        self.blocks.len()
    }

    /// The most keys that a query sees.
    pub fn most_keys(&self) -> i64 {
        self.most_keys
    }

    pub fn pointer(
        &self,
        op: &'static str,
        cuda: &Cuda,
    ) -> Result<*const ffi::collimate_attention_queries> {
        self.blocks.pointer(op, cuda)
    }
}

/// Blocks of keys, those with the most queries first, and the queries that read them.
#[derive(Debug)]
pub struct Keys {
    blocks: List,
    readers: List,
}

impl Keys {
    /// The blocks of segments that were checked.
    pub fn new(cuda: &Cuda, segments: &[Segment]) -> Result<Self> {
        let (blocks, readers) = key_blocks(segments);
        Ok(Keys { blocks: List::new(cuda, &blocks)?, readers: List::new(cuda, &readers)? })
    }

    /// Number of blocks.
    pub fn len(&self) -> i64 {
        self.blocks.len()
    }

    pub fn pointers(
        &self,
        op: &'static str,
        cuda: &Cuda,
    ) -> Result<(*const ffi::collimate_attention_keys, *const ffi::collimate_attention_reader)>
    {
        Ok((self.blocks.pointer(op, cuda)?, self.readers.pointer(op, cuda)?))
    }
}

/// The fields of `collimate_attention_queries`.
fn query_blocks(segments: &[Segment]) -> Vec<[i32; 6]> {
    let mut blocks = Vec::new();
    for s in segments {
        for first in (0..s.q_len).step_by(BLOCK as usize) {
            let count = (s.q_len - first).min(BLOCK);
            let row = s.q_start + first;
            blocks.push([row, count, first, s.kv_start, s.prefix_start, s.prefix_len]);
        }
    }
    blocks.sort_by_key(|block| Reverse(keys_of(block)));
    blocks
}

/// Keys that the last query of a block sees.
fn keys_of(&[_, count, first, _, _, prefix_len]: &[i32; 6]) -> i64 {
    i64::from(prefix_len) + i64::from(first) + i64::from(count)
}

/// The fields of `collimate_attention_keys` and `collimate_attention_reader`. Every query that reads
/// a key of a block reads all of the block, but for its own segment's causal triangle: blocks end
/// where a prefix does.
fn key_blocks(segments: &[Segment]) -> (Vec<[i32; 4]>, Vec<[i32; 3]>) {
    let mut edges: Vec<i32> =
        segments.iter().flat_map(|s| [s.prefix_start, s.prefix_start + s.prefix_len]).collect();
    edges.sort_unstable();
    edges.dedup();
    let (mut blocks, mut readers) = (Vec::new(), Vec::new());
    for (index, s) in segments.iter().enumerate().filter(|(_, s)| s.q_len > 0) {
        let (mut start, end) = (s.q_start, s.q_start + s.q_len);
        let inside =
            edges.partition_point(|&edge| edge <= start)..edges.partition_point(|&edge| edge < end);
        for &edge in edges[inside].iter().chain([&end]) {
            for row in (start..edge).step_by(BLOCK as usize) {
                let before = readers.len();
                push_readers(segments, index, row, &mut readers);
                let queries: i64 = readers[before..].iter().map(|&[_, n, _]| i64::from(n)).sum();
                let place = [before as i32, (readers.len() - before) as i32];
                blocks.push((queries, [row, (edge - row).min(BLOCK), place[0], place[1]]));
            }
            start = edge;
        }
    }
    blocks.sort_by_key(|&(queries, _)| Reverse(queries));
    (blocks.into_iter().map(|(_, block)| block).collect(), readers)
}

/// The readers of the block that starts at `row` of segment `index`, in the order of the segments; a
/// segment reads its prefix before itself.
fn push_readers(segments: &[Segment], index: usize, row: i32, readers: &mut Vec<[i32; 3]>) {
    for (i, s) in segments.iter().enumerate().filter(|(_, s)| s.q_len > 0) {
        if (s.prefix_start..s.prefix_start + s.prefix_len).contains(&row) {
            readers.push([s.q_start, s.q_len, 0]);
        }
        if i == index {
            readers.push([row, s.q_start + s.q_len - row, 1]);
        }
    }
}
