//! What cuBLASLt needs to know of one shape of product, and which of its algorithms computes it.

use std::ffi::c_void;

use cudarc::cublaslt::sys;

use super::library::Library;
use super::{Key, WORKSPACE};
use crate::{DType, Error, Result};

/// Descriptors of one shape, and the algorithm for it.
#[derive(Debug)]
pub(super) struct Plan {
    pub operation: Operation,
    pub layouts: Layouts,
    pub algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    pub(super) fn new(
        library: &'static Library,
        handle: sys::cublasLtHandle_t,
        key: &Key,
    ) -> Result<Self> {
        let operation = Operation::new(library, key.transposed)?;
        let layouts = Layouts::new(library, key)?;
        let choice = Choice { library, handle, operation: &operation, key };
        // Rows of a transposed operand are no rows of a batch.
        let algorithm = match key.invariant && !key.transposed[0] {
            true => choice.invariant(&layouts)?,
            false => choice.best(&layouts, 1)?[0],
        };
        Ok(Plan { operation, layouts, algorithm })
    }
}

/// A product of the library, by the orientations of its operands.
#[derive(Debug)]
pub(super) struct Operation(pub sys::cublasLtMatmulDesc_t, &'static Library);

impl Operation {
    fn new(library: &'static Library, transposed: [bool; 2]) -> Result<Self> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let mut operation = std::ptr::null_mut();
        // SAFETY: it writes the descriptor.
        let status = unsafe {
            (library.create_operation)(&mut operation, compute, sys::cudaDataType::CUDA_R_32F)
        };
        library.result("cublasLtMatmulDescCreate", status)?;
        let operation = Operation(operation, library);
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        for (attribute, transposed) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, transposed[1]),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, transposed[0]),
        ] {
            let transposed = i32::from(transposed);
            let value = (&raw const transposed).cast();
            // SAFETY: the descriptor is alive, and the attribute is 32 bits.
            let status =
                unsafe { (library.set_operation)(operation.0, attribute, value, size_of::<i32>()) };
            library.result("cublasLtMatmulDescSetAttribute", status)?;
        }
        Ok(operation)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: this value made it and is its one owner.
        unsafe { (self.1.destroy_operation)(self.0) };
    }
}

/// How a, b and c lie.
#[derive(Debug)]
pub(super) struct Layouts(Vec<sys::cublasLtMatrixLayout_t>, &'static Library);

impl Layouts {
    fn new(library: &'static Library, key: &Key) -> Result<Self> {
        let [m, n, k] = key.shape;
        let [inputs, output] = [data_type(key.types[0])?, data_type(key.types[1])?];
        let mut layouts = Layouts(Vec::new(), library);
        // Rows of a row-major matrix are the library's columns.
        for (rows, cols, transposed, stride, kind) in [
            (m, k, key.transposed[0], key.strides[0], inputs),
            (k, n, key.transposed[1], key.strides[1], inputs),
            (m, n, false, key.strides[2], output),
        ] {
            let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
            let mut layout = std::ptr::null_mut();
            // SAFETY: it writes the descriptor.
            let status = unsafe {
                (library.create_layout)(&mut layout, kind, cols as u64, rows as u64, stride as i64)
            };
            library.result("cublasLtMatrixLayoutCreate", status)?;
            layouts.0.push(layout);
        }
        Ok(layouts)
    }

    pub(super) fn each(&self) -> [sys::cublasLtMatrixLayout_t; 3] {
        [self.0[0], self.0[1], self.0[2]]
    }
}

impl Drop for Layouts {
    fn drop(&mut self) {
        for &layout in &self.0 {
            // SAFETY: this value made it and is its one owner.
            unsafe { (self.1.destroy_layout)(layout) };
        }
    }
}

/// Rows for which the algorithm of an invariant product is asked for: those of a training's
/// micro-batch rather than of a decoding step.
const USUAL_ROWS: usize = 1024;
/// Numbers of rows that such an algorithm must be able to compute.
const PROBED_ROWS: [usize; 5] = [1, 7, 64, 1000, 1 << 16];

/// The choice of an algorithm.
struct Choice<'a> {
    library: &'static Library,
    handle: sys::cublasLtHandle_t,
    operation: &'a Operation,
    key: &'a Key,
}

