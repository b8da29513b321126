//! Why there is no usable connection, in words: what failed, at which server, and the setting to change.

use std::fmt;
use std::io;
use std::path::PathBuf;

use tokio_postgres::Error as PgError;
use tokio_postgres::error::{DbError, SqlState};

use super::settings::Address;
use crate::trust;

/// The stage of a [`ServerProblem::Timeout`] in which the name is waited for.
pub(super) const RESOLVER: &str = "the resolver";

/// Why no server of the URL can be used. Has no secret in its text, and no URL.
#[derive(Debug)]
pub struct NoServer {
    /// What each server that was tried said, in order; the settings have at least one.
    attempts: Vec<(Address, ServerProblem)>,
}

/// Why one server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerProblem {
    /// Its name has no address.
    #[error("the name cannot be resolved: {0}")]
    Resolve(io::Error),
    /// Nothing listens there, or the network refuses.
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    /// It did not answer in time.
    #[error("{stage} did not answer within {seconds} s")]
    Timeout {
        /// What was waited for.
        stage: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The connection ended while it was being set up.
    #[error("the connection ended while it was being set up: {0}")]
    Broken(String),
    /// The connection ended while it was idle; nothing had been sent.
    #[error("the connection has ended")]
    Lost,
    /// It speaks another protocol.
    #[error("what listens there is not PostgreSQL")]
    NotPostgres,
    /// It offers no TLS.
    #[error("the server offers no TLS")]
    NoTls,
    /// The handshake failed, mostly for its certificate.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// A certificate or key of the configuration cannot be used.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The server asks for a password, and there is none.
    #[error("the server asks for a password, and none is set")]
    PasswordMissing,
    /// The password, or the user, is wrong.
    #[error("the server refused the user or the password: {0}")]
    Password(String),
    /// `pg_hba.conf` does not let us in, or the role may not log in.
    #[error("the server does not let this user in: {0}")]
    Denied(String),
    /// There is no such database.
    #[error("there is no such database: {0}")]
    NoDatabase(String),
    /// The server has no connection free.
    #[error("the server has no connection free: {0}")]
    TooManyConnections(String),
    /// It is starting, or shutting down.
    #[error("the server accepts no connections now: {0}")]
    NotReady(String),
    /// There is a pooler between, and the settings do not say so.
    #[error("there is a pooler between the relay and PostgreSQL: {0}")]
    Pooler(String),
    /// It is a standby, or accepts no writes.
    #[error("the server accepts no writes: {0}")]
    ReadOnly(&'static str),
    /// It is older than what the relay was written for.
    #[error("the server is PostgreSQL {found}, and the relay needs {needed} or newer")]
    TooOld {
        /// The server's version.
        found: String,
        /// The oldest that is supported.
        needed: u32,
    },
    /// It confirms what a power failure may take back.
    #[error("{setting} is {found}, so a confirmed commit can be lost")]
    Weak {
        /// The setting of PostgreSQL.
        setting: &'static str,
        /// Its value.
        found: String,
    },
    /// The database has another encoding.
    #[error("the database has the encoding {0}, and the relay needs UTF8")]
    Encoding(String),
    /// The role lacks a right.
    #[error("the role may not {what}: {cause}")]
    NoRights {
        /// What it may not do.
        what: &'static str,
        /// The server's words.
        cause: String,
    },
    /// The tables were made by a newer release.
    #[error("schema {schema} has version {found}, which needs a release that knows {needed}; this one knows {known}")]
    SchemaNewer {
        /// The schema's name.
        schema: String,
        /// The version of its tables.
        found: i32,
        /// The oldest version that a release must know to use them.
        needed: i32,
        /// The version that this release knows.
        known: i32,
    },
    /// A copy of a store into them is not finished.
    #[error("the copy of a store into schema {schema} has not come to where it can be used")]
    SchemaCopying {
        /// The schema's name.
        schema: String,
    },
    /// There are no tables.
    #[error("there is no store in schema {schema}")]
    SchemaMissing {
        /// The schema's name.
        schema: String,
    },
    /// There are tables missing.
    #[error("schema {schema} lacks {missing}")]
    SchemaIncomplete {
        /// The schema's name.
        schema: String,
        /// The tables, or the schema itself.
        missing: String,
    },
    /// Anything else that the server said.
    #[error("the server refused: {message} (SQLSTATE {code})")]
    Refused {
        /// The code.
        code: String,
        /// The server's words.
        message: String,
    },
}

impl NoServer {
    /// A problem of one server.
    pub(super) fn at(address: Address, problem: ServerProblem) -> Self {
        Self { attempts: vec![(address, problem)] }
    }

    /// The problems of all servers.
    pub(super) fn of(attempts: Vec<(Address, ServerProblem)>) -> Self {
        Self { attempts }
    }

    /// Whether trying again does not help as long as nobody changes the configuration or the server's.
    pub fn is_configuration(&self) -> bool {
        self.attempts.iter().all(|(_, problem)| problem.is_configuration())
    }

    /// How to fix it: of several servers' problems the one that somebody has to do something about.
    pub fn remedy(&self) -> Option<&'static str> {
        self.main_problem().and_then(ServerProblem::remedy)
    }

    /// The problem that matters most.
    pub fn main_problem(&self) -> Option<&ServerProblem> {
        let problems = || self.attempts.iter().map(|(_, problem)| problem);
        problems().find(|problem| problem.is_configuration()).or_else(|| problems().next())
    }
}

