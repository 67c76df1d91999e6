//! Compiles `kernels/*.cu` for the device (feature `cuda`) or for its emulation on the host (`emulate`, which wins),
//! and regenerates the bindings for a test (`bindgen`). With none of them: nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(any(feature = "cuda", feature = "emulate", feature = "bindgen"))]
    build::run();
}

#[cfg(any(feature = "cuda", feature = "emulate", feature = "bindgen"))]
#[allow(dead_code, unused_imports)] // which of it is used depends on the features
mod build {
    use std::env;
    use std::path::{Path, PathBuf};

    const INSTALL: &str = "run scripts/install-cuda.sh, which puts it into .cuda";

    pub fn run() {
        println!("cargo:rerun-if-changed=kernels");
        #[cfg(feature = "emulate")]
        emulate();
        #[cfg(all(feature = "cuda", not(feature = "emulate")))]
        cuda();
        #[cfg(feature = "bindgen")]
        bindings();
    }

    fn variable(name: &str) -> Option<String> {
        println!("cargo:rerun-if-env-changed={name}");
        env::var(name).ok().filter(|value| !value.is_empty())
    }

    #[cfg(any(feature = "cuda", feature = "emulate"))]
    fn kernels() -> Vec<PathBuf> {
        let folder = std::fs::read_dir("kernels").expect("kernels/ is part of the package");
        let mut files: Vec<PathBuf> = folder
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .collect();
        files.sort();
        files
    }

