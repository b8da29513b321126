//! A configuration file with any text: a configuration, or errors with a location. Never a panic, and never an empty
//! error. Devices are not opened: the input would choose what is read.

#![no_main]

use std::io::Write as _;

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|text: &str| -> Corpus {
    if text.contains("/dev/") || text.contains("/proc/") {
        return Corpus::Reject;
    }
    let path = std::env::temp_dir().join(format!("wxrelay-fuzz-{}.toml", std::process::id()));
    let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.expect("a temporary file");
    match wxrelay::config::load(Some(&path), [], &[]) {
        Ok(config) => assert_eq!(config.sha256.len(), 64),
        Err(errors) => {
            assert!(!errors.is_empty(), "no configuration, and no error");
            assert!(errors.iter().all(|error| !error.to_string().is_empty()), "an error without a word");
        }
    }
    Corpus::Keep
});
