//! The options that SQLite was compiled with, compared with those of the tests.
//!
//! The flags are in `.cargo/config.toml`, which cargo reads only in the folder of the sources: `cargo install --git`
//! and a build from another folder miss them, and `LIBSQLITE3_SYS_USE_PKG_CONFIG` links the system's library. So the
//! relay asks SQLite itself.

use std::collections::BTreeSet;

use rusqlite::Connection;

use crate::queue::Error;

/// Options that are set in the tests. `HAVE_FDATASYNC` is set too, which SQLite does not list.
const SET: [&str; 13] = [
    "DEFAULT_MEMSTATUS=0",
    "DISABLE_DIRSYNC",
    "OMIT_COMPLETE",
    "OMIT_DECLTYPE",
    "OMIT_DEPRECATED",
    "OMIT_DESERIALIZE",
    "OMIT_GET_TABLE",
    "OMIT_INCRBLOB",
    "OMIT_JSON",
    "OMIT_LOAD_EXTENSION",
    "OMIT_SHARED_CACHE",
    "OMIT_TCL_VARIABLE",
    "OMIT_UTF16",
];

/// Options that are not set in the tests, though `libsqlite3-sys` or a distribution sets them.
const UNSET: [&str; 11] = [
    "ENABLE_API_ARMOR",
    "ENABLE_COLUMN_METADATA",
    "ENABLE_DBSTAT_VTAB",
    "ENABLE_FTS3",
    "ENABLE_FTS3_PARENTHESIS",
    "ENABLE_FTS5",
    "ENABLE_JSON1",
    "ENABLE_LOAD_EXTENSION",
    "ENABLE_RTREE",
    "ENABLE_STAT4",
    "SOUNDEX",
];

/// The SQLite that this program is linked with.
#[derive(Clone, Debug)]
pub struct SqliteBuild {
    /// Its version.
    pub version: &'static str,
    /// Options that are set in the tests, but not here.
    missing: Vec<&'static str>,
    /// Options that are set here, but not in the tests.
    unexpected: Vec<&'static str>,
}

impl SqliteBuild {
    /// Asks the library.
    ///
    /// # Errors
    /// If SQLite does not open a database in memory.
    pub fn read() -> Result<Self, Error> {
        let connection = Connection::open_in_memory()?;
        let mut statement = connection.prepare("PRAGMA compile_options")?;
        let options = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(Self::compare(&options))
    }

    fn compare(options: &BTreeSet<String>) -> Self {
        let missing = SET.into_iter().filter(|option| !options.contains(*option)).collect();
        let unexpected = UNSET.into_iter().filter(|option| options.contains(*option)).collect();
        Self { version: rusqlite::version(), missing, unexpected }
    }

    /// How its options differ from those of the tests; `None` if they do not.
    pub fn differences(&self) -> Option<String> {
        let lists = [("missing", &self.missing), ("unexpected", &self.unexpected)];
        let lists = lists.into_iter().filter(|(_, options)| !options.is_empty());
        let texts: Vec<_> = lists.map(|(name, options)| format!("{name}: {}", options.join(", "))).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARGO_CONFIG: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/.cargo/config.toml"));

    #[test]
    fn the_library_of_the_tests_has_the_tested_options() {
        assert_eq!(SqliteBuild::read().unwrap().differences(), None);
    }

    #[test]
    fn the_lists_are_those_of_the_flags() {
        let flags: Vec<_> = CARGO_CONFIG.split([' ', '\n', '"']).collect();
        let of =
            |prefix: &str| -> BTreeSet<&str> { flags.iter().filter_map(|flag| flag.strip_prefix(prefix)).collect() };
        assert_eq!(of("-DSQLITE_"), SET.into());
        assert_eq!(of("-USQLITE_"), UNSET.into());
    }

    #[test]
    fn what_differs_is_named() {
        let differences = |options: &BTreeSet<String>| SqliteBuild::compare(options).differences();
        let mut options: BTreeSet<_> = SET.map(str::to_owned).into();
        assert_eq!(differences(&options), None);
        options.insert("ENABLE_FTS5".to_owned());
        assert_eq!(differences(&options).as_deref(), Some("unexpected: ENABLE_FTS5"));
        options.remove("DEFAULT_MEMSTATUS=0");
        options.insert("DEFAULT_MEMSTATUS=1".to_owned());
        options.remove("OMIT_JSON");
        let both = "missing: DEFAULT_MEMSTATUS=0, OMIT_JSON; unexpected: ENABLE_FTS5";
        assert_eq!(differences(&options).as_deref(), Some(both));
        let unlisted = SqliteBuild::compare(&BTreeSet::new());
        assert_eq!(unlisted.missing, SET, "a library that lists no options");
    }
}
