//! Records in the program where libtorch lies.

fn main() {
    let lib = std::env::var("DEP_TRANSFORMER_UTILS_LIBTORCH_LIB").unwrap();
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
}
