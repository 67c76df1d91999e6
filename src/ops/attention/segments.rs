//! Which rows see which.

use std::ops::Deref;

use super::device::Lists;

/// One run of queries: it sees all of its prefix, and causally itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Row of the first query.
    pub q_start: i32,
    /// Number of queries.
    pub q_len: i32,
    /// Row of the first query's own key: `q_start` in training, a cache row in decoding.
    pub kv_start: i32,
    /// Row of the first key of the prefix.
    pub prefix_start: i32,
    /// Number of keys of the prefix.
    pub prefix_len: i32,
}

/// The segments of a batch. What a GPU needs of them is made by the first layer that asks, and kept
/// for the others.
#[derive(Debug, Default)]
pub struct Segments {
    list: Vec<Segment>,
    lists: Lists,
}

impl Segments {
    pub(super) fn lists(&self) -> &Lists {
        &self.lists
    }

    pub(crate) fn push(&mut self, segment: Segment) {
        self.list.push(segment);
        self.lists = Lists::default();
    }
}

impl From<Vec<Segment>> for Segments {
    fn from(list: Vec<Segment>) -> Self {
        Segments { list, lists: Lists::default() }
    }
}

impl<const N: usize> From<[Segment; N]> for Segments {
    fn from(list: [Segment; N]) -> Self {
        Vec::from(list).into()
    }
}

impl Deref for Segments {
    type Target = [Segment];
    fn deref(&self) -> &[Segment] {
        &self.list
    }
}

impl Clone for Segments {
    fn clone(&self) -> Self {
        self.list.clone().into()
    }
}

impl PartialEq for Segments {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}
