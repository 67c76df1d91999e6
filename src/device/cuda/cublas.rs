//! Matrix products of a GPU by cuBLASLt: sums in float32, the algorithm chosen once for a shape, one
//! workspace. The same product gives the same bits, run after run; and with batch invariance a row of
//! a product has the same bits whatever rows stand around it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::sys;

use super::{Cuda, give, take};
use crate::device::Fill;
use crate::{DType, Result};
use library::Library;
use plan::Plan;

mod library;
mod plan;

/// What cuBLASLt may use as scratch: what it wants on sm_90. It comes aligned to 256 bytes, as it must
/// be.
const WORKSPACE: usize = 32 << 20;

/// Shapes whose plans are kept. Micro-batches have as many tokens as their texts, so the shapes of a
/// long run have no end.
const MOST_PLANS: usize = 4096;

/// An operand as it lies: row-major, `stride` elements from row to row.
#[derive(Clone, Copy, Debug)]
pub(in crate::device) struct Operand {
    pub address: u64,
    pub stride: usize,
    pub transposed: bool,
}

/// `c = a b`, or `c += a b`: `[m, k] [k, n] -> [m, n]`.
#[derive(Clone, Copy, Debug)]
pub(in crate::device) struct Product {
    pub shape: [usize; 3],
    pub a: Operand,
    pub b: Operand,
    pub c: Operand,
    /// The type of `a` and `b`.
    pub inputs: DType,
    /// The type of `c`.
    pub output: DType,
    pub adds: bool,
    /// Whether a row's bits must not follow from how many rows there are.
    pub invariant: bool,
}

/// The library that is used, and its release.
pub(super) fn loaded() -> Result<String> {
    let library = Library::get()?;
    Ok(format!("cuBLASLt {} of {}", library.release(), library.path.display()))
}

impl Cuda {
    /// Says where the library is looked for, where it is not found.
    pub(in crate::device) fn check_products(&self) -> Result<()> {
        Library::get().map(drop)
    }

    /// Whether [`Product::invariant`] is asked for.
    pub(in crate::device) fn is_batch_invariant(&self) -> bool {
        self.0.batch_invariant.load(Relaxed)
    }

    /// Queues a matrix product.
    ///
    /// # Safety
    /// The operands must hold their shapes, `c` apart from the others, and stay until the stream has
    /// reached the product.
    pub(in crate::device) unsafe fn queue_product(&self, product: &Product) -> Result<()> {
        self.bind()?;
        let [m, n, _] = product.shape;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let stream = &self.0.stream;
        let mut slot = self.0.products.0.lock().unwrap_or_else(PoisonError::into_inner);
        let products = match slot.take() {
            Some(products) => products,
            None => {
                let library = Library::get()?;
                let workspace = take(stream, WORKSPACE, Fill::Unset, self.0.used.load(Relaxed))?;
                Products::new(library, workspace).inspect_err(|_| give(stream, workspace))?
            }
        };
        // SAFETY: the caller's; the context is current.
        unsafe { slot.insert(products).queue(product, self.stream()) }
    }
}

/// What an algorithm is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 3],
    strides: [usize; 3],
    transposed: [bool; 2],
    types: [DType; 2],
    adds: bool,
    invariant: bool,
    /// Bytes that the addresses are multiples of, as far as it matters.
    alignments: [u32; 3],
}

/// The widest load: an address that is a multiple of more is as good as any.
const ALIGNMENT: u32 = 16;

/// What products need, made with the first one.
#[derive(Debug, Default)]
pub(super) struct Lazy(Mutex<Option<Products>>);

impl Lazy {
    /// The workspace's address, for its owner to free.
    pub(super) fn workspace(&mut self) -> Option<u64> {
        let products = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        products.take().map(|products| products.workspace)
    }
}

/// A handle of the library, its workspace, and the plans of the shapes seen so far.
#[derive(Debug)]
struct Products {
    library: &'static Library,
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: HashMap<Key, Plan>,
}

// SAFETY: handle and descriptors belong to no thread, and are used by one at a time.
unsafe impl Send for Products {}

impl Products {
    /// `workspace` is device memory of [`WORKSPACE`] bytes that outlives the value.
    fn new(library: &'static Library, workspace: u64) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: it writes the handle.
        let status = unsafe { (library.create)(&mut handle) };
        library.result("cublasLtCreate", status)?;
        Ok(Products { library, handle, workspace, plans: HashMap::new() })
    }

    /// # Safety
    /// As [`Cuda::queue_product`]; the stream's context must be current.
    unsafe fn queue(&mut self, product: &Product, stream: *mut c_void) -> Result<()> {
        let [m, n, k] = product.shape;
        let key = product.key();
        if !self.plans.contains_key(&key) {
            if self.plans.len() >= MOST_PLANS {
                // What is queued has taken what it needs of them.
                self.plans.clear();
            }
            self.plans.insert(key, Plan::new(self.library, self.handle, &key)?);
        }
        let plan = &self.plans[&key];
        let (one, beta) = (1.0f32, if product.adds { 1.0f32 } else { 0.0 });
        let at = |operand: &Operand| operand.address as usize as *mut c_void;
        let c = at(&product.c);
        let [a_layout, b_layout, c_layout] = plan.layouts.each();
        // SAFETY: the descriptors are alive; the rest is the caller's. The library takes columns for
        // rows, so it computes the product's transpose: b first.
        let status = unsafe {
            (self.library.matmul)(
                self.handle,
                plan.operation.0,
                (&raw const one).cast(),
                at(&product.b),
                b_layout,
                at(&product.a),
                a_layout,
                (&raw const beta).cast(),
                c,
                c_layout,
                c,
                c_layout,
                &plan.algorithm,
                self.workspace as usize as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        };
        self.library.result(&format!("a product of {m} x {n} x {k}"), status)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: it was created with this value, and its plans are gone.
        unsafe { (self.library.destroy)(self.handle) };
    }
}

impl Product {
    fn key(&self) -> Key {
        let sizes = [self.inputs, self.inputs, self.output].map(|dtype| dtype.size() as u64);
        let operands = [&self.a, &self.b, &self.c];
        let aligned = |i: usize| {
            let Operand { address, stride, .. } = *operands[i];
            let multiple = match self.invariant {
                // Of every row's address, since any row may be the first one.
                true => address | (stride as u64 * sizes[i]),
                false => address,
            };
            ALIGNMENT.min(1 << multiple.trailing_zeros().min(ALIGNMENT.ilog2()))
        };
        Key {
            shape: self.shape,
            strides: operands.map(|operand| operand.stride),
            transposed: [self.a.transposed, self.b.transposed],
            types: [self.inputs, self.output],
            adds: self.adds,
            invariant: self.invariant,
            alignments: [aligned(0), aligned(1), aligned(2)],
        }
    }
}
