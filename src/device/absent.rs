//! A build without kernels: a device that cannot exist.

use std::ffi::c_void;

use super::{Device, Fill, Pitched, Place};
use crate::{Error, Result};

/// A GPU. This build has none: features `cuda` and `emulate` are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cuda {}

impl Cuda {
    pub(crate) fn new(_ordinal: usize) -> Result<Self> {
        Err(Error::Device("this build has no kernels: build it with --features cuda".into()))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        match *self {}
    }

    pub(super) fn describe(&self) -> String {
        match *self {}
    }

    pub(super) fn check_products(&self) -> Result<()> {
        match *self {}
    }

    pub(super) fn be_batch_invariant(&self) {
        match *self {}
    }

    /// Waits until everything queued is done.
    ///
    /// # Errors
    /// As [`Device::synchronize`](super::Device::synchronize).
    pub fn synchronize(&self) -> Result<()> {
        match *self {}
    }

    pub(crate) fn device(&self) -> Device {
        match *self {}
    }

    pub(crate) fn alloc(&self, _bytes: usize, _fill: Fill) -> Result<Buffer> {
        match *self {}
    }

    pub(super) fn pointer(&self, _address: u64) -> *mut c_void {
        match *self {}
    }

    pub(crate) fn stream(&self) -> *mut c_void {
        match *self {}
    }

    pub(crate) fn error_word(&self) -> *mut i32 {
        match *self {}
    }

    /// # Safety
    /// None is needed: there is no such device.
    pub(super) unsafe fn copy(&self, _: Pitched, _: Pitched, _: usize, _: usize) -> Result<()> {
        match *self {}
    }

    /// # Safety
    /// None is needed: there is no such device.
    pub(super) unsafe fn read(&self, _places: &[Place], _to: &mut [u8]) -> Result<()> {
        match *self {}
    }

    /// # Safety
    /// None is needed: there is no such device.
    pub(super) unsafe fn zero(&self, _address: u64, _bytes: usize) -> Result<()> {
        match *self {}
    }

    /// A moment on the stream: when everything queued before it is done.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn event(&self) -> Result<Event> {
        match *self {}
    }
}

/// Memory of a device that cannot exist.
#[derive(Debug)]
pub(crate) enum Buffer {}

impl Buffer {
    pub(crate) fn cuda(&self) -> &Cuda {
        match *self {}
    }

    pub(super) fn address(&self) -> u64 {
        match *self {}
    }

    pub(super) fn bytes(&self) -> usize {
        match *self {}
    }
}

/// A moment on a stream that cannot exist.
#[derive(Debug)]
pub enum Event {}

impl Event {
    /// Seconds from this moment to a later one; waits for it.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn seconds_to(&self, _end: &Event) -> Result<f64> {
        match *self {}
    }
}
