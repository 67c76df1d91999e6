//! Host memory that is handed on from one tensor to the next.
//!
//! A step makes and drops the same few hundred matrices over and over, of other sizes in every step
//! where sequences have other lengths. Fresh memory costs page faults, in which it is filled with
//! zeros that nobody reads. While somebody [keeps memory](keep), matrices are cut from large
//! regions: each from the lowest place that holds it, so that what was touched stays in use and what
//! was not is never asked of the system.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Plain;

/// Values of fewer bytes are left to the allocator.
const LEAST: usize = 1 << 14;
/// Blocks are multiples of as many bytes, and begin at them: a cache line.
const LINE: usize = 64;
/// Bytes of a region, unless it is for one larger matrix. Those that are never touched cost nothing.
const REGION: usize = 1 << 30;
/// A large page, in which regions begin.
const PAGE: usize = 2 << 20;

static POOL: Mutex<Pool> = Mutex::new(Pool { keepers: 0, regions: Vec::new() });

/// Memory is handed on until the last of these is dropped.
#[derive(Debug)]
pub(crate) struct Kept(());

/// Keeps memory that is dropped, until the value that this returns is.
pub(crate) fn keep() -> Kept {
    large_vectors_apart();
    pool().keepers += 1;
    Kept(())
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut pool = pool();
        pool.keepers -= 1;
        pool.shrink();
    }
}

/// Values in host memory: a vector, or a block of the pool.
#[derive(Debug)]
pub(crate) struct Values<T: Plain>(Memory<T>);

#[derive(Debug)]
enum Memory<T: Plain> {
    Vector(Vec<T>),
    Pooled { block: Block, len: usize, values: PhantomData<T> },
}

impl<T: Plain> Values<T> {
    /// Zeros.
    pub fn zeros(len: usize) -> Self {
        let Some(mut values) = Self::pooled(len) else {
            return vec![T::default(); len].into();
        };
        if let Memory::Pooled { block: Block { fresh: false, .. }, .. } = values.0 {
            values.fill(T::default());
        }
        values
    }

    /// Values that are to be written before they are read: whatever was left in this memory.
    pub fn unset(len: usize) -> Self {
        Self::pooled(len).unwrap_or_else(|| vec![T::default(); len].into())
    }

    fn pooled(len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        let block = pool().take(bytes)?;
        Some(Values(Memory::Pooled { block, len, values: PhantomData }))
    }
}

impl<T: Plain> From<Vec<T>> for Values<T> {
    fn from(values: Vec<T>) -> Self {
        Values(Memory::Vector(values))
    }
}

impl<T: Plain> Clone for Values<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::unset(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Plain> Drop for Values<T> {
    fn drop(&mut self) {
        if let Memory::Pooled { block, .. } = &self.0 {
            pool().give(block);
        }
    }
}

impl<T: Plain> Deref for Values<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match &self.0 {
            Memory::Vector(values) => values,
            // SAFETY: the block is this value's alone until it is dropped, holds as many, and all
            // its bytes were set: a region begins as zeros. Every bit pattern is a value.
            Memory::Pooled { block, len, .. } => unsafe {
                std::slice::from_raw_parts(block.start.cast().as_ptr(), *len)
            },
        }
    }
}

impl<T: Plain> DerefMut for Values<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            Memory::Vector(values) => values,
            // SAFETY: as above.
            Memory::Pooled { block, len, .. } => unsafe {
                std::slice::from_raw_parts_mut(block.start.cast().as_ptr(), *len)
            },
        }
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Part of a region, its user's alone.
#[derive(Debug)]
struct Block {
    start: NonNull<u8>,
    bytes: usize,
    /// Whether these are the region's first zeros.
    fresh: bool,
}

// SAFETY: it is owned memory.
unsafe impl Send for Block {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Block {}

struct Pool {
    keepers: usize,
    regions: Vec<Region>,
}

impl Pool {
    /// A block; or nothing where the allocator is to be asked.
    fn take(&mut self, bytes: usize) -> Option<Block> {
        if self.keepers == 0 || bytes < LEAST {
            return None;
        }
        let bytes = bytes.checked_next_multiple_of(LINE)?;
        if let Some(block) = self.regions.iter_mut().find_map(|region| region.take(bytes)) {
            return Some(block);
        }
        self.regions.push(Region::new(bytes.max(REGION))?);
        self.regions.last_mut()?.take(bytes)
    }

    fn give(&mut self, block: &Block) {
        let region = self.regions.iter_mut().find(|region| region.holds(block));
        region.expect("a block's region outlives it").give(block);
        if self.keepers == 0 {
            self.shrink();
        }
    }

    /// Gives regions of which nothing is used back to the system, where nobody keeps memory.
    fn shrink(&mut self) {
        if self.keepers == 0 {
            self.regions.retain(|region| region.used > 0);
        }
    }
}

/// A large piece of memory.
struct Region {
    memory: NonNull<u8>,
    layout: Layout,
    /// Where blocks begin: at a large page.
    start: usize,
    /// Bytes from there; those from `touched` on were never in use.
    bytes: usize,
    touched: usize,
    /// Bytes in use.
    used: usize,
    /// What is free: offsets and bytes, apart from each other.
    free: BTreeMap<usize, usize>,
}

// SAFETY: it is owned memory.
unsafe impl Send for Region {}

impl Region {
    /// Zeros, or nothing where the system does not give as much.
    fn new(bytes: usize) -> Option<Self> {
        // Of no alignment to speak of: to align it, the allocator would write the zeros itself.
        let layout = Layout::from_size_align(bytes.checked_add(PAGE)?, 1).ok()?;
        // SAFETY: the size is not 0.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let start = memory.as_ptr().align_offset(PAGE);
        // SAFETY: there are so many bytes from there.
        large_pages(unsafe { memory.add(start) }, bytes);
        let free = BTreeMap::from([(0, bytes)]);
        Some(Region { memory, layout, start, bytes, touched: 0, used: 0, free })
    }

