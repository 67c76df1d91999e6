//! Host memory that is handed on from one tensor to the next.
//!
//! A step makes and drops the same few hundred matrices over and over. Fresh memory costs a page
//! fault every 4 KiB, in which it is filled with zeros that nobody reads. While somebody
//! [keeps memory](keep), what is dropped waits here for the next tensor that fills most of it. What
//! waits and what is in use are together no more than was ever in use at once.

use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Plain;

/// Vectors of fewer values are left to the allocator.
const LEAST: usize = 1 << 12;

static POOL: Mutex<Pool> = Mutex::new(Pool::new());

/// Memory waits in the pool until the last of these is dropped.
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
        if pool.keepers == 0 {
            *pool = Pool::new();
        }
    }
}

/// Values in host memory. Those of `f32` come from the pool and go back to it.
#[derive(Debug)]
pub(crate) struct Values<T: Plain>(Vec<T>);

impl<T: Plain> Values<T> {
    /// Zeros.
    pub fn zeros(len: usize) -> Self {
        let mut values = vec![T::default(); len];
        large_pages(&mut values);
        values.into()
    }

    /// Values that are to be written before they are read: whatever was left in this memory.
    pub fn unset(len: usize) -> Self {
        let mut values: Vec<T> = Vec::new();
        match as_f32(&mut values) {
            Some(values) => {
                // Not in one expression: memory is made while the pool is free for others.
                let taken = pool().take(len);
                *values = taken.unwrap_or_else(|size| {
                    let mut values = vec![0.0; size];
                    large_pages(&mut values);
                    values
                });
                values.resize(len, 0.0);
            }
            None => values = vec![T::default(); len],
        }
        Values(values)
    }
}

impl<T: Plain> From<Vec<T>> for Values<T> {
    fn from(mut values: Vec<T>) -> Self {
        if let Some(values) = as_f32(&mut values).filter(|values| values.capacity() >= LEAST) {
            pool().count(values.capacity());
        }
        Values(values)
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
        if let Some(values) = as_f32(&mut self.0).filter(|values| values.capacity() >= LEAST) {
            // Not in one expression: what is not kept is freed while the pool is free for others.
            let rest = pool().give(std::mem::take(values));
            drop(rest);
        }
    }
}

impl<T: Plain> Deref for Values<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Plain> DerefMut for Values<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// Asks for pages of 2 MiB, of which there are 512 times fewer to fault on and to look up. For
/// memory that nothing was written to yet.
#[cfg(target_os = "linux")]
fn large_pages<T: Plain>(values: &mut [T]) {
    const PAGE: usize = 2 << 20;
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
    let skip = bytes.as_ptr().align_offset(PAGE);
    let len = bytes.len().saturating_sub(skip) / PAGE * PAGE;
    if len > 0 {
        // SAFETY: the pages lie within the values; this is advice, which changes none of them.
        unsafe { libc::madvise(bytes[skip..].as_mut_ptr().cast(), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn large_pages<T: Plain>(_: &mut [T]) {}

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

/// The vector, where it is one of `f32`.
fn as_f32(values: &mut dyn Any) -> Option<&mut Vec<f32>> {
    values.downcast_mut()
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The size that memory for `len` values has: sequences of similar lengths share sizes.
fn rounded(len: usize) -> usize {
    len.next_multiple_of((len.max(16) / 16).next_power_of_two())
}

struct Pool {
    keepers: usize,
    /// The oldest first.
    waiting: Vec<Vec<f32>>,
    /// Values that wait, that are in use, and that were in use at most.
    waits: usize,
    used: usize,
    peak: usize,
}

impl Pool {
    const fn new() -> Self {
        Pool { keepers: 0, waiting: Vec::new(), waits: 0, used: 0, peak: 0 }
    }

    /// A vector; or how large a new one is to be.
    fn take(&mut self, len: usize) -> Result<Vec<f32>, usize> {
        if self.keepers == 0 || len < LEAST {
            return Err(len);
        }
        let fits = |size: usize| (len..=len + len / 2).contains(&size);
        let sizes = self.waiting.iter().map(Vec::capacity).enumerate();
        let best = sizes.filter(|&(_, size)| fits(size)).min_by_key(|&(at, size)| (size, !at));
        if let Some((at, size)) = best {
            self.waits -= size;
            self.used += size;
            return Ok(self.waiting.remove(at));
        }
        self.count(rounded(len));
        Err(rounded(len))
    }

    fn count(&mut self, size: usize) {
        if self.keepers > 0 {
            self.used += size;
            self.peak = self.peak.max(self.used);
            self.shrink();
        }
    }

    /// What there is no place for.
    fn give(&mut self, values: Vec<f32>) -> Option<Vec<f32>> {
        let size = values.capacity();
        if self.keepers == 0 || size < LEAST {
            return Some(values);
        }
        self.used = self.used.saturating_sub(size);
        self.waits += size;
        self.waiting.push(values);
        self.shrink();
        None
    }

    fn shrink(&mut self) {
        let mut gone = 0;
        while self.waits + self.used > self.peak && gone < self.waiting.len() {
            self.waits -= self.waiting[gone].capacity();
            gone += 1;
        }
        self.waiting.drain(..gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Pool {
        Pool { keepers: 1, ..Pool::new() }
    }

    #[test]
    fn memory_is_handed_on_to_what_is_nearly_as_large() {
        let mut pool = kept();
        assert_eq!(pool.take(10_000), Err(10_240));
        assert!(pool.give(vec![1.0; 10_000]).is_none());
        assert!(pool.take(6_000).is_err(), "it is too large");
        assert!(pool.take(12_000).is_err(), "it is too small");
        assert!(pool.give(vec![1.0; 10_000]).is_none());
        assert_eq!(pool.take(8_000).unwrap()[..3], [1.0; 3]);
        assert!(pool.take(8_000).is_err(), "it is in use");
    }

    #[test]
    fn large_values_are_zeros_and_what_was_written() {
        let mut values = Values::<f32>::zeros(3 << 20);
        assert!(values.iter().all(|&x| x == 0.0));
        values.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
        let copy = values.clone();
        assert!(copy.iter().enumerate().all(|(i, &x)| x == i as f32));
    }

    #[test]
    fn no_more_is_held_than_was_in_use() {
        let mut pool = kept();
        for len in [10_000, 20_000, 40_000, 80_000, 160_000] {
            assert!(pool.take(len).is_err());
            pool.give(vec![0.0; rounded(len)]);
            assert!(pool.waits + pool.used <= pool.peak);
        }
        assert!(pool.peak < 200_000);
        assert!(pool.waiting.iter().any(|values| values.capacity() >= 160_000));
    }

    #[test]
    fn nothing_is_held_for_nobody() {
        let mut pool = Pool::new();
        assert!(pool.give(vec![0.0; 10_000]).is_some());
        assert_eq!(pool.take(10_000), Err(10_000));
        assert_eq!((pool.used, pool.peak), (0, 0));
    }
}
