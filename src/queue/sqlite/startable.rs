//! Whether a store can be opened by a relay, found without opening it: nothing is created, locked or changed, so it may
//! run beside a relay.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Access, access};

use super::{files, key_table, schema};
use crate::queue::{EncryptionKeys, Error};

/// Checks the folder, the schema and the keys.
pub(in crate::queue) fn check(folder: &Path, keys: &EncryptionKeys) -> Result<(), Error> {
    let existing = files::existing_part(folder)?;
    files::refuse_network_filesystem(existing)?;
    match access(existing, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => {}
        // The service's manager may make the folder, for the service's user.
        Err(rustix::io::Errno::ACCESS) if existing != folder => {}
        Err(rustix::io::Errno::ROFS) => return Err(Error::ReadOnly { path: existing.to_owned() }),
        Err(errno) => return Err(Error::Io { path: existing.to_owned(), cause: errno.into() }),
    }
    check_database(folder, keys)
}

/// A store that a newer release wrote, a database of another program, and a missing key keep a relay from starting. What
/// else SQLite says is not the configuration's fault.
fn check_database(folder: &Path, keys: &EncryptionKeys) -> Result<(), Error> {
    let path = folder.join(files::DATABASE);
    if !path.exists() {
        return Ok(());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let checked = Connection::open_with_flags(&path, flags).map_err(Error::from).and_then(|connection| {
        match schema::version(&connection, &path)? {
            // The migration of an older store may make the tables that the keys are in.
            schema::VERSION => key_table::check(&connection, keys, folder),
            _ => Ok(()),
        }
    });
    match checked {
        Err(error) if error.is_configuration() => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
