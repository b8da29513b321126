//! Passes linker flags that make the program smaller, where the linker takes them, and compacts what is compiled in.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs, io};

/// The flags, for optimised builds on Linux with glibc.
const FLAGS: [&str; 2] = [
    // Stores the addresses to relocate at the start as a bitmap instead of a list: 0.7 MB less. Needs glibc 2.36
    // (2022).
    "-Wl,-z,pack-relative-relocs",
    // Keeps functions with identical code once.
    "-Wl,--icf=all",
];

/// The description of the admin API, which is compiled in without the blanks between its parts: a third less.
const OPENAPI: &str = "src/admin/openapi.json";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={OPENAPI}");
    let openapi = fs::read_to_string(OPENAPI)?;
    let compact = PathBuf::from(variable("OUT_DIR")).join("openapi.json");
    fs::write(compact, without_blanks(&openapi))?;
    // Also "release" for each profile that inherits it.
    let is_optimised = variable("PROFILE") == "release";
    if !is_optimised || variable("CARGO_CFG_TARGET_OS") != "linux" || variable("CARGO_CFG_TARGET_ENV") != "gnu" {
        return Ok(());
    }
    for flag in FLAGS.into_iter().filter(|flag| linker_takes(flag)) {
        println!("cargo::rustc-link-arg-bins={flag}");
    }
    Ok(())
}

/// JSON without the blanks outside of its texts.
fn without_blanks(json: &str) -> String {
    let (mut is_text, mut is_escaped) = (false, false);
    let keeps = |sign: &char| {
        let keeps = is_text || !sign.is_ascii_whitespace();
        is_text ^= *sign == '"' && !is_escaped;
        is_escaped = *sign == '\\' && !is_escaped;
        keeps
    };
    json.chars().filter(keeps).collect()
}

/// Whether the linker in use takes the flag: GNU ld has no `--icf`; LLVM's lld, mold and gold have it.
///
/// Which linker is in use depends on the compiler, the target, the configured linker and the flags, so an empty program
/// is linked with all of those. Cargo runs this again when one of them changes.
fn linker_takes(flag: &str) -> bool {
    let folder = PathBuf::from(variable("OUT_DIR"));
    let source = folder.join("probe.rs");
    if fs::write(&source, "fn main() {}\n").is_err() {
        return false;
    }
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.arg(&source).arg("-o").arg(folder.join("probe")).args(["--target", &variable("TARGET")]);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let flags = variable("CARGO_ENCODED_RUSTFLAGS");
    rustc.args(flags.split('\x1f').filter(|flag| !flag.is_empty())).arg(format!("-Clink-arg={flag}"));
    let status = rustc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn variable(key: &str) -> String {
    env::var(key).unwrap_or_default()
}
