//! One step of a sweep, inside the writer's transaction: the rows that change, the tally, and the order of a user's
//! events.
//!
//! A candidate may have changed since it was found, so each delivery is read again here.

use std::collections::{BTreeSet, HashMap};
use std::slice;
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::store::Store;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::persons::{sender, user_number};
use crate::queue::stored::HELD;
use crate::queue::{DeliveryState, Sweep, SweepAction};

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

/// A delivery that a step may change.
#[derive(Clone, Copy)]
struct DeliveryRow {
    event: EventId,
    target: i64,
    state: DeliveryState,
}

struct SweepRun<'s, F> {
    store: &'s mut Store,
    in_order: F,
    now: UnixMillis,
    names: HashMap<i64, Arc<str>>,
    done: SweepStep,
}

impl Store {
    /// Makes a step of a sweep over these events, in the order of their ids.
    pub(super) fn sweep(
        &mut self,
        events: &[EventId],
        sweep: &Sweep,
        in_order: impl Fn(&str) -> bool,
        now: UnixMillis,
    ) -> rusqlite::Result<SweepStep> {
        let only = match &sweep.filter.target {
            Some(name) => match self.known_number(&name.as_str().into())? {
                None => return Ok(SweepStep::default()),
                known => known,
            },
            None => None,
        };
        let mut step = SweepRun { store: self, in_order, now, names: HashMap::new(), done: SweepStep::default() };
        match &sweep.action {
            SweepAction::ReplayTo(to) => {
                let to = step.store.number(to)?;
                events.iter().try_for_each(|event| step.replay_to(*event, to))?;
            }
            SweepAction::Redirect(to) => {
                let to = step.store.number(to)?;
                for row in step.rows(events, only, sweep.filter.state)? {
                    step.redirect(row, to)?;
                }
            }
            SweepAction::Replay => {
                for row in step.rows(events, only, sweep.filter.state)? {
                    step.replay(row)?;
                }
            }
            SweepAction::Drop => {
                for row in step.rows(events, only, sweep.filter.state)? {
                    step.cancel(row)?;
                }
            }
            SweepAction::Forget => step.forget(events)?,
        }
        Ok(step.done)
    }
}

