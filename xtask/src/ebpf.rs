//! `cargo xtask ebpf`: rebuilds the eBPF program and commits it to memory beside the code that embeds it.
//!
//! The program needs a compiler with `-Z build-std` and the sources of `core`, and bpf-linker. Either
//! rustup's nightly has them or Debian's packages of Firefox's compiler; both are looked for.
//!
//! Must not know: what the program does.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process::{output_of, root, run as execute, target_dir};
use crate::sources::{OBJECT, RECORD, recorded, sha256, sources_sha256};
use crate::strip::strip;

const TARGET: &str = "bpfel-unknown-none";

const ADVICE: &str = "\
cargo xtask ebpf needs a Rust compiler with the sources of `core`, and bpf-linker. Install one of
  - with rustup:
      rustup toolchain install nightly --component rust-src
      cargo install bpf-linker
  - on Debian:
      apt-get install -y --no-install-recommends rustc-web rust-web-src cargo-web llvm-22-dev libpolly-22-dev
      LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22
    (it also puts rustc and cargo into /usr/bin: keep ~/.cargo/bin first on PATH)
Nobody needs this to build zdt: the program is committed as zdt-engine/src/steering/zdt-steering.o";

#[derive(clap::Args)]
pub struct Options {
    /// Rebuild, compare with the committed object, change nothing
    #[arg(long)]
    check: bool,
    /// Write the object here instead of in its place in the sources
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    output: Option<PathBuf>,
}

