//! What an operator watches of the server: the standby, what keeps it from cleaning up, and dead rows.
//!
//! Read with each pass of the housekeeping, and the standby with each heartbeat, so a scrape or a look costs the server
//! nothing. A role that is no member of `pg_monitor` does not see since when the transactions of other roles run: then
//! the age is how long this process has seen the same one.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::engine::Engine;
use super::failure::Failure;
use super::session::{Session, Value};
use super::settings::Standby;

/// Of the tables that grow; each is a label of a metric.
const DEAD_TUPLES: &str = "SELECT relname::text, n_dead_tup FROM pg_stat_user_tables WHERE schemaname = $1 \
    AND relname IN ('event', 'known', 'retired_key', 'delivery', 'attempt', 'tally', 'tally_delta') ORDER BY relname";

/// What holds the oldest snapshot, the oldest first. Its own age in seconds is NULL where this role may not see it.
const OLDEST_XMIN: &str = "SELECT held.what, held.xmin, held.seconds FROM ( \
    SELECT 'session ' || pid || ' of ' || coalesce(usename, '?') AS what, backend_xmin::text AS xmin, \
           age(backend_xmin) AS age, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds \
      FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() \
    UNION ALL SELECT 'prepared transaction ' || gid, transaction::text, age(transaction), \
           extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts \
    UNION ALL SELECT 'replication slot ' || slot_name, xmin::text, age(xmin), NULL FROM pg_replication_slots \
      WHERE xmin IS NOT NULL) held ORDER BY held.age DESC LIMIT 1";

/// The oldest snapshot, which keeps dead rows from being removed.
#[derive(Clone, Debug, PartialEq)]
pub struct OldestXmin {
    /// The session, prepared transaction or replication slot.
    pub holder: String,
    /// The snapshot.
    pub(super) xmin: String,
    /// How long it has been held, where that is visible.
    pub age: Option<Duration>,
}

/// What was seen last.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// Dead rows by table.
    pub dead_tuples: Vec<(String, i64)>,
    /// How long the oldest snapshot has been held; zero if there is none.
    pub xmin_age: Duration,
    /// Whether commits wait for a synchronous standby; `None` where none is wanted.
    pub has_standby: Option<bool>,
}

/// The state of the observer.
#[derive(Debug, Default)]
pub(super) struct Observer {
    last: Observation,
    /// The oldest snapshot, and since when this process has seen it.
    xmin: Option<(String, Instant)>,
    has_standby: Option<bool>,
}

/// Whether commits wait for a standby, by the value of `synchronous_standby_names`.
pub(super) fn has_standby(names: &str) -> bool {
    !names.trim().is_empty()
}

/// Finds what holds the oldest snapshot.
///
/// # Errors
/// If the server cannot be asked.
pub async fn find_oldest_xmin(session: &Session) -> Result<Option<OldestXmin>, Failure> {
    let rows = session.query_once(OLDEST_XMIN, &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let seconds: Option<f64> = row.try_get(2)?;
    Ok(Some(OldestXmin {
        holder: row.try_get(0)?,
        xmin: row.try_get(1)?,
        age: seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
    }))
}

impl Observer {
    /// How long a snapshot has been held at least.
    fn age(&mut self, found: Option<OldestXmin>) -> Duration {
        let Some(OldestXmin { xmin, age, .. }) = found else {
            self.xmin = None;
            return Duration::ZERO;
        };
        let since = match self.xmin.take() {
            Some((known, since)) if known == xmin => since,
            _ => Instant::now(),
        };
        self.xmin = Some((xmin, since));
        age.unwrap_or_default().max(since.elapsed())
    }

    /// Notes whether commits wait for a standby; whether that is news.
    fn note_standby(&mut self, has_standby: bool) -> bool {
        self.has_standby.replace(has_standby) != Some(has_standby)
    }

    /// Whether the replica must not be ready.
    pub(super) fn lacks_standby(&self, wanted: Standby) -> bool {
        wanted == Standby::Required && self.has_standby == Some(false)
    }
}

impl Engine {
    /// Notes whether the server confirms commits only with a standby's copy, and logs a change.
    pub(super) fn note_standby(&self, has_standby: bool) {
        if !self.observer.lock().note_standby(has_standby) || self.connector.settings().standby == Standby::None {
            return;
        }
        if has_standby {
            tracing::info!("synchronous standby configured: a stored push is on two machines");
        } else {
            let remedy = "set synchronous_standby_names in PostgreSQL; where the service replicates below PostgreSQL, \
                          set queue.standby = \"none\"";
            tracing::warn!(remedy, "no synchronous standby: a stored push is on one machine");
        }
    }

    /// Looks at the server.
    pub(super) async fn observe(&self, session: &Session) -> Result<(), Failure> {
        let values: [Value<'_>; 1] = [(&self.connector.settings().schema, Type::TEXT)];
        let rows = session.query(DEAD_TUPLES, &values).await?;
        let dead_tuples =
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, Failure>>()?;
        let oldest = find_oldest_xmin(session).await?;
        let mut observer = self.observer.lock();
        let xmin_age = observer.age(oldest);
        observer.last = Observation { dead_tuples, xmin_age, has_standby: None };
        Ok(())
    }

    /// What was seen last; before the first look, the standby alone.
    pub(super) fn observation(&self) -> Observation {
        let observer = self.observer.lock();
        let is_wanted = self.connector.settings().standby != Standby::None;
        let has_standby = observer.has_standby.filter(|_| is_wanted);
        Observation { has_standby, ..observer.last.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(xmin: &str, age: Option<u64>) -> Option<OldestXmin> {
        let age = age.map(Duration::from_secs);
        Some(OldestXmin { holder: "session 1 of x".to_owned(), xmin: xmin.to_owned(), age })
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_whose_age_is_hidden_is_as_old_as_it_has_been_seen() {
        let mut observer = Observer::default();
        let second = Duration::from_secs(1);
        assert_eq!(observer.age(held("700", None)), Duration::ZERO);
        tokio::time::advance(second * 30).await;
        assert_eq!(observer.age(held("700", None)), second * 30);
        assert_eq!(observer.age(held("700", Some(90))), second * 90);
        assert_eq!(observer.age(held("701", None)), Duration::ZERO);
        assert_eq!(observer.age(None), Duration::ZERO);
    }

    #[test]
    fn a_required_standby_that_is_missing_is_an_obstacle() {
        let mut observer = Observer::default();
        assert!(!observer.lacks_standby(Standby::Required), "unknown yet");
        assert!(observer.note_standby(false) && !observer.note_standby(false));
        assert!(observer.lacks_standby(Standby::Required) && !observer.lacks_standby(Standby::Warn));
        assert!(observer.note_standby(true));
        assert!(!observer.lacks_standby(Standby::Required));
    }
}
