//! Finds and loads cuBLASLt, and gives its functions. The library is looked for where people have it:
//! beside PyTorch, in a CUDA toolkit, in the system's folders.

use std::collections::HashSet;
use std::env;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::cublaslt::sys;
use libloading::Library as Loaded;

use super::super::driver::CUDA;
use crate::{Error, Result};

/// Names a file, or the folder that it lies in; nothing else is tried then.
const VARIABLE: &str = "COLLIMATE_CUBLASLT";

/// A status of the library, which later releases may add to.
type Status = c_int;

macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The library, open for as long as the process lives.
        #[derive(Debug)]
        pub(super) struct Library {
            /// The file that was loaded.
            pub path: PathBuf,
            $(pub $field: unsafe extern "C" fn($($argument),*) -> $result,)*
            _loaded: Loaded,
        }

        impl Library {
            /// # Errors
            /// Why the file cannot be used.
            fn load(path: &Path) -> std::result::Result<Self, String> {
                // SAFETY: the library's initialisers are NVIDIA's own.
                let loaded = unsafe { Loaded::new(path) }.map_err(|e| e.to_string())?;
                // SAFETY: the types are those of cublasLt.h, the same in releases 12 and 13.
                unsafe {
                    $(let $field = *loaded
                        .get::<unsafe extern "C" fn($($argument),*) -> $result>($symbol)
                        .map_err(|e| e.to_string())?;)*
                    Ok(Library { path: path.to_path_buf(), $($field,)* _loaded: loaded })
                }
            }
        }
    };
}

functions! {
    get_version = b"cublasLtGetVersion": fn() -> usize;
    status_name = b"cublasLtGetStatusName": fn(Status) -> *const c_char;
    create = b"cublasLtCreate": fn(*mut sys::cublasLtHandle_t) -> Status;
    destroy = b"cublasLtDestroy": fn(sys::cublasLtHandle_t) -> Status;
    create_operation = b"cublasLtMatmulDescCreate": fn(*mut sys::cublasLtMatmulDesc_t, sys::cublasComputeType_t, sys::cudaDataType) -> Status;
    destroy_operation = b"cublasLtMatmulDescDestroy": fn(sys::cublasLtMatmulDesc_t) -> Status;
    set_operation = b"cublasLtMatmulDescSetAttribute": fn(sys::cublasLtMatmulDesc_t, sys::cublasLtMatmulDescAttributes_t, *const c_void, usize) -> Status;
    create_layout = b"cublasLtMatrixLayoutCreate": fn(*mut sys::cublasLtMatrixLayout_t, sys::cudaDataType, u64, u64, i64) -> Status;
    destroy_layout = b"cublasLtMatrixLayoutDestroy": fn(sys::cublasLtMatrixLayout_t) -> Status;
    create_preference = b"cublasLtMatmulPreferenceCreate": fn(*mut sys::cublasLtMatmulPreference_t) -> Status;
    destroy_preference = b"cublasLtMatmulPreferenceDestroy": fn(sys::cublasLtMatmulPreference_t) -> Status;
    set_preference = b"cublasLtMatmulPreferenceSetAttribute": fn(sys::cublasLtMatmulPreference_t, sys::cublasLtMatmulPreferenceAttributes_t, *const c_void, usize) -> Status;
    choose = b"cublasLtMatmulAlgoGetHeuristic": fn(sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatmulPreference_t, c_int, *mut sys::cublasLtMatmulHeuristicResult_t, *mut c_int) -> Status;
    check = b"cublasLtMatmulAlgoCheck": fn(sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, sys::cublasLtMatrixLayout_t, *const sys::cublasLtMatmulAlgo_t, *mut sys::cublasLtMatmulHeuristicResult_t) -> Status;
    matmul = b"cublasLtMatmul": fn(sys::cublasLtHandle_t, sys::cublasLtMatmulDesc_t, *const c_void, *const c_void, sys::cublasLtMatrixLayout_t, *const c_void, sys::cublasLtMatrixLayout_t, *const c_void, *const c_void, sys::cublasLtMatrixLayout_t, *mut c_void, sys::cublasLtMatrixLayout_t, *const sys::cublasLtMatmulAlgo_t, *mut c_void, usize, sys::cudaStream_t) -> Status;
}