impl<F: Fn(&str) -> bool> SweepRun<'_, F> {
    fn rows(
        &self,
        events: &[EventId],
        target: Option<i64>,
        state: Option<DeliveryState>,
    ) -> rusqlite::Result<Vec<DeliveryRow>> {
        let mut find = self.store.connection.prepare_cached(
            "SELECT target, state FROM delivery \
              WHERE event = ?1 AND (?2 IS NULL OR target = ?2) AND (?3 IS NULL OR state = ?3)",
        )?;
        let mut found = Vec::with_capacity(events.len());
        for event in events {
            let rows = find.query_map(params![event, target, state], |row| {
                Ok(DeliveryRow { event: *event, target: row.get(0)?, state: row.get(1)? })
            })?;
            for row in rows {
                found.push(row?);
            }
        }
        Ok(found)
    }

    fn replay(&mut self, row: DeliveryRow) -> rusqlite::Result<()> {
        let DeliveryRow { event, target, state } = row;
        if state == DeliveryState::Pending {
            return Ok(());
        }
        let user = self.user(event, target)?;
        let due = self.choose_due(event, target, user)?;
        let mut update = self.store.connection.prepare_cached(
            "UPDATE delivery SET state = 0, due = ?3, ended_at = NULL, failures = 0, user = ?4 \
              WHERE event = ?1 AND target = ?2",
        )?;
        update.execute(params![event, target, due, user])?;
        drop(update);
        self.count_change(target, Some(state), DeliveryState::Pending)
    }

    fn replay_to(&mut self, event: EventId, target: i64) -> rusqlite::Result<()> {
        match self.state(event, target)? {
            Some(state) => self.replay(DeliveryRow { event, target, state }),
            None => self.add(event, target),
        }
    }

    fn cancel(&mut self, row: DeliveryRow) -> rusqlite::Result<()> {
        let DeliveryRow { event, target, state } = row;
        if !matches!(state, DeliveryState::Pending | DeliveryState::Dead) {
            return Ok(());
        }
        let mut update = self.store.connection.prepare_cached(
            "UPDATE delivery SET state = ?3, ended_at = ?4, failures = 0 WHERE event = ?1 AND target = ?2",
        )?;
        update.execute(params![event, target, DeliveryState::Cancelled, self.now])?;
        drop(update);
        if state == DeliveryState::Pending {
            self.store.release_next(event, target, self.now)?;
            let name = self.name(target)?;
            self.done.revoked.push((name, event));
        }
        self.count_change(target, Some(state), DeliveryState::Cancelled)
    }

    fn redirect(&mut self, row: DeliveryRow, to: i64) -> rusqlite::Result<()> {
        if row.state != DeliveryState::Pending || row.target == to {
            return Ok(());
        }
        self.cancel(row)?;
        let counted = self.done.changed;
        match self.state(row.event, to)? {
            None => self.add(row.event, to)?,
            // As after a redirect the other way: else nobody would get it.
            Some(state @ DeliveryState::Cancelled) => {
                self.replay(DeliveryRow { event: row.event, target: to, state })?;
            }
            Some(_) => {}
        }
        // It moved: one delivery changed, not two.
        self.done.changed = counted;
        Ok(())
    }

    /// Pending deliveries are cancelled first: that revokes their leases and releases deliveries that are held behind
    /// them.
    fn forget(&mut self, events: &[EventId]) -> rusqlite::Result<()> {
        for event in events {
            let counted = self.done.changed;
            for row in self.rows(slice::from_ref(event), None, None)? {
                self.cancel(row)?;
            }
            let now = self.now;
            let gone = self.store.with_erased_pages(|store| store.remove(*event, now))?;
            self.done.changed = counted + u64::from(gone);
        }
        Ok(())
    }

    /// Gives an event a delivery that it did not come with, unless the event is gone.
    fn add(&mut self, event: EventId, target: i64) -> rusqlite::Result<()> {
        let mut count = self.store.connection.prepare_cached("UPDATE event SET targets = targets + 1 WHERE id = ?1")?;
        if count.execute([event])? == 0 {
            return Ok(());
        }
        drop(count);
        let user = self.user(event, target)?;
        let due = self.choose_due(event, target, user)?;
        let mut insert = self.store.connection.prepare_cached(
            "INSERT INTO delivery (event, target, state, attempts, failures, due, user) \
             VALUES (?1, ?2, 0, 0, 0, ?3, ?4)",
        )?;
        insert.execute(params![event, target, due, user])?;
        drop(insert);
        self.store.count_events(0, 1);
        self.count_change(target, None, DeliveryState::Pending)
    }

    /// When a delivery that becomes pending is due. Where order is kept: behind the user's earlier events, and before
    /// the later ones.
    fn choose_due(&mut self, event: EventId, target: i64, user: Option<i64>) -> rusqlite::Result<UnixMillis> {
        let Some(first) = user.map(|user| self.store.first_pending(target, Some(user))).transpose()?.flatten() else {
            return Ok(self.now);
        };
        if first.event < event {
            return Ok(HELD);
        }
        self.store.set_due(first.event, target, HELD)?;
        let name = self.name(target)?;
        self.done.revoked.push((name, first.event));
        Ok(self.now)
    }

    /// The user's number, where the target keeps order.
    fn user(&mut self, event: EventId, target: i64) -> rusqlite::Result<Option<i64>> {
        let name = self.name(target)?;
        if !(self.in_order)(&name) {
            return Ok(None);
        }
        let mut find = self.store.connection.prepare_cached("SELECT from_user FROM event WHERE id = ?1")?;
        let user: Option<String> = find.query_row([event], |row| row.get(0)).optional()?;
        Ok(user.as_deref().map(sender).map(user_number))
    }

    fn state(&self, event: EventId, target: i64) -> rusqlite::Result<Option<DeliveryState>> {
        let mut find =
            self.store.connection.prepare_cached("SELECT state FROM delivery WHERE event = ?1 AND target = ?2")?;
        find.query_row(params![event, target], |row| row.get(0)).optional()
    }

    fn name(&mut self, target: i64) -> rusqlite::Result<Arc<str>> {
        if let Some(name) = self.names.get(&target) {
            return Ok(Arc::clone(name));
        }
        let mut find = self.store.connection.prepare_cached("SELECT name FROM target WHERE no = ?1")?;
        let name: Arc<str> = find.query_row([target], |row| row.get::<_, String>(0))?.into();
        self.names.insert(target, Arc::clone(&name));
        Ok(name)
    }

    /// Counts a change of state in the tally.
    fn count_change(&mut self, target: i64, from: Option<DeliveryState>, to: DeliveryState) -> rusqlite::Result<()> {
        if let Some(from) = from {
            self.store.count(target, from, -1);
        }
        self.store.count(target, to, 1);
        self.done.changed += 1;
        let name = self.name(target)?;
        self.done.touched.insert(name);
        Ok(())
    }
}