    fn first(&self) -> NonNull<u8> {
        // SAFETY: within the memory.
        unsafe { self.memory.add(self.start) }
    }

    /// The lowest block of `bytes`, a multiple of [`LINE`].
    fn take(&mut self, bytes: usize) -> Option<Block> {
        let (&at, &size) = self.free.iter().find(|&(_, &size)| size >= bytes)?;
        self.free.remove(&at);
        if size > bytes {
            self.free.insert(at + bytes, size - bytes);
        }
        self.used += bytes;
        let fresh = at >= self.touched;
        self.touched = self.touched.max(at + bytes);
        // SAFETY: within the memory.
        Some(Block { start: unsafe { self.first().add(at) }, bytes, fresh })
    }

    fn holds(&self, block: &Block) -> bool {
        let start = self.first().addr().get();
        (start..start + self.bytes).contains(&block.start.addr().get())
    }

    fn give(&mut self, block: &Block) {
        let mut at = block.start.addr().get() - self.first().addr().get();
        let mut bytes = block.bytes;
        self.used -= bytes;
        if let Some(after) = self.free.remove(&(at + bytes)) {
            bytes += after;
        }
        if let Some((&before, size)) = self.free.range_mut(..at).next_back()
            && before + *size == at
        {
            bytes += *size;
            at = before;
        }
        self.free.insert(at, bytes);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `new` took it for this layout, and no block is in use.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

/// Asks for pages of 2 MiB, of which there are 512 times fewer to fault on and to look up. For
/// memory that nothing was written to yet.
#[cfg(target_os = "linux")]
fn large_pages(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's memory, from a page on; this is advice, which changes nothing in it.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes / PAGE * PAGE, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn large_pages(_: NonNull<u8>, _: usize) {}

/// Has the allocator map large vectors one by one, and give back what is dropped: by default it
/// puts them into the heaps of the threads once some were dropped, where they leave holes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn large_vectors_apart() {
    // SAFETY: two settings of the allocator, within their ranges.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn large_vectors_apart() {}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Pool {
        Pool { keepers: 1, regions: Vec::new() }
    }

    fn offset(pool: &Pool, block: &Block) -> usize {
        block.start.addr().get() - pool.regions[0].first().addr().get()
    }

    #[test]
    fn blocks_are_the_lowest_that_are_free() {
        let mut pool = kept();
        let blocks = [20_000, 30_001, 40_000].map(|bytes| pool.take(bytes).unwrap());
        let offsets = blocks.each_ref().map(|block| offset(&pool, block));
        assert_eq!(offsets, [0, 20_032, 50_048]);
        assert!(blocks.iter().all(|block| block.fresh));
        pool.give(&blocks[0]);
        let after = pool.take(20_033).unwrap();
        assert_eq!((offset(&pool, &after), after.fresh), (90_048, true), "it does not fit before");
        pool.give(&blocks[1]);
        let joined = pool.take(50_000).unwrap();
        assert_eq!((offset(&pool, &joined), joined.fresh), (0, false), "two gaps are one");
        for block in [&joined, &after, &blocks[2]] {
            pool.give(block);
        }
        assert_eq!(pool.regions[0].free, BTreeMap::from([(0, REGION)]));
        assert_eq!(pool.regions[0].used, 0);
    }

    #[test]
    fn lengths_that_change_touch_no_more_than_was_in_use() {
        let mut pool = kept();
        let mut touched = 0;
        for step in 0..200 {
            let rows = 1000 - step * 7 % 300;
            let blocks: Vec<_> =
                (0..40).map(|i| pool.take(rows * [288, 768][i % 2] * 4).unwrap()).collect();
            blocks.iter().rev().for_each(|block| pool.give(block));
            touched = if step == 0 { pool.regions[0].touched } else { touched };
        }
        assert_eq!((pool.regions.len(), pool.regions[0].touched), (1, touched));
    }

    #[test]
    fn what_no_region_holds_has_its_own() {
        let mut pool = kept();
        let large = pool.take(REGION + 1).unwrap();
        let small = pool.take(LEAST).unwrap();
        assert_eq!(pool.regions.len(), 2);
        assert!(pool.take(usize::MAX).is_none() && pool.take(usize::MAX / 2).is_none());
        pool.give(&large);
        pool.give(&small);
        assert!(pool.regions.iter().all(|region| region.used == 0));
    }

    #[test]
    fn nothing_is_held_for_nobody() {
        let mut pool = kept();
        assert!(pool.take(LEAST - 1).is_none(), "it is too small");
        let block = pool.take(LEAST).unwrap();
        pool.keepers = 0;
        pool.shrink();
        assert!(pool.take(LEAST).is_none());
        assert_eq!(pool.regions.len(), 1, "a block is in use");
        pool.give(&block);
        assert!(pool.regions.is_empty());
    }

    #[test]
    fn values_are_zeros_and_what_was_written() {
        let _kept = keep();
        for len in [3, 5000, 3 << 20] {
            for _ in 0..2 {
                let mut values = Values::<f32>::zeros(len);
                assert!(values.len() == len && values.iter().all(|&x| x == 0.0));
                values.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
                let copy = values.clone();
                assert!(copy.iter().enumerate().all(|(i, &x)| x == i as f32));
            }
        }
        let words = Values::<half::bf16>::unset(10_001);
        assert_eq!(words.len(), 10_001);
    }
}