impl Library {
    /// The library that this process uses, looked for once.
    ///
    /// # Errors
    /// [`Error::Device`] that says where it was looked for and what was found there.
    pub(super) fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        let found = LIBRARY.get_or_init(|| match env::var_os(VARIABLE) {
            Some(path) if !path.is_empty() => Self::first_of(vec![named(Path::new(&path))]),
            _ => Self::first_of(places()),
        });
        found.as_ref().map_err(|message| Error::Device(message.clone()))
    }

    /// The first of the files that is there and is of the release that the kernels were built with.
    fn first_of(files: Vec<PathBuf>) -> std::result::Result<Self, String> {
        let mut refused = Vec::new();
        let mut seen = HashSet::new();
        for file in files.into_iter().filter(|file| seen.insert(file.clone())) {
            // A bare name is the dynamic loader's to find.
            let bare = file.components().count() == 1;
            if !bare && !file.is_file() {
                continue;
            }
            match Self::load(&file) {
                Ok(library) if library.major() == MAJOR => return Ok(library),
                Ok(library) => {
                    refused.push(format!("{} is of CUDA {}", file.display(), library.release()))
                }
                Err(_) if bare => {}
                Err(why) => refused.push(format!("{}: {}", file.display(), one_line(&why))),
            }
        }
        let refused = match refused.is_empty() {
            true => String::new(),
            false => format!(" (not taken: {})", refused.join("; ")),
        };
        let name = file_name();
        Err(format!(
            "no {name}{refused}: looked for in LD_LIBRARY_PATH, nvidia/*/lib of the site-packages of \
             python3, CUDA_HOME and the system's library folders; it comes with the CUDA toolkit and \
             with PyTorch, and {VARIABLE} names its file"
        ))
    }

    /// The release as a number such as 120304, its form since release 12.
    fn version(&self) -> usize {
        // SAFETY: it takes nothing and gives a number.
        unsafe { (self.get_version)() }
    }

    fn major(&self) -> usize {
        self.version() / 10_000
    }

    /// The release, such as 13.0.1.
    pub(super) fn release(&self) -> String {
        format!("{}.{}.{}", self.major(), self.version() / 100 % 100, self.version() % 100)
    }

    /// What a status other than success means.
    pub(super) fn result(&self, what: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library gives the name of any number, as a static string.
        let name = unsafe { (self.status_name)(status) };
        let name = match name.is_null() {
            true => "an unknown status".into(),
            // SAFETY: it is a C string that lives as long as the library.
            false => unsafe { CStr::from_ptr(name) }.to_string_lossy(),
        };
        Err(Error::Device(format!("cuBLASLt: {what}: {name} ({status})")))
    }
}

/// The release of CUDA whose cuBLASLt is used: that of the kernels, so that one driver does for both.
const MAJOR: usize = CUDA as usize / 1000;

fn file_name() -> String {
    format!("libcublasLt.so.{MAJOR}")
}

/// A file, or the library in a folder.
fn named(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(file_name()) } else { path.to_path_buf() }
}

/// Where the library may lie, the likeliest first.
fn places() -> Vec<PathBuf> {
    let name = file_name();
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut files = Vec::new();
    // What the caller says comes before what can be guessed; the dynamic loader looks there too, but
    // takes the first file of the name whatever its version.
    let paths = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    files.extend(env::split_paths(&paths).filter(|folder| folder.is_absolute()));
    for site in site_packages() {
        files.extend(below(&site.join("nvidia"), "lib"));
    }
    for home in ["CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"].into_iter().filter_map(variable) {
        files.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|lib| home.join(lib)));
    }
    files.extend(
        ["/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib"]
            .map(PathBuf::from),
    );
    let mut files: Vec<_> = files.into_iter().map(|folder| folder.join(&name)).collect();
    files.push(PathBuf::from(name));
    files
}