impl Choice<'_> {
    /// An algorithm that follows from everything but the number of rows, so that the sums of a row are
    /// taken in one order however many rows there are.
    fn invariant(&self, layouts: &Layouts) -> Result<sys::cublasLtMatmulAlgo_t> {
        let [m, n, k] = self.key.shape;
        let of = |rows| Layouts::new(self.library, &Key { shape: [rows, n, k], ..*self.key });
        let probed = PROBED_ROWS.into_iter().map(of).collect::<Result<Vec<_>>>()?;
        let usual = self.best(&of(USUAL_ROWS)?, 16)?;
        // Which one is chosen must not follow from m, so that it runs with m is asked afterwards.
        let chosen = usual.into_iter().find(|a| probed.iter().all(|probe| self.runs(a, probe)));
        chosen.filter(|algorithm| self.runs(algorithm, layouts)).ok_or_else(|| {
            Error::Device(format!(
                "cuBLASLt: no algorithm for {n} x {k} that is the same for any number of rows ({m} \
                 here): train without --batch-invariant"
            ))
        })
    }

    /// Whether the library can compute with the algorithm in its workspace.
    fn runs(&self, algorithm: &sys::cublasLtMatmulAlgo_t, layouts: &Layouts) -> bool {
        let [a, b, c] = layouts.each();
        // SAFETY: plain numbers, which the library writes.
        let mut found: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        // SAFETY: all of them are alive.
        let status = unsafe {
            let operation = self.operation.0;
            (self.library.check)(self.handle, operation, b, a, c, c, algorithm, &mut found)
        };
        status == 0 && found.workspaceSize <= WORKSPACE
    }

    /// The algorithms that the library takes for the fastest ones, `most` at most and one at least.
    fn best(&self, layouts: &Layouts, most: usize) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let [m, n, k] = self.key.shape;
        let library = self.library;
        let preference = self.preference()?;
        let [a, b, c] = layouts.each();
        // SAFETY: plain numbers, which the library writes.
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> =
            (0..most).map(|_| unsafe { std::mem::zeroed() }).collect();
        let mut count = 0;
        // SAFETY: all of them are alive, and there is room for as many results.
        let status = unsafe {
            (library.choose)(
                self.handle,
                self.operation.0,
                b,
                a,
                c,
                c,
                preference.0,
                most as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        library.result(&format!("no algorithm for {m} x {n} x {k}"), status)?;
        found.truncate(usize::try_from(count).unwrap_or(0));
        if found.is_empty() {
            return Err(Error::Device(format!("cuBLASLt: no algorithm for {m} x {n} x {k}")));
        }
        Ok(found.into_iter().map(|result| result.algo).collect())
    }

    /// What an algorithm may use: the workspace, loads as wide as the addresses allow, and sums in
    /// parts where the order of sums may follow from the number of rows.
    fn preference(&self) -> Result<Preference> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        use sys::cublasLtReductionScheme_t as Scheme;
        let library = self.library;
        let mut preference = std::ptr::null_mut();
        // SAFETY: it writes the descriptor.
        let status = unsafe { (library.create_preference)(&mut preference) };
        library.result("cublasLtMatmulPreferenceCreate", status)?;
        let preference = Preference(preference, library);
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the preference is alive, and the value has the attribute's size.
            let status = unsafe { (library.set_preference)(preference.0, attribute, value, size) };
            library.result("cublasLtMatmulPreferenceSetAttribute", status)
        };
        let workspace = WORKSPACE;
        let value = (&raw const workspace).cast();
        set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, value, size_of::<usize>())?;
        // Parts of a sum are added up in float32: the other schemes do so in the output's type.
        let scheme = match self.key.invariant {
            true => Scheme::CUBLASLT_REDUCTION_SCHEME_NONE,
            false => Scheme::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE,
        } as u32;
        // The library's first operand is b; d lies where c does.
        let [a, b, c] = self.key.alignments;
        for (attribute, value) in [
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            set(attribute, (&raw const value).cast(), size_of::<u32>())?;
        }
        Ok(preference)
    }
}

struct Preference(sys::cublasLtMatmulPreference_t, &'static Library);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: this value made it and is its one owner.
        unsafe { (self.1.destroy_preference)(self.0) };
    }
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        DType::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        DType::F64 => Err(Error::Unsupported("matmul of f64 on a GPU".into())),
    }
}
