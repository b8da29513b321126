//! This process as one of the replicas: it holds leases while it proves that it lives.
//!
//! - A replica is an incarnation: each start is another one, whatever its name. Its row is the proof, renewed each
//!   second by PostgreSQL's clock, so no other clock matters.
//! - Without a confirmed renewal for [`ReplicaTiming::fence`] it begins no attempt. When it has been silent for that
//!   time, the longest attempt of a target and [`ReplicaTiming::grace`], others free what it holds: by then none of its
//!   attempts runs.
//! - Only a replica whose own fence has not been up for as long does so: after a failover nobody is declared dead.
//! - What is held in the store without a lease here is left from a call that failed, or from a push whose outcome was
//!   unknown. It is freed when it has been so for longer than any call that leases may take, and as the same attempt:
//!   until then it may be a lease whose answer is on its way.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::engine::{Engine, PATIENCE};
use super::failure::Failure;
use super::locks::LOCK_REPLICAS;
use super::looks::{DUE, Looks, Pace};
use super::observe::has_standby;
use super::pinned::PinnedSession;
use super::schema::VERSION;
use super::session::{BoundQuery, Session, Value};
use super::settings::Settings;
use crate::queue::Share;
use crate::queue::encryption::EncryptionKeys;
use crate::queue::lease_table::Fence;
use crate::telemetry::LogThrottle;
use crate::tuning::ReplicaTiming;

/// The longest that one renewal may take.
const TRY: Duration = Duration::from_secs(3);
/// How long the slot of a silent replica is kept, so that clocks that are apart by less make no id twice.
const SLOT_KEPT: Duration = Duration::from_secs(600);
/// The same while no slot is free, as after many crashes: no attempt of such a replica runs, and ids go on behind the
/// greatest one that is stored.
const SLOT_KEPT_AT_LEAST: Duration = Duration::from_secs(120);
/// As many as there are numbers in an id.
const SLOTS: i64 = 64;
/// The timeout of a target that no lane serves here.
const UNKNOWN_TIMEOUT: Duration = Duration::from_secs(60);

const JOIN: &str = "INSERT INTO replica (incarnation, name, slot, release, schema, alive_at, seen, config, keys) \
    SELECT nextval('incarnation')::int, $1, free.slot, $2, $3, clock_timestamp(), (SELECT change FROM meta), '', $4 \
      FROM (SELECT min(s) AS slot FROM generate_series(0, 63) s \
             WHERE NOT EXISTS (SELECT FROM replica r WHERE r.slot = s)) free WHERE free.slot IS NOT NULL \
    RETURNING incarnation, slot, (SELECT count(*) FROM replica)::int";

/// Removes replicas that have been silent for so long that their slots are free. What they still hold, where nobody lived
/// long enough to take it over, is an orphan's then: else replicas that crash soon could use up the slots for good.
const REMOVE: &str = "DELETE FROM replica WHERE alive_at < clock_timestamp() - interval '1 second' * \
    CASE WHEN (SELECT count(*) FROM replica) < $1 THEN $2::float8 ELSE $3::float8 END";

const RENEW: &str = "WITH me AS (UPDATE replica SET alive_at = clock_timestamp(), seen = greatest(seen, $2), \
       config = $3, admin = CASE WHEN $4 ~ '^(0[.]0[.]0[.]0|\\[::\\]):' \
         THEN coalesce(CASE WHEN $5 THEN NULL ELSE host(inet_client_addr()) END, name) || substring($4 FROM ':[0-9]+$') \
         ELSE $4 END WHERE incarnation = $1 RETURNING incarnation) \
    SELECT r.incarnation, r.name, extract(epoch FROM clock_timestamp() - r.alive_at)::float8, r.slot, r.release, r.schema, \
           (extract(epoch FROM r.started_at) * 1000)::int8, r.config, r.admin, NULL::int8, \
           meta.change, (SELECT count(*) FROM me), current_setting('synchronous_standby_names'), \
           meta.schema, meta.oldest_reader \
      FROM replica r, meta";

pub(super) const TAKE_OVER: &str = "UPDATE delivery d SET holder = NULL FROM target t \
    WHERE d.holder = $1 AND d.state = 0 AND d.holder IS NOT NULL AND t.no = d.target AND t.name = $2 \
      AND EXISTS (SELECT FROM replica r WHERE r.incarnation = $1 \
                     AND r.alive_at < clock_timestamp() - $3::float8 * interval '1 second') \
    RETURNING d.target, d.due, d.event";

