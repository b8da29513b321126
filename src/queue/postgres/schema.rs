//! The schema: created when it is missing, checked when it is there.
//!
//! Replicas that start together create it once, under a lock that ends with its transaction.

use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::failure::Failure;
use super::problem::{NoServer, ServerProblem};
use super::session::{Session, Value};
use super::settings::Settings;

/// The version that `schema.sql` creates, and that this release knows.
pub const VERSION: i32 = 3;
/// The oldest version that a release must know to use the tables of [`VERSION`].
pub(super) const OLDEST_READER: i32 = 1;
/// The `oldest_reader` of tables that a copy goes into: nobody may use them yet.
pub(super) const COPYING: i32 = i32::MAX;
/// What each version adds to the one before it: tables and columns that the earlier release does not miss, so that both
/// run side by side. Each can be repeated.
const MIGRATIONS: [(i32, &str); 2] = [
    (2, "ALTER TABLE replica ADD COLUMN IF NOT EXISTS started_at timestamptz NOT NULL DEFAULT clock_timestamp();"),
    (
        3,
        "CREATE TABLE IF NOT EXISTS kept (name text PRIMARY KEY, fingerprint bytea NOT NULL, value bytea NOT NULL);\
         CREATE TABLE IF NOT EXISTS claim (name text PRIMARY KEY, incarnation int NOT NULL, until timestamptz NOT NULL);\
         CREATE TABLE IF NOT EXISTS challenge (domain text PRIMARY KEY, digest bytea NOT NULL, until timestamptz NOT NULL);",
    ),
];
/// A change of the tables waits at most 2 s for the statements that use them, as all later ones wait behind it. So often
/// it is tried.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Locks out releases that are too old, unless one of them has been alive lately.
const RAISE: &str = "UPDATE meta SET oldest_reader = $1 WHERE oldest_reader < $1 AND schema >= $1 \
    AND NOT EXISTS (SELECT FROM replica WHERE schema < $1 AND alive_at > clock_timestamp() - interval '2 minutes')";
const SCHEMA: &str = include_str!("schema.sql");
/// What `schema.sql` creates, found by their names, but for what a migration adds.
const TABLES: [&str; 12] = [
    "meta",
    "replica",
    "event",
    "known",
    "retired_key",
    "key",
    "target",
    "delivery",
    "attempt",
    "held_reply",
    "tally",
    "tally_delta",
];
const SEQUENCES: [&str; 2] = ["turn", "incarnation"];
/// A number of ours for the advisory lock; the lock is the database's.
const LOCK: &str = "pg_advisory_xact_lock(2003, 0)";

/// Whether the role may create the tables, in a schema that may be missing.
const MAY_CREATE: &str = "SELECT CASE WHEN n.oid IS NULL THEN has_database_privilege(current_database(), 'CREATE') \
    ELSE has_schema_privilege(n.oid, 'CREATE') AND has_schema_privilege(n.oid, 'USAGE') END \
    FROM (SELECT 1) AS one LEFT JOIN pg_namespace n ON n.nspname = $1";
const MAY_CHANGE: &str = "SELECT coalesce(bool_and(has_table_privilege(c.oid, 'SELECT') \
        AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') \
        AND has_table_privilege(c.oid, 'DELETE')), true) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r'";

/// Creates the tables if the schema has none, and checks that this release may use them.
///
/// # Errors
/// If they are missing and the role may not create them, are a part of what they should be, or were made by a newer
/// release.
pub async fn prepare(session: &Session, settings: &Settings) -> Result<(), Failure> {
    if check(session, settings).await? == Found::Nothing {
        create(session, settings).await?;
        check(session, settings).await?;
    }
    let rows = session.query_once("SELECT schema FROM meta", &[]).await?;
    let found: i32 = rows.first().map_or(Ok(VERSION), |row| row.try_get(0))?;
    if found < VERSION {
        migrate(session, settings, found).await?;
    }
    raise(session).await
}

/// Brings the tables of an earlier release up to this one's, which that release goes on using.
async fn migrate(session: &Session, settings: &Settings, found: i32) -> Result<(), Failure> {
    let newer = MIGRATIONS.iter().filter(|(version, _)| *version > found);
    let steps: String = newer.map(|(_, sql)| *sql).collect();
    let script = format!(
        "SELECT set_config('lock_timeout', '2s', true), set_config('search_path', '{}', true);SELECT {LOCK};{steps}\
         UPDATE meta SET schema = {VERSION} WHERE schema < {VERSION}",
        settings.schema
    );
    let mut tries = 1;
    loop {
        match session.execute_script(&script).await {
            Ok(_) => break,
            Err(failure) if failure.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) && tries < TRIES => {
                tracing::warn!(tries, "tables in use, not changed yet; trying again");
                tries += 1;
                sleep(PAUSE).await;
            }
            Err(failure) => return Err(rights(session, "change the tables", failure)),
        }
    }
    tracing::info!(from = found, to = VERSION, "tables brought up to this release");
    Ok(())
}

/// Keeps releases away that know no version from `needed` on, once none of them is alive.
pub(super) async fn raise_oldest_reader(session: &Session, needed: i32) -> Result<(), Failure> {
    session.query_once(RAISE, &[(&needed, Type::INT4)]).await.map(drop)
}

/// As [`raise_oldest_reader`], to what this release needs.
pub(super) async fn raise(session: &Session) -> Result<(), Failure> {
    raise_oldest_reader(session, OLDEST_READER).await
}

