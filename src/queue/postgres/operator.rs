//! What operators and readers ask of the engine.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_postgres::types::Type;

use super::engine::{PATIENCE, Postgres};
use super::failure::Failure;
use super::inspect::{self, read};
use super::ledger::OldestHeld;
use super::locks::LOCK_CHANGES;
use super::selection::{self, SweepCandidates};
use super::session::{BoundQuery, Value};
use super::sweep::SweepStep;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::view::Stats;
use crate::queue::{Error, Sweep, SweepProgress};

/// A change of the operator's is told to the other replicas by its number.
const PAUSE: &str = "WITH t AS (UPDATE target SET paused = $2 WHERE name = $1) UPDATE meta SET change = change + 1";

/// How often a step is tried that PostgreSQL has ended because two transactions waited for each other.
const TRIES: u32 = 5;

impl Postgres {
    pub(in crate::queue) async fn stats(&self) -> Result<Stats, Error> {
        let mut leased = OldestHeld::new();
        for (event, target) in self.engine.outstanding().into_keys() {
            leased.entry(target).and_modify(|oldest| *oldest = event.min(*oldest)).or_insert(event);
        }
        inspect::stats(&self.engine.reading, &self.engine.oldest, &leased).await
    }

    pub(in crate::queue) async fn pause(&self, target: Arc<str>, paused: bool) -> Result<(), Error> {
        let engine = &self.engine;
        let changed = engine.reading.call(PATIENCE, async |session| {
            engine.targets.find_or_add(session, std::slice::from_ref(&target)).await?;
            let values: [Value<'_>; 2] = [(&&*target, Type::TEXT), (&paused, Type::BOOL)];
            session.transact(LOCK_CHANGES, &[BoundQuery { sql: PAUSE, values: &values }]).await
        });
        changed.await?;
        Ok(())
    }

    pub(in crate::queue) async fn paused(&self) -> Result<BTreeSet<String>, Error> {
        if !self.engine.is_joined() {
            // Asked for again as soon as it is; until then nothing is leased.
            return Ok(BTreeSet::new());
        }
        let paused = inspect::paused(&self.engine.reading).await?;
        self.engine.note_pauses_read();
        Ok(paused)
    }

    pub(in crate::queue) async fn sweep(
        &self,
        sweep: &Arc<Sweep>,
        after: EventId,
        now: UnixMillis,
    ) -> Result<SweepProgress, Error> {
        let engine = &self.engine;
        let SweepCandidates { events, next } = match &sweep.events {
            Some(listed) => SweepCandidates::among(listed, after),
            None => {
                let limit = engine.tuning.sweep_scan_rows;
                read!(engine.reading, PATIENCE, |snapshot| {
                    selection::find_candidates(snapshot, sweep, after, limit).await
                })?
            }
        };
        if events.is_empty() {
            engine.reading.call(PATIENCE, async |session| session.confirm_earlier().await).await?;
            return Ok(SweepProgress { changed: 0, next });
        }
        let mut tries = 0;
        let SweepStep { changed, touched, revoked } = loop {
            tries += 1;
            let step =
                engine.reading.call(PATIENCE, async |session| engine.sweep_step(session, &events, sweep, now).await);
            match step.await {
                Err(Failure::Refused { code, .. }) if code.code().starts_with("40") && tries < TRIES => {}
                step => break step?,
            }
        };
        {
            let mut leases = engine.leases.lock();
            revoked.iter().for_each(|(target, event)| leases.revoke(target, *event));
        }
        touched.iter().for_each(|target| {
            engine.cursors.restart(target);
            engine.inboxes.wake(target);
        });
        Ok(SweepProgress { changed, next })
    }

    /// Nothing is left to do: what PostgreSQL keeps of deleted rows, in its pages, its log, its standbys and its backups,
    /// is erased there.
    pub(in crate::queue) async fn wipe(&self) -> Result<(), Error> {
        Ok(())
    }
}
