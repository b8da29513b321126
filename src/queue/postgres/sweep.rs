//! One step of a sweep, in one transaction: the rows that change, the tally, and the order of a user's events.
//!
//! - A candidate may have changed since it was found: each statement repeats the state that it changes. Steps and
//!   deleting what is old exclude each other, and where order is kept, so do a step and what pushes and settlements
//!   change of the same users.
//! - A delivery that ends frees itself of its holder, so that the holder's settlement changes nothing any more. One that
//!   becomes pending while its revoked lease is still out in this replica belongs to that lease: it is free when the
//!   lease is returned, and is not attempted twice at a time.
//! - A delivery that becomes pending by hand takes its place by the number of its event: before the first pending one
//!   whose event is later. All of its user from there on get new turns.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::engine::Engine;
use super::failure::Failure;
use super::locks::{LOCK_CHANGES, lock_users};
use super::session::{BoundQuery, Session, Value};
use super::values::{event_id, id_of, state_number};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::persons::{sender, user_number};
use crate::queue::{Sweep, SweepAction};

/// What a step did.
#[derive(Debug, Default)]
pub(super) struct SweepStep {
    /// How many deliveries changed; of [`SweepAction::Forget`], how many events were deleted.
    pub(super) changed: u64,
    /// The targets that may have something to lease now.
    pub(super) touched: BTreeSet<Arc<str>>,
    /// Deliveries that were due and are now cancelled, deleted or held: their outstanding leases must be revoked.
    pub(super) revoked: Vec<(Arc<str>, EventId)>,
}

/// What every statement of a step may name: `$1` the events, `$2` a target, `$3` a state, `$4` the present, `$5` another
/// target, `$6` the numbers of the events' users, `$7` the targets that keep order, `$8` and `$9` the events and targets
/// of leases that are out here, `$10` this replica.
macro_rules! statement {
    ($($text:expr),+) => {
        concat!(
            "WITH p AS (SELECT $1::int8[] AS events, $2::int2 AS target, $3::int2 AS state, $4::int8 AS now, \
               $5::int2 AS other, $6::int8[] AS users, $7::int2[] AS in_order, $8::int8[] AS out_event, \
               $9::int2[] AS out_target, $10::int4 AS me), ",
            $($text),+
        )
    };
}

/// Cancels the deliveries `c`.
macro_rules! cancel {
    ($condition:literal) => {
        concat!(
            "c AS MATERIALIZED (SELECT d.event, d.target, d.state FROM delivery d WHERE d.event = ANY($1::int8[]) \
               AND ($2::int2 IS NULL OR d.target = $2) AND ($3::int2 IS NULL OR d.state = $3) AND ",
            $condition,
            " ORDER BY d.event, d.target FOR UPDATE OF d), \
             u AS (UPDATE delivery d SET state = 4, ended_at = $4, failures = 0, holder = NULL FROM c \
               WHERE d.event = c.event AND d.target = c.target AND d.state = c.state RETURNING d.event, d.target, c.state), \
             cancelled AS (SELECT target, state, -1 AS change FROM u UNION ALL SELECT target, 4::int2, 1 FROM u)"
        )
    };
}

/// Makes ended deliveries pending, which `c` gives with their users. Their turns are given by [`ARRANGE`].
macro_rules! revive {
    () => {
        "UPDATE delivery d SET state = 0, due = $4, ended_at = NULL, failures = 0, turn = NULL, \
             usr = CASE WHEN d.target = ANY($7::int2[]) THEN c.usr END, \
             holder = CASE WHEN EXISTS (SELECT FROM unnest($8::int8[], $9::int2[]) o(event, target) \
                 WHERE o.event = d.event AND o.target = d.target) THEN $10::int4 END "
    };
}

/// A delivery that an event did not come with, for each event of `n (event, usr)`.
macro_rules! add {
    () => {
        "e AS (UPDATE event SET targets = event.targets + 1 FROM n WHERE event.id = n.event RETURNING event.id), \
         a AS (INSERT INTO delivery (event, target, state, attempts, failures, due, usr) \
           SELECT n.event, $5, 0, 0, 0, $4, CASE WHEN $5 = ANY($7::int2[]) THEN n.usr END FROM e JOIN n ON n.event = e.id \
           RETURNING event, target), \
         added AS (SELECT target, 0::int2 AS state, 1 AS change FROM a UNION ALL SELECT 0::int2, 1::int2, 1 FROM a)"
    };
}

