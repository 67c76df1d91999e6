//! Kernels, losses and a transformer runtime for aligning language models.
#![deny(missing_docs, unsafe_op_in_unsafe_fn)]

mod dtype;
mod error;
mod ffi;
#[cfg(feature = "trainer")]
mod not_a_file;
mod tensor;

#[cfg(feature = "trainer")]
pub mod cli;
#[cfg(feature = "trainer")]
pub mod data;
#[cfg(feature = "trainer")]
pub mod demo;
pub mod device;
#[cfg(feature = "trainer")]
pub mod eval;
#[cfg(feature = "trainer")]
pub mod generate;
#[cfg(feature = "trainer")]
pub mod judge;
pub mod losses;
#[cfg(feature = "trainer")]
pub mod models;
#[cfg(feature = "trainer")]
pub mod nn;
pub mod ops;
#[cfg(feature = "trainer")]
pub mod report;
#[cfg(feature = "trainer")]
pub mod rewards;
pub mod rng;
#[cfg(feature = "trainer")]
pub mod train;

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use device::Device;
pub use dtype::{DType, Element, Plain, Real};
pub use error::{Error, Result};
pub use tensor::{Rows, RowsMut, Tensor, View, ViewMut};
