//! Where the time goes: wall time, arithmetic and memory traffic by operation.
//!
//! Operations open a [`scope`]; nothing is measured until [`start`]. Operations are called from one
//! thread at a time and use the others themselves, so their times add up to the run's.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static RUNNING: AtomicBool = AtomicBool::new(false);
static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// What was measured of one operation.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// The operation.
    pub op: &'static str,
    /// How often it ran.
    pub calls: u64,
    /// Wall time in all.
    pub time: Duration,
    /// Floating-point operations in all; 0 where they are not the measure.
    pub flops: u64,
    /// Bytes that had to be read and written in all; 0 where they are not the measure.
    pub bytes: u64,
}

/// An operation under way; ends when dropped.
#[derive(Debug)]
#[must_use]
pub struct Scope {
    op: &'static str,
    start: Option<Instant>,
    flops: usize,
    bytes: usize,
}

/// Begins to measure, from nothing.
pub fn start() {
    lines().clear();
    RUNNING.store(true, Ordering::Relaxed);
}

/// Ends measuring: what took longest comes first.
pub fn stop() -> Vec<Line> {
    RUNNING.store(false, Ordering::Relaxed);
    let mut lines = std::mem::take(&mut *lines());
    lines.sort_by_key(|line| std::cmp::Reverse(line.time));
    lines
}

/// Measures until the value is dropped. `flops` and `bytes`: what the operation cannot do without.
#[inline]
pub fn scope(op: &'static str, flops: usize, bytes: usize) -> Scope {
    let start = RUNNING.load(Ordering::Relaxed).then(Instant::now);
    Scope { op, start, flops, bytes }
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        let Some(start) = self.start else { return };
        let time = start.elapsed();
        let mut lines = lines();
        let at = lines.iter().position(|line| line.op == self.op).unwrap_or_else(|| {
            let op = self.op;
            lines.push(Line { op, calls: 0, time: Duration::ZERO, flops: 0, bytes: 0 });
            lines.len() - 1
        });
        let line = &mut lines[at];
        line.calls += 1;
        line.time += time;
        line.flops += self.flops as u64;
        line.bytes += self.bytes as u64;
    }
}

fn lines() -> std::sync::MutexGuard<'static, Vec<Line>> {
    LINES.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
