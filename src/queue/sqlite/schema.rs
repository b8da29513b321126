//! The schema's version, and migrations.
//!
//! A store of an older version is migrated when the writer opens it, a version at a time, each in one transaction: an
//! interrupted migration continues where it was. It cannot be undone: older releases cannot open the store.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, ffi};

use crate::queue::Error;

/// `wxrl`, so that `file` and the relay recognise its databases.
pub(super) const APPLICATION_ID: i64 = 0x7778_726c;
/// The version that `schema.sql` creates.
pub(super) const VERSION: i64 = 1 + MIGRATIONS.len().cast_signed() as i64;
const SCHEMA: &str = include_str!("schema.sql");

/// The script from each version to the next, starting with version 1.
const MIGRATIONS: [&str; 5] = [
    include_str!("migrations/2.sql"),
    include_str!("migrations/3.sql"),
    include_str!("migrations/4.sql"),
    include_str!("migrations/5.sql"),
    include_str!("migrations/6.sql"),
];

/// The version in the file, 0 if it is empty; refuses another program's database, or a newer version.
pub(super) fn version(connection: &Connection, path: &Path) -> Result<i64, Error> {
    let number = |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && (application, version, tables) != (0, 0, 0) {
        return Err(Error::Foreign { path: path.to_owned() });
    }
    if version > VERSION {
        return Err(Error::Schema { path: path.to_owned(), found: version, known: VERSION });
    }
    Ok(version)
}

/// Creates the tables in an empty file, or migrates those of an older version.
pub(super) fn migrate(connection: &Connection, path: &Path, version: i64) -> Result<(), Error> {
    if version == 0 {
        let identity = format!("PRAGMA application_id = {APPLICATION_ID};");
        return Ok(run_migration(connection, &[SCHEMA, &identity].concat(), VERSION)?);
    }
    for (migration, to) in MIGRATIONS.iter().zip(2..).skip_while(|(_, to)| *to <= version) {
        run_migration(connection, migration, to)?;
        tracing::info!(path = %path.display(), schema = to, "store migrated; older releases cannot open it");
    }
    Ok(())
}

/// Compares the tables, indexes and views in the file with those that the scripts make. SQLite would take a rotten name of
/// a column for another column, and fail each statement with an error that is none of damage. Further entries of an
/// operator do not matter.
///
/// # Errors
/// As for a damaged file, if one is missing or another.
pub(super) fn verify(connection: &Connection) -> rusqlite::Result<()> {
    let entries = |connection: &Connection| -> rusqlite::Result<BTreeSet<String>> {
        let mut find = connection.prepare("SELECT type || ' ' || name || coalesce(sql, '') FROM sqlite_schema")?;
        let rows = find.query_map([], |row| row.get::<_, String>(0))?;
        // Migrations and the script of a new store differ in blanks.
        rows.map(|row| row.map(|entry| entry.split_whitespace().collect())).collect()
    };
    let fresh = Connection::open_in_memory()?;
    fresh.execute_batch(SCHEMA)?;
    if entries(&fresh)?.is_subset(&entries(connection)?) {
        return Ok(());
    }
    let what = "the schema in the file is not the one that was written".to_owned();
    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what)))
}

fn run_migration(connection: &Connection, sql: &str, version: i64) -> rusqlite::Result<()> {
    let done = connection.execute_batch(&format!("BEGIN IMMEDIATE; {sql} PRAGMA user_version = {version}; COMMIT;"));
    if done.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
    }
    done
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::files;
    use super::super::store::Store;
    use super::*;
    use crate::queue::DeliveryState;
    use crate::queue::sqlite::SqliteReader;

    /// A folder with the store of an earlier release.
    fn earlier(version: i64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let stored = format!("{}/tests/data/store/v{version}.db", env!("CARGO_MANIFEST_DIR"));
        fs::copy(stored, folder.path().join(files::DATABASE)).unwrap();
        folder
    }

    /// Every entry of the schema, without regard to blanks.
    fn schema(store: &Store) -> Vec<String> {
        let sql = "SELECT type || name || coalesce(sql, '') FROM sqlite_schema ORDER BY type, name";
        let mut find = store.connection.prepare(sql).unwrap();
        let rows = find.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.map(|row| row.unwrap().split_whitespace().collect()).collect()
    }

    #[test]
    fn an_earlier_store_is_brought_to_what_a_fresh_one_is() {
        let fresh = tempfile::tempdir().unwrap();
        let fresh = schema(&Store::open(fresh.path()).unwrap());
        assert!(fresh.len() > 10, "{fresh:?}");
        for version in 1..VERSION {
            let folder = earlier(version);
            let before = Connection::open(folder.path().join(files::DATABASE)).unwrap();
            assert_eq!(super::version(&before, folder.path()).unwrap(), version);
            drop(before);
            let store = Store::open(folder.path()).unwrap();
            assert_eq!(schema(&store), fresh, "from version {version}");
            assert_eq!(store.pragma("user_version").unwrap(), VERSION);
            let check: String = store.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
            drop(store);
            let audit = SqliteReader::open(folder.path()).unwrap().audit().unwrap();
            assert!(audit.is_clean() && audit.events > 0, "{audit:?}");
        }
    }

    #[test]
    fn an_older_store_is_not_read_before_it_is_migrated() {
        let folder = earlier(1);
        let Err(error) = SqliteReader::open(folder.path()) else { panic!("read") };
        assert!(matches!(error, Error::Outdated { found: 1, .. }), "{error}");
        assert!(error.remedy().unwrap().contains("start the relay once"), "{error}");
        drop(Store::open(folder.path()).unwrap());
        let letters = SqliteReader::open(folder.path()).unwrap().dead(None, 10, None).unwrap();
        assert!(!letters.is_empty());
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let folder = earlier(1);
        let connection = Connection::open(folder.path().join(files::DATABASE)).unwrap();
        let tables = |connection: &Connection| {
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let before = tables(&connection);
        assert!(run_migration(&connection, "CREATE TABLE half (done); not sql;", 2).is_err());
        assert!(connection.is_autocommit());
        assert_eq!((tables(&connection), version(&connection, folder.path()).unwrap()), (before, 1));
    }

    #[test]
    fn a_store_of_another_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(files::DATABASE);
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(Store::open(folder.path()), Err(Error::Foreign { .. })));
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        let path = folder.path().join(files::DATABASE);
        let newer = VERSION + 1;
        Connection::open(&path).unwrap().execute_batch(&format!("PRAGMA user_version = {newer}")).unwrap();
        let Err(error) = Store::open(folder.path()) else { panic!("opened") };
        assert!(matches!(error, Error::Schema { found, known: VERSION, .. } if found == newer), "{error}");
        assert!(matches!(SqliteReader::open(folder.path()), Err(Error::Schema { .. })));
    }

    #[test]
    fn states_are_numbered_as_the_schema_says() {
        let told = SCHEMA.lines().find(|line| line.contains("delivery.state")).unwrap();
        for state in DeliveryState::ALL {
            assert!(told.contains(&format!("{} {}", state as i64, state.name())), "{told}");
        }
    }
}
