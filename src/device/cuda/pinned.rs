//! Page-locked host memory, through which all copies between the host and the device go: the device
//! copies from and to it while the host goes on, and the driver waits for nothing.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, result, sys};

use super::driver::failed;
use crate::Result;

/// Page-locked memory that its owner frees; the context must be current.
#[derive(Debug, Default)]
struct Pinned {
    /// 0 where there is none.
    address: usize,
    bytes: usize,
}

impl Pinned {
    fn take(bytes: usize) -> Result<Self> {
        // SAFETY: the context is current.
        let memory = unsafe { result::malloc_host(bytes, 0) }.map_err(|e| {
            failed(&format!("cannot allocate {bytes} bytes of page-locked host memory"), e)
        })?;
        Ok(Pinned { address: memory.expose_provenance(), bytes })
    }

    fn at(&self, offset: usize) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.address + offset)
    }

    fn give(&mut self) {
        if self.address != 0 {
            // SAFETY: `take` gave it, and nothing is queued that uses it. An error here is one of
            // earlier work, which the next wait reports.
            let _ = unsafe { result::free_host(self.at(0)) };
            *self = Pinned::default();
        }
    }
}

/// Where the device copies to what the host reads.
#[derive(Debug, Default)]
pub(super) struct Mailbox(Pinned);

impl Mailbox {
    /// Room for `bytes`, of any values. The context must be current, and nothing be queued that
    /// writes to the mailbox.
    pub(super) fn of(&mut self, bytes: usize) -> Result<*mut c_void> {
        if bytes > self.0.bytes {
            self.0.give();
            self.0 = Pinned::take(bytes.next_power_of_two().max(1 << 16))?;
        }
        Ok(self.0.at(0))
    }

    /// Frees the memory. The context must be current.
    pub(super) fn give(&mut self) {
        self.0.give();
    }
}

/// Bytes of the outbox: enough that no step of a training goes round.
const OUTBOX: usize = 32 << 20;
/// The most bytes of one copy: what is larger is copied in pieces, so that the host fills one piece
/// while the device reads another.
const PIECE: usize = OUTBOX / 4;

/// What the host has written for the device to copy: a ring. A part of it is written to again only
/// when the copy from it is done.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    memory: Pinned,
    ring: Ring<CudaEvent>,
}

impl Outbox {
    /// Queues a copy to `rows` rows on the device, `pitch` bytes apart, of `row_bytes` bytes each,
    /// which `row` gives. The host's memory is not needed any more when this returns.
    ///
    /// # Safety
    /// The rows on the device must be the caller's to write, in the stream's order.
    pub(super) unsafe fn send<'a>(
        &mut self,
        stream: &Arc<CudaStream>,
        (to, pitch): (u64, usize),
        row_bytes: usize,
        rows: usize,
        row: impl Fn(usize) -> &'a [u8],
    ) -> Result<()> {
        if self.memory.bytes == 0 {
            self.memory = Pinned::take(OUTBOX)?;
            self.ring = Ring::new(OUTBOX);
        }
        if row_bytes > PIECE {
            for r in 0..rows {
                for start in (0..row_bytes).step_by(PIECE) {
                    let bytes = PIECE.min(row_bytes - start);
                    let to = to + (r * pitch + start) as u64;
                    // SAFETY: the caller's.
                    unsafe {
                        self.piece(stream, (to, bytes), bytes, 1, |_| &row(r)[start..start + bytes])
                    }?;
                }
            }
            return Ok(());
        }
        let most = PIECE / row_bytes.max(1);
        for first in (0..rows).step_by(most.max(1)) {
            let rows = most.min(rows - first);
            let to = to + (first * pitch) as u64;
            // SAFETY: the caller's.
            unsafe { self.piece(stream, (to, pitch), row_bytes, rows, |r| row(first + r)) }?;
        }
        Ok(())
    }

    /// [`Outbox::send`] of at most [`PIECE`] bytes.
    unsafe fn piece<'a>(
        &mut self,
        stream: &Arc<CudaStream>,
        (to, pitch): (u64, usize),
        row_bytes: usize,
        rows: usize,
        row: impl Fn(usize) -> &'a [u8],
    ) -> Result<()> {
        let bytes = row_bytes * rows;
        if bytes == 0 {
            return Ok(());
        }
        let (at, ended) = self.ring.take(bytes);
        for event in ended {
            event.synchronize().map_err(|e| failed("waiting for a copy to the device", e))?;
        }
        let from = self.memory.at(at);
        // SAFETY: the ring gave these bytes, which no copy reads any more.
        let piece = unsafe { std::slice::from_raw_parts_mut(from.cast::<u8>(), bytes) };
        for (r, piece) in piece.chunks_exact_mut(row_bytes).enumerate() {
            piece.copy_from_slice(row(r));
        }
        let copy = sys::CUDA_MEMCPY2D {
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: from,
            srcPitch: row_bytes,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstDevice: to,
            dstPitch: pitch,
            WidthInBytes: row_bytes,
            Height: rows,
            // SAFETY: numbers and null pointers.
            ..unsafe { std::mem::zeroed() }
        };
        // SAFETY: the ring's bytes stay until the event below; the rest is the caller's.
        let status = unsafe {
            match rows == 1 || pitch == row_bytes {
                true => sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream.cu_stream()),
                false => sys::cuMemcpy2DAsync_v2(&copy, stream.cu_stream()),
            }
        };
        status.result().map_err(|e| failed("a copy to the device", e))?;
        let event = stream.record_event(None).map_err(|e| failed("an event", e))?;
        self.ring.keep(at, bytes, event);
        Ok(())
    }

    /// Waits for the copies, and frees the memory. The context must be current.
    pub(super) fn give(&mut self) {
        for event in std::mem::take(&mut self.ring).taken {
            // An error is one of earlier work, which has been or will be reported.
            let _ = event.2.synchronize();
        }
        self.memory.give();
    }
}