/// A compiler that can build the program.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// Where rustc keeps the sources of `core`.
    library: PathBuf,
    /// For people and for the record: the compiler's and the linker's version.
    versions: String,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let Some(toolchain) = find_toolchain() else { bail!("no toolchain for eBPF.\n{ADVICE}") };
    eprintln!("eBPF toolchain: {}", toolchain.versions);
    let object = strip(&build(&toolchain)?)?;
    eprintln!("built: {} bytes, sha256 {}", object.len(), sha256(&object));
    if options.check {
        return check(&toolchain, &object);
    }
    if let Some(output) = &options.output {
        if let Some(parent) = output.parent() {
            fs::create_dir_all(parent).context("create the output's directory")?;
        }
        fs::write(output, &object).with_context(|| format!("write {}", output.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let record = format!(
        "# Made by `cargo xtask ebpf`; a test fails when the sources have changed and this has not.\n\
         sources-sha256 {}\nobject-sha256 {}\ntoolchain {}\n",
        sources_sha256(&root()).context("read the sources of the program")?,
        sha256(&object),
        toolchain.versions
    );
    fs::write(root().join(OBJECT), &object).context("write the object")?;
    fs::write(root().join(RECORD), record).context("write the object's record")?;
    eprintln!("wrote {OBJECT} and {RECORD}");
    Ok(ExitCode::SUCCESS)
}

/// Fails if the committed object is not what its sources give. Another compiler may well give
/// other bytes, so it can neither confirm nor deny.
fn check(toolchain: &Toolchain, object: &[u8]) -> Result<ExitCode> {
    let committed = fs::read(root().join(OBJECT)).context("read the committed object")?;
    let record = fs::read_to_string(root().join(RECORD)).context("read the object's record")?;
    let sources = sources_sha256(&root()).context("read the sources of the program")?;
    if recorded(&record, "sources-sha256") != Some(&sources) {
        bail!(
            "the sources of the program have changed: run `cargo xtask ebpf` and commit the result"
        );
    }
    if recorded(&record, "object-sha256") != Some(&sha256(&committed)) {
        bail!("{OBJECT} is not the one of {RECORD}: run `cargo xtask ebpf` and commit both");
    }
    if committed == object {
        eprintln!("{OBJECT} is exactly what its sources give");
        return Ok(ExitCode::SUCCESS);
    }
    let theirs = recorded(&record, "toolchain").unwrap_or("an unknown toolchain");
    if theirs == toolchain.versions {
        bail!(
            "{OBJECT} is not what its sources give: run `cargo xtask ebpf` and commit the result"
        );
    }
    eprintln!(
        "NOT COMPARED byte by byte: the committed object was built by {theirs}, here is {}",
        toolchain.versions
    );
    Ok(ExitCode::SUCCESS)
}

fn build(toolchain: &Toolchain) -> Result<Vec<u8>> {
    let build_dir = target_dir().join("ebpf");
    let mut flags = vec![
        // BTF is made from it, at any level of the profile.
        "-Cdebuginfo=2".to_owned(),
        "-Clinker=bpf-linker".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Atomic fetch-and-add, and 32-bit registers: in every kernel that zdt supports.
        "-Ctarget-cpu=v3".to_owned(),
        // The program reads no registers of the host; any architecture's bindings would do.
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
    ];
    for (from, to) in remaps(toolchain) {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    execute(
        Command::new(&toolchain.cargo)
            .args(["build", "--locked", "--release", "-Z", "build-std=core", "--target", TARGET])
            .arg("--target-dir")
            .arg(&build_dir)
            .current_dir(root().join("zdt-ebpf"))
            .env("RUSTC", &toolchain.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env("PATH", path_with_cargo_bin())
            // Settings of the cargo that runs this program, which is another one.
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO_BUILD_TARGET")
            .env_remove("CARGO_TARGET_DIR"),
    )
    .context("the eBPF program does not build")?;
    let linked = build_dir.join(TARGET).join("release/zdt-steering");
    fs::read(&linked).with_context(|| format!("read {}", linked.display()))
}

/// Paths that would be in the object, and what is in it instead.
fn remaps(toolchain: &Toolchain) -> Vec<(PathBuf, &'static str)> {
    let mut remaps = vec![(root(), "/zdt"), (toolchain.library.clone(), "/rust")];
    let registry = cargo_home().join("registry/src");
    // One directory for each registry, whose name depends on cargo's version.
    for entry in fs::read_dir(registry).into_iter().flatten().flatten() {
        remaps.push((entry.path(), "/dependencies"));
    }
    remaps
}

fn find_toolchain() -> Option<Toolchain> {
    let linker_version = output_of(find_linker()?, ["--version"])?;
    let toolchain = |cargo: PathBuf, rustc: PathBuf| -> Option<Toolchain> {
        let version = output_of(&rustc, ["--version"])?;
        output_of(&cargo, ["--version"])?;
        let sysroot = PathBuf::from(output_of(&rustc, ["--print", "sysroot"])?);
        let library = sysroot.join("lib/rustlib/src/rust");
        library.join("library/core/src/lib.rs").exists().then(|| Toolchain {
            cargo,
            rustc,
            library,
            versions: format!("{version}, {linker_version}"),
        })
    };
    let debian = || toolchain("/usr/bin/cargo".into(), "/usr/bin/rustc".into());
    let nightly = || {
        let of = |tool| output_of("rustup", ["which", "--toolchain", "nightly", tool]);
        toolchain(of("cargo")?.into(), of("rustc")?.into())
    };
    // The one that made the committed object comes first, so that the bytes can be compared.
    let record = fs::read_to_string(root().join(RECORD)).unwrap_or_default();
    let theirs = recorded(&record, "toolchain").unwrap_or_default();
    let found = [debian(), nightly()];
    let same = found
        .iter()
        .position(|one| one.as_ref().is_some_and(|toolchain| toolchain.versions == theirs));
    let mut found = found;
    match same {
        Some(index) => found[index].take(),
        None => found.into_iter().flatten().next(),
    }
}

fn find_linker() -> Option<PathBuf> {
    std::env::split_paths(&path_with_cargo_bin())
        .map(|dir| dir.join("bpf-linker"))
        .find(|path| path.is_file())
}

/// PATH, with `~/.cargo/bin` first: bpf-linker is there.
fn path_with_cargo_bin() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(cargo_home().join("bin")).chain(std::env::split_paths(&path));
    std::env::join_paths(all).unwrap_or(path)
}

fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    )
}
