//! Connects to the PostgreSQL of the configuration, as a start of the relay does, and changes nothing: what
//! `check --online` adds for the store, and where `doctor` begins.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::queue::postgres::schema::{self, Found};
use crate::queue::postgres::{Connector, Failure, Session, Settings, Standby};

/// The limit of the questions after the connect, which has limits of its own.
const LIMIT: Duration = Duration::from_secs(10);

/// A connection that the relay would use.
pub(super) struct Database {
    pub(super) session: Session,
    pub(super) found: Found,
    /// How long the connect took.
    pub(super) took: Duration,
}

impl Database {
    /// Connects, and checks server, schema and rights.
    pub(super) async fn open(settings: &Settings) -> Result<Self, Failure> {
        let started = Instant::now();
        let session = Connector::new(settings).connect().await?;
        let took = started.elapsed();
        let checks = async {
            let found = schema::check(&session, settings).await?;
            schema::check_rights(&session, settings, found).await?;
            Ok(found)
        };
        let found = timeout(LIMIT, checks).await.unwrap_or(Err(Failure::Busy))?;
        Ok(Self { session, found, took })
    }
}

/// The result of a probe of the database.
pub(super) struct DatabaseProbe {
    /// What was found in how long, or the problem.
    result: Result<(String, Duration), String>,
    /// How to fix the problem.
    remedy: Option<&'static str>,
}

impl DatabaseProbe {
    pub(super) fn is_ok(&self) -> bool {
        self.result.is_ok()
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "ok": self.is_ok(),
            "found": self.result.as_ref().ok().map(|(found, _)| found),
            "took_ms": self.result.as_ref().ok().map(|(_, took)| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            "problem": self.result.as_ref().err(),
            "remedy": self.remedy,
        })
    }
}

impl fmt::Display for DatabaseProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok((found, took)) => write!(f, "store: ok, {found}, {} ms", took.as_millis()),
            Err(problem) => {
                write!(f, "store: NOT OK, {problem}")?;
                self.remedy.map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
            }
        }
    }
}

/// Probes the database once.
pub(super) async fn probe(settings: &Settings) -> DatabaseProbe {
    let Database { session, found, took } = match Database::open(settings).await {
        Ok(database) => database,
        Err(failure) => return DatabaseProbe { result: Err(failure.to_string()), remedy: failure.remedy() },
    };
    if settings.standby == Standby::Required && !session.facts().has_standby {
        return DatabaseProbe { result: Err(NO_STANDBY.to_owned()), remedy: Some(NO_STANDBY_REMEDY) };
    }
    let tables = match found {
        Found::Nothing => "no tables yet, the relay creates them",
        Found::Tables => "tables found",
    };
    let text = format!("PostgreSQL {} at {}, {tables}", version(&session), session.address());
    DatabaseProbe { result: Ok((text, took)), remedy: None }
}

/// Why a server does not do where a standby is required.
pub(super) const NO_STANDBY: &str = "PostgreSQL has no synchronous standby: a stored push is on one machine";
/// How to change that.
pub(super) const NO_STANDBY_REMEDY: &str = "set synchronous_standby_names in PostgreSQL; where the service replicates below PostgreSQL, set \
     queue.standby = \"none\"";

/// The server's version, such as 15.18.
pub(super) fn version(session: &Session) -> String {
    let number = session.facts().version;
    format!("{}.{}", number / 10_000, number % 10_000)
}