const SILENT: &str = "SELECT * FROM (SELECT incarnation, name, extract(epoch FROM clock_timestamp() - alive_at)::float8 \
    AS silent FROM replica) r WHERE silent > $1";

/// Frees what is held by an incarnation that there is no more. Between the numbers of the live ones, so that nothing is
/// read of what these have held.
pub(super) const FREE_ORPHANS: &str = "WITH gaps AS MATERIALIZED ( \
       SELECT incarnation::int8 AS low, coalesce(lead(incarnation) OVER (ORDER BY incarnation), 2147483648) AS high \
         FROM replica \
       UNION ALL SELECT -2147483649, coalesce(min(incarnation), 2147483648) FROM replica) \
    UPDATE delivery d SET holder = NULL WHERE d.ctid = ANY(ARRAY(SELECT o.ctid FROM gaps CROSS JOIN LATERAL ( \
        SELECT ctid, holder FROM delivery WHERE holder > gaps.low AND holder < gaps.high AND state = 0 \
           AND holder IS NOT NULL OFFSET 0) o \
        WHERE NOT EXISTS (SELECT FROM replica r WHERE r.incarnation = o.holder))) \
       AND d.state + 0 = 0 AND d.holder IS NOT NULL RETURNING d.target, d.due, d.event";

const GIVE_ALL_BACK: &str = "UPDATE delivery SET holder = NULL WHERE holder = $1 AND state = 0 AND holder IS NOT NULL";
const LEAVE: &str = "DELETE FROM replica WHERE incarnation = $1";

/// Who this process is among the replicas.
#[derive(Debug)]
pub(super) struct Membership {
    incarnation: AtomicI32,
    slot: AtomicU64,
    fence: Arc<Fence>,
    name: String,
    prints: Vec<Vec<u8>>,
    /// Since when the fence has not been up.
    answered_since: Mutex<Instant>,
    pub(super) looks: Looks,
    share: watch::Sender<Share>,
    /// Another replica is silent.
    silence: Notify,
    /// Requests a renewal at once; notified after each renewal.
    renewal_wanted: Notify,
    renewed: Notify,
}

impl Membership {
    /// Of a process that is none of the replicas, or not yet: it holds nothing.
    pub(super) fn new(settings: &Settings, keys: &EncryptionKeys, timing: &ReplicaTiming) -> Self {
        let prints = keys.iter().map(|key| key.fingerprint().bytes().to_vec()).collect();
        Self {
            incarnation: AtomicI32::new(0),
            // Ids may be given before it has one: by chance another than that of others.
            slot: AtomicU64::new(RandomState::new().hash_one(()) % SLOTS.cast_unsigned()),
            fence: Arc::new(Fence::new(timing.fence)),
            name: settings.replica.clone(),
            prints,
            answered_since: Mutex::new(Instant::now()),
            looks: Looks::default(),
            share: watch::Sender::new(Share::WHOLE),
            silence: Notify::new(),
            renewal_wanted: Notify::new(),
            renewed: Notify::new(),
        }
    }

