//! Reading one safetensors file: an 8-byte length, a JSON header, and the tensors' bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use ::safetensors::tensor::Metadata;
use half::{bf16, f16};

use super::fields::open_regular;
use super::one_line;
use crate::ops::elementwise::cast;
use crate::{DType, Element, Error, Result, View, ViewMut, not_a_file};

const _: () = assert!(cfg!(target_endian = "little"), "safetensors is read and written in place");

/// No header of a known model comes near it.
const MAX_HEADER: u64 = 1 << 25;
/// Values that are read and converted at once.
const CHUNK: usize = 1 << 20;

/// An open safetensors file whose header was checked. Tensors are read one by one.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    metadata: HashMap<String, String>,
}

/// What the header says about one tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its type, or the name of one that is not read.
    pub dtype: Result<DType, String>,
    /// Where its bytes lie in the file.
    bytes: Range<u64>,
}

impl TensorInfo {
    /// The number of values.
    pub fn values(&self) -> usize {
        // The header's check made sure that this does not overflow.
        self.shape.iter().product()
    }
}

impl TensorFile {
    /// Opens a file and checks its header against its length before anything is allocated by it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let io = |e| Error::io(&path, e);
        let wrong = |message: String| Error::file(&path, message);
        let mut file = open_regular(&path)?;
        let len = file.metadata().map_err(io)?.len();
        if len < 8 {
            return Err(wrong(format!("{len} bytes are no safetensors file")));
        }
        let mut head = Vec::new();
        (&mut file).take(not_a_file::HEAD_BYTES as u64).read_to_end(&mut head).map_err(io)?;
        not_a_file::check(&path, &head)?;
        file.rewind().map_err(io)?;
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(io)?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER || header_len > len - 8 {
            return Err(wrong(format!(
                "the header claims {header_len} bytes, the file has {len} and at most {MAX_HEADER} are read"
            )));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|e| wrong(format!("bad header: {}", one_line(&e.to_string()))))?;
        let start = 8 + header_len;
        let end = start + header.data_len() as u64;
        if end != len {
            return Err(wrong(format!("the header describes {end} bytes, the file has {len}")));
        }

        let mut tensors = Vec::new();
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            let dtype = match info.dtype {
                Dtype::F32 => Ok(DType::F32),
                Dtype::F64 => Ok(DType::F64),
                Dtype::BF16 => Ok(DType::BF16),
                Dtype::F16 => Ok(DType::F16),
                other => Err(other.to_string()),
            };
            let (from, to) = info.data_offsets;
            let bytes = start + from as u64..start + to as u64;
            tensors.push(TensorInfo { name, shape: info.shape.clone(), dtype, bytes });
        }
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(TensorFile { path, file, tensors, by_name, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// One tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// Strings that the writer of the file left in its header.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Reads a whole tensor, converted to `T`.
    pub fn read<T: Element>(&self, name: &str, out: &mut [T]) -> Result<()> {
        let info = self.info(name).ok_or_else(|| {
            Error::file(&self.path, format!("tensor `{}` is missing", one_line(name)))
        })?;
        if info.values() != out.len() {
            let message = format!(
                "tensor `{}` has {} values, expected {}",
                one_line(name),
                info.values(),
                out.len()
            );
            return Err(Error::file(&self.path, message));
        }
        self.read_range(info, 0, out)
    }

    /// Reads values `start..start + out.len()` of a tensor of this file, converted to `T`.
    pub fn read_range<T: Element>(
        &self,
        info: &TensorInfo,
        start: usize,
        out: &mut [T],
    ) -> Result<()> {
        let dtype = info.dtype.as_ref().map_err(|name| {
            Error::Unsupported(format!(
                "{}: tensor `{}` of type {name}; F64, F32, F16 and BF16 are read",
                self.path.display(),
                one_line(&info.name)
            ))
        })?;
        if start.checked_add(out.len()).is_none_or(|end| end > info.values()) {
            return Err(Error::shape(
                "read_range",
                format!("values within {}", info.values()),
                format!("{} from {start}", out.len()),
            ));
        }
        let mut file = &self.file;
        let at = info.bytes.start + (start * dtype.size()) as u64;
        file.seek(SeekFrom::Start(at)).map_err(|e| Error::io(&self.path, e))?;
        if *dtype == T::DTYPE {
            let bytes = bytemuck::cast_slice_mut(out);
            return file.read_exact(bytes).map_err(|e| Error::io(&self.path, e));
        }
        match dtype {
            DType::F32 => self.convert::<f32, T>(out),
            DType::F64 => self.convert::<f64, T>(out),
            DType::BF16 => self.convert::<bf16, T>(out),
            DType::F16 => self.convert::<f16, T>(out),
        }
    }

    fn convert<S: Element, T: Element>(&self, out: &mut [T]) -> Result<()> {
        let mut buffer = vec![S::default(); out.len().min(CHUNK)];
        for out in out.chunks_mut(CHUNK) {
            let buffer = &mut buffer[..out.len()];
            let mut file = &self.file;
            file.read_exact(bytemuck::cast_slice_mut(buffer))
                .map_err(|e| Error::io(&self.path, e))?;
            let n = out.len();
            cast(View::from_slice(buffer, 1, n, n)?, ViewMut::from_slice(out, 1, n, n)?)?;
        }
        Ok(())
    }
}