/// Adds the rows of `changes (target, state, change)` to the tally.
macro_rules! tally {
    ($changes:literal) => {
        concat!(
            "t AS (INSERT INTO tally_delta (target, state, count) SELECT target, state, sum(change) FROM (",
            $changes,
            ") x GROUP BY target, state HAVING sum(change) <> 0) "
        )
    };
}

/// Each answers `event, target, state it was in, kind`: kind 0 counts as changed, 1 does not.
const DROP: &str = statement!(
    cancel!("d.state + 0 IN (0, 2)"),
    ", ",
    tally!("SELECT * FROM cancelled"),
    "SELECT event, target, state, 0 FROM u"
);

const REDIRECT: &str = statement!(
    cancel!("d.state + 0 = 0 AND d.target <> $5"),
    ", m AS (SELECT DISTINCT u.event, x.usr FROM u JOIN unnest($1::int8[], $6::int8[]) x(event, usr) ON x.event = u.event), \
     n AS (SELECT event, usr FROM m WHERE NOT EXISTS (SELECT FROM delivery d WHERE d.event = m.event AND d.target = $5)), ",
    add!(),
    ", r AS (",
    revive!(),
    "FROM m c WHERE d.event = c.event AND d.target = $5 AND d.state + 0 = 4 RETURNING d.event, d.target), \
     revived AS (SELECT target, 4::int2 AS state, -1 AS change FROM r UNION ALL SELECT target, 0::int2, 1 FROM r), ",
    tally!("SELECT * FROM cancelled UNION ALL SELECT * FROM added UNION ALL SELECT * FROM revived"),
    "SELECT event, target, state, 0 FROM u UNION ALL SELECT event, target, -1::int2, 1 FROM a \
     UNION ALL SELECT event, target, -1::int2, 1 FROM r"
);

/// Ended deliveries become pending.
const REPLAY: &str = statement!(
    "c AS MATERIALIZED (SELECT d.event, d.target, d.state, x.usr FROM unnest($1::int8[], $6::int8[]) x(event, usr) \
       JOIN delivery d ON d.event = x.event WHERE ($2::int2 IS NULL OR d.target = $2) \
         AND ($3::int2 IS NULL OR d.state = $3) AND d.state <> 0 ORDER BY d.event, d.target FOR UPDATE OF d), \
     u AS (",
    revive!(),
    "FROM c WHERE d.event = c.event AND d.target = c.target AND d.state = c.state RETURNING d.event, d.target, c.state), ",
    tally!("SELECT target, state, -1 AS change FROM u UNION ALL SELECT target, 0::int2, 1 FROM u"),
    "SELECT event, target, state, 0 FROM u"
);

/// The events get a delivery to `$5` where they have none.
const ADD: &str = statement!(
    "n AS (SELECT x.event, x.usr FROM unnest($1::int8[], $6::int8[]) x(event, usr) \
       WHERE NOT EXISTS (SELECT FROM delivery d WHERE d.event = x.event AND d.target = $5)), ",
    add!(),
    ", ",
    tally!("SELECT * FROM added"),
    "SELECT event, target, -1::int2, 0 FROM a"
);

/// Deletes the events with all their rows. Their keys stay known: housekeeping deletes them when no copy of their pushes
/// can come any more.
const DELETE: &str = statement!(
    "e AS (DELETE FROM event WHERE id = ANY($1::int8[]) RETURNING id, content_key, targets), \
     d AS (DELETE FROM delivery USING e WHERE delivery.event = e.id RETURNING delivery.target, delivery.state), \
     a AS (DELETE FROM attempt USING e WHERE attempt.event = e.id), \
     h AS (DELETE FROM held_reply USING e WHERE held_reply.event = e.id RETURNING held_reply.state), \
     r AS (INSERT INTO retired_key (event, content_key) SELECT id, content_key FROM e ON CONFLICT DO NOTHING), ",
    tally!(
        "SELECT target, state, -1 AS change FROM d UNION ALL SELECT 0::int2, 0::int2, -1 FROM e \
         UNION ALL SELECT 0::int2, 1::int2, -targets FROM e \
         UNION ALL SELECT -1::int2, state, -1 FROM h WHERE state NOT IN (0, 7) \
         UNION ALL SELECT -1::int2, 0::int2, -1 FROM h WHERE state NOT IN (0, 7)"
    ),
    "SELECT id, 0::int2, -1::int2, 0 FROM e"
);