    /// Becomes a replica.
    pub(super) async fn enter(&self, session: &Session) -> Result<(), Failure> {
        let sent = Instant::now();
        let (kept, at_least) = (SLOT_KEPT.as_secs_f64(), SLOT_KEPT_AT_LEAST.as_secs_f64());
        let remove: [Value<'_>; 3] = [(&SLOTS, Type::INT8), (&kept, Type::FLOAT8), (&at_least, Type::FLOAT8)];
        let join: [Value<'_>; 4] = [
            (&self.name, Type::TEXT),
            (&env!("CARGO_PKG_VERSION"), Type::TEXT),
            (&VERSION, Type::INT4),
            (&self.prints, Type::BYTEA_ARRAY),
        ];
        let queries = [BoundQuery { sql: REMOVE, values: &remove }, BoundQuery { sql: JOIN, values: &join }];
        let answers = session.transact(LOCK_REPLICAS, &queries).await?;
        let Some(row) = answers.last().and_then(|rows| rows.first()) else {
            let message = format!("{SLOTS} processes have used the schema within two minutes");
            return Err(Failure::Refused { code: SqlState::CONFIGURATION_LIMIT_EXCEEDED, message });
        };
        self.incarnation.store(row.try_get(0)?, Ordering::Release);
        self.slot.store(u64::try_from(row.try_get::<_, i16>(1)?).unwrap_or(0), Ordering::Relaxed);
        // Among all that may live, until the first look says who does.
        let others = u32::try_from(row.try_get::<_, i32>(2)?).unwrap_or(0);
        self.share.send_replace(Share::new(others, others + 1));
        let _had_gap = self.fence.lower(sent);
        Ok(())
    }

    pub(super) fn incarnation(&self) -> i32 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// Proves at once that this replica lives; waits for that at most so long.
    pub(super) async fn renew_now(&self, wait: Duration) {
        let mut renewed = pin!(self.renewed.notified());
        renewed.as_mut().enable();
        self.renewal_wanted.notify_one();
        // Without it, the fence stays up.
        drop(timeout(wait, renewed).await);
    }

    pub(super) fn shares(&self) -> watch::Receiver<Share> {
        self.share.subscribe()
    }

    pub(super) fn slot(&self) -> u64 {
        self.slot.load(Ordering::Relaxed)
    }

    pub(super) fn fence(&self) -> Arc<Fence> {
        Arc::clone(&self.fence)
    }
}

impl Engine {
    /// Proves that this replica lives, and acts on what it sees, until it stops.
    pub(super) async fn keep_alive(self: Arc<Self>, session: PinnedSession) {
        let timing = self.tuning.replica;
        let mut ticks = interval(timing.beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.membership.renewal_wanted.notified() => {}
                () = self.stop.cancelled() => return,
            }
            let sent = Instant::now();
            match session.call(TRY, async |session| self.renew(session, sent, &timing).await).await {
                Ok(()) => {
                    self.health.note_answer();
                    self.membership.renewed.notify_waiters();
                }
                // One that is answered before the fence is up again is no gap.
                Err(failure) => self.health.note_away(&failure),
            }
        }
    }

    async fn renew(&self, session: &Session, sent: Instant, timing: &ReplicaTiming) -> Result<(), Failure> {
        let me = self.incarnation();
        let (facts, acted) = (self.peers.facts(), self.peers.acted());
        // Of a listener on every address, the one from which this replica connects, if no pooler is between.
        let pooler = self.connector.settings().pooler;
        let renew: [Value<'_>; 5] = [
            (&me, Type::INT4),
            (&acted, Type::INT8),
            (&facts.config_sha256, Type::TEXT),
            (&facts.admin, Type::TEXT),
            (&pooler, Type::BOOL),
        ];
        let look = self.next_look();
        let (held, due) = (look.held(&me), look.due());
        let queries = [
            BoundQuery { sql: RENEW, values: &renew },
            BoundQuery { sql: look.sql(), values: &held },
            BoundQuery { sql: DUE, values: &due },
        ];
        let answers = session.transact("", &queries).await?;
        let [replicas, held, due] = answers.as_slice() else { return Ok(()) };
        let is_member = match replicas.first() {
            Some(row) => row.try_get::<_, i64>(11)? == 1,
            None => false,
        };
        if !is_member {
            tracing::error!(incarnation = me, "declared dead by another replica; joining again");
            self.leases.lock().revoke_all();
            return self.membership.enter(session).await;
        }
        if let Some(row) = replicas.first() {
            let change: i64 = row.try_get(10)?;
            if change != *self.operator_changes.borrow() {
                self.revoke_ended(session).await?;
                self.operator_changes.send_replace(change);
            }
            self.note_standby(has_standby(row.try_get(12)?));
            self.note_schema(session, row.try_get(13)?, row.try_get(14)?);
        }
        self.note_peers(replicas, me)?;
        self.divide(replicas, me, timing)?;
        let rows = self.note_look(&look, held, due)?;
        self.revoke_missing(&look, &rows);
        self.free_unleased(session, &look, rows, sent).await?;
        // Not before: what others have taken over meanwhile is revoked by now.
        if self.membership.fence.lower(sent) {
            *self.membership.answered_since.lock() = Instant::now();
        }
        self.wake_due(due)?;
        let fence = timing.fence.as_secs_f64();
        for row in replicas {
            if row.try_get::<_, i32>(0)? != me && row.try_get::<_, f64>(2)? > fence {
                self.membership.silence.notify_one();
            }
        }
        Ok(())
    }

