//! The committed object belongs to the sources of the program.

use std::fs;
use std::path::Path;

#[path = "../../../../xtask/src/sources.rs"]
mod sources;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace")
}

fn record() -> String {
    fs::read_to_string(workspace().join(sources::RECORD)).expect("the object's record")
}

#[test]
fn the_object_was_built_from_these_sources() {
    let now = sources::sources_sha256(workspace()).expect("the sources of the program");
    assert_eq!(
        sources::recorded(&record(), "sources-sha256"),
        Some(now.as_str()),
        "the sources of the eBPF program have changed: run `cargo xtask ebpf` and commit the result"
    );
}

#[test]
fn the_object_is_the_recorded_one_and_small() {
    let object = fs::read(workspace().join(sources::OBJECT)).expect("the object");
    assert_eq!(
        sources::recorded(&record(), "object-sha256"),
        Some(sources::sha256(&object).as_str())
    );
    assert!(object.len() < 64 << 10, "{} bytes", object.len());
    let contains = |needle: &[u8]| object.windows(needle.len()).any(|window| window == needle);
    assert!(contains(b".BTF"));
    assert!(!contains(b".debug_"), "there is DWARF in the object");
    for path in [&b"/root/"[..], b"/home/", b".cargo"] {
        assert!(!contains(path), "the object names a path of the machine that built it");
    }
}
