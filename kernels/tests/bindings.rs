//! The committed bindings are those of the headers. `COLLIMATE_BLESS=1` rewrites them.

#[test]
fn bindings_are_those_of_the_headers() {
    for (file, generated) in [
        ("bindings.rs", include_str!(concat!(env!("OUT_DIR"), "/bindings.rs"))),
        ("control.rs", include_str!(concat!(env!("OUT_DIR"), "/control.rs"))),
    ] {
        if generated.is_empty() {
            eprintln!("skipped: no libclang; scripts/install-cuda.sh installs it");
            return;
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ffi");
        let path = format!("{folder}/{file}");
        if std::env::var_os("COLLIMATE_BLESS").is_some() {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(&path, generated).unwrap();
        }
        let committed = std::fs::read_to_string(&path).expect("the bindings are committed");
        assert!(
            committed == generated,
            "src/ffi/{file} is not what the header says: \
             COLLIMATE_BLESS=1 cargo test --no-default-features --features bindgen --test bindings"
        );
    }
}