impl fmt::Display for NoServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (address, problem)) in self.attempts.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            write!(f, "PostgreSQL at {address}: {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NoServer {}

impl ServerProblem {
    /// Whether trying again does not help as long as nobody changes the configuration or the server's.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Resolve(_)
            | Self::Unreachable(_)
            | Self::Timeout { .. }
            | Self::Broken(_)
            | Self::Lost
            | Self::TooManyConnections(_)
            | Self::NotReady(_)
            | Self::ReadOnly(_)
            | Self::Refused { .. } => false,
            Self::NotPostgres
            | Self::NoTls
            | Self::Tls(_)
            | Self::File { .. }
            | Self::PasswordMissing
            | Self::Password(_)
            | Self::Denied(_)
            | Self::NoDatabase(_)
            | Self::Pooler(_)
            | Self::TooOld { .. }
            | Self::Weak { .. }
            | Self::Encoding(_)
            | Self::NoRights { .. }
            | Self::SchemaNewer { .. }
            | Self::SchemaCopying { .. }
            | Self::SchemaMissing { .. }
            | Self::SchemaIncomplete { .. } => true,
        }
    }

    /// The setting to change.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Resolve(_) | Self::Timeout { stage: RESOLVER, .. } => {
                "check the host in queue.url, and this machine's resolver"
            }
            Self::Unreachable(_) => {
                "check that PostgreSQL runs, that its listen_addresses has this address, and the host and port in queue.url"
            }
            Self::Timeout { .. } => "check the network and firewalls between, and the server's load",
            Self::Broken(_) => "read the server's log",
            Self::Lost => return None,
            Self::NotPostgres => "check the port in queue.url",
            Self::NoTls => "set ssl = on in postgresql.conf; on this machine itself, queue.tls = \"off\" does without",
            Self::Tls(_) => {
                "renew the server's certificate if it has expired; if an authority of your own issued it, name that in \
                 queue.tls.ca; the host in queue.url must be a name in it"
            }
            Self::File { .. } => "correct the file, or the key that names it",
            Self::PasswordMissing => "set queue.password",
            Self::Password(_) => "correct queue.password, or the user in queue.url",
            Self::Denied(_) => {
                "add a line for this user, database and address to pg_hba.conf and reload PostgreSQL; the role needs LOGIN, and CONNECT on the database"
            }
            Self::NoDatabase(_) => "create the database, or correct its name in queue.url",
            Self::TooManyConnections(_) => {
                "raise max_connections of PostgreSQL or the role's CONNECTION LIMIT, or find who holds them in pg_stat_activity"
            }
            Self::NotReady(_) => "wait until it has started; its log says how far it is",
            Self::Pooler(_) => "set queue.pooler = true, or connect to PostgreSQL itself",
            Self::ReadOnly(_) => "name the primary in queue.url, or all servers: the one that accepts writes is used",
            Self::TooOld { .. } => "upgrade PostgreSQL to 15 or newer",
            Self::Weak { .. } => {
                "turn it on in postgresql.conf or for the role; queue.accept_weak_durability = true accepts the loss"
            }
            Self::Encoding(_) => "create the database with ENCODING 'UTF8' TEMPLATE template0",
            Self::NoRights { .. } => "let a role that may create it run the output of `wxrelay store sql`",
            Self::SchemaNewer { .. } => "upgrade this relay, or use another queue.schema",
            Self::SchemaCopying { .. } => "run `wxrelay store copy` again: it continues",
            Self::SchemaMissing { .. } => {
                "check queue.url and queue.schema, or start the relay once, which makes the tables"
            }
            Self::SchemaIncomplete { .. } => {
                "run the output of `wxrelay store sql`, restore the tables from a backup, or use another queue.schema"
            }
            Self::Refused { .. } => return None,
        })
    }

    /// What the server said while a connection was set up.
    pub(super) fn of_login(error: &PgError) -> Self {
        if let Some(error) = error.as_db_error() {
            return Self::of_reply(error);
        }
        let text = causes(error);
        // The crate has no public kinds: of what it says itself, only this one is of the configuration.
        if text.contains("password missing") {
            return Self::PasswordMissing;
        }
        Self::Broken(text)
    }

    /// What an error response means.
    pub(super) fn of_reply(error: &DbError) -> Self {
        let (code, message) = (error.code(), error.message().to_owned());
        match *code {
            SqlState::INVALID_PASSWORD => Self::Password(message),
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION | SqlState::INSUFFICIENT_PRIVILEGE => Self::Denied(message),
            SqlState::INVALID_CATALOG_NAME => Self::NoDatabase(message),
            SqlState::TOO_MANY_CONNECTIONS => Self::TooManyConnections(message),
            SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => {
                Self::NotReady(message)
            }
            SqlState::INVALID_SQL_STATEMENT_NAME => Self::Pooler(message),
            SqlState::READ_ONLY_SQL_TRANSACTION => Self::ReadOnly("its transactions are read-only"),
            // PgBouncer's code for everything; its texts are not translated.
            SqlState::PROTOCOL_VIOLATION if message.contains("unsupported startup parameter") => Self::Pooler(message),
            SqlState::PROTOCOL_VIOLATION if message.contains("no such database") => Self::NoDatabase(message),
            SqlState::PROTOCOL_VIOLATION if message.contains("no more connections") => {
                Self::TooManyConnections(message)
            }
            SqlState::PROTOCOL_VIOLATION if message.contains("authentication failed") => Self::Password(message),
            SqlState::PROTOCOL_VIOLATION => Self::NotReady(message),
            _ => Self::Refused { code: code.code().to_owned(), message },
        }
    }

    /// Why a handshake failed.
    pub(super) fn of_handshake(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(inner) => Self::Tls(trust::plain_text(inner).unwrap_or_else(|| inner.to_string())),
            None => Self::Broken(error.to_string()),
        }
    }
}

/// An error of the crate with its causes; its own text alone says only its kind.
pub(super) fn causes(error: &PgError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}