/// Which parts of a ring of bytes are in use, the oldest first; each with what says when it is not.
#[derive(Debug)]
struct Ring<E> {
    bytes: usize,
    next: usize,
    /// Start, end and owner of each part.
    taken: VecDeque<(usize, usize, E)>,
}

impl<E> Default for Ring<E> {
    fn default() -> Self {
        Ring::new(0)
    }
}

impl<E> Ring<E> {
    fn new(bytes: usize) -> Self {
        Ring { bytes, next: 0, taken: VecDeque::new() }
    }

    /// A part of `bytes`, which must not be more than there are; and what must end before it may be
    /// written to.
    fn take(&mut self, bytes: usize) -> (usize, Vec<E>) {
        // Copies are fastest from addresses that are multiples of this.
        let mut start = self.next.next_multiple_of(256);
        if start + bytes > self.bytes {
            start = 0;
        }
        let end = start + bytes;
        let mut ended = Vec::new();
        // Parts lie in the order of their age from the oldest on, so whatever overlaps, or was
        // passed over at the ring's end, comes first.
        while let Some((from, to, _)) = self.taken.front() {
            let behind = start < self.next && *from >= self.next;
            if !behind && (*from >= end || *to <= start) {
                break;
            }
            ended.extend(self.taken.pop_front().map(|(_, _, owner)| owner));
        }
        self.next = end;
        (start, ended)
    }

    /// The part is in use until `owner` says otherwise.
    fn keep(&mut self, start: usize, bytes: usize, owner: E) {
        self.taken.push_back((start, start + bytes, owner));
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    /// No part is given while another that overlaps it is in use, over many sizes and rounds; and a
    /// part is waited for only where it must be.
    #[test]
    fn parts_in_use_are_not_given_again() {
        let mut state = 7u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % n
        };
        for most in [300, 1000, 4096] {
            let mut ring = Ring::new(4096);
            let mut used: Vec<(usize, usize, usize)> = Vec::new();
            let mut waits = 0;
            for i in 0..2000 {
                let bytes = 1 + below(most);
                let (start, ended) = ring.take(bytes);
                waits += ended.len();
                used.retain(|(_, _, owner)| !ended.contains(owner));
                let end = start + bytes;
                assert!(end <= 4096, "{start} {bytes}");
                let overlaps = used.iter().find(|(from, to, _)| *from < end && start < *to);
                assert_eq!(overlaps, None, "{i}: {start}..{end}");
                used.push((start, end, i));
                ring.keep(start, bytes, i);
            }
            assert!(waits > 0 && used.len() <= 17, "{most}: {waits} {}", used.len());
        }
        let mut ring = Ring::new(4096);
        for i in 0..4 {
            assert_eq!(ring.take(1024), (1024 * i, vec![]));
            ring.keep(1024 * i, 1024, i);
        }
        assert_eq!(ring.take(100), (0, vec![0]));
        ring.keep(0, 100, 4);
        assert_eq!(ring.take(100), (256, vec![]), "the rest of what part 0 had");
        assert_eq!(ring.take(1000), (512, vec![1]));
    }
}