/// Makes the next deliveries due of the users that these events are of, as of their arrival. Answers as the others.
const RELEASE: &str = statement!(
    "k AS (SELECT DISTINCT target, usr FROM delivery WHERE event = ANY($1::int8[]) AND usr IS NOT NULL), \
     n AS (SELECT k.target, (SELECT f.event FROM delivery f WHERE f.target = k.target AND f.usr = k.usr AND f.state = 0 \
         AND f.usr IS NOT NULL ORDER BY f.turn LIMIT 1) AS event FROM k), \
     u AS (UPDATE delivery d SET due = least(d.event >> 20, $4) FROM n \
       WHERE d.event = n.event AND d.target = n.target AND d.state + 0 = 0 AND d.due = 9223372036854775807 \
       RETURNING d.event, d.target) \
     SELECT event, target, -1::int2, 1 FROM u"
);

/// Gives places to deliveries that have become pending without a turn. What was in order stays so among itself: its place
/// is the latest event up to it. What is no longer first is held, and taken from a holder elsewhere. Answers those that
/// were due before and are held now, as of kind 2.
const ARRANGE: &str = statement!(
    "k AS (SELECT DISTINCT target, usr FROM delivery WHERE event = ANY($1::int8[]) AND state + 0 = 0 AND usr IS NOT NULL \
         AND turn IS NULL), \
     s AS (SELECT d.event, d.target, d.usr, d.turn, d.due, CASE WHEN d.turn IS NULL THEN d.event \
           ELSE max(d.event) OVER (PARTITION BY d.target, d.usr ORDER BY d.turn) END AS place \
         FROM k JOIN delivery d ON d.target = k.target AND d.usr = k.usr AND d.state = 0 AND d.usr IS NOT NULL), \
     o AS MATERIALIZED (SELECT s.*, row_number() OVER (PARTITION BY target, usr ORDER BY place, turn) AS rank, \
           min(CASE WHEN turn IS NULL THEN place END) OVER (PARTITION BY target, usr) AS begin \
         FROM s ORDER BY target, usr, place, turn), \
     n AS MATERIALIZED (SELECT event, target, due, turn AS old, rank, nextval('turn') AS turn FROM o WHERE place >= begin), \
     u AS (UPDATE delivery d SET turn = n.turn, due = CASE WHEN n.rank > 1 THEN 9223372036854775807 ELSE d.due END, \
         holder = CASE WHEN n.rank > 1 AND d.holder <> $10 THEN NULL ELSE d.holder END \
       FROM n WHERE d.event = n.event AND d.target = n.target AND d.state + 0 = 0 \
       RETURNING d.event, d.target, n.rank, n.due, n.old) \
     SELECT event, target, -1::int2, 2 FROM u WHERE rank > 1 AND old IS NOT NULL AND due < 9223372036854775807"
);

const CHANGE: &str = "UPDATE meta SET change = change + 1";

const EVENTS: &str = "SELECT id, from_user FROM event WHERE id = ANY($1::int8[])";
const TARGETS: &str = "SELECT no, name FROM target";
/// The numbers of users as the rows have them: a text that PostgreSQL does not store was changed in `event`.
const USERS: &str = "SELECT DISTINCT usr FROM delivery WHERE event = ANY($1::int8[]) AND usr IS NOT NULL";

/// The values of a step's statements.
struct StepValues {
    events: Vec<i64>,
    users: Vec<i64>,
    target: Option<i16>,
    state: Option<i16>,
    now: i64,
    other: Option<i16>,
    in_order: Vec<i16>,
    out_event: Vec<i64>,
    out_target: Vec<i16>,
    me: i32,
}

impl StepValues {
    fn list(&self) -> [Value<'_>; 10] {
        [
            (&self.events, Type::INT8_ARRAY),
            (&self.target, Type::INT2),
            (&self.state, Type::INT2),
            (&self.now, Type::INT8),
            (&self.other, Type::INT2),
            (&self.users, Type::INT8_ARRAY),
            (&self.in_order, Type::INT2_ARRAY),
            (&self.out_event, Type::INT8_ARRAY),
            (&self.out_target, Type::INT2_ARRAY),
            (&self.me, Type::INT4),
        ]
    }
}