    #[cfg(feature = "emulate")]
    fn emulate() {
        println!(
            "cargo:warning=the CUDA kernels are compiled for emulation on the host: correct, and slow"
        );
        let sanitizer = variable("COLLIMATE_SANITIZE");
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(2).include("kernels").include("kernels/emulate");
        build.flags(["-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]);
        if let Some(kind) = &sanitizer {
            let runtime = match kind.as_str() {
                "address" => "asan",
                "undefined" => "ubsan",
                "thread" => "tsan",
                _ => fail(&format!(
                    "COLLIMATE_SANITIZE={kind}: expected address, undefined or thread"
                )),
            };
            build.define(&format!("COLLIMATE_SANITIZE_{}", kind.to_uppercase()), "1");
            println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-l{runtime},--as-needed");
        }
        // The scheduler tells the sanitizers what it does and is never compiled with one.
        let mut machine = build.clone();
        if let Some(kind) = &sanitizer {
            build.flag(format!("-fsanitize={kind}")).flag("-g");
        }
        build.flag("-x").flag("c++").files(kernels()).compile("collimate_kernels");
        machine
            .files(["kernels/emulate/machine.cpp", "kernels/emulate/control.cpp"])
            .compile("collimate_machine");
    }

    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    fn cuda() {
        if let Some(folder) = variable("COLLIMATE_KERNELS") {
            return compiled(Path::new(&folder));
        }
        let nvcc =
            find_nvcc().unwrap_or_else(|| fail(&format!("no nvcc for feature `cuda`: {INSTALL}")));
        let root =
            nvcc.parent().and_then(Path::parent).expect("nvcc lies in a bin folder").to_path_buf();
        // cc recognises nvcc by its name on PATH; naming a compiler explicitly makes it take nvcc for gcc.
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(root.join("bin")).chain(env::split_paths(&path));
        // SAFETY: the build script has one thread.
        unsafe { env::set_var("PATH", env::join_paths(folders).expect("PATH is well formed")) };
        let mut build = cc::Build::new();
        build.cuda(true).cudart("static").include("kernels").include("kernels/device");
        build.flag("-std=c++17").opt_level(3).debug(false);
        let release = release(&nvcc);
        if release < OLDEST_NVCC {
            fail(&format!(
                "{} is of CUDA {}.{}, the kernels need {}.{} or later",
                nvcc.display(),
                release.0,
                release.1,
                OLDEST_NVCC.0,
                OLDEST_NVCC.1
            ));
        }
        // Every driver that runs these kernels unpacks the smallest form, a seventh of the default's size.
        if release >= (12, 8) {
            build.flag("--compress-mode=size");
        }
        let archs = architectures(&nvcc);
        for arch in &archs {
            build.flag("-gencode").flag(format!("arch=compute_{arch},code=sm_{arch}"));
        }
        let last = archs.last().expect("there is one at least");
        build.flag("-gencode").flag(format!("arch=compute_{last},code=compute_{last}"));
        built(&format!("{}.{}", release.0, release.1), &archs.join(","));
        find_runtime(&root);
        build.files(kernels()).compile("collimate_kernels");
    }

    /// Links the kernels that scripts/kernels.sh has compiled into a folder.
    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    fn compiled(folder: &Path) {
        let archive = folder.join("libcollimate_kernels.a");
        println!("cargo:rerun-if-changed={}", archive.display());
        let facts = std::fs::read_to_string(folder.join("built")).unwrap_or_default();
        let facts: Vec<&str> = facts.lines().collect();
        let (&[release, archs], true) = (facts.as_slice(), archive.is_file()) else {
            fail(&format!(
                "COLLIMATE_KERNELS={}: expected a folder that scripts/kernels.sh has filled",
                folder.display()
            ));
        };
        built(release, archs);
        let nvcc = find_nvcc()
            .unwrap_or_else(|| fail(&format!("no nvcc, whose folder has the runtime: {INSTALL}")));
        find_runtime(nvcc.parent().and_then(Path::parent).expect("nvcc lies in a bin folder"));
        println!("cargo:rustc-link-search=native={}", folder.display());
        println!("cargo:rustc-link-lib=static=collimate_kernels");
        println!("cargo:rustc-link-lib=static=cudart_static");
        for library in ["stdc++", "dl", "rt", "pthread"] {
            println!("cargo:rustc-link-lib={library}");
        }
    }

    /// Tells the crate what its kernels were compiled with, and for what.
    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    fn built(release: &str, archs: &str) {
        println!("cargo:rustc-env=COLLIMATE_NVCC={release}");
        println!("cargo:rustc-env=COLLIMATE_BUILT_ARCHS={archs}");
    }

    /// Where the linker finds the static runtime of CUDA.
    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    fn find_runtime(root: &Path) {
        for folder in ["lib64", "lib", "targets/x86_64-linux/lib"] {
            if root.join(folder).join("libcudart_static.a").exists() {
                println!("cargo:rustc-link-search=native={}", root.join(folder).display());
            }
        }
    }

    /// The oldest compiler that the kernels are compiled with in the tests.
    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    const OLDEST_NVCC: (u32, u32) = (12, 4);

    /// The architectures that the kernels are compiled for: those asked for, or every one of the list
    /// that the compiler knows.
    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    fn architectures(nvcc: &Path) -> Vec<String> {
        let known = output(nvcc, "--list-gpu-code");
        let known: Vec<&str> =
            known.lines().filter_map(|line| line.trim().strip_prefix("sm_")).collect();
        let Some(asked) = variable("COLLIMATE_CUDA_ARCHS") else {
            let all = ["80", "86", "89", "90", "100", "120"];
            return all.into_iter().filter(|arch| known.contains(arch)).map(String::from).collect();
        };
        let asked: Vec<String> = asked.split(',').map(|arch| arch.trim().into()).collect();
        if let Some(unknown) = asked.iter().find(|arch| !known.contains(&arch.as_str())) {
            fail(&format!(
                "COLLIMATE_CUDA_ARCHS: {unknown} is none of the architectures of {}: {}",
                nvcc.display(),
                known.join(", ")
            ));
        }
        asked
    }

    /// The release of CUDA that a compiler belongs to.
    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    fn release(nvcc: &Path) -> (u32, u32) {
        let text = output(nvcc, "--version");
        let release = text.split_once("release ").and_then(|(_, rest)| {
            let (major, rest) = rest.split_once('.')?;
            let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        release.unwrap_or_else(|| fail(&format!("{} --version names no release", nvcc.display())))
    }

    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    fn output(nvcc: &Path, flag: &str) -> String {
        let done = std::process::Command::new(nvcc).arg(flag).output();
        let done = done.unwrap_or_else(|e| fail(&format!("{}: {e}", nvcc.display())));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    #[cfg(all(feature = "cuda", not(feature = "emulate")))]
    fn find_nvcc() -> Option<PathBuf> {
        let named = variable("NVCC").map(PathBuf::from);
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
        let path = env::var_os("PATH").unwrap_or_default();
        let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
        named
            .into_iter()
            .chain(homes.map(|home| Path::new(&home).join("bin/nvcc")))
            .chain(on_path)
            .chain(installed("nvidia").and_then(|folder| one_below(&folder, "bin/nvcc")))
            .chain(["/usr/local/cuda/bin/nvcc".into()])
            .find(|nvcc| nvcc.is_file())
    }

    /// A folder of the packages that scripts/install-cuda.sh installs.
    #[cfg(any(feature = "bindgen", all(feature = "cuda", not(feature = "emulate"))))]
    fn installed(package: &str) -> Option<PathBuf> {
        let checkout = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
        one_below(&checkout.join(".cuda/lib"), &format!("site-packages/{package}"))
    }

    /// The first `folder/*/rest` that exists.
    #[cfg(any(feature = "bindgen", all(feature = "cuda", not(feature = "emulate"))))]
    fn one_below(folder: &Path, rest: &str) -> Option<PathBuf> {
        let entries = std::fs::read_dir(folder).ok()?;
        entries.filter_map(|entry| Some(entry.ok()?.path().join(rest))).find(|path| path.exists())
    }

    /// Writes `$OUT_DIR/bindings.rs` and `control.rs`, empty where there is no libclang.
    #[cfg(feature = "bindgen")]
    fn bindings() {
        if variable("LIBCLANG_PATH").is_none() {
            if let Some(folder) = installed("clang/native") {
                // SAFETY: the build script has one thread.
                unsafe { env::set_var("LIBCLANG_PATH", folder) };
            }
        }
        for (header, file) in
            [("kernels/collimate.h", "bindings.rs"), ("kernels/emulate/control.h", "control.rs")]
        {
            let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
            let target = Path::new(&out).join(file);
            // bindgen panics where it finds no libclang
            let Ok(generated) = std::panic::catch_unwind(|| {
                bindgen::Builder::default()
                    .header(header)
                    .allowlist_item("collimate_.*|COLLIMATE_.*")
                    .prepend_enum_name(false)
                    .use_core()
                    .derive_default(true)
                    .rust_edition(bindgen::RustEdition::Edition2024)
                    .generate()
            }) else {
                println!("cargo:warning=no libclang for feature `bindgen`: {INSTALL}");
                std::fs::write(target, "").expect("OUT_DIR is writable");
                continue;
            };
            let generated = generated.unwrap_or_else(|error| fail(&error.to_string()));
            generated.write_to_file(target).expect("OUT_DIR is writable");
        }
    }

    fn fail(message: &str) -> ! {
        println!("cargo:warning={message}");
        eprintln!("{message}");
        std::process::exit(1)
    }
}