    /// Takes this replica's share. A silent one counts as long as its attempts may run.
    fn divide(&self, replicas: &[Row], me: i32, timing: &ReplicaTiming) -> Result<(), Failure> {
        let timeouts = self.targets.names().into_iter().filter_map(|target| self.inboxes.longest_attempt(&target));
        let counted = timing.fence + timeouts.max().unwrap_or_default() + timing.grace;
        let (mut rank, mut live) = (0, 0);
        for row in replicas {
            let (other, silent): (i32, f64) = (row.try_get(0)?, row.try_get(2)?);
            let is_live = other == me || silent <= counted.as_secs_f64();
            live += u32::from(is_live);
            rank += u32::from(is_live && other < me);
        }
        let share = Share::new(rank, live);
        if self.membership.share.send_if_modified(|last| std::mem::replace(last, share) != share) {
            tracing::info!(rank, live, "replicas changed");
        }
        Ok(())
    }

    /// Takes over from replicas that have fallen silent, until the end. Beside the proofs of life: where a snapshot is
    /// held, finding what a replica still holds means to read what it ever held.
    pub(super) async fn follow_silence(self: Arc<Self>, session: PinnedSession) {
        let (mut paces, throttle) = (HashMap::new(), LogThrottle::default());
        loop {
            tokio::select! {
                () = self.membership.silence.notified() => {}
                () = self.stop.cancelled() => return,
            }
            let taken = session.call(PATIENCE, async |session| self.take_over(session, &mut paces).await).await;
            if let Err(error) = taken
                && let Some(suppressed) = throttle.allow()
            {
                let remedy = error.remedy();
                tracing::warn!(%error, remedy, held_back = suppressed, "takeover failed; trying again");
            }
        }
    }

    /// Frees what silent replicas hold, for each target after its own time.
    async fn take_over(&self, session: &Session, paces: &mut HashMap<(i32, Arc<str>), Pace>) -> Result<(), Failure> {
        let (me, timing) = (self.incarnation(), self.tuning.replica);
        let silent = session.query(SILENT, &[(&timing.fence.as_secs_f64(), Type::FLOAT8)]).await?;
        let others = silent.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i32>, _>>()?;
        paces.retain(|(other, _), _| others.contains(other));
        for row in &silent {
            let (other, name, silent): (i32, &str, f64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            for target in self.targets.names().into_iter().filter(|_| other != me) {
                let timeout = self.inboxes.longest_attempt(&target).unwrap_or(UNKNOWN_TIMEOUT);
                let after = timing.fence + timeout + timing.grace;
                if silent <= after.as_secs_f64() || self.membership.answered_since.lock().elapsed() < after {
                    continue;
                }
                let pace = paces.entry((other, Arc::clone(&target))).or_default();
                if !pace.is_due(timing.cheap_look) {
                    continue;
                }
                let began = Instant::now();
                let values: [Value<'_>; 3] =
                    [(&other, Type::INT4), (&&*target, Type::TEXT), (&after.as_secs_f64(), Type::FLOAT8)];
                let freed = session.query(TAKE_OVER, &values).await?;
                pace.note(began.elapsed());
                if !freed.is_empty() {
                    let deliveries = freed.len();
                    tracing::warn!(replica = name, %target, deliveries, "deliveries of a silent replica taken over");
                    self.wake_freed(&freed)?;
                }
            }
        }
        Ok(())
    }

    /// Frees what is held by incarnations that there are no more.
    pub(super) async fn free_orphans(&self, session: &Session) -> Result<(), Failure> {
        let freed = session.query(FREE_ORPHANS, &[]).await?;
        if !freed.is_empty() {
            tracing::warn!(deliveries = freed.len(), "deliveries of a removed replica taken over");
        }
        self.wake_freed(&freed)
    }

    /// Gives everything back: others go on within a second.
    pub(super) async fn leave(&self) {
        let me = self.incarnation();
        let values: [Value<'_>; 1] = [(&me, Type::INT4)];
        let queries = [BoundQuery { sql: GIVE_ALL_BACK, values: &values }, BoundQuery { sql: LEAVE, values: &values }];
        let leave = async || self.leasing.call(TRY, async |session| session.transact("", &queries).await).await;
        let mut left = leave().await;
        // After a slow connect, nothing has been sent yet.
        if matches!(left, Err(Failure::Busy)) {
            left = leave().await;
        }
        if let Err(error) = left {
            tracing::warn!(%error, "leases not returned; others take them over later");
        }
    }
}
