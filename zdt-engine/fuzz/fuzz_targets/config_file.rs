//! Any text as a configuration file: settings that can be used, or an error that names a line.
//!
//! Must not know: what the settings do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::config::Settings;

fuzz_target!(|text: &str| {
    match Settings::from_text(text) {
        // A reload compares what it reads with what is in force.
        Ok(settings) => assert_eq!(settings.changes_to(&settings), []),
        Err((line, message)) => {
            assert!((1..=text.lines().count() + 1).contains(&line), "{line}: {message}");
            assert!(!message.is_empty());
        }
    }
});
