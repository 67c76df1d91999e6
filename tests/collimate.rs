//! One test binary: a module per subject.

#[cfg(feature = "trainer")]
mod cli;
#[cfg(feature = "trainer")]
mod data;
#[cfg(feature = "trainer")]
mod decoder;
#[cfg(feature = "trainer")]
mod docs;
mod experiments;
mod losses;
#[cfg(feature = "trainer")]
mod models;
mod random;
mod shared;
