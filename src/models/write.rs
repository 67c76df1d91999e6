//! Writing files so that a reader sees the old one or the new one, and safetensors.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::ops::elementwise::cast;
use crate::{DType, Element, Error, Result, View, ViewMut};

/// Values that are converted and written at once.
const CHUNK: usize = 1 << 18;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct NamedTensor<'a, T> {
    /// Its name.
    pub name: &'a str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub values: &'a [T],
}

/// Writes a safetensors file atomically, all tensors as `dtype`, in the order of their names.
///
/// The same tensors give the same bytes. `metadata` is a list of strings for the header.
pub fn write_tensors<'a, T: Element>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = NamedTensor<'a, T>>,
    dtype: DType,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let path = path.as_ref();
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by(|a, b| a.name.cmp(b.name));
    let header = header(path, &tensors, dtype, metadata)?;
    write_atomically(path, |out| {
        let write = |out: &mut dyn Write, bytes: &[u8]| {
            out.write_all(bytes).map_err(|e| Error::io(path, e))
        };
        write(out, &(header.len() as u64).to_le_bytes())?;
        write(out, &header)?;
        for tensor in &tensors {
            let mut sink = |bytes: &[u8]| write(out, bytes);
            match dtype {
                DType::F32 => convert::<T, f32>(tensor.values, &mut sink)?,
                DType::F64 => convert::<T, f64>(tensor.values, &mut sink)?,
                DType::BF16 => convert::<T, bf16>(tensor.values, &mut sink)?,
                DType::F16 => convert::<T, f16>(tensor.values, &mut sink)?,
            }
        }
        Ok(())
    })
}

fn header<T>(
    path: &Path,
    tensors: &[NamedTensor<T>],
    dtype: DType,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        let metadata = metadata.iter().map(|&(key, value)| (key.to_string(), json!(value)));
        header.insert("__metadata__".into(), Value::Object(metadata.collect()));
    }
    let mut start = 0;
    for tensor in tensors {
        let values = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if values != Some(tensor.values.len()) {
            return Err(Error::shape(
                "write_tensors",
                format!("{:?} values for {}", tensor.shape, tensor.name),
                format!("{}", tensor.values.len()),
            ));
        }
        let end = start + (tensor.values.len() * dtype.size()) as u64;
        let name = dtype.to_string().to_uppercase();
        let entry = json!({"dtype": name, "shape": tensor.shape, "data_offsets": [start, end]});
        if header.insert(tensor.name.to_string(), entry).is_some() {
            return Err(Error::file(path, format!("two tensors `{}`", tensor.name)));
        }
        start = end;
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    // The tensors' bytes start at a multiple of 8.
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

fn convert<T: Element, U: Element>(
    values: &[T],
    sink: &mut impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    if T::DTYPE == U::DTYPE {
        return sink(bytemuck::cast_slice(values));
    }
    let mut buffer = vec![U::default(); values.len().min(CHUNK)];
    for values in values.chunks(CHUNK) {
        let (n, buffer) = (values.len(), &mut buffer[..values.len()]);
        cast(View::from_slice(values, 1, n, n)?, ViewMut::from_slice(buffer, 1, n, n)?)?;
        sink(bytemuck::cast_slice(buffer))?;
    }
    Ok(())
}

/// Writes a file aside, flushes it to the disk and renames it into place: after a crash at any
/// moment there is the old file or the whole new one.
pub fn write_atomically(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let name = path.file_name().ok_or_else(|| Error::file(path, "not the name of a file"))?;
    let aside = path.with_file_name(format!(".{}.tmp", name.to_string_lossy()));
    let io = |e| Error::io(path, e);
    let written = (|| {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&aside).map_err(io)?);
        write(&mut out)?;
        out.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)?;
        std::fs::rename(&aside, path).map_err(io)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
        return written;
    }
    sync_folder(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Makes renames and removals in a folder last.
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, e))?;
    }
    Ok(())
}
