//! Storing events that were read back from a damaged store, inside the writer's transaction.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::params;

use super::key_table;
use super::store::Store;
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::queue::checksum;
use crate::queue::encryption::SealContext;
use crate::queue::key_ring::SealedColumns;
use crate::queue::persons::user_number;
use crate::queue::stored::HELD;
use crate::queue::{AttemptRecord, DeliveryState, Disposition, NewEvent, ReplyState, Settlement};

/// An event that was read back, with its deliveries.
#[derive(Debug)]
pub(in crate::queue) struct SalvagedEvent {
    pub(super) new: NewEvent,
    pub(super) deliveries: Vec<SalvagedDelivery>,
    pub(super) replies: Vec<SalvagedReply>,
}

/// A delivery that was read back, with its attempts.
#[derive(Debug)]
pub(super) struct SalvagedDelivery {
    /// The number of its target in the damaged store.
    pub(super) number: i64,
    pub(super) target: Arc<str>,
    pub(super) state: DeliveryState,
    pub(super) attempts: u32,
    pub(super) failures: u32,
    pub(super) ended_at: Option<UnixMillis>,
    pub(super) history: Vec<AttemptRecord>,
}

/// What became of a reply, as it was read back; the columns of `held_reply`, the content in the clear.
#[derive(Debug)]
pub(super) struct SalvagedReply {
    pub(super) target: Arc<str>,
    pub(super) state: ReplyState,
    pub(super) attempt: Option<i64>,
    pub(super) at: Option<i64>,
    pub(super) taken: i64,
    pub(super) expires_at: Option<i64>,
    pub(super) picked_by: Option<i64>,
    pub(super) account: String,
    pub(super) user: String,
    pub(super) content: Option<Vec<u8>>,
}

/// What a step of an import did.
#[derive(Debug, Default)]
pub(in crate::queue) struct ImportStep {
    /// Events that were stored.
    pub(super) stored: u64,
    /// Events that were there already.
    pub(super) present: u64,
    /// Events whose id another event has.
    pub(super) refused: Vec<EventId>,
    /// The targets that may have something to lease now.
    pub(super) touched: BTreeSet<Arc<str>>,
    /// Deliveries that were due and are now held: their outstanding leases must be revoked.
    pub(super) revoked: Vec<(Arc<str>, EventId)>,
}

impl SalvagedEvent {
    /// How many of its deliveries are pending, dead, and ended otherwise.
    pub(super) fn count(&self) -> [u64; 3] {
        let mut counts = [0; 3];
        for delivery in &self.deliveries {
            counts[match delivery.state {
                DeliveryState::Pending => 0,
                DeliveryState::Dead => 1,
                DeliveryState::Delivered | DeliveryState::Expired | DeliveryState::Cancelled => 2,
            }] += 1;
        }
        counts
    }
}

impl Store {
    /// Stores these events with their ids and states, unless they are there.
    pub(super) fn import(
        &mut self,
        events: &[(SalvagedEvent, Option<SealedColumns>)],
        in_order: impl Fn(&str) -> bool,
        now: UnixMillis,
    ) -> rusqlite::Result<ImportStep> {
        let mut step = ImportStep::default();
        for (event, sealed) in events {
            let id = event.new.event.id;
            if self.dedup.find(&self.connection, event.new.key)?.is_some() {
                step.present += 1;
                continue;
            }
            let mut find = self.connection.prepare_cached("SELECT 1 FROM event WHERE id = ?1")?;
            let is_taken = find.exists([id])?;
            drop(find);
            if is_taken {
                step.refused.push(id);
                continue;
            }
            self.insert_event(&event.new, sealed.as_ref())?;
            self.dedup.insert(&self.connection, event.new.key, id)?;
            self.count_events(1, event.deliveries.len().cast_signed() as i64);
            for delivery in &event.deliveries {
                self.import_delivery(&event.new.event, delivery, &in_order, now, &mut step)?;
            }
            for (no, reply) in (1..).zip(&event.replies) {
                self.import_reply(id, no, reply)?;
            }
            step.stored += 1;
        }
        Ok(step)
    }

    fn import_delivery(
        &mut self,
        event: &Event,
        delivery: &SalvagedDelivery,
        in_order: impl Fn(&str) -> bool,
        now: UnixMillis,
        step: &mut ImportStep,
    ) -> rusqlite::Result<()> {
        let SalvagedDelivery { target, state, attempts, failures, ended_at, .. } = delivery;
        let number = self.number(target)?;
        let user = in_order(target).then(|| user_number(event.message.from_user()));
        let mut due = now;
        if *state == DeliveryState::Pending {
            step.touched.insert(Arc::clone(target));
            // Behind the user's earlier events and before the later ones, as where an operator replays one.
            match user.map(|user| self.first_pending(number, Some(user))).transpose()?.flatten() {
                Some(first) if first.event < event.id => due = HELD,
                Some(first) => {
                    self.set_due(first.event, number, HELD)?;
                    step.revoked.push((Arc::clone(target), first.event));
                }
                None => {}
            }
        }
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO delivery (event, target, state, attempts, failures, due, ended_at, user) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        let ended_at = (*state != DeliveryState::Pending).then(|| ended_at.unwrap_or(now));
        insert.execute(params![event.id, number, state, attempts, failures, due, ended_at, user])?;
        drop(insert);
        self.count(number, *state, 1);
        for attempt in &delivery.history {
            let settlement = Settlement {
                event: event.id,
                target: Arc::clone(target),
                disposition: Disposition::End(*state),
                decided_at: now,
                attempt: Some(attempt.clone()),
                reply: None,
            };
            self.insert_attempt(&settlement, number)?;
        }
        Ok(())
    }

    fn import_reply(&mut self, event: EventId, no: i64, reply: &SalvagedReply) -> rusqlite::Result<()> {
        let target = self.number(&reply.target)?;
        let at = reply.at.unwrap_or(0);
        let stored = reply.content.as_deref().map(|content| {
            let context = SealContext::Held(event, at);
            key_table::seal_like_event(&self.keys, &self.connection, event, context, content)
        });
        let stored = stored.transpose()?;
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO held_reply (event, no, target, state, attempt, at, taken, expires_at, picked_by, account, user, \
                                     checksum, content) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?;
        insert.execute(params![
            event,
            no,
            target,
            reply.state,
            reply.attempt,
            reply.at,
            reply.taken,
            reply.expires_at,
            reply.picked_by,
            reply.account,
            reply.user,
            stored.as_ref().map(|stored| checksum::of_held(event, at, stored)),
            stored,
        ])?;
        drop(insert);
        self.count_given(reply.state, 1);
        Ok(())
    }
}
