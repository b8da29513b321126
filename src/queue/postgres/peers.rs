//! What this replica tells the others, and what it knows of them: their configurations, what operators did, and whether
//! the tables have become too new for it.
//!
//! - An operator's action is told by its number, `meta.change`. A replica writes the number that it has acted on into its
//!   row: its dispatcher has paused and resumed targets, and the leases of what was cancelled are revoked.
//! - Configurations that differ are told after [`DRIFT`]: a reload of all replicas takes a while.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::engine::{Engine, Postgres};
use super::failure::Failure;
use super::inspect::read_replicas;
use super::problem::{NoServer, ServerProblem};
use super::schema::VERSION;
use super::session::{Session, Value};
use super::settings::Address;
use super::values::{event_id, id_of};
use crate::event::EventId;
use crate::ordered;
use crate::queue::replicas::{SILENT, mark_same};
use crate::queue::{Error, Replica, ReplicaFacts, Seen};

/// How long configurations may differ before that is told.
const DRIFT: Duration = Duration::from_secs(60);
/// Between two looks at who has seen an operator's action.
const LOOK: Duration = Duration::from_millis(50);
/// The longest that one of these calls may take.
const TRY: Duration = Duration::from_secs(2);

/// Who of the live replicas has acted on everything so far.
const SEEN: &str = "SELECT count(*), count(*) FILTER (WHERE seen >= $1) FROM replica \
    WHERE alive_at > clock_timestamp() - $2::float8 * interval '1 second'";

/// Writes what this replica has acted on.
const ACTED: &str = "UPDATE replica SET seen = $2 WHERE incarnation = $1 AND seen < $2";

/// What has ended of these deliveries.
const ENDED: &str = "SELECT d.event, d.target FROM unnest($1::int8[], $2::int2[]) l(event, target) \
    JOIN delivery d ON d.event = l.event AND d.target = l.target AND d.state + 0 <> 0";

/// What is known of the replicas.
#[derive(Debug, Default)]
pub(super) struct Peers {
    facts: Mutex<ReplicaFacts>,
    /// The number of the last action that the dispatcher has acted on.
    acted: AtomicI64,
    /// The number up to which challenges are answered, plus 1; 0 where nobody answers any.
    offers_seen: AtomicI64,
    known: Mutex<Known>,
    /// The version of the tables that made them unusable for this release, and the version that they need.
    newer: watch::Sender<Option<(Address, i32, i32)>>,
}

#[derive(Debug, Default)]
struct Known {
    replicas: Vec<Replica>,
    /// When they were seen.
    at: Option<Instant>,
    drift: Drift,
}

/// Since when configurations have differed.
#[derive(Debug, Default)]
struct Drift {
    since: Option<Instant>,
    is_told: bool,
}

/// What is to be logged.
#[derive(Debug, PartialEq)]
enum DriftNews {
    Differs,
    Over,
}

impl Drift {
    fn note(&mut self, differs: bool, now: Instant) -> Option<DriftNews> {
        if !differs {
            let was_told = std::mem::take(self).is_told;
            return was_told.then_some(DriftNews::Over);
        }
        let since = *self.since.get_or_insert(now);
        let is_due = now.duration_since(since) >= DRIFT && !self.is_told;
        self.is_told |= is_due;
        is_due.then_some(DriftNews::Differs)
    }
}

impl Peers {
    pub(super) fn facts(&self) -> ReplicaFacts {
        self.facts.lock().clone()
    }

    pub(super) fn acted(&self) -> i64 {
        let acted = self.acted.load(Ordering::Relaxed);
        match self.offers_seen.load(Ordering::Relaxed) {
            0 => acted,
            seen => acted.min(seen - 1),
        }
    }

    /// The live replicas, this one with what it would tell now.
    fn note_replicas(&self, mut replicas: Vec<Replica>) {
        mark_same(&mut replicas);
        ordered::sort(&mut replicas, |one, other| (&one.name, one.incarnation).cmp(&(&other.name, other.incarnation)));
        let others: Vec<_> = replicas.iter().filter(|replica| replica.live && !replica.same_config).collect();
        let mut known = self.known.lock();
        match known.drift.note(!others.is_empty(), Instant::now()) {
            Some(DriftNews::Differs) => {
                let replicas = others.iter().map(|replica| &*replica.name).collect::<Vec<_>>().join(", ");
                let remedy = "write the same accounts, routes, targets and logins on all replicas, and reload each; \
                              `wxrelay replicas` shows which differ";
                tracing::warn!(replicas, remedy, "configurations of the replicas differ");
            }
            Some(DriftNews::Over) => tracing::info!("configurations of the replicas are the same again"),
            None => {}
        }
        (known.replicas, known.at) = (replicas, Some(Instant::now()));
    }
}

impl Engine {
    /// Notes what a heartbeat has read: the rows of all replicas, and the version that the tables need.
    pub(super) fn note_peers(&self, rows: &[Row], me: i32) -> Result<(), Failure> {
        let facts = self.peers.facts();
        let mut replicas = read_replicas(rows)?;
        for replica in replicas.iter_mut().filter(|replica| replica.incarnation == me) {
            // The row is the one from before this heartbeat.
            replica.config_sha256.clone_from(&facts.config_sha256);
            (replica.last_beat_ms, replica.live) = (0, true);
        }
        self.peers.note_replicas(replicas);
        Ok(())
    }

