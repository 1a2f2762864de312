//! Which sources the committed eBPF object was made from.
//!
//! Also compiled into the test that fails when they have changed and the object has not.
//!
//! Must not know: how the object is built.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// What the program is made from, relative to the workspace.
const PLACES: [&str; 5] = [
    "zdt-ebpf/Cargo.toml",
    "zdt-ebpf/Cargo.lock",
    "zdt-ebpf/src",
    "zdt-common/src",
    "xtask/src/strip.rs",
];

/// The committed object.
pub const OBJECT: &str = "zdt-engine/src/steering/zdt-steering.o";

/// What is known about it: lines of `NAME VALUE`.
pub const RECORD: &str = "zdt-engine/src/steering/zdt-steering.sources";

/// SHA-256 over names and contents of all sources, in hexadecimal.
pub fn sources_sha256(workspace: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for place in PLACES {
        collect(&workspace.join(place), &mut files)?;
    }
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let contents = fs::read(&file)?;
        let name = file.strip_prefix(workspace).unwrap_or(&file).to_string_lossy().into_owned();
        digest.update((name.len() as u64).to_be_bytes());
        digest.update(name.as_bytes());
        digest.update((contents.len() as u64).to_be_bytes());
        digest.update(&contents);
    }
    Ok(hexadecimal(&digest.finalize()))
}

/// SHA-256 of bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// The value of a line of the record.
pub fn recorded<'r>(record: &'r str, name: &str) -> Option<&'r str> {
    record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
