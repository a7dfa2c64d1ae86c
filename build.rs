//! Makes the linker keep the section of the library in which pgrx describes the SQL functions.
//!
//! cargo-pgrx would do that by RUSTFLAGS, with which every dependency is compiled again: tools/env.sh switches it off.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os != "macos" && os != "windows") {
        println!("cargo::rustc-link-arg-cdylib=-Wl,--no-gc-sections");
    }
}
