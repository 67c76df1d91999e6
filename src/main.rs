//! The `collimate` binary.

fn main() -> std::process::ExitCode {
    collimate::cli::main()
}
