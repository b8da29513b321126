//! PostgreSQL as the engine: several replicas share one queue.
//!
//! - `settings.rs`: the URL and the keys. `connect.rs`, `resolve.rs`, `stream.rs`: a connection, and what it is checked for.
//!   `problem.rs`: why there is none, with the setting to change.
//! - `session.rs`: calls, whose outcome is confirmed, refused or unknown (`failure.rs`). `pinned.rs`: a session for one
//!   purpose, made again when it is lost.
//! - `schema.rs`, `schema.sql`: the tables. `locks.rs`, `values.rs`, `targets.rs`, `keys.rs`: what statements share.
//! - `engine.rs`: the handle and the workers. `append.rs`: pushes. `lease.rs`, `settle.rs`: deliveries. `replies.rs`: the one reply. `replica.rs`: this
//!   process among the others, `peers.rs`: what it knows of them. `looks.rs`: what it holds and what is free.
//!   `house.rs`: what is old. `health.rs`: whether PostgreSQL answers.
//!   `observe.rs`: its standby, and what keeps it from cleaning up.
//! - `kept.rs`: what replicas share beside the queue.
//! - `spool.rs`: where pushes wait while PostgreSQL is away.
//! - `copy.rs`, `copy_columns.rs`, `copy_source.rs`: the tables as the place for a copy of a store of files, and as its source.
//! - `inspect.rs`, `ledger.rs`, `deep.rs`: readers. `operator.rs`, `selection.rs`, `sweep.rs`: what operators ask for.

mod append;
mod append_columns;
mod connect;
#[cfg(test)]
mod connect_tests;
pub(super) mod copy;
mod copy_columns;
pub(super) mod copy_source;
mod deep;
mod due;
mod engine;
#[cfg(test)]
mod engine_tests;
mod failure;
mod health;
mod held_replies;
#[cfg(test)]
mod held_tests;
mod house;
mod inspect;
mod kept;
mod keys;
mod lease;
mod ledger;
mod locks;
mod looks;
mod observe;
mod operator;
mod peers;
mod pinned;
#[cfg(test)]
mod plan_tests;
mod problem;
mod replica;
#[cfg(test)]
mod replica_tests;
mod replies;
mod resolve;
pub mod schema;
mod selection;
mod session;
mod settings;
mod settle;
mod settle_columns;
mod spool;
#[cfg(test)]
mod spool_tests;
mod stream;
mod sweep;
mod targets;
#[cfg(test)]
#[path = "../../../tests/it/support/postgres.rs"]
pub(crate) mod test_server;
#[cfg(test)]
mod tests;
mod values;

pub use self::connect::Connector;
pub use self::engine::Postgres;
pub use self::failure::Failure;
pub(super) use self::inspect::PostgresReader;
pub use self::observe::{Observation, OldestXmin, find_oldest_xmin};
pub use self::pinned::PinnedSession;
pub use self::problem::{NoServer, ServerProblem};
pub use self::session::{BoundQuery, Session, SessionFacts, Snapshot, Value};
pub use self::settings::{
    Address, DEFAULT_SPOOL_SIZE, PasswordSource, Server, ServerHost, Settings, SettingsError, Standby, TlsMode,
    host_name,
};
