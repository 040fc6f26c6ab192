//! Builds the CUDA kernels when the `cuda` feature is on; otherwise does nothing, so that a machine without a toolkit builds the rest.

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        println!(
            "cargo::error=this version has no CUDA kernels yet; build without `--features cuda` and run with `--device cpu`"
        );
    }
}
