//! Records in every program of this workspace where libtorch lies, so that it starts without exported variables.
//!
//! Every package that links libtorch names this file in its `Cargo.toml` and depends on `torch-sys` directly, because
//! Cargo hands `DEP_TCH_LIBTORCH_LIB` to direct dependents only.

use std::{env, path::Path};

fn main() {
    // Read from the package's folder, which is not always this file's. A path that does not exist would mean "always".
    if let Some(this) = ["build.rs", "../build.rs", "../../build.rs"].iter().find(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={this}");
    }
    let Ok(lib) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    // The link in the workspace may move to another libtorch; the program should not follow it half-way.
    let lib = Path::new(&lib).canonicalize().map_or(lib, |path| path.display().to_string());
    // Read by the build scripts of crates that depend on transformer-utils.
    println!("cargo::metadata=LIBTORCH_LIB={lib}");
    let family = env::var("CARGO_CFG_TARGET_FAMILY").unwrap_or_default();
    if family.split(',').any(|family| family == "unix") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