/// The folders of installed packages of the Pythons that a user may mean: the active environment, the
/// one that `python3` is, the user's own.
fn site_packages() -> Vec<PathBuf> {
    let mut sites = Vec::new();
    if let Some(paths) = env::var_os("PYTHONPATH") {
        sites.extend(env::split_paths(&paths));
    }
    let mut roots: Vec<PathBuf> = Vec::new();
    roots.extend(
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from),
    );
    for folder in env::split_paths(&env::var_os("PATH").unwrap_or_default()) {
        // `python3` of an environment is a link to that of the system, so the folder counts.
        if folder.ends_with("bin") && folder.join("python3").exists() {
            roots.extend(folder.parent().map(Path::to_path_buf));
        }
    }
    roots.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".local")));
    for root in roots {
        for packages in ["site-packages", "dist-packages"] {
            sites.extend(
                below(&root.join("lib"), packages).into_iter().filter(|path| is_python(path)),
            );
        }
    }
    sites
}

/// Whether a path is `lib/python*/...`.
fn is_python(path: &Path) -> bool {
    let parent = path.parent().and_then(Path::file_name).and_then(OsStr::to_str);
    parent.is_some_and(|name| name.starts_with("python"))
}

/// `folder/*/name`, of what is there, in order.
fn below(folder: &Path, name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        entries.map(|entry| entry.path().join(name)).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shared library with the names of cuBLASLt, which says that it is of `version`.
    fn stand_in(folder: &Path, version: usize) -> PathBuf {
        let others = [
            "Create",
            "Destroy",
            "MatmulDescCreate",
            "MatmulDescDestroy",
            "MatmulDescSetAttribute",
            "MatrixLayoutCreate",
            "MatrixLayoutDestroy",
            "MatmulPreferenceCreate",
            "MatmulPreferenceDestroy",
            "MatmulPreferenceSetAttribute",
            "MatmulAlgoGetHeuristic",
            "MatmulAlgoCheck",
            "Matmul",
        ];
        let mut source =
            format!("unsigned long cublasLtGetVersion(void) {{ return {version}; }}\n");
        source += "const char *cublasLtGetStatusName(int s) { return s == 15 ? \"NOT_SUPPORTED\" : 0; }\n";
        for name in others {
            source += &format!("int cublasLt{name}(void) {{ return 15; }}\n");
        }
        std::fs::create_dir_all(folder).unwrap();
        let (c, file) = (folder.join("lt.c"), folder.join(file_name()));
        std::fs::write(&c, source).unwrap();
        let done = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&file, &c])
            .status()
            .expect("a C compiler, which Rust links with");
        assert!(done.success());
        file
    }

    #[test]
    fn a_library_of_another_release_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let other = if MAJOR == 12 { 130_001 } else { 120_405 };
        let wrong = stand_in(&dir.path().join("wrong"), other);
        let right = stand_in(&dir.path().join("right"), MAJOR * 10_000 + 203);
        let library = Library::first_of(vec![wrong.clone(), right.clone()]).unwrap();
        assert_eq!((library.path.as_path(), library.release()), (&*right, format!("{MAJOR}.2.3")));
        let message = Library::first_of(vec![wrong.clone()]).unwrap_err();
        let said = format!("{} is of CUDA {}.", wrong.display(), other / 10_000);
        assert!(message.contains(&said), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        let error = library.result("a product", 15).unwrap_err().to_string();
        assert_eq!(error, "device: cuBLASLt: a product: NOT_SUPPORTED (15)");
        assert!(library.result("a product", 99).unwrap_err().to_string().contains("(99)"));
    }

    #[test]
    fn a_file_that_is_no_library_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(file_name());
        std::fs::write(&file, "not a library").unwrap();
        let message = Library::first_of(vec![file.clone()]).unwrap_err();
        assert!(message.contains(&file.display().to_string()), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert_eq!(named(dir.path()), file);
    }

    #[test]
    fn packages_of_python_are_looked_through() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("lib/python3.12/site-packages/nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::create_dir_all(dir.path().join("lib/other/site-packages")).unwrap();
        let sites: Vec<_> = below(&dir.path().join("lib"), "site-packages")
            .into_iter()
            .filter(|path| is_python(path))
            .collect();
        assert_eq!(sites, [dir.path().join("lib/python3.12/site-packages")]);
        assert_eq!(below(&sites[0].join("nvidia"), "lib"), [lib]);
    }
}
