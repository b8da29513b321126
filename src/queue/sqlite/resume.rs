//! Reading and leasing again what an earlier process was asked for and did not answer; see `queue/resume.rs`.

use std::sync::Arc;

use rusqlite::{OptionalExtension as _, params};

use super::Sqlite;
use super::command::WriterCommand;
use super::store::Store;
use super::writer::Writer;
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::queue::resume::Unanswered;
use crate::queue::stored::{HELD, key_of};
use crate::queue::{AwaitedReply, Enqueued, Error, Known, Lease};

/// The most events that are read, and about the most bytes of their bodies: these are held until they are delivered.
const MAX_EVENTS: i64 = 1024;
const MAX_BYTES: usize = 32 << 20;

impl Sqlite {
    pub(in crate::queue) async fn unanswered(&self, since: UnixMillis) -> Result<Vec<Unanswered>, Error> {
        self.execute(|waiter| WriterCommand::Unanswered { since, waiter }).await
    }

    pub(in crate::queue) async fn lease_awaited(
        &self,
        event: Arc<Event>,
        awaited: Vec<(Arc<str>, AwaitedReply)>,
    ) -> Result<Vec<Lease>, Error> {
        self.execute(|waiter| WriterCommand::LeaseAwaited { event, awaited, waiter }).await
    }

    pub(in crate::queue) fn hand_over(&self, lease: Lease) {
        // A lease that does not fit is dropped, which returns its delivery.
        drop(self.inboxes.offer(lease));
    }
}

impl Writer {
    /// Leases an event's deliveries to these targets whose first attempt is due and has not ended.
    pub(super) fn lease_awaited(
        &mut self,
        event: &Arc<Event>,
        awaited: Vec<(Arc<str>, AwaitedReply)>,
    ) -> rusqlite::Result<Vec<Lease>> {
        let mut leases = Vec::new();
        for (target, reply) in awaited {
            if !self.store.is_untried(event.id, &target)? || self.leases.contains(&target, event.id) {
                continue;
            }
            // Without memory for it, the delivery waits in the store, and the try for no reply.
            let Some(guard) = self.leases.grant(&target, event, 1, true) else { continue };
            let event = Arc::clone(event);
            leases.push(Lease { event, target, attempt: 1, failures: 0, reply: Some(reply), guard });
        }
        Ok(leases)
    }
}

impl Store {
    /// The newest readable events since then with a pending delivery that has no attempt on record.
    pub(super) fn list_unanswered(&self, since: UnixMillis) -> rusqlite::Result<Vec<Unanswered>> {
        let mut find = self.connection.prepare(
            "SELECT id FROM event WHERE id >= ?1 \
                AND EXISTS (SELECT 1 FROM delivery d WHERE d.event = id AND d.state = 0 AND d.attempts = 0) \
              ORDER BY id DESC LIMIT ?2",
        )?;
        let ids = find.query_map(params![EventId::first_at(since), MAX_EVENTS], |row| row.get(0))?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        for id in ids.collect::<rusqlite::Result<Vec<EventId>>>()? {
            // An unreadable event becomes a dead letter when its delivery is leased.
            let Ok(event) = self.load_verified(id)? else { continue };
            bytes += event.body.len() + event.clear.len();
            if bytes > MAX_BYTES {
                break;
            }
            let key = key_of(&event);
            if let Some(Enqueued::Duplicate { id, reply: Known::Answered(reply) }) = self.find_duplicate(key)?
                && id == event.id
            {
                found.push(Unanswered { event: Arc::new(event), key, reply });
            }
        }
        Ok(found)
    }

    /// Whether that delivery is pending and due without an attempt on record.
    fn is_untried(&mut self, event: EventId, target: &Arc<str>) -> rusqlite::Result<bool> {
        let Some(number) = self.known_number(target)? else { return Ok(false) };
        let mut find = self.connection.prepare_cached(
            "SELECT 1 FROM delivery WHERE event = ?1 AND target = ?2 AND state = 0 AND attempts = 0 AND due <> ?3",
        )?;
        Ok(find.query_row(params![event, number, HELD], |_| Ok(())).optional()?.is_some())
    }
}