    /// Notes the versions of the tables; those of a newer release may be of no use to this one.
    pub(super) fn note_schema(&self, session: &Session, found: i32, needed: i32) {
        if needed > VERSION {
            let seen = (session.address().clone(), found, needed);
            self.peers.newer.send_if_modified(|newer| newer.replace(seen).is_none());
        }
    }

    /// Revokes the leases of what an operator has ended.
    pub(super) async fn revoke_ended(&self, session: &Session) -> Result<(), Failure> {
        let outstanding = self.leases.lock().list();
        let (mut ids, mut numbers) = (Vec::new(), Vec::new());
        for (target, event) in &outstanding {
            if let Some(number) = self.targets.known(target) {
                ids.push(id_of(*event));
                numbers.push(number);
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        let values: [Value<'_>; 2] = [(&ids, Type::INT8_ARRAY), (&numbers, Type::INT2_ARRAY)];
        for row in session.query(ENDED, &values).await? {
            let (event, number): (EventId, i16) = (event_id(row.try_get(0)?), row.try_get(1)?);
            if let Some(target) = self.targets.name(number) {
                self.leases.lock().revoke(&target, event);
            }
        }
        Ok(())
    }
}

impl Postgres {
    pub(in crate::queue) fn tell(&self, facts: ReplicaFacts) {
        *self.engine.peers.facts.lock() = facts;
    }

    /// The replicas, as the last heartbeat has seen them. What was seen too long ago says of nobody that it lives.
    pub(in crate::queue) fn replicas(&self) -> Vec<Replica> {
        let known = self.engine.peers.known.lock();
        let age = known.at.map_or(Duration::ZERO, |at| at.elapsed());
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let silent = u64::try_from(SILENT.as_millis()).unwrap_or(u64::MAX);
        let mut replicas = known.replicas.clone();
        for replica in &mut replicas {
            replica.last_beat_ms = replica.last_beat_ms.saturating_add(age);
            replica.live &= replica.last_beat_ms <= silent;
        }
        replicas
    }

    /// Tells the others that this replica has acted on everything up to that number.
    pub(in crate::queue) async fn note_acted(&self, change: i64) {
        self.engine.peers.acted.fetch_max(change, Ordering::Relaxed);
        self.publish_acted().await;
    }

    /// As [`Postgres::note_acted`], for the challenges that this replica answers: from the first call on, only what both
    /// have acted on counts.
    pub(in crate::queue) async fn note_offers_seen(&self, change: i64) {
        self.engine.peers.offers_seen.fetch_max(change + 1, Ordering::Relaxed);
        self.publish_acted().await;
    }

    async fn publish_acted(&self) {
        let engine = &self.engine;
        let (me, change) = (engine.incarnation(), engine.peers.acted());
        let values: [Value<'_>; 2] = [(&me, Type::INT4), (&change, Type::INT8)];
        // Without it, the next heartbeat tells.
        drop(engine.leasing.call(TRY, async |session| session.query(ACTED, &values).await).await);
    }

    /// Waits until every live replica has acted on all that operators did so far, at most so long.
    pub(in crate::queue) async fn await_seen(&self, wait: Duration) -> Result<Seen, Error> {
        let end = Instant::now() + wait;
        let silent = SILENT.as_secs_f64();
        let change = "SELECT change FROM meta";
        let rows = self.engine.reading.call(TRY, async |session| session.query(change, &[]).await).await?;
        let change: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(Failure::from)?;
        let values: [Value<'_>; 2] = [(&change, Type::INT8), (&silent, Type::FLOAT8)];
        loop {
            let rows = self.engine.reading.call(TRY, async |session| session.query(SEEN, &values).await).await?;
            let of = |column| -> Result<u64, Failure> {
                let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(column))?;
                Ok(u64::try_from(count).unwrap_or(0))
            };
            let seen = Seen { replicas: of(0)?, seen: of(1)? };
            if seen.seen >= seen.replicas || Instant::now() + LOOK > end {
                return Ok(seen);
            }
            sleep(LOOK).await;
        }
    }

    /// Returns when the tables have become too new for this release, with the reason.
    pub(in crate::queue) async fn outdated(&self) -> Error {
        let mut newer = self.engine.peers.newer.subscribe();
        let seen = newer.wait_for(Option::is_some).await.map(|seen| seen.clone());
        // The sender is as old as the engine.
        let Ok(Some((address, found, needed))) = seen else { return std::future::pending().await };
        let schema = self.engine.connector.settings().schema.clone();
        let problem = ServerProblem::SchemaNewer { schema, found, needed, known: VERSION };
        Failure::Away(NoServer::at(address, problem)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_that_differ_for_a_minute_are_told_once_and_so_is_the_end() {
        let (mut drift, start) = (Drift::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!([0, 30, 59].map(|second| drift.note(true, at(second))), [None, None, None]);
        assert_eq!(drift.note(false, at(59)), None, "a reload of all replicas takes a while");
        assert_eq!(drift.note(true, at(60)), None);
        assert_eq!(drift.note(true, at(120)), Some(DriftNews::Differs));
        assert_eq!(drift.note(true, at(180)), None);
        assert_eq!(drift.note(false, at(181)), Some(DriftNews::Over));
        assert_eq!(drift.note(false, at(182)), None);
    }
}