impl Engine {
    /// Makes a step of a sweep over these events.
    pub(super) async fn sweep_step(
        &self,
        session: &Session,
        events: &[EventId],
        sweep: &Sweep,
        now: UnixMillis,
    ) -> Result<SweepStep, Failure> {
        if let SweepAction::ReplayTo(to) | SweepAction::Redirect(to) = &sweep.action {
            self.targets.find_or_add(session, std::slice::from_ref(to)).await?;
        }
        let mut names: HashMap<i16, Arc<str>> = HashMap::new();
        for row in session.query(TARGETS, &[]).await? {
            names.insert(row.try_get(0)?, row.try_get::<_, &str>(1)?.into());
        }
        let number = |name: &str| names.iter().find(|(_, known)| &***known == name).map(|(number, _)| *number);
        let target = match &sweep.filter.target {
            Some(name) => match number(name) {
                None => return Ok(SweepStep::default()),
                known => known,
            },
            None => None,
        };
        let mut values = StepValues {
            events: Vec::new(),
            users: Vec::new(),
            target,
            state: sweep.filter.state.map(state_number),
            now: now.0,
            other: None,
            in_order: names.iter().filter(|(_, name)| self.inboxes.in_order(name)).map(|(number, _)| *number).collect(),
            out_event: Vec::new(),
            out_target: Vec::new(),
            me: self.incarnation(),
        };
        let queries: &[&'static str] = match &sweep.action {
            SweepAction::Drop => &[DROP, RELEASE, CHANGE],
            SweepAction::Replay => &[REPLAY, ARRANGE, CHANGE],
            SweepAction::ReplayTo(to) => {
                (values.target, values.state, values.other) = (number(to), None, number(to));
                &[REPLAY, ADD, ARRANGE, CHANGE]
            }
            SweepAction::Redirect(to) => {
                values.other = number(to);
                &[REDIRECT, RELEASE, ARRANGE, CHANGE]
            }
            SweepAction::Forget => {
                (values.target, values.state) = (None, None);
                &[DROP, RELEASE, DELETE, CHANGE]
            }
        };
        let lock = self.lock_step(session, events, &mut values).await?;
        self.list_outstanding(&names, &mut values);
        let list = values.list();
        let queries: Vec<BoundQuery<'_>> =
            queries.iter().map(|sql| BoundQuery { sql, values: if *sql == CHANGE { &[] } else { &list } }).collect();
        let answers = session.transact(&lock, &queries).await?;
        let mut step = SweepStep::default();
        for row in answers.iter().flatten() {
            step.note(row, &names, &sweep.action)?;
        }
        Ok(step)
    }

    /// Finds the users of the events; the text that locks what a step excludes.
    async fn lock_step(
        &self,
        session: &Session,
        events: &[EventId],
        values: &mut StepValues,
    ) -> Result<String, Failure> {
        let listed: Vec<i64> = events.iter().map(|event| id_of(*event)).collect();
        for row in session.query(EVENTS, &[(&listed, Type::INT8_ARRAY)]).await? {
            values.events.push(row.try_get(0)?);
            values.users.push(user_number(sender(row.try_get(1)?)));
        }
        let rows = session.query(USERS, &[(&listed, Type::INT8_ARRAY)]).await?;
        let mut users = rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<Vec<i64>, Failure>>()?;
        if !values.in_order.is_empty() {
            users.extend(&values.users);
        }
        Ok(format!("{LOCK_CHANGES}{}", lock_users(users.into_iter())))
    }

    /// Notes which of the events' deliveries have a lease that is out in this replica.
    fn list_outstanding(&self, names: &HashMap<i16, Arc<str>>, values: &mut StepValues) {
        let leases = self.leases.lock();
        for event in &values.events {
            for (number, name) in names {
                if leases.contains(name, event_id(*event)) {
                    values.out_event.push(*event);
                    values.out_target.push(*number);
                }
            }
        }
    }
}

impl SweepStep {
    fn note(&mut self, row: &Row, names: &HashMap<i16, Arc<str>>, action: &SweepAction) -> Result<(), Failure> {
        let (event, target): (i64, i16) = (row.try_get(0)?, row.try_get(1)?);
        let (state, kind): (i16, i32) = (row.try_get(2)?, row.try_get(3)?);
        let is_deleted = target == 0;
        if kind == 0 && (is_deleted || *action != SweepAction::Forget) {
            self.changed += 1;
        }
        let Some(name) = names.get(&target) else { return Ok(()) };
        if kind == 2 || (state == 0 && kind == 0) {
            self.revoked.push((Arc::clone(name), event_id(event)));
        }
        self.touched.insert(Arc::clone(name));
        Ok(())
    }
}
