//! How the program is linked.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |key: &str| env::var(key).unwrap_or_default();
    if variable("CARGO_CFG_TARGET_OS") != "linux" || variable("CARGO_CFG_TARGET_ENV") != "gnu" {
        return;
    }
    // The places of the program's own addresses, to be set at its start, as a bitmap instead of a list: 0.7 MB less. glibc
    // reads it since 2.36 (2022). A linker that does not know it warns, and makes the list.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // Functions that came out the same are kept once. GNU's linker cannot, Rust's own can, where Rust comes with it.
    let sysroot = Command::new(variable("RUSTC")).args(["--print", "sysroot"]).output();
    let sysroot = sysroot.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let linker = Path::new(&sysroot).join("lib/rustlib").join(variable("TARGET")).join("bin/gcc-ld/ld.lld");
    if variable("PROFILE") == "release" && fs::exists(linker).unwrap_or_default() {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
