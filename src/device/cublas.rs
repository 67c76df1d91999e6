//! Matrix products of a GPU by cuBLASLt: sums in float32, the algorithm chosen once for a shape, one
//! workspace. The same product gives the same bits, run after run.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::{Cuda, give, take};
use crate::device::Fill;
use crate::{DType, Error, Result};

const OP: &str = "matmul";

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
    /// Whether k may be cut into parts that are summed apart.
    pub splits: bool,
}

impl Cuda {
    /// Says where the library is looked for, where it is not found.
    pub(in crate::device) fn check_products(&self) -> Result<()> {
        check_library()
    }

    /// Whether [`Product::splits`] is forbidden.
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
                check_library()?;
                let workspace = take(stream, WORKSPACE, Fill::Unset, self.0.used.load(Relaxed))?;
                Products::new(workspace).inspect_err(|_| give(stream, workspace))?
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
    splits: bool,
    /// Bytes that the addresses are multiples of.
    alignments: [u32; 3],
}

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
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: HashMap<Key, Plan>,
}

// SAFETY: handle and descriptors belong to no thread, and are used by one at a time.
unsafe impl Send for Products {}

fn check_library() -> Result<()> {
    // SAFETY: this only tries to load the library.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::Device(
        "no libcublasLt.so.13: looked for in LD_LIBRARY_PATH and the system's library folders; it \
         comes with the CUDA toolkit, and lies in nvidia/cu13/lib or nvidia/cublas/lib of PyTorch's \
         site-packages"
            .into(),
    ))
}

impl Products {
    /// `workspace` is device memory of [`WORKSPACE`] bytes that outlives the value. The library must
    /// be there.
    fn new(workspace: u64) -> Result<Self> {
        let handle = result::create_handle().map_err(|e| failed("cublasLtCreate", e))?;
        Ok(Products { handle, workspace, plans: HashMap::new() })
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
            self.plans.insert(key, Plan::new(self.handle, &key)?);
        }
        let plan = &self.plans[&key];
        let (one, beta) = (1.0f32, if product.adds { 1.0f32 } else { 0.0 });
        let at = |operand: &Operand| operand.address as usize as *mut c_void;
        let c = at(&product.c);
        // SAFETY: the descriptors are alive; the rest is the caller's. The library takes columns for
        // rows, so it computes the product's transpose: b first.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                at(&product.b),
                plan.layouts[1],
                at(&product.a),
                plan.layouts[0],
                c,
                plan.layouts[2],
                c,
                plan.layouts[2],
                &plan.algorithm,
                self.workspace as usize as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(|e| failed(&format!("a product of {m} x {n} x {k}"), e))
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: it was created with this value, and its plans are gone.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Product {
    fn key(&self) -> Key {
        let aligned = |operand: &Operand| 1 << operand.address.trailing_zeros().min(8);
        Key {
            shape: self.shape,
            strides: [self.a.stride, self.b.stride, self.c.stride],
            transposed: [self.a.transposed, self.b.transposed],
            types: [self.inputs, self.output],
            adds: self.adds,
            splits: self.splits,
            alignments: [aligned(&self.a), aligned(&self.b), aligned(&self.c)],
        }
    }
}

/// Descriptors of one shape, and the algorithm for it.
#[derive(Debug)]
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    /// Those of a, b and c.
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, key: &Key) -> Result<Self> {
        let [m, n, k] = key.shape;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let operation = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)
            .map_err(|e| failed("cublasLtMatmulDescCreate", e))?;
        let algorithm = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
        // From here on dropping it frees what there is.
        let mut plan = Plan { operation, layouts: Vec::new(), algorithm };
        let [inputs, output] = [data_type(key.types[0])?, data_type(key.types[1])?];
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        for (attribute, transposed) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, key.transposed[1]),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, key.transposed[0]),
        ] {
            let transposed = i32::from(transposed);
            // SAFETY: the descriptor is alive, and the attribute is 32 bits.
            unsafe {
                result::set_matmul_desc_attribute(
                    operation,
                    attribute,
                    (&raw const transposed).cast(),
                    size_of::<i32>(),
                )
            }
            .map_err(|e| failed("cublasLtMatmulDescSetAttribute", e))?;
        }
        // Rows of a row-major matrix are the library's columns.
        for (rows, cols, transposed, stride, kind) in [
            (m, k, key.transposed[0], key.strides[0], inputs),
            (k, n, key.transposed[1], key.strides[1], inputs),
            (m, n, false, key.strides[2], output),
        ] {
            let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
            let layout =
                result::create_matrix_layout(kind, cols as u64, rows as u64, stride as i64)
                    .map_err(|e| failed("cublasLtMatrixLayoutCreate", e))?;
            plan.layouts.push(layout);
        }
        plan.algorithm = choose(handle, &plan, key)
            .map_err(|e| failed(&format!("no algorithm for {m} x {n} x {k}"), e))?;
        Ok(plan)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: this value made them and is their one owner.
        unsafe {
            let _ = result::destroy_matmul_desc(self.operation);
            for &layout in &self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

fn choose(
    handle: sys::cublasLtHandle_t,
    plan: &Plan,
    key: &Key,
) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    use sys::cublasLtReductionScheme_t as Scheme;
    // Parts of a sum are added up in float32: the other schemes do so in the output's type.
    let scheme = match key.splits {
        true => Scheme::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE,
        false => Scheme::CUBLASLT_REDUCTION_SCHEME_NONE,
    };
    let preference = result::create_matmul_pref()?;
    let chosen = (|| {
        let workspace = WORKSPACE;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the preference is alive, and the value has the attribute's size.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, size) }
        };
        set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const workspace).cast(),
            size_of::<usize>(),
        )?;
        let scheme = scheme as u32;
        // The library's first operand is b; d lies where c does.
        let [a, b, c] = key.alignments;
        for (attribute, value) in [
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            set(attribute, (&raw const value).cast(), size_of::<u32>())?;
        }
        let [a, b, c] = [plan.layouts[0], plan.layouts[1], plan.layouts[2]];
        // SAFETY: all of them are alive.
        unsafe { result::get_matmul_algo_heuristic(handle, plan.operation, b, a, c, c, preference) }
    })();
    // SAFETY: it was created above.
    let _ = unsafe { result::destroy_matmul_pref(preference) };
    chosen.map(|heuristic| heuristic.algo)
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        DType::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        DType::F64 => Err(Error::Unsupported(format!("{OP} of f64 on a GPU"))),
    }
}

fn failed(what: &str, error: CublasError) -> Error {
    Error::Device(format!("cuBLASLt: {what}: {error}"))
}