/// As [`check`], where tables that are all missing are an error too: for what only reads them.
///
/// # Errors
/// As for [`check`].
pub async fn expect(session: &Session, settings: &Settings) -> Result<(), Failure> {
    match check(session, settings).await? {
        Found::Tables => Ok(()),
        Found::Nothing => {
            let problem = ServerProblem::SchemaMissing { schema: settings.schema.clone() };
            Err(Failure::Away(NoServer::at(session.address().clone(), problem)))
        }
    }
}

/// What there is of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No table.
    Nothing,
    /// All, and this release may use them.
    Tables,
}

/// Checks that this release may use the tables, without changing anything.
///
/// # Errors
/// As for [`prepare`], but for tables that are all missing.
pub async fn check(session: &Session, settings: &Settings) -> Result<Found, Failure> {
    match find(session, settings).await? {
        (found, false) => Ok(found),
        (_, true) => {
            let problem = ServerProblem::SchemaCopying { schema: settings.schema.clone() };
            Err(Failure::Away(NoServer::at(session.address().clone(), problem)))
        }
    }
}

/// As [`check`]; also returns whether a copy into the tables has not come to where they can be used.
pub(super) async fn find(session: &Session, settings: &Settings) -> Result<(Found, bool), Failure> {
    let problem = |problem| Failure::Away(NoServer::at(session.address().clone(), problem));
    let names: Vec<&str> = TABLES.iter().chain(&SEQUENCES).copied().collect();
    let sql = "SELECT n.name FROM unnest($1::text[]) n(name) WHERE NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace s \
               ON s.oid = c.relnamespace WHERE s.nspname = $2 AND c.relname = n.name AND c.relkind IN ('r', 'p', 'S'))";
    let values: [Value<'_>; 2] = [(&names, Type::TEXT_ARRAY), (&settings.schema, Type::TEXT)];
    let missing = session.query_once(sql, &values).await?;
    let missing = missing.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    if missing.len() == names.len() {
        return Ok((Found::Nothing, false));
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(problem(ServerProblem::SchemaIncomplete { schema: settings.schema.clone(), missing }));
    }
    let version = session.query_once("SELECT schema, oldest_reader FROM meta", &[]).await;
    let version = version.map_err(|failure| rights(session, "read the tables", failure))?;
    let Some(row) = version.first() else {
        let missing = "the row of its table meta".to_owned();
        return Err(problem(ServerProblem::SchemaIncomplete { schema: settings.schema.clone(), missing }));
    };
    let (found, needed): (i32, i32) = (row.try_get(0)?, row.try_get(1)?);
    if needed == COPYING {
        return Ok((Found::Tables, true));
    }
    if needed > VERSION {
        let schema = settings.schema.clone();
        return Err(problem(ServerProblem::SchemaNewer { schema, found, needed, known: VERSION }));
    }
    Ok((Found::Tables, false))
}

/// Checks that the role may do what the engine does, without changing anything.
///
/// # Errors
/// If it may not, or cannot be asked.
pub async fn check_rights(session: &Session, settings: &Settings, found: Found) -> Result<(), Failure> {
    let (sql, what) = match found {
        Found::Nothing => (MAY_CREATE, "create the tables"),
        Found::Tables => (MAY_CHANGE, "read and change the tables"),
    };
    let rows = session.query(sql, &[(&settings.schema, Type::TEXT)]).await?;
    let is_allowed = rows.first().map_or(Ok(false), |row| row.try_get(0))?;
    if is_allowed {
        return Ok(());
    }
    let cause = format!("role {}, schema {}", settings.server.user, settings.schema);
    Err(Failure::Away(NoServer::at(session.address().clone(), ServerProblem::NoRights { what, cause })))
}

async fn create(session: &Session, settings: &Settings) -> Result<(), Failure> {
    let schema = &settings.schema;
    // The right to create a schema is the database's, and needed only for one that is missing.
    let find = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
    let is_there = !session.query_once(find, &[(schema, Type::TEXT)]).await?.is_empty();
    let create_schema = if is_there { String::new() } else { format!("CREATE SCHEMA IF NOT EXISTS {schema};") };
    // One transaction, as there is no BEGIN in it: nothing is left of it when it fails.
    let script = format!(
        "SELECT set_config('lock_timeout', '10s', true), set_config('search_path', '{schema}', true);SELECT {LOCK};\
         {create_schema}{SCHEMA}"
    );
    match session.execute_script(&script).await {
        Ok(_) => Ok(()),
        // Another replica was faster.
        Err(failure) if failure.code() == Some(&SqlState::DUPLICATE_TABLE) => Ok(()),
        Err(failure) => Err(rights(session, "create the tables", failure)),
    }
}

/// The failure of a role that lacks a right.
fn rights(session: &Session, what: &'static str, failure: Failure) -> Failure {
    match failure {
        Failure::Refused { code: SqlState::INSUFFICIENT_PRIVILEGE, message } => {
            Failure::Away(NoServer::at(session.address().clone(), ServerProblem::NoRights { what, cause: message }))
        }
        other => other,
    }
}

/// What creates the tables, to be run by somebody who may, in psql: the output of `wxrelay store sql`.
pub fn script(schema: &str, role: &str) -> String {
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "-- Creates the tables of wxrelay. Run it in the database of queue.url:\n--   psql -v ON_ERROR_STOP=1 -1 -f FILE \
         DATABASE\n\nCREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {quoted};\nSET ROLE {quoted};\nSET search_path = \
         {schema};\n\n{SCHEMA}\nRESET ROLE;\nRESET search_path;\n"
    )
}
