//! Why a call of a session failed, by what the caller has to do about it.

use tokio_postgres::Error as PgError;
use tokio_postgres::error::{DbError, Severity, SqlState};

use super::problem::{NoServer, ServerProblem, causes};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no connection; nothing was sent.
    #[error(transparent)]
    Away(#[from] NoServer),
    /// An earlier call, or the connect, took all the time; nothing was sent.
    #[error("PostgreSQL did not answer in time")]
    Busy,
    /// It may be stored or not, or be stored without the standby's copy: try again with the same ids.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The server accepts no writes: it was demoted. Nothing was stored.
    #[error("the server accepts no writes any more")]
    ReadOnly,
    /// The values are refused (classes 22 and 23). Nothing was stored.
    #[error("PostgreSQL refused the data: {message} (SQLSTATE {})", code.code())]
    Data {
        /// The code.
        code: SqlState,
        /// The server's words.
        message: String,
    },
    /// Anything else that is certain. Nothing was stored.
    #[error("PostgreSQL refused: {message} (SQLSTATE {})", code.code())]
    Refused {
        /// The code.
        code: SqlState,
        /// The server's words.
        message: String,
    },
    /// A value does not fit its statement: a bug of ours. Nothing was stored.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Failure {
    /// The code, where the server said one and the outcome is certain.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Data { code, .. } | Self::Refused { code, .. } => Some(code),
            Self::Away(_) | Self::Busy | Self::Unknown(_) | Self::ReadOnly | Self::Internal(_) => None,
        }
    }

    /// Whether the server was not reached, or its answer was lost: another try may succeed.
    pub(in crate::queue) fn is_away(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Busy | Self::Unknown(_) | Self::ReadOnly)
    }

    /// How the operator fixes it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Away(error) => error.remedy(),
            Self::Refused { code, .. } => match *code {
                SqlState::INVALID_SQL_STATEMENT_NAME => {
                    Some("set queue.pooler = true, or connect to PostgreSQL itself")
                }
                SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN => {
                    Some("run the output of `wxrelay store sql`, or use another queue.schema")
                }
                SqlState::INSUFFICIENT_PRIVILEGE => {
                    Some("let the role own the schema: run the output of `wxrelay store sql`")
                }
                SqlState::CONFIGURATION_LIMIT_EXCEEDED => {
                    Some("find in the log why the relay restarts so often; two minutes after a start its place is free")
                }
                SqlState::DISK_FULL => Some("free some space on the disk of PostgreSQL"),
                _ => None,
            },
            Self::Busy | Self::Unknown(_) | Self::ReadOnly | Self::Data { .. } | Self::Internal(_) => None,
        }
    }

    /// Whether only a change of the configuration, or of the server's, fixes it: a restart does not.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Away(error) => error.is_configuration(),
            Self::Refused { code, .. } => {
                [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN, SqlState::INSUFFICIENT_PRIVILEGE].contains(code)
            }
            Self::Busy | Self::Unknown(_) | Self::ReadOnly | Self::Data { .. } | Self::Internal(_) => false,
        }
    }

    /// Whether the session can be used again: its next call is not affected by what this one met.
    pub(super) fn spares_session(&self) -> bool {
        match self {
            Self::Data { .. } => true,
            // But not where a plan or a prepared statement no longer fits, a transaction is open, or the server is ill.
            Self::Refused { code, .. } => !matches!(code.code().get(..2), Some("0A" | "25" | "26" | "58" | "XX")),
            Self::Away(_) | Self::Busy | Self::Unknown(_) | Self::ReadOnly | Self::Internal(_) => false,
        }
    }
}

impl From<PgError> for Failure {
    /// The failure of a call that was sent.
    fn from(error: PgError) -> Self {
        match error.as_db_error() {
            Some(error) => Self::from(error),
            None if is_encoding(&error) => Self::Internal(causes(&error)),
            None => Self::Unknown(causes(&error)),
        }
    }
}

impl From<&DbError> for Failure {
    fn from(error: &DbError) -> Self {
        let (code, message) = (error.code().clone(), error.message().to_owned());
        let is_fatal = matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
        // Cancelled or ended by an administrator, or by a restart: perhaps during the commit. Class 08 is a pooler's,
        // whose server is gone.
        let is_cut = code == SqlState::QUERY_CANCELED || matches!(code.code().get(..2), Some("08"));
        if is_fatal || is_cut || code.code().starts_with("57P") || code == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN {
            return Self::Unknown(format!("{message} (SQLSTATE {})", code.code()));
        }
        match code.code().get(..2) {
            _ if code == SqlState::READ_ONLY_SQL_TRANSACTION => Self::ReadOnly,
            Some("22" | "23") => Self::Data { code, message },
            _ => Self::Refused { code, message },
        }
    }
}

/// Whether a value does not fit its statement or its column.
fn is_encoding(error: &PgError) -> bool {
    // The crate has no public kinds.
    let text = error.to_string();
    ["error serializing", "expected ", "error encoding", "error deserializing", "invalid column"]
        .iter()
        .any(|start| text.starts_with(start))
}

/// That a connection had ended before anything was sent.
pub(super) fn lost(address: &super::settings::Address) -> Failure {
    Failure::Away(NoServer::at(address.clone(), ServerProblem::Lost))
}
