//! Tests that cannot run here say so, and `cargo xtask test` repeats it at its end.
//!
//! Must not know: what the tests test.

use std::io::Write;

/// Prints the line that `cargo xtask test` collects. Written past the test harness, which would keep
/// it to itself. With `CI=true` a skipped test fails.
pub fn skip(test: &str, reason: &str) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {test}: {reason}");
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test} may not be skipped in CI");
}

/// False, with a line that says so, where the test needs root and has not got it.
pub fn have_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}
